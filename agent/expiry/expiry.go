// Package expiry wakes the agent at the earliest deadline, on whichever clock it comes first.
//
// Go's timers stand still in suspend (golang/go#24595) and know nothing of a wall clock that is set,
// so there are two timerfds: one on CLOCK_BOOTTIME, one on CLOCK_REALTIME which also fires when
// somebody sets the clock. A rescan comes every 30 s whatever the timers do. The package decides
// nothing: deadlines come in by Set, and whoever is woken asks the ledger what is over.
package expiry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

// DefaultRescan is how often the agent is woken when nothing is due.
const DefaultRescan = 30 * time.Second

// minJump is the least step of the wall clock against the boot-time clock that counts as one; the
// slewing of an NTP daemon stays below it.
const minJump = time.Second

// Cause says why the agent was woken.
type Cause uint8

// The causes; several at once are reported as the most urgent, in this order.
const (
	CauseRescan   Cause = 1
	CauseDeadline Cause = 2
	CauseJump     Cause = 3
)

func (c Cause) String() string {
	switch c {
	case CauseRescan:
		return "rescan"
	case CauseDeadline:
		return "deadline"
	case CauseJump:
		return "clock jump"
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

// Due is one wake-up. Jump is how far the wall clock moved against the boot-time clock since the
// wake-up before, positive when it was set forward; it is 0 unless the cause is CauseJump.
type Due struct {
	Now   grant.Clock
	Cause Cause
	Jump  time.Duration
}

// Config of a Timer. Clock is the agent's reading of both clocks; it may differ from the kernel's by
// a constant, and deadlines are meant on it. OnDue is called from Run's goroutine, one call at a
// time; while it runs, wake-ups are not lost but merged. Rescan 0 means DefaultRescan.
//
// OnPulse is called each Pulse from the same goroutine, woken by the same timer as for a deadline: as
// long as it is called, ends are noticed. Pulse 0 means never.
type Config struct {
	Clock   func() grant.Clock
	OnDue   func(Due)
	Rescan  time.Duration
	OnPulse func()
	Pulse   time.Duration
}

// Timer wakes at the earliest of two deadlines. Set may be called from any goroutine, Run once.
type Timer struct {
	cfg  Config
	wall *os.File // timerfd on CLOCK_REALTIME
	boot *os.File // timerfd on CLOCK_BOOTTIME
	// wake holds one token: something fired and Run has not looked yet.
	wake chan struct{}

	mu       sync.Mutex // guards what follows
	set      bool
	dueWall  time.Time
	dueBoot  time.Duration
	rescanAt time.Duration // on the boot-time clock
	pulseAt  time.Duration // on the boot-time clock
	offset   time.Duration // wall minus boot at the last look
}

// New makes the two timers. They are closed when Run returns.
func New(cfg Config) (*Timer, error) {
	if cfg.Clock == nil || cfg.OnDue == nil {
		return nil, errors.New("expiry: Clock and OnDue are required")
	}
	if cfg.Rescan == 0 {
		cfg.Rescan = DefaultRescan
	}
	if cfg.Rescan < 0 || cfg.Pulse < 0 {
		return nil, fmt.Errorf("expiry: rescan every %v, pulse every %v", cfg.Rescan, cfg.Pulse)
	}
	if cfg.Pulse > 0 && cfg.OnPulse == nil {
		return nil, errors.New("expiry: a pulse that nobody takes")
	}
	wall, err := timerfd(unix.CLOCK_REALTIME, "wall clock timer")
	if err != nil {
		return nil, err
	}
	boot, err := timerfd(unix.CLOCK_BOOTTIME, "boot-time timer")
	if err != nil {
		return nil, errors.Join(err, wall.Close())
	}
	now := cfg.Clock()
	t := &Timer{
		cfg: cfg, wall: wall, boot: boot, wake: make(chan struct{}, 1),
		offset: offset(now), rescanAt: now.Boot + cfg.Rescan, pulseAt: now.Boot + cfg.Pulse,
	}
	if err := t.arm(); err != nil {
		return nil, errors.Join(err, wall.Close(), boot.Close())
	}
	return t, nil
}

func timerfd(clock int, name string) (*os.File, error) {
	fd, err := unix.TimerfdCreate(clock, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("making the %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func offset(now grant.Clock) time.Duration {
	return time.Duration(now.Wall.UnixNano()) - now.Boot
}

// Set replaces the deadlines by the ones that grant.Ledger.Next returned: the earliest end on each
// clock, or none. A deadline that has passed already fires at once.
func (t *Timer) Set(wall time.Time, boot time.Duration, ok bool) {
	t.mu.Lock()
	t.set, t.dueWall, t.dueBoot = ok, wall, boot
	t.mu.Unlock()
	// Run arms the timers: their errors have one owner, and a deadline in the past needs no timer.
	t.poke()
}

func (t *Timer) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Run wakes OnDue until ctx ends, and returns nil then. An error means that the kernel refused a
// timer: the agent must not go on without.
func (t *Timer) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		_ = t.wall.Close() // ends the readers
		_ = t.boot.Close()
	})
	defer stop()
	group.Go(func() error { return t.drain(ctx, t.wall) })
	group.Go(func() error { return t.drain(ctx, t.boot) })
	group.Go(func() error { return t.loop(ctx) })
	return group.Wait()
}

// drain turns a timerfd's expirations into tokens. ECANCELED is TFD_TIMER_CANCEL_ON_SET's way to
// say that the wall clock was set.
func (t *Timer) drain(ctx context.Context, timer *os.File) error {
	var expirations [8]byte
	for {
		_, err := timer.Read(expirations[:])
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ECANCELED):
			return fmt.Errorf("waiting for the %s: %w", timer.Name(), err)
		}
		t.poke()
	}
}

