package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	killLimit = 2 * time.Second
	// killPatience is how long the next batch of ends waits for this one's processes to die.
	killPatience = 500 * time.Millisecond

	passPause   = 20 * time.Millisecond
	cleanPasses = 2
	maxShown    = 16
)

// identity names a process for good.
type identity struct {
	pid   int
	ticks uint64
}

// audit names whatever descends from one login, whichever way it went since.
type audit struct{ login, session uint32 }

// killSet says of any process whether it belongs to one of the targets, and to which.
type killSet struct {
	targets []Target
	request map[string]int   // scopes of these requests
	login   map[string]int   // scopes of logind's, by path
	audit   map[audit]int    // audit sessions of logins
	strayed map[audit]int    // audit sessions of elevations: what has left its user's slice is theirs
	holder  map[identity]int // sshd's root monitors and the like, and whoever was found before
	uid     map[uint32]int   // everything of theirs, and their slice
	cgroups []string         // what can be killed as one
}

// killSet collects what belongs to the targets. A person who only elevates keeps everything that is
// not in a scope of the request's: his login is none of Curfew's.
func (m *Manager) killSet(targets []Target) (*killSet, error) {
	k := &killSet{
		targets: targets,
		request: make(map[string]int), login: make(map[string]int),
		audit: make(map[audit]int), strayed: make(map[audit]int),
		holder: make(map[identity]int), uid: make(map[uint32]int),
	}
	var errs []error
	for i, t := range targets {
		k.request[t.RequestID] = i
		if t.Whole && m.wholly(t) {
			k.uid[t.UID] = i
			parts, err := children(sliceOf(t.UID))
			errs = append(errs, err)
			k.cgroups = append(k.cgroups, slices.DeleteFunc(parts, ofSystem)...)
		}
	}
	for _, s := range m.registered() {
		i, ours := k.request[s.RequestID]
		if !ours {
			continue
		}
		if !s.Over {
			k.holder[identity{s.PID, s.StartTicks}] = i
		}
		if s.Elevation {
			if s.audited() {
				k.strayed[audit{s.LoginUID, s.AuditSession}] = i
			}
			continue
		}
		if s.audited() {
			k.audit[audit{s.LoginUID, s.AuditSession}] = i
		}
		if scope, ok := loginScopeOf(s.CGroup, s.UID); ok {
			k.login[scope] = i
			k.cgroups = append(k.cgroups, scope)
		}
	}
	found, err := scopes()
	for request, paths := range found {
		if _, ours := k.request[request]; ours {
			k.cgroups = append(k.cgroups, paths...)
		}
	}
	return k, errors.Join(append(errs, err)...)
}

// wholly tells whether everything of a target's uid may die: never a system user's, never an
// elevate-only person's.
func (m *Manager) wholly(t Target) bool {
	switch t.Class {
	case account.ClassAccount:
		return m.ownUID(t.UID)
	case account.ClassGated:
		return t.UID >= firstPerson && t.UID != NoAudit
	case account.ClassElevate, account.ClassExempt:
	}
	return false
}

func (m *Manager) ownUID(uid uint32) bool { return uid >= m.cfg.UIDMin && uid <= m.cfg.UIDMax }

// of returns the target that a process belongs to.
func (k *killSet) of(p process.Process) (target int, ok bool) {
	if request, scoped := scopeOf(p.CGroup); scoped {
		if i, ok := k.request[request]; ok {
			return i, true
		}
	}
	if i, ok := k.audit[audit{p.LoginUID, p.AuditSession}]; ok {
		return i, true
	}
	if i, ok := k.strayed[audit{p.LoginUID, p.AuditSession}]; ok && strayed(p) {
		return i, true
	}
	if i, ok := k.holder[identity{p.PID, p.StartTicks}]; ok {
		return i, true
	}
	for _, uid := range p.UIDs {
		if i, ok := k.uid[uid]; ok {
			return i, true
		}
	}
	if m := loginPath.FindStringSubmatch(p.CGroup); m != nil {
		if i, ok := k.login[m[1]]; ok {
			return i, true
		}
	}
	if uid, ok := sliceUID(p.CGroup); ok && !ofSystem(p.CGroup) {
		if i, ok := k.uid[uid]; ok {
			return i, true
		}
	}
	return 0, false
}

