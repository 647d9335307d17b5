package session

import (
	"slices"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Limits of a heartbeat (proto/curfew/v1/stream.proto).
const (
	maxReported = 256
	maxCommands = 16
	maxAncestry = 64
)

// Sessions lists the sessions that are open and what they run, for heartbeats: at most 256, the
// oldest first.
func (m *Manager) Sessions() []*curfewv1.Session {
	open := slices.DeleteFunc(m.registered(), func(s Session) bool { return s.Over })
	if len(open) == 0 {
		return nil
	}
	open = open[:min(len(open), maxReported)]
	all, err := process.All()
	if err != nil {
		m.cfg.Log.Warn("looking at what sessions run", "error", err)
	}
	m.mu.Lock()
	live := m.live
	m.mu.Unlock()
	list := make([]*curfewv1.Session, 0, len(open))
	for _, s := range open {
		id := s.GrantID
		if l, ok := live[s.RequestID]; ok && l.GrantID != (grant.ID{}) {
			id = l.GrantID // an extension's, when there was one
		}
		list = append(list, &curfewv1.Session{
			RequestId: s.RequestID, GrantId: id[:], Login: s.Login, Service: s.Service,
			Pid: int32(s.PID), Tty: s.TTY, RemoteHost: s.RHost, SinceMs: s.OpenedAt.UnixMilli(),
			Commands: m.commands(s, all),
		})
	}
	return list
}

// commands names what runs in a session, each name once. The holder itself (sshd, sudo) is not news.
func (m *Manager) commands(s Session, all []process.Process) []string {
	parents := make(map[int]int, len(all))
	for _, p := range all {
		parents[p.PID] = p.PPID
	}
	var names []string
	for _, p := range all {
		if p.Dead() || p.PID == s.PID || len(names) == maxCommands {
			continue
		}
		if !m.belongs(p, s) && !descends(p, s.PID, parents) && !inScope(p, s) {
			continue
		}
		if name := grant.VisibleText(p.Comm); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func inScope(p process.Process, s Session) bool {
	if _, scoped := scopeOf(s.CGroup); !scoped || !s.Elevation {
		return false
	}
	return within(p.CGroup, s.CGroup)
}

func descends(p process.Process, ancestor int, parents map[int]int) bool {
	for pid, n := p.PPID, 0; pid > 1 && n < maxAncestry; pid, n = parents[pid], n+1 {
		if pid == ancestor {
			return true
		}
	}
	return false
}
