package grant_test

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// restarted puts the ledger through its persisted form.
func restarted(t *testing.T, h *host) {
	t.Helper()
	data, err := json.Marshal(h.ledger)
	if err != nil {
		t.Fatal(err)
	}
	read := new(grant.Ledger)
	if err := json.Unmarshal(data, read); err != nil {
		t.Fatal(err)
	}
	h.ledger = read
}

// What has ended stays ended, whoever says otherwise, also after a restart and a reboot.
func TestAnApprovalCannotBeSpentTwice(t *testing.T) {
	for name, end := range map[string]func(h *host, id grant.ID) curfewv1.EndCause{
		"expired": func(h *host, _ grant.ID) curfewv1.EndCause {
			h.pass(time.Hour)
			h.ledger.Tick(h.clock)
			return curfewv1.EndCause_END_CAUSE_EXPIRED
		},
		"revoked": func(h *host, id grant.ID) curfewv1.EndCause {
			return h.endBy(id, curfewv1.EndCause_END_CAUSE_REVOKED)
		},
		"handed back": func(h *host, id grant.ID) curfewv1.EndCause {
			return h.endBy(id, curfewv1.EndCause_END_CAUSE_DONE)
		},
		"left out": func(h *host, _ grant.ID) curfewv1.EndCause {
			h.state(h.State(h.clock.Wall, nil))
			return curfewv1.EndCause_END_CAUSE_WITHDRAWN
		},
	} {
		h := newHost(t)
		id, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
		h.accept(env)
		h.state(h.State(h.clock.Wall, h.nonce(), id))
		want := end(h, id)
		for round := range 3 {
			if cause, ok := h.ledger.Ended(id); !ok || cause != want {
				t.Errorf("%s: tombstone says %s %v, want %s", name, cause, ok, want)
			}
			if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrTombstoned) {
				t.Errorf("%s: accepted again: %v", name, err)
			}
			change := h.state(h.State(h.clock.Wall, h.nonce(), id))
			if len(change.Started) != 0 || !slices.Equal(change.Missing, []grant.ID{id}) {
				t.Errorf("%s: listed again: %+v", name, change)
			}
			h.live(name)
			restarted(t, h)
			if round == 1 {
				h.clock.BootID, h.clock.Boot = "boot-2", 0
			}
		}
	}
}

func (h *host) endBy(id grant.ID, cause curfewv1.EndCause) curfewv1.EndCause {
	h.t.Helper()
	s := h.HostState(h.clock.Wall, nil)
	s.Ended = []*curfewv1.Ended{{GrantId: id[:], Cause: cause, By: "dave"}}
	change := h.state(&curfewv1.State{Envelope: granttest.SealState(s, h.Issuer)})
	if len(change.Ended) != 1 || change.Ended[0].By != "dave" || change.Ended[0].Cause != cause {
		h.t.Errorf("%s: change %+v", cause, change)
	}
	return cause
}

// A tombstone goes only when the terms are void anyway, by a time beyond doubt.
func TestTombstonesStayUntilTheTermsAreVoid(t *testing.T) {
	h := newHost(t)
	id, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	h.state(h.State(h.clock.Wall, nil))
	h.pass(25*time.Hour + 5*time.Minute)
	h.ledger.Tick(h.clock)
	if _, ok := h.ledger.Ended(id); !ok {
		t.Error("the tombstone is gone before hard end + 5 min")
	}
	h.pass(time.Millisecond)
	h.ledger.Tick(h.clock)
	if _, ok := h.ledger.Ended(id); ok {
		t.Error("the tombstone stays for ever")
	}
	if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrWindow) {
		t.Errorf("without its tombstone: %v", err)
	}
}

// A word in a state about a grant that never opened here closes it for good too.
func TestRevokedBeforeItOpened(t *testing.T) {
	h := newHost(t)
	id, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
	h.accept(env)
	h.endBy(id, curfewv1.EndCause_END_CAUSE_REVOKED)
	if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrTombstoned) {
		t.Errorf("accepted again: %v", err)
	}
}

// A state that says "extended" of a grant without extension only ends it: sessions must not outlive
// the grant on an issuer's bare word.
func TestExtendedIsNoWordOfAState(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	for _, cause := range []curfewv1.EndCause{curfewv1.EndCause_END_CAUSE_EXTENDED, 0, 5, 99, -1} {
		c := h.ledger.Clone()
		s := h.HostState(h.clock.Wall, nil)
		s.Ended = []*curfewv1.Ended{{GrantId: id[:], Cause: cause}}
		change, err := c.AcceptState(&curfewv1.State{Envelope: granttest.SealState(s, h.Issuer)}, h.clock)
		if err != nil || len(change.Ended) != 1 ||
			change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_WITHDRAWN {
			t.Errorf("cause %d: %v, %+v", cause, err, change.Ended)
		}
	}
}

