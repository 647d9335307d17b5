package grant_test

import (
	"errors"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	hour  = time.Hour
	years = 10 * 365 * 24 * hour
)

// Fault F4 in one boot: whatever is done to the wall clock, a window ends on the boot-time clock.
func TestF4WallClockNeverExtends(t *testing.T) {
	for _, step := range []time.Duration{
		time.Second, -time.Second, time.Hour, -time.Hour, years, -years, -56 * 365 * 24 * time.Hour,
		5 * time.Minute, -5 * time.Minute, 5*time.Minute + time.Millisecond,
	} {
		h := newHost(t)
		id := h.granted()
		h.pass(10 * time.Minute)
		h.clock.Wall = h.clock.Wall.Add(step)
		h.live("after a step of "+step.String(), id)
		jump := step.Abs() > 5*time.Minute
		if err := h.ledger.MayOpen(h.clock); errors.Is(err, grant.ErrClock) != jump {
			t.Errorf("step of %s: may open: %v", step, err)
		}
		h.pass(44 * time.Minute)
		if step <= 0 || jump { // a believed step forward may end it early, by the skew at most
			h.live("6 min before the end, after a step of "+step.String(), id)
		}
		h.pass(6 * time.Minute)
		h.live("at the end, after a step of " + step.String())
		if change := h.ledger.Tick(h.clock); len(change.Ended) != 1 {
			t.Errorf("step of %s: not tombstoned at the end", step)
		}
	}
}

// A date past the end that ends nothing is no reason to wake at once, again and again: the wall
// clock's next deadline lies ahead of it, by what the window has left.
func TestF4NextDeadlineLiesAheadOfAJumpedClock(t *testing.T) {
	for _, step := range []time.Duration{0, hour, -hour, years, -years} {
		h := newHost(t)
		h.granted()
		h.pass(10 * time.Minute)
		h.clock.Wall = h.clock.Wall.Add(step)
		wall, boot, ok := h.ledger.Next(h.clock)
		if left := wall.Sub(h.clock.Wall); !ok || left != 50*time.Minute {
			t.Errorf("step of %s: the wall clock has %s to go", step, left)
		}
		if left := boot - h.clock.Boot; left != 50*time.Minute {
			t.Errorf("step of %s: the boot-time clock has %s to go", step, left)
		}
		h.pass(50 * time.Minute)
		if _, _, ok := h.ledger.Next(h.clock); ok {
			t.Errorf("step of %s: something is still to end", step)
		}
	}
}

// Many small steps do not add up to a large one.
func TestF4CreepingClockIsNoticed(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	for range 20 {
		h.pass(time.Second)
		h.clock.Wall = h.clock.Wall.Add(4 * time.Minute)
		h.ledger.Tick(h.clock)
	}
	h.live("after 80 minutes of small steps within 20 s", id)
	if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrClock) {
		t.Errorf("may open: %v", err)
	}
}

// A forged date bricks nothing: with the right date back, everything is as it was.
func TestF4ForgedDateIsForgotten(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	right := h.clock.Wall
	h.clock.Wall = right.Add(years)
	h.ledger.Tick(h.clock)
	restarted(t, h)
	h.ledger.Tick(h.clock)
	h.clock.Wall = right
	h.live("with the right date back", id)
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Error(err)
	}
	// Also over a boot with the forged date, which nothing contradicts yet: closed, not buried.
	h.clock = grant.Clock{Wall: right.Add(years), Boot: 10 * time.Second, BootID: "boot-2"}
	h.live("under a forged date after a boot")
	if change := h.ledger.Tick(h.clock); len(change.Ended) != 0 {
		t.Error("a forged date buried a grant")
	}
	restarted(t, h)
	h.clock.Wall = right.Add(time.Minute)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	h.live("after fresh word", id)
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Error(err)
	}
}

