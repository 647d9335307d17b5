package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	hostDir = "/run/curfew/sessions"
	role    = "ops"
)

// memory is an event sink that keeps everything.
type memory struct {
	mu     sync.Mutex
	events []*curfewv1.Event
	fail   error
}

func (m *memory) Record(_ context.Context, e *curfewv1.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail == nil {
		m.events = append(m.events, e)
	}
	return m.fail
}

func (m *memory) kinds() (kinds []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		kinds = append(kinds, e.GetKind())
	}
	return kinds
}

func systemClock() grant.Clock {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		panic(err)
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		panic(err)
	}
	return grant.Clock{
		Wall: time.Now(), Boot: time.Duration(boot.Nano()), BootID: strings.TrimSpace(string(id)),
	}
}

func testConfig(dir string, events Events) Config {
	return Config{
		Dir: dir, Host: "web1", UIDMin: 1900000000, UIDMax: 1999999999, Clock: systemClock,
		Events: events, Backstop: []string{"/bin/false"}, Log: hclog.New(&hclog.LoggerOptions{
			Level: hclog.Debug, Output: os.Stderr,
		}),
	}
}

// subject is what the host tests pass on the command line: request, login, uid, class, whole.
func subject(args []string) (Target, Live, error) {
	if len(args) < 5 {
		return Target{}, Live{}, errors.New("want REQUEST LOGIN UID CLASS WHOLE")
	}
	uid, err := strconv.ParseUint(args[2], 10, 32)
	if err != nil {
		return Target{}, Live{}, err
	}
	class := map[string]account.Class{
		"account": account.ClassAccount, "gated": account.ClassGated, "elevate": account.ClassElevate,
	}[args[3]]
	t := Target{
		RequestID: args[0], Login: args[1], UID: uint32(uid), Class: class, Whole: args[4] == "whole",
		Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "bob",
	}
	now := systemClock()
	return t, Live{
		RequestID: t.RequestID, Login: t.Login, UID: t.UID, Class: class, Role: role,
		Start: now.Wall, End: now.Wall.Add(time.Hour), BootDeadline: now.Boot + time.Hour,
	}, nil
}

// report is what a host test learns.
type report struct {
	CGroup  string
	Residue []Residue
	Took    time.Duration
	// Of a crowd: when the last process had exited, and when the last timer was removed.
	Dead, Gone time.Duration
	Kinds      []string
}

func onHost(verb string, args []string) error {
	t, live, err := subject(args)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(hostDir[:len("/run/curfew")], 0o755); err != nil {
		return err
	}
	events := &memory{}
	m, err := New(testConfig(hostDir, events))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var r report
	start := time.Now()
	switch verb {
	case "open":
		r.CGroup, err = openLogin(ctx, m, t, live)
	case "move":
		pid, errPID := strconv.Atoi(args[5])
		r.CGroup, err = m.Move(ctx, pid, t.RequestID, t.UID)
		err = errors.Join(errPID, err)
	case "kill":
		m.Publish([]Live{})
		r.Residue = m.Kill(ctx, []Target{t})
	case "arm":
		seconds, errSeconds := strconv.Atoi(args[5])
		left := time.Duration(seconds) * time.Second
		err = errors.Join(errSeconds, m.Arm(ctx, t, time.Now().Add(left), left))
	case "disarm":
		err = m.Disarm(ctx, t.RequestID)
	case "sweep":
		m.Publish([]Live{})
		m.sweep(ctx)
	case "settle":
		m.Publish([]Live{})
		r.Residue = m.Kill(ctx, []Target{t})
		time.Sleep(8 * time.Second)
		m.sweep(ctx)
	case "stubborn":
		r.Residue, r.Dead, err = endStubborn(m, t)
	case "crowd":
		r.Residue, r.Dead, r.Gone, err = endCrowd(m)
	default:
		err = fmt.Errorf("no verb %q", verb)
	}
	if err != nil {
		return err
	}
	r.Took, r.Kinds = time.Since(start), events.kinds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// openLogin does what the gate does at open_session: it registers sshd's root monitor.
func openLogin(ctx context.Context, m *Manager, t Target, live Live) (string, error) {
	all, err := process.All()
	if err != nil {
		return "", err
	}
	for _, p := range all {
		if !strings.HasPrefix(p.Comm, "sshd") || p.RealUID() != 0 || p.LoginUID != t.UID {
			continue
		}
		m.Publish([]Live{live})
		s, _, err := m.Open(ctx, Session{
			RequestID: t.RequestID, Login: t.Login, UID: t.UID, Service: "sshd", PID: p.PID,
			StartTicks: p.StartTicks, LoginUID: p.LoginUID, AuditSession: p.AuditSession,
			CGroup: p.CGroup,
		})
		return s.CGroup, err
	}
	return "", errors.New("no sshd of the login's")
}
