package grant_test

import (
	"errors"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func clockAt(wall time.Time) grant.Clock {
	return grant.Clock{Wall: wall, Boot: time.Hour, BootID: "boot-1"}
}

func firstUse(t *curfewv1.Terms) { t.StartMode = curfewv1.StartMode_START_MODE_FIRST_USE }

func singleUse(t *curfewv1.Terms) { t.SingleUse = true }

// Each window of a list is a grant of its own: opened between its start and its end, over at its
// end, and spent for good, while the next one is not.
func TestWindowsOpenOneByOne(t *testing.T) {
	h := newHost(t)
	now := h.clock.Wall
	terms := h.Terms(now, granttest.Windows(now, [2]time.Duration{2 * time.Hour, 4 * time.Hour},
		[2]time.Duration{26 * time.Hour, 28 * time.Hour}))
	first, env1 := h.WindowGrant(terms, 1, h.Bob)
	second, env2 := h.WindowGrant(terms, 2, h.Bob)
	if first == second || first == grant.IDOf(granttest.Raw(terms), h.Host) {
		t.Fatal("windows share an id")
	}
	refuse := func(what string, env []byte, want error) {
		t.Helper()
		if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	refuse("before its window", env1, grant.ErrWindow)
	h.pass(3 * time.Hour) // an hour of it is left
	refuse("the second during the first", env2, grant.ErrWindow)
	h.accept(env1)
	h.state(h.State(h.clock.Wall, h.nonce(), first))
	h.live("within the window", first)
	restarted(t, h)
	h.pass(time.Hour - time.Millisecond)
	h.live("a moment before its end", first)
	h.pass(time.Millisecond)
	h.live("at its end, though it lasted an hour of two")
	h.ledger.Tick(h.clock)
	refuse("once more", env1, grant.ErrTombstoned)
	h.pass(23 * time.Hour)
	refuse("a day later", env1, grant.ErrTombstoned)
	h.accept(env2)
	h.state(h.State(h.clock.Wall, h.nonce(), second))
	h.live("the second window", second)
}

func TestWindowsMustFitTheTerms(t *testing.T) {
	w := granttest.NewWorld()
	now := granttest.Noon()
	good := granttest.Windows(now, [2]time.Duration{time.Hour, 2 * time.Hour},
		[2]time.Duration{3 * time.Hour, 5 * time.Hour})
	for name, bad := range map[string]func(*curfewv1.Terms){
		"overlapping":   func(x *curfewv1.Terms) { x.Windows[1].StartMs = x.Windows[0].EndMs - 1 },
		"backwards":     func(x *curfewv1.Terms) { x.Windows[0], x.Windows[1] = x.Windows[1], x.Windows[0] },
		"empty":         func(x *curfewv1.Terms) { x.Windows[0].EndMs = x.Windows[0].StartMs },
		"longer":        func(x *curfewv1.Terms) { x.DurationMs++ },
		"later":         func(x *curfewv1.Terms) { x.HardEndMs++ },
		"earlier":       func(x *curfewv1.Terms) { x.StartEarliestMs-- },
		"latest start":  func(x *curfewv1.Terms) { x.StartLatestMs-- },
		"first use":     firstUse,
		"follows":       func(x *curfewv1.Terms) { x.Follows = grant.ReasonHash("before") },
		"65 windows":    func(x *curfewv1.Terms) { x.Windows = repeat(x.Windows[0], 65) },
		"before 1970":   func(x *curfewv1.Terms) { x.Windows[0].StartMs = -1 },
		"single, no in": func(x *curfewv1.Terms) { x.SingleUse, x.AllowLogin = true, false },
	} {
		if _, err := grant.MarshalTerms(w.Terms(now, good, bad)); !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	raw := granttest.Raw(w.Terms(now, good))
	for _, window := range []uint32{0, 3, 1 << 31} {
		_, err := grant.SealGrant(&curfewv1.Grant{
			Version: grant.Version, HostId: w.Host[:], Terms: raw, IssuedAtMs: 1, Window: window,
		}, w.Issuer)
		if !errors.Is(err, grant.ErrMalformed) {
			t.Errorf("window %d of 2: %v", window, err)
		}
	}
}

// The clock of a grant that starts with its first use stands still until then, and once only.
func TestFirstUseStartsTheClock(t *testing.T) {
	h := newHost(t)
	id, env := h.Grant(h.Terms(h.clock.Wall, firstUse), h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	live := h.ledger.Live(h.clock)
	if len(live) != 1 || !live[0].Unused || !live[0].End.Equal(granttest.Noon().Add(24*time.Hour)) {
		t.Fatalf("waiting for its first use: %+v", live)
	}
	h.pass(5 * time.Hour)
	restarted(t, h)
	h.live("five hours later", id)
	if err := h.ledger.Start(id, h.clock); err != nil {
		t.Fatal(err)
	}
	restarted(t, h)
	h.pass(59 * time.Minute)
	if err := h.ledger.Start(id, h.clock); err != nil {
		t.Fatal(err)
	}
	live = h.ledger.Live(h.clock)
	if len(live) != 1 || live[0].Unused || !live[0].End.Equal(granttest.Noon().Add(6*time.Hour)) {
		t.Fatalf("after a second use: %+v", live)
	}
	h.pass(time.Minute)
	h.live("an hour after the first use")
	if err := h.ledger.Start(id, h.clock); !errors.Is(err, grant.ErrNotLive) {
		t.Errorf("used after its end: %v", err)
	}
}

// Unused, it expires with its latest start, and an extension of it is refused: nothing runs yet.
func TestUnusedExpires(t *testing.T) {
	h := newHost(t)
	terms := h.Terms(h.clock.Wall, firstUse)
	id, env := h.Grant(terms, h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	_, more := h.Grant(h.Terms(h.clock.Wall, granttest.Follow(granttest.Raw(terms), 2*time.Hour)), h.Bob)
	if _, err := h.ledger.AcceptGrant(more, h.clock, h.Ceiling()); err == nil {
		t.Error("what has not started was extended")
	}
	h.pass(24 * time.Hour)
	h.live("past its latest start")
	h.ledger.Tick(h.clock)
	if cause, _ := h.ledger.Ended(id); cause != curfewv1.EndCause_END_CAUSE_EXPIRED {
		t.Errorf("it ended as %s", cause)
	}
}

// One session, then it is over: for a second person at the door, after a restart, after an extension.
func TestSingleUseIsSpentOnce(t *testing.T) {
	h := newHost(t)
	terms := h.Terms(h.clock.Wall, singleUse)
	id, env := h.Grant(terms, h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	if c := h.ledger.EndUsed(id); len(c.Ended) != 0 {
		t.Error("it ended before it was used")
	}
	if err := h.ledger.Use(id, h.clock); err != nil {
		t.Fatal(err)
	}
	restarted(t, h)
	if err := h.ledger.Use(id, h.clock); !errors.Is(err, grant.ErrUsed) {
		t.Errorf("a second session: %v", err)
	}
	next, more := h.Grant(h.Terms(h.clock.Wall, singleUse,
		granttest.Follow(granttest.Raw(terms), 2*time.Hour)), h.Bob)
	h.accept(more)
	h.state(h.State(h.clock.Wall, h.nonce(), id, next))
	if err := h.ledger.Use(next, h.clock); !errors.Is(err, grant.ErrUsed) {
		t.Errorf("a second session by an extension: %v", err)
	}
	if c := h.ledger.EndUsed(next); len(c.Ended) != 1 || c.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_USED {
		t.Errorf("the end of the session: %+v", c)
	}
	h.live("after the session")
	if _, err := h.ledger.AcceptGrant(more, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrTombstoned) {
		t.Errorf("once more: %v", err)
	}
}

// A grant that was revoked before this host ever saw it is dead here, whoever kept a copy of it.
func TestRevokedUnseenIsTombstoned(t *testing.T) {
	h := newHost(t)
	id, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
	s := h.HostState(h.clock.Wall, nil)
	s.Ended = []*curfewv1.Ended{{
		GrantId: id[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "bob",
		HardEndMs: h.clock.Wall.Add(25 * time.Hour).UnixMilli(),
	}}
	h.state(&curfewv1.State{Envelope: granttest.SealState(s, h.Issuer)})
	restarted(t, h)
	if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrTombstoned) {
		t.Errorf("accepted: %v", err)
	}
}