// A host that boots with a dead clock takes states again as soon as its clock is put right.
func TestF4DeadClockAtBootIsPutRight(t *testing.T) {
	for name, off := range map[string]time.Duration{"epoch": 0, "an hour slow": -time.Hour} {
		h := newHost(t)
		id := h.granted()
		true2 := h.clock.Wall.Add(20 * time.Minute) // 20 minutes without power
		h.clock = grant.Clock{Wall: true2.Add(off), Boot: 5 * time.Second, BootID: "boot-2"}
		if off == 0 {
			h.clock.Wall = time.UnixMilli(1000)
		}
		if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrClock) {
			t.Errorf("%s: may open: %v", name, err)
		}
		nonce := h.nonce()
		h.clock.Boot += time.Minute
		h.clock.Wall = true2.Add(time.Minute) // the time service has spoken
		h.state(h.State(h.clock.Wall, nonce, id))
		h.live(name, id)
		if err := h.ledger.MayOpen(h.clock); err != nil {
			t.Errorf("%s, put right: may open: %v", name, err)
		}
		if l := h.ledger.Live(h.clock)[0]; l.BootDeadline-h.clock.Boot != 39*time.Minute {
			t.Errorf("%s: %s left, want 39m", name, l.BootDeadline-h.clock.Boot)
		}
	}
}

// Fault F4: an hour of suspend, with a state that waited in the socket all the while.
func TestF4SuspendWithAnAnswerOnItsWay(t *testing.T) {
	h := newHost(t)
	long := h.Terms(h.clock.Wall, func(x *curfewv1.Terms) { x.DurationMs = 8 * 3600_000 })
	id, env := h.Grant(long, h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	short, env := h.Grant(h.Terms(h.clock.Wall, func(x *curfewv1.Terms) {
		x.DurationMs, x.RequestId = 60_000, "ba9876543210"
	}), h.Bob)
	h.accept(env)
	answer := h.State(h.clock.Wall, h.nonce(), id, short)
	h.pass(10 * time.Second)
	h.state(answer)
	waiting := h.State(h.clock.Wall, h.nonce(), id, short)
	h.pass(time.Hour) // both clocks count the suspend
	change := h.state(waiting)
	if len(change.Ended) != 1 || change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_EXPIRED {
		t.Errorf("on waking: %+v", change)
	}
	h.live("on waking", id)
	if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrLease) {
		t.Errorf("an answer that is an hour old: may open: %v, want the lease to be over", err)
	}
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Error(err)
	}
}

// Promise 3: reboots with the clock set back give a window no second more than it had left.
func TestRebootsNeverStretchAWindow(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	start := h.clock.Wall
	for boot := range 11 {
		h.pass(4 * time.Minute)
		h.ledger.Tick(h.clock)
		restarted(t, h)
		h.clock = grant.Clock{Wall: start, Boot: time.Second, BootID: string(rune('a' + boot))}
		h.ledger.Tick(h.clock)
		h.pass(time.Minute - time.Second)
	}
	h.pass(5*time.Minute - time.Millisecond)
	h.live("1 ms before 60 minutes, over 12 boots", id)
	h.pass(time.Millisecond)
	h.live("after 60 minutes")
}

// However late in a boot the agent comes up, the boot's time counts.
func TestTimeWithoutAgentCounts(t *testing.T) {
	h := newHost(t)
	h.granted()
	restarted(t, h)
	h.clock = grant.Clock{Wall: granttest.Noon(), Boot: 59*time.Minute + 59*time.Second, BootID: "boot-2"}
	h.ledger.Tick(h.clock)
	h.pass(time.Second)
	h.live("an hour into a boot whose clock was set back")
}

func TestHonestRebootKeepsTheWindow(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	end := h.clock.Wall.Add(time.Hour)
	restarted(t, h)
	h.clock = grant.Clock{Wall: end.Add(-time.Minute), Boot: 20 * time.Second, BootID: "boot-2"}
	h.live("a minute before the end", id)
	if err := h.ledger.MayOpen(h.clock); err == nil {
		t.Error("a boot outlives the lease")
	}
	h.pass(time.Minute)
	h.live("at the end")
}