// members yields the processes of the set and their descendants, since root may put a child into
// another cgroup. `sudo su -` opens a session of logind's for root on Debian 13 and so leaves the
// scope; everything in such a session of root's is the request's then.
func (m *Manager) members(k *killSet, all []process.Process) map[process.Process]int {
	in := make(map[process.Process]int)
	byPID := make(map[int]int) // target by pid
	for _, p := range all {
		if i, ok := k.of(p); ok && !m.protected(p.PID) {
			byPID[p.PID] = i
			if !p.Dead() {
				in[p] = i
			}
		}
	}
	for range maxAncestry {
		grown := false
		for _, p := range all {
			if _, known := byPID[p.PID]; known || m.protected(p.PID) {
				continue
			}
			i, ok := byPID[p.PPID]
			if scope, roots := loginScopeOf(p.CGroup, 0); roots && ok {
				k.login[scope] = i
			} else if roots {
				i, ok = k.login[scope]
			}
			if ok {
				byPID[p.PID], grown = i, true
				if !p.Dead() {
					in[p] = i
				}
			}
		}
		if !grown {
			break
		}
	}
	for p, i := range in {
		// Orphans have no parent to be known by next time, and one that was killed may take its time.
		k.holder[identity{p.PID, p.StartTicks}] = i
	}
	return in
}

// Kill ends everything of the targets, within 2 s for all of them, and says per target what is left.
// Calling it again is how residue is retried. An empty list does nothing.
func (m *Manager) Kill(ctx context.Context, targets []Target) []Residue {
	return m.KillThen(ctx, targets, func() {})
}

// KillThen is Kill, and calls dead as soon as the processes are, or when some will not die for half a
// second: neither they nor what systemd takes its time to clear away keep anybody else alive.
func (m *Manager) KillThen(ctx context.Context, targets []Target, dead func()) []Residue {
	if len(targets) == 0 {
		dead()
		return nil
	}
	m.killing.Lock()
	next := sync.OnceFunc(func() {
		m.killing.Unlock()
		dead()
	})
	patience := time.AfterFunc(killPatience, next)
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	left := make([]Residue, len(targets))
	for i, t := range targets {
		left[i].RequestID = t.RequestID
		left[i].Problems = t.check()
	}
	k, err := m.killSet(targets)
	if err != nil {
		m.cfg.Log.Error("collecting what to kill", "error", err)
	}
	for _, t := range targets {
		m.condemn(t)
	}
	m.farewell(ctx, k)
	for _, dir := range k.cgroups {
		if err := m.killCGroup(dir); err != nil {
			m.cfg.Log.Warn("killing by cgroup; processes are killed one by one", "error", err)
		}
	}
	_, _ = m.pass(k) // what is outside of those cgroups; the rounds below report
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.tidySystemd(ctx, k)
	}()
	for i, t := range targets {
		left[i].Problems = append(left[i].Problems, m.tidyFiles(t)...)
	}
	m.rounds(ctx, k, left)
	patience.Stop()
	next()
	<-done
	for i, t := range targets {
		left[i].Problems = append(left[i].Problems, m.tidyRuntimeDir(ctx, t)...)
	}
	m.afterKill(targets, left)
	return left
}

// check names what is wrong with a target. It is killed as far as it makes sense all the same.
func (t Target) check() []string {
	var problems []string
	if err := grant.CheckRequestID(t.RequestID); err != nil {
		problems = append(problems, err.Error())
	}
	if err := grant.CheckUserName(t.Login); err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}

// killCGroup kills a cgroup as one, unless the agent itself stands in it.
func (m *Manager) killCGroup(dir string) error {
	if within(m.self.CGroup, dir) {
		return fmt.Errorf("cgroup %s holds the agent itself", dir)
	}
	return killCGroup(dir, m.protected)
}

// protected are the processes that are never killed, whatever they seem to belong to.
func (m *Manager) protected(pid int) bool { return pid <= 1 || pid == os.Getpid() }

// pass kills every process of the set that runs now and returns them, by target.
func (m *Manager) pass(k *killSet) (map[int][]process.Process, error) {
	all, err := process.All()
	found := make(map[int][]process.Process)
	errs := []error{err}
	for p, i := range m.members(k, all) {
		found[i] = append(found[i], p)
		errs = append(errs, process.Kill(p))
	}
	return found, errors.Join(errs...)
}

// rounds passes over all processes until nothing of the set was seen twice in a row, or the time is
// up: what ran last then is residue.
func (m *Manager) rounds(ctx context.Context, k *killSet, left []Residue) {
	for clean := 0; clean < cleanPasses; {
		found, err := m.pass(k)
		if len(found) == 0 && err == nil {
			clean++
		} else {
			clean = 0
		}
		select {
		case <-ctx.Done():
			for i, processes := range found {
				left[i].Processes = shown(processes)
			}
			if err != nil {
				m.cfg.Log.Error("killing", "error", err)
				for i := range left {
					left[i].Problems = append(left[i].Problems, "killing: "+firstLine(err))
				}
			}
			return
		case <-time.After(passPause):
		}
	}
}

func shown(processes []process.Process) []string {
	var list []string
	for _, p := range processes[:min(len(processes), maxShown)] {
		list = append(list, fmt.Sprintf("%d %s (%c)", p.PID, grant.VisibleText(p.Comm), p.State))
	}
	return list
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
