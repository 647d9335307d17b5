package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

// tidyLimit bounds what is asked of logind. Nothing of it is needed for the kill: with logind and
// the bus dead, cgroups and pidfds do the same.
const tidyLimit = 500 * time.Millisecond

const (
	logindName = "org.freedesktop.login1"
	logindPath = godbus.ObjectPath("/org/freedesktop/login1")
	lingerDir  = "/var/lib/systemd/linger"
	runUser    = "/run/user"
)

// tidyFiles takes away what would count or come back later: sudo's tickets of everybody; the jobs
// and the lingering of a Curfew account. Jobs of local users are theirs; the gate holds them.
func (m *Manager) tidyFiles(t Target) []string {
	if grant.CheckUserName(t.Login) != nil || t.UID < firstPerson {
		return nil // named already, and never a path; or a scope of somebody whom nobody remembers
	}
	errs := []error{removeTickets(t.Login, t.UID)}
	if m.ownAccount(t) {
		errs = append(errs, removeJobs(t.Login, t.UID), unlinkIn(lingerDir, t.Login))
	}
	var problems []string
	for _, err := range errs {
		if err != nil {
			problems = append(problems, firstLine(err))
		}
	}
	return problems
}

func (m *Manager) ownAccount(t Target) bool {
	return t.Whole && t.Class == account.ClassAccount && m.wholly(t)
}

// tidySystemd tells logind and PID 1 what is over. They would find out by themselves, later.
func (m *Manager) tidySystemd(ctx context.Context, k *killSet) {
	var sessions []string
	for scope := range k.login {
		name := strings.TrimSuffix(path.Base(scope), ".scope")
		sessions = append(sessions, strings.TrimPrefix(name, "session-"))
	}
	var users []uint32
	for uid := range k.uid {
		users = append(users, uid)
	}
	var group sync.WaitGroup
	group.Go(func() {
		if err := tidyLogind(ctx, sessions); err != nil {
			m.cfg.Log.Warn("logind was not told; it is not needed", "error", err)
		}
	})
	group.Go(func() {
		if err := m.tidyUsers(ctx, users); err != nil {
			m.cfg.Log.Warn("user managers were not stopped; their processes are killed", "error", err)
		}
	})
	group.Wait()
}

// tidyLogind tells logind that sessions are over. go-systemd's login1 has neither a deadline nor an
// error for this call, so it is made on the D-Bus library below it.
func tidyLogind(ctx context.Context, sessions []string) error {
	if len(sessions) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	conn, err := godbus.ConnectSystemBus(godbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("connecting to the message bus: %w", err)
	}
	defer func() { _ = conn.Close() }() // what mattered was answered
	var errs []error
	for _, id := range sessions {
		// NoAutoStart: a logind that is dead is not worth waiting for.
		err := conn.Object(logindName, logindPath).CallWithContext(ctx,
			logindName+".Manager.TerminateSession", godbus.FlagNoAutoStart, id).Err
		if err != nil && !noSuchSession(err) {
			errs = append(errs, fmt.Errorf("terminating session %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

func noSuchSession(err error) bool {
	var said godbus.Error
	return errors.As(err, &said) && strings.HasPrefix(said.Name, logindName+".NoSuch")
}

// tidyUsers stops the managers of users, whose processes were killed, and takes their /run/user/UID
// away. Then PID 1 forgets that they failed: a host with a failed unit counts as degraded. When it
// is too busy to do so now, the next sweep asks again.
func (m *Manager) tidyUsers(ctx context.Context, uids []uint32) error {
	if len(uids) == 0 {
		return nil
	}
	err := errors.Join(stopManagers(ctx, uids), forgetFailed(ctx, uids))
	if err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.failed = union(m.failed, uids)
	}
	return err
}

// settle has PID 1 forget what it was too busy to forget. It stops nothing: somebody may have been
// given access since.
func (m *Manager) settle(ctx context.Context) {
	m.mu.Lock()
	uids := m.failed
	m.failed = nil
	m.mu.Unlock()
	if len(uids) == 0 {
		return
	}
	if err := forgetFailed(ctx, uids); err != nil {
		m.cfg.Log.Warn("stopped user managers are asked about again", "error", err)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.failed = union(m.failed, uids)
	}
}

func union(a, b []uint32) []uint32 {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// managerUnits are what PID 1 runs for users.
func managerUnits(uids []uint32) []string {
	var units []string
	for _, uid := range uids {
		id := strconv.FormatUint(uint64(uid), 10)
		units = append(units, "user@"+id+".service", "user-runtime-dir@"+id+".service")
	}
	return units
}

func stopManagers(ctx context.Context, uids []uint32) error {
	return ask(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		var errs []error
		// Buffered for all results: go-systemd blocks on a channel that nobody reads.
		done := make(chan string, 2*len(uids))
		waiting := 0
		for _, unit := range managerUnits(uids) {
			_, err := conn.StopUnitContext(ctx, unit, "replace", done)
			if err == nil {
				waiting++
			} else if !noSuchUnit(err) {
				errs = append(errs, fmt.Errorf("stopping %s: %w", unit, err))
			}
		}
		for ; waiting > 0; waiting-- {
			select {
			case <-done:
			case <-ctx.Done():
				return errors.Join(append(errs, context.Cause(ctx))...)
			}
		}
		return errors.Join(errs...)
	})
}

// forgetFailed demands that none of the users' units is failed, nor may become so any more.
func forgetFailed(ctx context.Context, uids []uint32) error {
	return ask(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		units, err := conn.ListUnitsByNamesContext(ctx, managerUnits(uids))
		if err != nil {
			return fmt.Errorf("looking at user managers: %w", err)
		}
		var errs []error
		for _, u := range units {
			switch u.ActiveState {
			case "failed":
				if err := conn.ResetFailedUnitContext(ctx, u.Name); err != nil && !noSuchUnit(err) {
					errs = append(errs, fmt.Errorf("forgetting %s: %w", u.Name, err))
				}
			case "deactivating":
				errs = append(errs, fmt.Errorf("%s is still being stopped", u.Name))
			}
		}
		return errors.Join(errs...)
	})
}

// tidyRuntimeDir waits until systemd has taken a Curfew account's /run/user/UID away, and takes away
// what is left when it is a plain folder. A mount that stays is said to be left.
func (m *Manager) tidyRuntimeDir(ctx context.Context, t Target) []string {
	if !m.ownAccount(t) {
		return nil
	}
	name := strconv.FormatUint(uint64(t.UID), 10)
	for {
		_, err := os.Lstat(runUser + "/" + name)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		select {
		case <-ctx.Done():
			dir, err := folder.Open(runUser, nil)
			if err == nil {
				err = errors.Join(dir.Remove(name), dir.Close())
			}
			if err != nil {
				return []string{firstLine(err)}
			}
			return nil
		case <-time.After(passPause):
		}
	}
}