// Fault F5: the lease is exact on the boot-time clock and counts from when the nonce was sent.
func TestF5LeaseIsExact(t *testing.T) {
	const lease = 15 * time.Minute
	h := newHost(t)
	if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrLease) {
		t.Errorf("before the first state: %v", err)
	}
	long := h.Terms(h.clock.Wall, func(x *curfewv1.Terms) { x.DurationMs = 24 * 3600_000 })
	id, env := h.Grant(long, h.Bob)
	h.accept(env)
	nonce := h.nonce()
	h.pass(2 * time.Minute) // the answer takes its time
	if change := h.state(h.State(h.clock.Wall, nonce, id)); !change.LeaseRenewed {
		t.Error("the lease is not renewed")
	}
	if h.ledger.LeaseEnd(h.clock) != h.clock.Boot+lease-2*time.Minute {
		t.Errorf("the lease ends at %s", h.ledger.LeaseEnd(h.clock))
	}
	h.pass(lease - 2*time.Minute - time.Millisecond)
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Errorf("1 ms before the lease's end: %v", err)
	}
	h.pass(time.Millisecond)
	if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrLease) {
		t.Errorf("at the lease's end: %v", err)
	}
	for _, cut := range []time.Duration{time.Second, 30 * time.Second, time.Hour, 20 * time.Hour} {
		h.pass(cut)
		h.ledger.Tick(h.clock)
		h.live("cut off for "+cut.String(), id)
	}
	// A state that answers nothing, or an answer to a stranger's nonce, renews nothing.
	for _, n := range [][]byte{nil, make([]byte, 16), nonce} {
		h.state(h.State(h.clock.Wall, n, id))
		if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrLease) {
			t.Errorf("nonce %x: %v", n, err)
		}
	}
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Error(err)
	}
}

func TestOnlyTheNewestEightNoncesRenew(t *testing.T) {
	h := newHost(t)
	var sent [][]byte
	for range 9 {
		sent = append(sent, h.nonce())
	}
	if h.state(h.State(h.clock.Wall, sent[0])).LeaseRenewed {
		t.Error("the ninth-newest nonce renews")
	}
	if !h.state(h.State(h.clock.Wall, sent[1])).LeaseRenewed {
		t.Error("the eighth-newest nonce does not renew")
	}
	restarted(t, h)
	if h.state(h.State(h.clock.Wall, sent[8])).LeaseRenewed {
		t.Error("a nonce of before the restart renews")
	}
}

// A late answer to an older nonce does not shorten the lease; a shorter lease does.
func TestLateAnswersDoNotShortenTheLease(t *testing.T) {
	h := newHost(t)
	older := h.nonce()
	h.pass(time.Minute)
	newer := h.nonce()
	h.state(h.State(h.clock.Wall, newer))
	end := h.ledger.LeaseEnd(h.clock)
	h.state(h.State(h.clock.Wall, older))
	if h.ledger.LeaseEnd(h.clock) != end {
		t.Error("a late answer moved the lease's end")
	}
	s := h.HostState(h.clock.Wall, h.nonce())
	s.ValidForMs = 120_000
	h.state(&curfewv1.State{Envelope: granttest.SealState(s, h.Issuer)})
	if h.ledger.LeaseEnd(h.clock) != h.clock.Boot+2*time.Minute {
		t.Error("a control plane that turned strict is not heard")
	}
}

// A state from the future is refused, by a host's clock that is right.
func TestStatesFromTheFuture(t *testing.T) {
	h := newHost(t)
	h.state(h.State(h.clock.Wall.Add(5*time.Minute), h.nonce()))
	ahead := h.clock.Wall.Add(5*time.Minute + time.Millisecond)
	h.refused("5 min and 1 ms ahead", h.State(ahead, h.nonce()), nil)
	h.refused("ten years ahead", h.State(h.clock.Wall.Add(years), h.nonce()), nil)
	h.refused("as far ahead again", h.State(h.clock.Wall.Add(10*time.Minute), h.nonce()), nil)
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Error(err)
	}
}
