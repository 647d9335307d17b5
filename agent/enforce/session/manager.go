package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/trail"
)

const (
	pollEvery   = time.Second
	sweepEvery  = 30 * time.Second
	recordLimit = 2 * time.Second // for one event about a session that ended
)

// Manager is the registry of sessions. Its methods may be called from any goroutine.
type Manager struct {
	cfg    Config
	self   process.Process
	bootID string
	warner *warner
	scopes atomic.Uint64 // how many were made, for their names
	sweeps chan struct{} // one token: sweep now
	looks  chan struct{} // one token: there is something to watch

	killing sync.Mutex // held during Kill: one at a time

	files sync.Mutex // guards dir; taken before mu
	dir   *folder.Folder

	mu        sync.Mutex // guards what follows
	sessions  map[string]*entry
	live      map[string]Live // by request
	published bool
	problems  map[string]string
	told      map[string]time.Time // when a request's terminals last got a line
	given     given                // gids of grants
	rootSeen  seen                 // root's user manager
	failed    []uint32             // whose user managers PID 1 may still call failed
}

// entry is a registered session. Its context ends with it.
type entry struct {
	Session
	ctx    context.Context
	cancel context.CancelFunc
	// killed says why, once Kill has begun: whoever notices the end first reports it so.
	killed map[string]string
}

// New reads the registry back from Dir. It kills nothing and opens nothing.
func New(cfg Config) (*Manager, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	self, err := process.Read(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	dir, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		cfg: cfg, self: self, bootID: cfg.Clock().BootID, dir: dir,
		sweeps:   make(chan struct{}, 1),
		looks:    make(chan struct{}, 1),
		sessions: make(map[string]*entry), problems: make(map[string]string),
		told: make(map[string]time.Time),
	}
	m.warner = newWarner(cfg.Host, cfg.Clock, m.Tell)
	known, problems := readRecords(dir, m.bootID)
	for _, s := range known {
		m.sessions[s.ID] = newEntry(s)
	}
	var errGiven error
	m.given, errGiven = readGiven(dir, m.bootID)
	m.problem("session records", errors.Join(append(problems, errGiven)...))
	return m, nil
}

func newEntry(s Session) *entry {
	e := &entry{Session: s}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if s.Over {
		e.cancel()
	}
	return e
}

// Close lets go of the folder; the Manager must not be used after.
func (m *Manager) Close() error {
	m.files.Lock()
	defer m.files.Unlock()
	return m.dir.Close()
}

// Run notices that sessions end, warns on terminals and sweeps every 30 s, until ctx ends; then it
// returns nil.
func (m *Manager) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return m.warner.run(ctx) })
	group.Go(func() error {
		m.watch(ctx)
		return nil
	})
	group.Go(func() error {
		every(ctx, sweepEvery, m.sweeps, func() { m.sweep(ctx); m.EndOldGIDs(ctx) })
		return nil
	})
	return group.Wait()
}

// every calls step at once, then after each pause or token, until ctx ends.
func every(ctx context.Context, pause time.Duration, token <-chan struct{}, step func()) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for ctx.Err() == nil {
		step()
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-token:
		}
	}
}

// Publish replaces what the manager knows of live grants. Warnings and the sweep go by it, and no
// session opens for a request that is not in it. Before the first call nothing is swept. The agent
// publishes here before it publishes to the gate when something starts, and calls Kill only after
// it has published without what ended.
func (m *Manager) Publish(live []Live) {
	byRequest := make(map[string]Live, len(live))
	for _, l := range live {
		byRequest[l.RequestID] = l
	}
	m.mu.Lock()
	first := !m.published
	m.live, m.published = byRequest, true
	maps.DeleteFunc(m.told, func(_ string, at time.Time) bool { return time.Since(at) > time.Minute })
	m.mu.Unlock()
	m.give(live)
	m.warner.publish(byRequest)
	m.look()
	if first {
		select {
		case m.sweeps <- struct{}{}:
		default:
		}
	}
}

