package agent

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/modeswitch"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	rolloutID = "rollout00001"

	wishTry    = curfewv1.RolloutWish_ROLLOUT_WISH_TRY
	wishKeep   = curfewv1.RolloutWish_ROLLOUT_WISH_KEEP
	wishReturn = curfewv1.RolloutWish_ROLLOUT_WISH_RETURN

	following = "mode: observe\ngated_users: [bob]\nfollow_rollouts: true\n"
)

// wants sends a state that answers the newest nonce, and waits until it was taken in.
func (p *plane) wants(wish curfewv1.RolloutWish, attempt uint32) {
	p.t.Helper()
	for _, m := range p.earlier {
		if b := m.GetHeartbeat(); b != nil {
			p.nonce = b.GetNonce()
		}
	}
	p.rollout = &curfewv1.Rollout{Id: rolloutID, Attempt: attempt, Wish: wish}
	p.sendState(p.state(nil))
	p.ack()
}

// reports waits for a heartbeat that says what became of an attempt.
func (p *plane) reports(phase curfewv1.RolloutPhase, attempt uint32) *curfewv1.RolloutReport {
	p.t.Helper()
	b := p.next(func(m *curfewv1.HostMessage) bool {
		r := m.GetHeartbeat().GetRollout()
		return r != nil && r.GetPhase() == phase && r.GetAttempt() == attempt
	}).GetHeartbeat()
	p.nonce = b.GetNonce()
	if r := b.GetRollout(); r.GetId() != rolloutID && attempt > 0 {
		p.t.Errorf("a report of another rollout: %v", r)
	}
	return b.GetRollout()
}

// step is what the command says that looks the host over.
func (m *machine) step(attempt uint32, did, words, want string) {
	m.t.Helper()
	_, err := TellRollout(context.Background(), m.socket(),
		RolloutStep{ID: rolloutID, Attempt: attempt, Did: did, Words: words})
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		m.t.Fatalf("%s of attempt %d: %v, want %q", did, attempt, err, want)
	}
}

func (m *machine) looked(want int32) {
	m.t.Helper()
	m.trialEnd() // what was sent before is done with
	m.half.owner.beside.Wait()
	if n := m.lookings.Load(); n != want {
		m.t.Fatalf("the host was looked over %d times, want %d", n, want)
	}
}

func (m *machine) trialEnd() time.Time {
	m.t.Helper()
	s, err := AskStatus(context.Background(), m.socket())
	if err != nil {
		m.t.Fatal(err)
	}
	return s.TrialEnd
}

func follower(t *testing.T) (*machine, *plane) {
	t.Helper()
	m := newMachine(t)
	m.settings(following)
	m.start()
	p := m.connect()
	m.tableSays("observe\n")
	return m, p
}

// passes brings an attempt to where the host enforces on trial.
func (m *machine) passes(p *plane, attempt uint32) {
	m.t.Helper()
	p.wants(wishTry, attempt)
	p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_CHECKING, attempt)
	m.step(attempt, "begin", "", "")
	m.step(attempt, "passed", "", "")
	p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL, attempt)
	m.tableSays("trial ")
}

// A rollout has the host enforce on trial, which lasts as long as the control plane says so, keeps it, and
// takes it back. An attempt is made once.
func TestRolloutTriesKeepsAndReturns(t *testing.T) {
	m, p := follower(t)
	m.passes(p, 1)
	p.wants(wishTry, 1)
	m.looked(1)
	m.step(1, "begin", "", "does not follow")
	first := m.trialEnd()
	p.wants(wishTry, 1)
	if again := m.trialEnd(); !again.Equal(first) {
		t.Errorf("a fresh trial was lengthened from %v to %v", first, again)
	}
	m.ahead.Store(int64(6 * time.Minute))
	p.wants(wishTry, 1)
	if left := time.Until(m.trialEnd()) - 6*time.Minute; left < 9*time.Minute {
		t.Errorf("a trial that goes on has %v left", left)
	}
	m.tableSays("trial ")
	p.wants(wishKeep, 1)
	p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_KEPT, 1)
	m.tableSays("enforce\n")
	m.ahead.Store(int64(time.Hour))
	m.tableSays("enforce\n")
	m.stop()
	m.start()
	p = m.connect()
	m.tableSays("enforce\n")
	p.wants(wishReturn, 1)
	p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_RETURNED, 1)
	m.tableSays("observe\n")
	p.wants(wishTry, 1)
	m.looked(1)
	p.wants(wishTry, 2)
	m.looked(2)
}

