package session

import (
	"context"
	"errors"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Manager is the registry of sessions. Its methods may be called from any goroutine.
type Manager struct{ cfg Config }

// New reads the registry back from Dir and from the kernel. It changes nothing on the host.
func New(cfg Config) (*Manager, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Manager{cfg: cfg}, nil
}

var errUnbuilt = errors.New("session: not built in this revision")

// Run watches sessions end, warns on terminals, sweeps every 30 s; until ctx ends.
func (m *Manager) Run(ctx context.Context) error { return errUnbuilt }

// Publish replaces what the manager knows of live grants. Warnings and the sweep go by it; before
// the first call nothing is swept.
func (m *Manager) Publish(live []Live) {}

// Open registers a session and returns when it is durable. The context that comes back ends with
// the session: when its process has exited, or End was called.
func (m *Manager) Open(ctx context.Context, s Session) (Session, context.Context, error) {
	return s, nil, errUnbuilt
}

// End notes that a session is over. Unknown ids are fine.
func (m *Manager) End(id string) {}

// Owner tells which request a process runs under, by its audit session and by its cgroup.
func (m *Manager) Owner(p process.Process) (request string, ok bool) { return "", false }

// InCage tells whether a process stands in a cgroup that ends with the request.
func (m *Manager) InCage(p process.Process, request string) bool { return false }

// Move puts a process into a new scope of the request's, below user-UID.slice, and returns the
// cgroup once the kernel shows it there.
func (m *Manager) Move(ctx context.Context, pid int, request string, uid uint32) (string, error) {
	return "", errUnbuilt
}

// Sessions lists what runs, for heartbeats: at most 256.
func (m *Manager) Sessions() []*curfewv1.Session { return nil }

// Tell writes one line on the terminals of a request's sessions, without ever waiting for one.
func (m *Manager) Tell(request, text string) {}

// Kill ends everything of the targets, within ctx and 2 s, and says per target what is left. Calling
// it again is how residue is retried.
func (m *Manager) Kill(ctx context.Context, targets []Target) []Residue { return nil }

// Arm makes or replaces PID 1's timer that ends the target at end (wall) or when left has run.
func (m *Manager) Arm(ctx context.Context, t Target, end time.Time, left time.Duration) error {
	return errUnbuilt
}

// Disarm removes PID 1's timer of a request.
func (m *Manager) Disarm(ctx context.Context, request string) error { return errUnbuilt }

// Problems says in words what is wrong, for heartbeats; empty when healthy.
func (m *Manager) Problems() []string { return nil }
