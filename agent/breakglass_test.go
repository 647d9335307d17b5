package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/breakglass/seal"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const breakGlassOn = `mode: enforce
elevate_users: [bob]
break_glass:
  enabled: true
  codes: 4
  max_duration: 30m
  sudo:
    - {command: /usr/bin/true, args: [x], contained: true}
`

// codes gives the host a set of break-glass codes, as curfew-agent break-glass renew does.
func (m *machine) codes(n int) *seal.Set {
	m.t.Helper()
	facts, err := ReadHost(m.root)
	if err != nil {
		m.t.Fatal(err)
	}
	to, err := seal.Custodians(facts.Trust, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	set, err := seal.Draw(facts.Host, n, &to, time.Now(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	sealed, err := proto.Marshal(set.Sealed)
	if err == nil {
		err = InstallCodes(context.Background(), m.path("run/curfew/admin.sock"), NewCodes{
			Set: set.ID, Hashes: set.Hashes, Sealed: sealed, Custodians: strings.Join(to.Names, " "),
		})
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return set
}

// away lets the control plane be silent for as long as a code needs.
func (m *machine) away() {
	m.t.Helper()
	if m.plane.conn != nil {
		_ = m.plane.conn.Close()
	}
	m.ahead.Add(int64(awayAfter))
}

// bobUses has bob use a code.
func (m *machine) use(uid uint32, use CodeUse) (opened *CodeOpened, err error) {
	m.t.Helper()
	desk := &userDesk{owner: m.half.owner, open: make(map[uint32]int)}
	ctx, cancel := context.WithTimeout(context.Background(), userTimeout)
	defer cancel()
	return desk.use(ctx, uid, use)
}

const bob = 1001

func bobs(c breakglass.Code) CodeUse { return CodeUse{Code: c.String(), Reason: "INC-7: nginx hangs"} }

func (m *machine) glass() string {
	m.t.Helper()
	m.settings(breakGlassOn)
	m.start()
	return m.path("run/curfew/admin.sock")
}

func refusedWith(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// A reason that is longer than an event's detail opens all the same: what is cut of it stays text.
func TestCodeOpensForALongReason(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(2)
	m.away()
	for i, pad := range []string{"", "x"} { // the cut falls inside a character in one of them
		use := bobs(set.Codes[i])
		use.Reason = pad + strings.Repeat("ж", trail.MaxDetail)
		if opened, err := m.use(bob, use); err != nil || opened.Failed != "" {
			t.Errorf("a reason of %d bytes: %+v, %v", len(use.Reason), opened, err)
		}
	}
}

func TestCodeOpensOnceWhileTheControlPlaneIsAway(t *testing.T) {
	m := newMachine(t)
	admin := m.glass()
	set := m.codes(4)
	p := m.connect()
	p.sendState(p.state(nil))
	p.ack()
	_, err := m.use(bob, bobs(set.Codes[0]))
	refusedWith(t, err, "the control plane is there")
	m.away()
	opened, err := m.use(bob, CodeUse{
		Code: strings.ToLower(set.Codes[0].String()), Reason: "INC-7: nginx hangs", Seconds: 600,
	})
	if err != nil || opened.Failed != "" {
		t.Fatalf("%+v, %v", opened, err)
	}
	if opened.Login != "bob" || opened.Code != 1 || opened.Left != 3 || opened.Class != "elevate" ||
		opened.RootEquivalent || len(opened.Sudo) != 1 ||
		time.Until(opened.End)-awayAfter > 10*time.Minute {
		t.Errorf("%+v", opened)
	}
	if !m.has(m.dropin(opened.id)) {
		t.Error("the rule is not there")
	}
	status, err := AskStatus(context.Background(), admin)
	if err != nil || len(status.Grants) != 1 || !status.Grants[0].Local ||
		status.Grants[0].Status != "applied" || status.BreakGlass != "3 of 4 codes left" {
		t.Errorf("status %+v, %v", status, err)
	}
	_, err = m.use(bob, bobs(set.Codes[0]))
	refusedWith(t, err, "used before")

	// A control plane that is back neither ends it nor is told of a grant that it has not.
	p = m.connect()
	if len(p.hello.GetGrantIds()) != 0 {
		t.Errorf("hello names the local grant: %v", p.hello)
	}
	if e := p.event(trail.KindBreakGlassRefused); !strings.Contains(e.GetDetails()["error"], "is there") {
		t.Errorf("event %v", e)
	}
	used := p.event(trail.KindBreakGlassUsed)
	if used.GetLogin() != "bob" || used.GetRequestId() != opened.Request ||
		grant.ID(used.GetGrantId()) != opened.id || used.GetDetails()["reason"] != "INC-7: nginx hangs" ||
		used.GetDetails()["code"] != "1" || used.GetDetails()["left"] != "3" || used.GetDetails()["uid"] != "1001" {
		t.Errorf("event %v", used)
	}
	refused := p.event(trail.KindBreakGlassRefused)
	if !strings.Contains(refused.GetDetails()["error"], "used before") || refused.GetLogin() != "bob" {
		t.Errorf("event %v", refused)
	}
	p.sendState(p.state(nil))
	if ack := p.ack(); !ack.GetAccepted() || len(ack.GetGrants()) != 0 {
		t.Errorf("ack %v", ack)
	}
	if !m.has(m.dropin(opened.id)) {
		t.Error("a fresh state that does not name it took the local grant away")
	}
	// Its word ends it, and no later one revives it.
	p.sendState(p.state([]*curfewv1.Ended{{
		GrantId: opened.id[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "anna",
	}}))
	p.ack()
	if m.has(m.dropin(opened.id)) {
		t.Error("the revoked local grant stands")
	}
	if e := p.event(trail.KindGrantEnded); e.GetDetails()["cause"] != "revoked" || e.GetDetails()["by"] != "anna" {
		t.Errorf("event %v", e)
	}
	p.sendState(p.state(nil, opened.id))
	if r := resultOf(t, p.ack(), opened.id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED {
		t.Errorf("%v", r)
	}
}

// Elevations under a local grant open after the lease, those under the control plane's do not.
func TestLocalGrantDoesNotHangOnTheLease(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(1)
	p := m.connect()
	p.lease = 2 * time.Minute
	p.sendState(p.state(nil))
	p.ack()
	m.away()
	m.ahead.Add(int64(2 * time.Minute))
	if _, err := m.use(bob, bobs(set.Codes[0])); err != nil {
		t.Fatal(err)
	}
	err := m.half.owner.do(t.Context(), func(context.Context) {
		o := m.half.owner
		if !errors.Is(o.mayOpen(), grant.ErrLease) {
			t.Errorf("for others: %v", o.mayOpen())
		}
		if err := o.mayOpenLocal(); err != nil {
			t.Errorf("for local grants: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCodesAreRefused(t *testing.T) {
	m := newMachine(t)
	m.glass()
	_, err := m.use(bob, CodeUse{})
	refusedWith(t, err, "no break-glass codes")
	set, other := m.codes(2), draw(t)
	_, err = m.use(bob, bobs(set.Codes[0]))
	refusedWith(t, err, "has just started")
	m.away()
	for _, c := range []struct {
		what string
		uid  uint32
		use  CodeUse
		want string
	}{
		{"somebody unmanaged", 1234, bobs(set.Codes[0]), "people whom Curfew manages"},
		{"a system user", 999, bobs(set.Codes[0]), "people whom Curfew manages"},
		{"root for nobody", 0, bobs(set.Codes[0]), "--login"},
		{"root for a stranger", 0, with(bobs(set.Codes[0]), "mallory"), "people whom Curfew manages"},
		{"bob for another", bob, with(bobs(set.Codes[0]), "carol"), "only root"},
		{"no reason", bob, CodeUse{Code: set.Codes[0].String()}, "reason"},
		{"too long", bob, lastsFor(bobs(set.Codes[0]), 3600), "at most 30m"},
		{"negative", bob, lastsFor(bobs(set.Codes[0]), -1), "out of range"},
		{"for ever", bob, lastsFor(bobs(set.Codes[0]), 1<<62), "out of range"},
		{"a hair's breadth", bob, lastsFor(bobs(set.Codes[0]), 1), ""},
		{"another's code", bob, bobs(other), "not one of this host's"},
		{"no code", bob, CodeUse{Code: "xyzzy", Reason: "x"}, "not a break-glass code"},
	} {
		if c.want == "" {
			continue
		}
		_, err := m.use(c.uid, c.use)
		if err == nil {
			t.Errorf("%s gets in", c.what)
			continue
		}
		refusedWith(t, err, c.want)
	}
	// None of it has spent the code.
	if _, err := m.use(bob, bobs(set.Codes[0])); err != nil {
		t.Error(err)
	}
}

func with(u CodeUse, login string) CodeUse      { u.Login = login; return u }
func lastsFor(u CodeUse, seconds int64) CodeUse { u.Seconds = seconds; return u }

func draw(t *testing.T) breakglass.Code {
	t.Helper()
	c, err := breakglass.NewCode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWrongCodesAreRateLimitedAndRecorded(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(1)
	m.away()
	for range codeTries {
		_, err := m.use(bob, bobs(draw(t)))
		refusedWith(t, err, "not one of this host's")
	}
	_, err := m.use(bob, bobs(set.Codes[0]))
	refusedWith(t, err, "the next try is in")
	// Others are not kept out by it.
	_, err = m.use(0, with(bobs(draw(t)), "bob"))
	refusedWith(t, err, "not one of this host's")
	p := m.connect()
	for range codeTries + 1 {
		p.event(trail.KindBreakGlassRefused)
	}
	m.away()
	m.ahead.Add(int64(codeWindow))
	if _, err := m.use(bob, bobs(set.Codes[0])); err != nil {
		t.Error(err)
	}
}

func TestLocalGrantEndsOnTimeAndAcrossARestart(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(2)
	m.away()
	opened, err := m.use(bob, lastsFor(bobs(set.Codes[0]), 2))
	if err != nil {
		t.Fatal(err)
	}
	for m.has(m.dropin(opened.id)) {
		if time.Until(opened.End)-awayAfter < -2*time.Second {
			t.Fatal("the rule is there two seconds after the end")
		}
		time.Sleep(20 * time.Millisecond)
	}
	second, err := m.use(bob, bobs(set.Codes[1]))
	if err != nil {
		t.Fatal(err)
	}
	m.stop()
	m.start()
	if s, err := AskStatus(t.Context(), m.path("run/curfew/admin.sock")); err != nil || len(s.Grants) != 1 {
		t.Errorf("after a restart: %+v, %v", s, err)
	}
	if !m.has(m.dropin(second.id)) {
		t.Error("the local grant is gone after a restart")
	}
	m.away()
	_, err = m.use(bob, bobs(set.Codes[1]))
	refusedWith(t, err, "all of this host's break-glass codes are spent")
	m.stop()
	m.ahead.Add(int64(time.Hour))
	m.start()
	if _, err := AskStatus(t.Context(), m.path("run/curfew/admin.sock")); err != nil {
		t.Fatal(err)
	}
	if m.has(m.dropin(second.id)) {
		t.Error("it is there after its end and a restart")
	}
}

// What the file says now counts for what is open, too.
func TestLoweredCeilingEndsALocalGrant(t *testing.T) {
	for name, edit := range map[string][2]string{
		"disabled": {"enabled: true", "enabled: false"},
		"shorter":  {"max_duration: 30m", "max_duration: 10m"},
		"no rule":  {"args: [x]", "args: [y]"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.glass()
			set := m.codes(1)
			m.away()
			opened, err := m.use(bob, bobs(set.Codes[0]))
			if err != nil {
				t.Fatal(err)
			}
			m.settings(strings.Replace(breakGlassOn, edit[0], edit[1], 1))
			for start := time.Now(); m.has(m.dropin(opened.id)); time.Sleep(20 * time.Millisecond) {
				if time.Since(start) > 5*time.Second {
					t.Fatal("the rule is still there")
				}
			}
		})
	}
}

// Codes are void on a copy of the store, which may hold codes as unspent that were spent since.
func TestCodesOfACopiedStoreAreVoid(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(2)
	m.stop()
	state := m.path(enforce.StateDir)
	backup := m.path("backup")
	if out, err := exec.Command("cp", "-a", state, backup).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.start()
	m.away()
	if _, err := m.use(bob, bobs(set.Codes[0])); err != nil {
		t.Fatal(err)
	}
	m.stop()
	if err := errors.Join(os.RemoveAll(state), os.Rename(backup, state)); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.away()
	for _, c := range set.Codes {
		_, err := m.use(bob, bobs(c))
		refusedWith(t, err, "void")
	}
	status, err := AskStatus(context.Background(), m.path("run/curfew/admin.sock"))
	if err != nil || !strings.Contains(strings.Join(status.Problems, "\n"), "break-glass renew") {
		t.Errorf("problems %v, %v", status.Problems, err)
	}
	fresh := m.codes(1)
	if _, err := m.use(bob, bobs(fresh.Codes[0])); err != nil {
		t.Error(err)
	}
}

func TestCodesOfAnotherHostAndOfAnOlderSetAreRefused(t *testing.T) {
	m, n := newMachine(t), newMachine(t)
	m.glass()
	n.glass()
	old := m.codes(1)
	set, theirs := m.codes(1), n.codes(1)
	m.away()
	for _, c := range []breakglass.Code{theirs.Codes[0], old.Codes[0]} {
		_, err := m.use(bob, bobs(c))
		refusedWith(t, err, "not one of this host's")
	}
	if _, err := m.use(bob, bobs(set.Codes[0])); err != nil {
		t.Error(err)
	}
}

// Nothing opens that is not on disk: neither the use on the trail nor that the code is spent.
func TestNothingOpensThatCannotBeKept(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(1)
	m.away()
	broken := m.path(enforce.StateDir)
	if out, err := exec.Command("mount", "--bind", "-o", "ro", broken, broken).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "remount,ro,bind", broken).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", broken).Run() })
	m.stop()
	m.start()
	m.away()
	_, err := m.use(bob, bobs(set.Codes[0]))
	refusedWith(t, err, "cannot be recorded")
	entries, _ := os.ReadDir(m.path(enforce.SudoersDir))
	for _, e := range entries {
		t.Errorf("%s is there", e.Name())
	}
}
