package expiry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// late is how much later than asked a wake-up may come on a busy machine.
const late = 500 * time.Millisecond

// fixture runs a timer on a clock that differs from the kernel's by skew.
type fixture struct {
	*testing.T
	timer *Timer
	clock func() grant.Clock
	skew  *atomic.Int64 // of the wall clock, in ns
	due   chan Due
}

func start(t *testing.T, rescan time.Duration) *fixture {
	t.Helper()
	system, err := SystemClock()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, skew: new(atomic.Int64), due: make(chan Due, 100)}
	f.clock = func() grant.Clock {
		now := system()
		now.Wall = now.Wall.Add(time.Duration(f.skew.Load()))
		return now
	}
	f.timer, err = New(Config{
		Clock: f.clock, Rescan: rescan, OnDue: func(d Due) { f.due <- d },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.timer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run does not return")
		}
	})
	return f
}

// expect waits for the next wake-up and checks its cause and that it comes neither early nor late.
func (f *fixture) expect(cause Cause, after time.Duration) Due {
	f.Helper()
	begun := time.Now()
	select {
	case d := <-f.due:
		took := time.Since(begun)
		if d.Cause != cause {
			f.Fatalf("woken by %v after %v, want %v", d.Cause, took, cause)
		}
		// A jump may be noticed sooner, when something else looks at the clock.
		early := took < after-5*time.Millisecond && cause != CauseJump
		if early || took > after+late {
			f.Errorf("woken after %v, want %v", took, after)
		}
		return d
	case <-time.After(after + 5*time.Second):
		f.Fatalf("not woken within %v", after+5*time.Second)
	}
	return Due{}
}

func (f *fixture) quiet(during time.Duration) {
	f.Helper()
	select {
	case d := <-f.due:
		f.Errorf("woken by %v", d.Cause)
	case <-time.After(during):
	}
}

func TestEitherClockWakes(t *testing.T) {
	f := start(t, time.Hour)
	now := f.clock()
	f.timer.Set(now.Wall.Add(200*time.Millisecond), now.Boot+time.Hour, true)
	if d := f.expect(CauseDeadline, 200*time.Millisecond); d.Now.Wall.Before(now.Wall) {
		t.Errorf("woken at %v", d.Now)
	}
	now = f.clock()
	f.timer.Set(now.Wall.Add(time.Hour), now.Boot+200*time.Millisecond, true)
	f.expect(CauseDeadline, 200*time.Millisecond)
	f.quiet(100 * time.Millisecond) // a deadline that was reported is not reported again
}

func TestPastDeadlineWakesAtOnce(t *testing.T) {
	f := start(t, time.Hour)
	now := f.clock()
	f.timer.Set(now.Wall.Add(-time.Hour), now.Boot+time.Hour, true)
	f.expect(CauseDeadline, 0)
	f.timer.Set(time.Time{}, 0, true)
	f.expect(CauseDeadline, 0)
}

func TestExtensionMovesAndEndClears(t *testing.T) {
	f := start(t, time.Hour)
	now := f.clock()
	f.timer.Set(now.Wall.Add(150*time.Millisecond), now.Boot+150*time.Millisecond, true)
	f.timer.Set(now.Wall.Add(500*time.Millisecond), now.Boot+500*time.Millisecond, true)
	f.expect(CauseDeadline, 500*time.Millisecond-f.clock().Wall.Sub(now.Wall))
	now = f.clock()
	f.timer.Set(now.Wall.Add(100*time.Millisecond), now.Boot+100*time.Millisecond, true)
	f.timer.Set(time.Time{}, 0, false)
	f.quiet(300 * time.Millisecond)
}

func TestRescanComesWithoutDeadline(t *testing.T) {
	f := start(t, 150*time.Millisecond)
	f.expect(CauseRescan, 150*time.Millisecond)
	f.expect(CauseRescan, 150*time.Millisecond)
}

// A clock that is constantly off is a clock; a deadline on it is met by it.
func TestShiftedClockKeepsItsDeadlines(t *testing.T) {
	f := start(t, time.Hour)
	f.skew.Store(int64(10 * 365 * 24 * time.Hour))
	f.timer.poke()
	if d := f.expect(CauseJump, 0); d.Jump < 87599*time.Hour || d.Jump > 87601*time.Hour {
		t.Errorf("a jump of %v", d.Jump)
	}
	now := f.clock()
	f.timer.Set(now.Wall.Add(200*time.Millisecond), now.Boot+time.Hour, true)
	f.expect(CauseDeadline, 200*time.Millisecond)
}

// A clock that is set forward past a deadline, or back, is noticed by the next rescan at the latest.
func TestJumpIsReported(t *testing.T) {
	f := start(t, 200*time.Millisecond)
	now := f.clock()
	f.timer.Set(now.Wall.Add(time.Hour), now.Boot+time.Hour, true)
	f.expect(CauseRescan, 200*time.Millisecond)
	f.skew.Store(-int64(24 * time.Hour))
	if d := f.expect(CauseJump, 200*time.Millisecond); d.Jump > -23*time.Hour {
		t.Errorf("a jump of %v", d.Jump)
	}
	f.skew.Store(int64(24 * time.Hour))
	if d := f.expect(CauseJump, 200*time.Millisecond); d.Jump < 47*time.Hour {
		t.Errorf("a jump of %v", d.Jump)
	}
}

// Steps below a second are an NTP daemon's business.
func TestSlewIsNoJump(t *testing.T) {
	f := start(t, 100*time.Millisecond)
	f.skew.Store(int64(900 * time.Millisecond))
	f.expect(CauseRescan, 100*time.Millisecond)
}

// F4: there is a timer on the clock that counts suspend (CLOCK_BOOTTIME, 7), and one on the wall clock
// (CLOCK_REALTIME, 0) that also fires when that is set. The kernel says so itself: no test may set
// the machine's clock or put it to sleep.
func TestTimersAreOnTheRightClocks(t *testing.T) {
	f := start(t, time.Hour)
	now := f.clock()
	f.timer.Set(now.Wall.Add(time.Hour), now.Boot+time.Hour, true)
	for _, want := range []struct {
		file  *os.File
		clock int
		onSet bool
	}{{f.timer.boot, unix.CLOCK_BOOTTIME, false}, {f.timer.wall, unix.CLOCK_REALTIME, true}} {
		conn, err := want.file.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var info []byte
		var failed error
		err = conn.Control(func(fd uintptr) {
			info, failed = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		})
		if err = errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
		text := string(info)
		if !strings.Contains(text, fmt.Sprintf("clockid: %d\n", want.clock)) {
			t.Errorf("want one on clock %d:\n%s", want.clock, text)
		}
		// proc_pid_fdinfo(5): the flags are octal, TFD_TIMER_ABSTIME is 1, TFD_TIMER_CANCEL_ON_SET 2.
		if onSet := strings.Contains(text, "settime flags: 03\n"); onSet != want.onSet {
			t.Errorf("the %s fires when the clock is set: %v\n%s", want.file.Name(), onSet, text)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	clock := func() grant.Clock { return grant.Clock{} }
	for name, cfg := range map[string]Config{
		"no clock": {OnDue: func(Due) {}}, "nobody to wake": {Clock: clock},
		"negative rescan": {Clock: clock, OnDue: func(Due) {}, Rescan: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