// Retire takes requests that have ended out of what is live, before Publish says what else is new.
func (m *Manager) Retire(requests []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	live := maps.Clone(m.live) // others read the map that was
	for _, request := range requests {
		delete(live, request)
	}
	m.live = live
}

// Open registers a session and returns it, with its ID, when it is durable and on the trail. The
// context that comes with it ends with the session: when its process has exited, when it is killed,
// or when End is called. ErrNotLive and ErrFull refuse it.
func (m *Manager) Open(ctx context.Context, s Session) (Session, context.Context, error) {
	s.ID, s.OpenedAt, s.Over = newID(), m.cfg.Clock().Wall, false
	if err := s.check(); err != nil {
		return s, nil, fmt.Errorf("opening a session: %w", err)
	}
	e := newEntry(s)
	if err := m.admit(e); err != nil {
		return s, nil, fmt.Errorf("opening a session of %s: %w", s.Login, err)
	}
	err := m.save(s)
	if err == nil {
		err = m.cfg.Events.Record(ctx, event(trail.KindSessionOpened, s, nil))
	}
	if err != nil {
		m.forget(s.ID)
		return s, nil, fmt.Errorf("opening a session of %s: %w", s.Login, err)
	}
	m.changed()
	return s, e.ctx, nil
}

// admit checks and registers in one step: whoever publishes an end and then kills finds the session.
func (m *Manager) admit(e *entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, live := m.live[e.RequestID]; !live {
		return ErrNotLive
	}
	if len(m.sessions) >= MaxSessions {
		return ErrFull
	}
	m.sessions[e.ID] = e
	m.look()
	return nil
}

func (m *Manager) save(s Session) error {
	m.files.Lock()
	defer m.files.Unlock()
	return writeRecord(m.dir, s, m.bootID)
}

// forget removes a session from the registry and its file.
func (m *Manager) forget(id string) {
	m.mu.Lock()
	if e, ok := m.sessions[id]; ok {
		e.cancel()
		delete(m.sessions, id)
	}
	m.mu.Unlock()
	m.files.Lock()
	defer m.files.Unlock()
	if err := m.dir.Remove(id + recordSuffix); err != nil {
		m.cfg.Log.Error("removing a session's record", "session", id, "error", err)
	}
}

func (m *Manager) changed() {
	if m.cfg.OnChange != nil {
		m.cfg.OnChange()
	}
}

