// Package gate answers the PAM socket: may this person log in, may this person elevate.
//
// The question comes from pam_curfew.so by internal/gatewire; who asks is taken from the kernel, not
// from the message. The answer comes from a Table that the agent publishes whenever grants change,
// and from the session registry. The gate changes no grant. It denies whatever it does not
// understand, and what it allows is on the trail before it is said.
package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Events takes what belongs on the trail. Record returns once the event is durable; the gate allows
// nothing before.
type Events interface {
	Record(ctx context.Context, event *curfewv1.Event) error
}

// Sessions is the registry of sessions; *session.Manager is one.
type Sessions interface {
	Open(ctx context.Context, s session.Session) (session.Session, context.Context, error)
	End(id string)
	Owner(p process.Process) (request string, ok bool)
	InCage(p process.Process, request string) bool
	Move(ctx context.Context, pid int, request string, uid uint32) (cgroup string, err error)
}

// Config of a Server.
type Config struct {
	// Listener is the gate socket, unixpacket, from Listen or from systemd. Run closes it.
	Listener *net.UnixListener
	// Host is the name of this host that people type in `curfew request`.
	Host     string
	Sessions Sessions
	Events   Events
	Clock    func() grant.Clock
	Log      hclog.Logger
}

// Server answers until its Run ends.
type Server struct {
	cfg   Config
	table atomic.Pointer[Table]
	stats *stats
	quiet *denials
	// asking holds a token for every connection that has no answer yet.
	asking chan struct{}

	mu     sync.Mutex     // guards askers
	askers map[uint32]int // connections without an answer, by the real uid of who asks
}

// New checks the configuration. Until the first Publish every question is answered "try again".
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Listener == nil || cfg.Sessions == nil || cfg.Events == nil || cfg.Clock == nil ||
		cfg.Log == nil:
		return nil, errors.New("gate: Listener, Sessions, Events, Clock and Log are required")
	case cfg.Listener.Addr().Network() != "unixpacket":
		return nil, fmt.Errorf("gate: the listener is %s, not unixpacket",
			cfg.Listener.Addr().Network())
	}
	if err := grant.CheckHostName(cfg.Host); err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	return &Server{
		cfg: cfg, asking: make(chan struct{}, maxAsking), askers: make(map[uint32]int),
		quiet: newDenials(), stats: newStats(),
	}, nil
}

// Publish puts a table in force for every question from now on. The caller must not use it after.
func (s *Server) Publish(t *Table) {
	t.index()
	s.table.Store(t)
}