// Without a word from the control plane the host observes again, and the same attempt is not made anew.
func TestRolloutLapsesWithoutAWord(t *testing.T) {
	m, p := follower(t)
	m.passes(p, 1)
	m.ahead.Store(int64(rolloutTrial + time.Minute))
	r := p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_LAPSED, 1)
	if !strings.Contains(r.GetDetail(), "the control plane was not heard") {
		t.Errorf("it says %q", r.GetDetail())
	}
	m.tableSays("observe\n")
	p.wants(wishKeep, 1)
	p.wants(wishTry, 1)
	m.looked(1)
	m.tableSays("observe\n")
	m.stop()
	m.start()
	p = m.connect()
	p.wants(wishTry, 1)
	m.looked(1)
	m.passes(p, 2)
}

// What the look finds is reported in its words; a look that does not end is, too.
func TestRolloutIsRefusedInWords(t *testing.T) {
	m, p := follower(t)
	p.wants(wishTry, 1)
	m.step(2, "begin", "", "no rollout wants that attempt")
	m.step(1, "passed", "", "does not follow")
	m.step(1, "begin", "", "")
	m.tableSays("trial ")
	p.wants(wishKeep, 1)
	if m.trialEnd().IsZero() {
		t.Fatal("a trial was kept that has not passed its self-test")
	}
	m.tableSays("trial ")
	m.step(1, "failed", "sshd lets everybody in", "")
	if r := p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_REFUSED, 1); r.GetDetail() != "sshd lets everybody in" {
		t.Errorf("it says %q", r.GetDetail())
	}
	m.tableSays("observe\n")
	p.wants(wishTry, 2)
	m.looked(2)
	m.ahead.Store(int64(lookOverTime + time.Minute))
	p.wants(wishTry, 2)
	if r := p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_REFUSED, 2); !strings.Contains(r.GetDetail(), rolloutUnit) {
		t.Errorf("it says %q", r.GetDetail())
	}
	m.looked(2)
}

// Root's word on the host stands against any rollout.
func TestRootOverrulesRollouts(t *testing.T) {
	m, p := follower(t)
	m.passes(p, 1)
	off := func(follow bool) {
		t.Helper()
		if err := SwitchDir(m.root).Off("observe", "root", follow, time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := EnforceOff(context.Background(), m.socket()); err != nil {
			t.Fatal(err)
		}
		m.tableSays("observe\n")
	}
	off(false)
	if r := p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_OVERRULED, 1); !strings.Contains(r.GetDetail(), "--follow") {
		t.Errorf("it says %q", r.GetDetail())
	}
	for _, wish := range []curfewv1.RolloutWish{wishTry, wishKeep} {
		p.wants(wish, 2)
		m.looked(1)
		m.tableSays("observe\n")
	}
	p.wants(wishTry, 2)
	m.step(2, "begin", "", "root on this host said observe")
	off(true)
	m.passes(p, 3)

	// Root enforces by a word of its own: nothing takes that back.
	err := SwitchDir(m.root).Change(func(s *modeswitch.Switch) (*modeswitch.Switch, error) {
		return &modeswitch.Switch{Mode: modeswitch.Enforce, Over: s.Over, By: "root"}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m.stop()
	m.start()
	p = m.connect()
	m.tableSays("enforce\n")
	p.wants(wishReturn, 3)
	p.wants(wishTry, 4)
	m.tableSays("enforce\n")
	m.settings("mode: enforce\nfollow_rollouts: true\n")
	p.wants(wishReturn, 4)
	m.tableSays("enforce\n")
	m.looked(2)
}

// A host whose file does not say so is switched by nobody, and says that it does not follow.
func TestWhoDoesNotFollowIsLeftAlone(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\n")
	m.start()
	p := m.connect()
	p.wants(wishTry, 1)
	if r := p.reports(curfewv1.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED, 0); r == nil || r.GetFollows() {
		t.Errorf("it reports %v", r)
	}
	m.looked(0)
	m.step(1, "begin", "", "no rollout wants that attempt")
	m.tableSays("observe\n")
}

// Whoever keeps a signed state back does not choose when it switches the host: it must answer a nonce.
func TestOldWordOfARolloutIsNotHeeded(t *testing.T) {
	m, p := follower(t)
	p.nonce = bytes.Repeat([]byte{7}, grant.NonceSize)
	p.rollout = &curfewv1.Rollout{Id: rolloutID, Attempt: 1, Wish: wishTry}
	p.sendState(p.state(nil))
	if !p.ack().GetAccepted() {
		t.Error("the state was refused")
	}
	m.looked(0)
}