// extension seals terms that follow those of base with a new whole duration.
func (h *host) extension(base *curfewv1.Terms, whole time.Duration, edits ...func(*curfewv1.Terms),
) (*curfewv1.Terms, grant.ID, []byte) {
	terms := h.Terms(granttest.Noon(), append([]func(*curfewv1.Terms){
		granttest.Follow(granttest.Raw(base), whole),
	}, edits...)...)
	id, env := h.Grant(terms, h.Carol)
	return terms, id, env
}

func TestAnExtensionTakesItsPlace(t *testing.T) {
	h := newHost(t)
	base := h.Terms(h.clock.Wall)
	first, env := h.Grant(base, h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), first))
	start := h.clock.Wall
	h.pass(50 * time.Minute)
	next, second, env := h.extension(base, 2*time.Hour)
	h.accept(env)
	change := h.state(h.State(h.clock.Wall, h.nonce(), first, second)) // the old one still listed
	if len(change.Started) != 1 || len(change.Ended) != 1 || len(change.Missing) != 0 ||
		change.Ended[0].ID != first || change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_EXTENDED ||
		change.Ended[0].RequestID != change.Started[0].Terms.GetRequestId() {
		t.Errorf("the swap's change is %+v", change)
	}
	h.live("after the swap", second)
	l := h.ledger.Live(h.clock)[0]
	if !l.Start.Equal(start) || !l.End.Equal(start.Add(2*time.Hour)) ||
		l.BootDeadline != h.clock.Boot+70*time.Minute {
		t.Errorf("window %s to %s, boot %s", l.Start, l.End, l.BootDeadline)
	}
	h.state(h.State(h.clock.Wall, h.nonce(), second))
	_, third, env := h.extension(next, 3*time.Hour)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), third))
	h.live("after a second swap", third)
	h.pass(2*time.Hour + 10*time.Minute)
	h.live("at the end of the third")
}

// Attacks on extensions: of what is over, of another person's, of an older revision, of nothing,
// and two that follow the same.
func TestExtensionAttacks(t *testing.T) {
	minute := time.Minute
	for _, c := range []struct {
		name string
		edit func(*curfewv1.Terms)
		late time.Duration
	}{
		{"of what has expired", func(*curfewv1.Terms) {}, 60 * minute},
		{"of another request", func(x *curfewv1.Terms) { x.RequestId = "ba9876543210" }, minute},
		{"of another requester's", func(x *curfewv1.Terms) { x.Requester = "mallory" }, minute},
		{"for another login", func(x *curfewv1.Terms) { x.Login = "mallory" }, minute},
		{"for another uid", func(x *curfewv1.Terms) { x.Uid++ }, minute},
		{"by the same revision", func(x *curfewv1.Terms) { x.Revision = 1 }, minute},
		{"of terms that nobody has", func(x *curfewv1.Terms) { x.Follows = make([]byte, 32) }, minute},
		{"over the ceiling", func(x *curfewv1.Terms) { x.DurationMs = 25 * 3600_000 }, minute},
		{"without the new role's quorum", func(x *curfewv1.Terms) {
			x.Role, x.ApprovalsNeeded = granttest.RoleRoot, 2
		}, minute},
	} {
		h := newHost(t)
		base := h.Terms(h.clock.Wall)
		first, env := h.Grant(base, h.Bob)
		h.accept(env)
		h.state(h.State(h.clock.Wall, h.nonce(), first))
		h.pass(c.late)
		_, second, env := h.extension(base, 2*time.Hour, c.edit)
		if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); err == nil {
			t.Errorf("%s: accepted", c.name)
		}
		change := h.state(h.State(h.clock.Wall, h.nonce(), first, second))
		if !slices.Contains(change.Missing, second) || len(change.Started) != 0 {
			t.Errorf("%s: %+v", c.name, change)
		}
	}
}

func TestWhatIsExtendedIsSpent(t *testing.T) {
	h := newHost(t)
	base := h.Terms(h.clock.Wall)
	first, env := h.Grant(base, h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), first))
	_, one, envOne := h.extension(base, 2*time.Hour)
	_, two, envTwo := h.extension(base, 3*time.Hour)
	h.accept(envOne)
	h.accept(envTwo) // both follow what is live; the state decides which opens
	change := h.state(h.State(h.clock.Wall, h.nonce(), one, two))
	if len(change.Started) != 1 || len(change.Missing) != 1 || len(h.ledger.Live(h.clock)) != 1 {
		t.Errorf("two extensions of one grant: %+v", change)
	}
	if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrTombstoned) {
		t.Errorf("the extended grant again: %v", err)
	}
}

// An extension that waits while its base ends never opens.
func TestExtensionOfWhatEndedMeanwhile(t *testing.T) {
	h := newHost(t)
	base := h.Terms(h.clock.Wall)
	first, env := h.Grant(base, h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), first))
	_, second, env := h.extension(base, 2*time.Hour)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce())) // the base is withdrawn
	change := h.state(h.State(h.clock.Wall, h.nonce(), second))
	if len(change.Started) != 0 || !slices.Equal(change.Missing, []grant.ID{second}) {
		t.Errorf("%+v", change)
	}
	h.live("nothing")
}