// End notes that a session is over. Unknown ids are fine. What the session left running stays the
// request's: its record is kept as long as processes of it run.
func (m *Manager) End(id string) {
	m.mu.Lock()
	e, ok := m.sessions[id]
	if !ok || e.Over {
		m.mu.Unlock()
		return
	}
	e.Over = true
	s, details, kind := e.Session, e.killed, trail.KindSessionClosed
	if details != nil {
		kind = trail.KindSessionKilled
	}
	e.cancel()
	known := s.Elevation && m.covered(s)
	m.mu.Unlock()
	if known {
		m.forget(id)
	} else if err := m.save(s); err != nil {
		m.cfg.Log.Error("keeping a session's record", "session", id, "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), recordLimit)
	defer cancel()
	if err := m.cfg.Events.Record(ctx, event(kind, s, details)); err != nil {
		m.cfg.Log.Error("recording the end of a session", "session", id, "error", err)
	}
	m.changed()
}

// covered tells whether everything that an elevation has left is known without its record: by a scope,
// or by another record of the same request and audit session. mu is held.
func (m *Manager) covered(s Session) bool {
	if !s.audited() {
		return true
	}
	for id, e := range m.sessions {
		if id != s.ID && e.RequestID == s.RequestID && e.LoginUID == s.LoginUID &&
			e.AuditSession == s.AuditSession && (e.Over || !e.Elevation) {
			return true
		}
	}
	return false
}

// condemn notes that the sessions of a request end because they are killed.
func (m *Manager) condemn(t Target) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.sessions {
		if e.RequestID == t.RequestID && !e.Over {
			e.killed = map[string]string{"cause": cmp.Or(t.Why, causeText(t.Cause)), "by": t.By}
		}
	}
}

// LoggedIn tells whether a login session of a request runs.
func (m *Manager) LoggedIn(request string) bool {
	return slices.ContainsFunc(m.registered(), func(s Session) bool {
		return s.RequestID == request && !s.Over && !s.Elevation
	})
}

// registered returns all sessions, oldest first.
func (m *Manager) registered() []Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Session, 0, len(m.sessions))
	for _, e := range m.sessions {
		list = append(list, e.Session)
	}
	slices.SortFunc(list, func(a, b Session) int {
		if c := a.OpenedAt.Compare(b.OpenedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// Owner tells which request a process runs under: by the scope that it stands in, else by its audit
// session, else by the logind scope of a login.
func (m *Manager) Owner(p process.Process) (request string, ok bool) {
	if request, ok := scopeOf(p.CGroup); ok {
		return request, true
	}
	known := m.registered()
	if p.AuditSession != NoAudit && p.LoginUID != NoAudit {
		for _, s := range known {
			if !s.Elevation && s.AuditSession == p.AuditSession && s.LoginUID == p.LoginUID {
				return s.RequestID, true
			}
		}
	}
	for _, s := range known {
		if scope, ok := loginScopeOf(s.CGroup, s.UID); !s.Elevation && ok && within(p.CGroup, scope) {
			return s.RequestID, true
		}
	}
	return "", false
}

// OfAccount tells whether a process is a Curfew account's, by who logged in or by the slice that it stands in:
// also one whose session nobody has registered.
func (m *Manager) OfAccount(p process.Process) bool {
	uid, sliced := sliceUID(p.CGroup)
	return p.LoginUID != NoAudit && m.ownUID(p.LoginUID) ||
		sliced && !ofSystem(p.CGroup) && m.ownUID(uid)
}

// LoginOf returns the login whose sessions a request has, or "" when it has none.
func (m *Manager) LoginOf(request string) string {
	for _, s := range m.registered() {
		if s.RequestID == request {
			return s.Login
		}
	}
	return ""
}

// InCage tells whether a process stands in a cgroup that ends with the request: one of its scopes,
// or the logind scope of one of its logins.
func (m *Manager) InCage(p process.Process, request string) bool {
	if owner, ok := scopeOf(p.CGroup); ok {
		return owner == request
	}
	for _, s := range m.registered() {
		scope, ok := loginScopeOf(s.CGroup, s.UID)
		if ok && !s.Elevation && s.RequestID == request && within(p.CGroup, scope) {
			return true
		}
	}
	return false
}

// Move puts a process into a new scope of the request's, below user-UID.slice, and returns the
// cgroup once the kernel shows it there. Whoever calls holds on to the process by a pidfd.
func (m *Manager) Move(ctx context.Context, pid int, request string, uid uint32) (string, error) {
	name := fmt.Sprintf("curfew-%s-%d-%s.scope", request, m.scopes.Add(1), newID()[:8])
	if _, ok := scopeOf(sliceOf(uid) + "/" + name); !ok {
		return "", fmt.Errorf("moving process %d: %q cannot be a request's: %w", pid, request, errNoScope)
	}
	slice := fmt.Sprintf("user-%d.slice", uid)
	err := startScope(ctx, name, slice, "Elevation under Curfew request "+request, pid)
	m.problem("scopes", err)
	if err != nil {
		return "", fmt.Errorf("moving process %d: %w", pid, err)
	}
	for {
		p, err := process.Read(pid)
		if err != nil {
			return "", fmt.Errorf("moving process %d: %w", pid, err)
		}
		if owner, ok := scopeOf(p.CGroup); ok && owner == request {
			return p.CGroup, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("moving process %d: it stays in %q: %w", pid, p.CGroup, errNoScope)
		case <-time.After(time.Millisecond):
		}
	}
}

// problem notes under a key what is wrong, or that it is well again.
func (m *Manager) problem(key string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.problems, key)
	} else {
		m.problems[key] = key + ": " + firstLine(err)
	}
}

// Problems says in words what is wrong, for heartbeats; empty when healthy.
func (m *Manager) Problems() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Values(m.problems))
}
