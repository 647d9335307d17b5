package session

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// watch looks each second for sessions that ended and for root's user manager, as long as there may be such. A
// host on which nobody has anything is not woken for it.
func (m *Manager) watch(ctx context.Context) {
	for ctx.Err() == nil {
		open, live := m.poll(), m.watchRoot(ctx)
		var next <-chan time.Time
		if open || live {
			next = time.After(pollEvery)
		}
		select {
		case <-ctx.Done():
		case <-next:
		case <-m.looks:
		}
	}
}

// look wakes whoever watches.
func (m *Manager) look() {
	select {
	case m.looks <- struct{}{}:
	default:
	}
}

// poll ends the sessions whose process has exited: those that an earlier agent registered, and those
// whose socket is held open by a child. It tells whether any other is left.
func (m *Manager) poll() (left bool) {
	for _, s := range m.registered() {
		if s.Over {
			continue
		}
		p, err := process.Read(s.PID)
		over := err == nil && (p.StartTicks != s.StartTicks || p.Dead())
		if over || errors.Is(err, process.ErrGone) {
			m.End(s.ID)
		} else {
			left = true
		}
	}
	return left
}

// rootManager is the cgroup of root's own user manager. What `systemd-run --user` starts there as root
// has nobody's audit identity and stands in nobody's scope: nothing ties it to the grant that root came
// from, so its coming is told while it can be seen.
const rootManager = userSlice + "/user-0.slice/user@0.service"

// watchRoot reports a user@0 that appears while grants are live that make root of people. It tells whether there
// are any.
func (m *Manager) watchRoot(ctx context.Context) (live bool) {
	m.mu.Lock()
	var under []string
	var only Live
	for id, l := range m.live {
		if l.RootEquivalent {
			under, only = append(under, id), l
		}
	}
	now := unknown
	if len(under) > 0 {
		if now = absent; exists(rootManager) {
			now = present
		}
	}
	appeared := m.rootSeen == absent && now == present
	m.rootSeen = now
	m.mu.Unlock()
	if !appeared {
		return len(under) > 0
	}
	slices.Sort(under)
	m.cfg.Log.Warn("root's user manager appeared under a grant", "requests", under)
	e := &curfewv1.Event{Kind: trail.KindRootManager, Details: map[string]string{
		"requests": strings.Join(under[:min(len(under), maxShown)], " "),
		"what": "user@0.service started: what it runs (systemd-run --user, units of root's own) does " +
			"not end with the grant",
	}}
	if len(under) == 1 {
		e.RequestId, e.Login, e.GrantId = only.RequestID, only.Login, only.GrantID[:]
	}
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	if err := m.cfg.Events.Record(ctx, e); err != nil {
		m.cfg.Log.Error("recording root's user manager", "error", err)
	}
	return true
}

// seen is whether something was there at the last look; unknown while nobody looks.
type seen int

const (
	unknown seen = iota
	absent
	present
)
