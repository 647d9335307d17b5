package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

// Units are asked of PID 1 over its own socket, /run/systemd/private, which works without a message
// bus. Each question has a connection of its own: PID 1 drops connections when it re-executes itself
// during an upgrade, and nothing here is asked often.
const (
	unitLimit  = time.Second      // for one question
	stopLimit  = 30 * time.Second // for the timers of a thousand requests, by a busy PID 1
	retryPause = 30 * time.Millisecond
)

// errNoScope means that PID 1 did not put a process where it belongs.
var errNoScope = errors.New("the process could not be put into a scope of its own")

func ask(ctx context.Context, question func(context.Context, *dbus.Conn) error) error {
	return askWithin(ctx, unitLimit, question)
}

func askWithin(
	ctx context.Context, limit time.Duration, question func(context.Context, *dbus.Conn) error,
) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel() // also ends what the connection still does
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connecting to systemd: %w", err)
	}
	defer conn.Close()
	return question(ctx, conn)
}

// startScope makes a scope around a process. A scope of that name, or a slice that is just being
// taken away, makes PID 1 refuse; a second try comes after the slice has drained.
func startScope(ctx context.Context, name, slice, description string, pid int) error {
	properties := []dbus.Property{
		dbus.PropDescription(description), dbus.PropSlice(slice), dbus.PropPids(uint32(pid)),
		property("CollectMode", "inactive-or-failed"),
		// On shutdown nothing here deserves 90 s of patience.
		property("TimeoutStopUSec", uint64(5*time.Second/time.Microsecond)),
		property("SendSIGHUP", true),
	}
	start := func(ctx context.Context, conn *dbus.Conn) error {
		done := make(chan string, 1)
		_, err := conn.StartTransientUnitContext(ctx, name, "replace", properties, done)
		if err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		select {
		case result := <-done:
			if result != "done" {
				return fmt.Errorf("starting %s: systemd says %q: %w", name, result, errNoScope)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("starting %s: %w", name, context.Cause(ctx))
		}
	}
	err := ask(ctx, start)
	if err == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return err
	case <-time.After(retryPause):
	}
	return ask(ctx, start)
}

// StartUnit asks PID 1 to start a unit, and does not wait for it. One that runs is left alone.
func StartUnit(ctx context.Context, name string) error {
	return ask(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		if _, err := conn.StartUnitContext(ctx, name, "replace", nil); err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		return nil
	})
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// execCommand and the two below have the D-Bus shapes a(sasb), a(ss) and a(st).
type execCommand struct {
	Path          string
	Args          []string
	IgnoreFailure bool
}

type calendarTimer struct{ Base, Spec string }

type monotonicTimer struct {
	Base string
	USec uint64
}

// timer is PID 1's alarm clock for a request.
type timer struct {
	name        string // without suffix
	description string
	at          time.Time
	after       time.Duration
	commands    [][]string
}

// startTimer makes PID 1 run the commands, one after the other whatever each returns, at a time of
// the wall clock or after a time without suspend, whichever comes first.
func startTimer(ctx context.Context, conn *dbus.Conn, t timer) error {
	commands := make([]execCommand, 0, len(t.commands))
	for _, c := range t.commands {
		commands = append(commands, execCommand{Path: c[0], Args: c, IgnoreFailure: true})
	}
	service := dbus.PropertyCollection{Name: t.name + ".service", Properties: []dbus.Property{
		dbus.PropDescription(t.description), dbus.PropType("oneshot"),
		property("ExecStart", commands), property("CollectMode", "inactive-or-failed"),
		property("TimeoutStartUSec", uint64(time.Minute/time.Microsecond)),
		// As the root half's own unit has it: below systemd-nspawn the boot id is another one without,
		// and what is of another boot is not believed.
		property("ProtectKernelTunables", true),
	}}
	timers := []dbus.Property{
		dbus.PropDescription(t.description), property("CollectMode", "inactive-or-failed"),
		property("TimersCalendar", []calendarTimer{
			{"OnCalendar", t.at.UTC().Format("2006-01-02 15:04:05") + " UTC"},
		}),
		property("TimersMonotonic", []monotonicTimer{
			{"OnActiveSec", uint64(max(t.after, time.Second) / time.Microsecond)},
		}),
		// The default is a minute late.
		property("AccuracyUSec", uint64(time.Second/time.Microsecond)),
		property("RemainAfterElapse", false),
	}
	ctx, cancel := context.WithTimeout(ctx, unitLimit)
	defer cancel()
	_, err := conn.StartTransientUnitAux(ctx, t.name+".timer", "replace", timers,
		[]dbus.PropertyCollection{service}, nil)
	if err != nil {
		return fmt.Errorf("starting %s.timer: %w", t.name, err)
	}
	return nil
}

// stopMatching stops the units whose name matches a pattern of fnmatch(3), and which are chosen.
func stopMatching(ctx context.Context, conn *dbus.Conn, pattern string, chosen func(unit string) bool) error {
	units, err := conn.ListUnitsByPatternsContext(ctx, nil, []string{pattern})
	if err != nil {
		return fmt.Errorf("listing %s: %w", pattern, err)
	}
	var errs []error
	for _, u := range units {
		if chosen(u.Name) {
			errs = append(errs, stop(ctx, conn, u.Name))
		}
	}
	return errors.Join(errs...)
}

// stop asks for a unit to be stopped and forgotten; it does not wait. A unit that is not loaded is
// stopped.
func stop(ctx context.Context, conn *dbus.Conn, name string) error {
	_, err := conn.StopUnitContext(ctx, name, "replace", nil)
	if err != nil && !noSuchUnit(err) {
		return fmt.Errorf("stopping %s: %w", name, err)
	}
	return nil
}

func noSuchUnit(err error) bool {
	var said godbus.Error
	return errors.As(err, &said) && said.Name == "org.freedesktop.systemd1.NoSuchUnit"
}
