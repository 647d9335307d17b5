package session

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// sweep kills what runs without a live grant: processes of Curfew's uids, scopes and sessions of
// requests that are over. It also drops the records of sessions that left nothing behind.
func (m *Manager) sweep(ctx context.Context) {
	m.mu.Lock()
	published := m.published
	m.mu.Unlock()
	if !published {
		return // not knowing is no order to kill
	}
	all, err := process.All()
	if err != nil {
		m.cfg.Log.Error("sweeping", "error", err)
	}
	m.dropOver(all)
	m.settle(ctx)
	stray := m.strays(all)
	if len(stray) == 0 {
		return
	}
	m.cfg.Log.Warn("processes run without a live grant", "requests_and_uids", len(stray))
	for _, r := range m.Kill(ctx, stray) {
		m.cfg.Log.Warn("swept", "request", r.RequestID, "left", r.Processes, "problems", r.Problems)
	}
}

// dropOver forgets sessions that are over and whose audit session and scope are empty.
func (m *Manager) dropOver(all []process.Process) {
	for _, s := range m.registered() {
		if s.Over && !slices.ContainsFunc(all, func(p process.Process) bool {
			return !p.Dead() && (m.belongs(p, s) || leftBehind(p, s))
		}) {
			m.forget(s.ID)
		}
	}
}

// leftBehind tells whether a process is what an elevation left, or may still go astray from there.
func leftBehind(p process.Process, s Session) bool {
	if request, scoped := scopeOf(p.CGroup); scoped && s.Elevation {
		return request == s.RequestID
	}
	return s.Elevation && s.audited() && strayed(p) &&
		p.LoginUID == s.LoginUID && p.AuditSession == s.AuditSession
}

// belongs tells whether a process is a login session's.
func (m *Manager) belongs(p process.Process, s Session) bool {
	if p.PID == s.PID && p.StartTicks == s.StartTicks {
		return true
	}
	if s.Elevation {
		return false
	}
	if p.AuditSession != NoAudit && p.AuditSession == s.AuditSession && p.LoginUID == s.LoginUID {
		return true
	}
	scope, ok := loginScopeOf(s.CGroup, s.UID)
	return ok && within(p.CGroup, scope)
}

// strays returns what runs and is no live request's. An account whose uid has no live grant is a
// target as a whole, under the name that its session or its number gives it.
func (m *Manager) strays(all []process.Process) []Target {
	known := m.registered()
	m.mu.Lock()
	live := m.live
	m.mu.Unlock()
	uids := make(map[uint32]bool, len(live))
	for _, l := range live {
		uids[l.UID] = true
	}
	found := make(map[string]Target)
	for _, s := range known {
		if _, ok := live[s.RequestID]; !ok {
			found[s.RequestID] = Target{
				RequestID: s.RequestID, Login: s.Login, UID: s.UID, Class: m.classOf(s.UID),
				Whole: m.ownUID(s.UID) && !uids[s.UID],
			}
		}
	}
	for _, p := range all {
		if p.Dead() {
			continue
		}
		request, scoped := scopeOf(p.CGroup)
		if _, ok := live[request]; scoped && !ok {
			if _, known := found[request]; !known {
				found[request] = Target{RequestID: request, Login: nobody, Class: account.ClassElevate}
			}
		}
		for _, uid := range p.UIDs {
			if m.ownUID(uid) && !uids[uid] {
				key := "uid " + strconv.FormatUint(uint64(uid), 10)
				found[key] = Target{
					RequestID: noRequest, Login: nobody, UID: uid, Class: account.ClassAccount,
					Whole: true,
				}
			}
		}
	}
	return slices.Collect(maps.Values(found))
}

// What stands for a request and a login that nobody remembers.
const (
	noRequest = "000000000000"
	nobody    = "_unknown"
)

// classOf is the class of a uid as far as killing goes: what is not an account's keeps its own.
func (m *Manager) classOf(uid uint32) account.Class {
	if m.ownUID(uid) {
		return account.ClassAccount
	}
	return account.ClassElevate
}

// afterKill ends the sessions of targets and forgets those that left nothing.
func (m *Manager) afterKill(targets []Target, left []Residue) {
	for i, t := range targets {
		for _, s := range m.registered() {
			if s.RequestID != t.RequestID {
				continue
			}
			m.End(s.ID)
			if len(left[i].Processes) == 0 {
				m.forget(s.ID)
			}
		}
	}
}

// event says on the trail what happened to a session.
func event(kind string, s Session, details map[string]string) *curfewv1.Event {
	d := map[string]string{"service": s.Service, "pid": strconv.Itoa(s.PID)}
	for k, v := range map[string]string{"tty": s.TTY, "rhost": s.RHost, "cgroup": s.CGroup} {
		if v != "" {
			d[k] = v
		}
	}
	if s.AuditSession != NoAudit {
		d["audit_session"] = strconv.FormatUint(uint64(s.AuditSession), 10)
	}
	for k, v := range details {
		if v != "" {
			d[k] = v
		}
	}
	for k, v := range d {
		d[k] = grant.Clip(v, trail.MaxDetail)
	}
	e := &curfewv1.Event{Kind: kind, RequestId: s.RequestID, Login: s.Login, Details: d}
	if s.GrantID != [32]byte{} {
		e.GrantId = s.GrantID[:]
	}
	return e
}

func causeText(c curfewv1.EndCause) string {
	switch c {
	case curfewv1.EndCause_END_CAUSE_EXPIRED:
		return "expired"
	case curfewv1.EndCause_END_CAUSE_REVOKED:
		return "revoked"
	case curfewv1.EndCause_END_CAUSE_DONE:
		return "handed back"
	case curfewv1.EndCause_END_CAUSE_USED:
		return "its one session is over"
	case curfewv1.EndCause_END_CAUSE_WITHDRAWN:
		return "withdrawn"
	case curfewv1.EndCause_END_CAUSE_UNSPECIFIED, curfewv1.EndCause_END_CAUSE_EXTENDED:
	}
	return "no longer granted"
}