func (t *Timer) loop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		}
		// Deadlines may be long gone when there is no suspend to wake from, so look before arming.
		if due, ok := t.look(); ok {
			t.cfg.OnDue(due)
		}
		if t.pulse() {
			t.cfg.OnPulse()
		}
		if err := t.arm(); err != nil {
			if ctx.Err() != nil {
				return nil // the timers were closed
			}
			return err
		}
	}
}

// look tells whether anything is due now, and forgets a deadline that it reports: its owner sets the
// next one.
func (t *Timer) look() (Due, bool) {
	now := t.cfg.Clock()
	t.mu.Lock()
	defer t.mu.Unlock()
	due := Due{Now: now}
	if now.Boot >= t.rescanAt {
		due.Cause = CauseRescan
	}
	if t.set && (!now.Wall.Before(t.dueWall) || now.Boot >= t.dueBoot) {
		due.Cause, t.set = CauseDeadline, false
	}
	if moved := offset(now) - t.offset; moved.Abs() >= minJump {
		due.Cause, due.Jump = CauseJump, moved
	}
	if due.Cause == 0 {
		return Due{}, false
	}
	t.offset, t.rescanAt = offset(now), now.Boot+t.cfg.Rescan
	return due, true
}

func (t *Timer) pulse() bool {
	now := t.cfg.Clock().Boot
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cfg.Pulse == 0 || now < t.pulseAt {
		return false
	}
	t.pulseAt = now + t.cfg.Pulse
	return true
}

// arm sets both timers. They run on the kernel's clocks, so the deadline is moved by what the
// agent's reading differs from them.
func (t *Timer) arm() error {
	now := t.cfg.Clock()
	kernelWall, kernelBoot := time.Now().UnixNano(), bootTime()
	t.mu.Lock()
	defer t.mu.Unlock()
	boot, wall := t.rescanAt, now.Wall.Add(t.cfg.Rescan)
	if t.cfg.Pulse > 0 {
		boot = min(boot, t.pulseAt)
	}
	if t.set {
		boot = min(boot, t.dueBoot)
		if t.dueWall.Before(wall) {
			wall = t.dueWall
		}
	}
	if err := settime(t.boot, unix.TFD_TIMER_ABSTIME, int64(kernelBoot+boot-now.Boot)); err != nil {
		return err
	}
	return settime(t.wall, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET,
		kernelWall+int64(wall.Sub(now.Wall)))
}

// settime arms a timer at an absolute time in ns. 0 would disarm it, so the past becomes 1 ns.
func settime(timer *os.File, flags int, at int64) error {
	conn, err := timer.SyscallConn()
	if err != nil {
		return fmt.Errorf("setting the %s: %w", timer.Name(), err)
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(at, 1))}
	var set error
	err = conn.Control(func(fd uintptr) { set = unix.TimerfdSettime(int(fd), flags, &spec, nil) })
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("setting the %s: %w", timer.Name(), err)
	}
	return nil
}
