// Package stream is the Hub: one bidirectional gRPC stream per host (PROTOCOL.md section 2).
//
// Downstream it carries sealed objects that package issue made; upstream it takes what the host's
// root half signed. It may not make, alter or judge a grant: a host believes the seals, and the
// Hub believes the host only about the host itself. What hosts say goes to the Store (events,
// acks) and, for health and sessions, into memory, where package api reads it.
//
// Every host has one goroutine that owns its connection and does its work in order. Nothing of one
// host waits for another, except that all share the Store.
package stream

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Sealer seals a host's next state; *issue.Issuer is the one.
type Sealer interface {
	SealState(ctx context.Context, host grant.HostID, nonce []byte, trailFrom uint64, follows bool) (
		*issue.Sealed, error)
}

// Config is what a Hub needs.
type Config struct {
	Store  Store
	Issuer Sealer
	// Identify returns the host that the call's verified client certificate names, as
	// (*enrol.Authority).HostOf does.
	Identify func(ctx context.Context) (grant.HostID, error)
	// Heard is called after something that a host said became visible (an ack, an end, sessions,
	// health, coming and going), so that watchers look again. It must not block; nil is nobody.
	Heard func(grant.HostID)
	// Acked is told of every answer to a state, Pushed how long a change of grants or trust took until
	// its host had accepted it. They must not block; nil is nobody.
	Acked  func(accepted bool)
	Pushed func(lag time.Duration)
	// Ahead is told of a host that has seen what this control plane never gave out, and steps above it
	// where it can; nil does nothing.
	Ahead func(context.Context, Ahead) (Behind, error)
	Now   func() time.Time
	Log   hclog.Logger
	// Timing overrides the defaults; its zero value takes all of them.
	Timing Timing
}

// Timing bounds what a connection waits for.
type Timing struct {
	// Hello is how long a new stream may stay silent: 10 s.
	Hello time.Duration
	// Probe is how long the present connection of a host has to prove that it is alive when another
	// machine presents the same key: 10 s.
	Probe time.Duration
	// Send is how long a host may leave a message untaken while more wait: 20 s.
	Send time.Duration
	// MinGap is the least time between two states to one host after the first: 50 ms.
	MinGap time.Duration
	// Ping and PingTimeout are gRPC's keep-alive: 10 s and 8 s.
	Ping, PingTimeout time.Duration
}

// withDefaults fills what is zero.
func (t Timing) withDefaults() Timing {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Hello, 10 * time.Second},
		{&t.Probe, 10 * time.Second},
		{&t.Send, 20 * time.Second},
		{&t.MinGap, 50 * time.Millisecond},
		{&t.Ping, 10 * time.Second},
		{&t.PingTimeout, 8 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return t
}

// Kinds of trail records that the Hub writes itself.
const (
	KindHostRefused = "host.refused"
	KindHostClone   = "host.clone_noticed"
	KindHostForged  = "host.bad_message"
	// KindHostEventsLost names events that a restore of the control plane lost.
	KindHostEventsLost = "host.events_lost"
	// KindHostCodes says that a host handed in its sealed break-glass codes.
	KindHostCodes = "break_glass.held"
	// KindHostLost names what a host had that a restore of the control plane lost.
	KindHostLost = "host.lost_by_restore"
	// KindHostParted says that a removed host has ended everything.
	KindHostParted = "host.parted"
	// KindHostOther stands for an event whose kind this control plane does not know.
	KindHostOther = "host.other"
)

// maxMessage is the limit of PROTOCOL.md section 2 in bytes, both ways.
const maxMessage = 1 << 20

// ServerOptions are what the gRPC server needs so that half-open streams end within 20 s and no
// message is over its limit.
func ServerOptions(t Timing) []grpc.ServerOption {
	t = t.withDefaults()
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(128),
		grpc.ConnectionTimeout(t.Hello),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: t.Ping, Timeout: t.PingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: 4 * time.Second, PermitWithoutStream: true,
		}),
	}
}

// Hub holds the streams of all hosts. Safe for concurrent use; no method waits for a host.
type Hub struct {
	apiv1.UnimplementedHostLinkServer
	store    Store
	issuer   Sealer
	identify func(context.Context) (grant.HostID, error)
	heard    func(grant.HostID)
	acked    func(accepted bool)
	pushed   func(lag time.Duration)
	ahead    func(context.Context, Ahead) (Behind, error)
	now      func() time.Time
	log      hclog.Logger
	timing   Timing

	handlers sync.WaitGroup
	// stopped ends every connection; stop is its cancel.
	stopped context.Context
	stop    context.CancelFunc

	mu     sync.Mutex // guards closed and slots
	closed bool
	// slots holds one entry per host that was seen since start; at most as many as are enrolled.
	slots map[grant.HostID]*slot
}

// slot is what the Hub knows of one host, connected or not.
type slot struct {
	// turn is held by the one newcomer that is being judged.
	turn chan struct{}

	mu     sync.Mutex // guards the rest
	conn   *conn      // the connection that is served; nil when there is none
	health Health
	// recorded is when the last record about a clone or a forgery was written.
	recorded time.Time
}

// New checks the configuration.
func New(c Config) (*Hub, error) {
	if c.Store == nil || c.Issuer == nil || c.Identify == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("hub: store, issuer, identity, clock or log is missing")
	}
	if c.Heard == nil {
		c.Heard = func(grant.HostID) {}
	}
	if c.Acked == nil {
		c.Acked = func(bool) {}
	}
	if c.Pushed == nil {
		c.Pushed = func(time.Duration) {}
	}
	if c.Ahead == nil {
		c.Ahead = noAhead
	}
	stopped, stop := context.WithCancel(context.Background())
	return &Hub{
		stopped: stopped, stop: stop,
		store: c.Store, issuer: c.Issuer, identify: c.Identify, heard: c.Heard,
		acked: c.Acked, pushed: c.Pushed, ahead: c.Ahead, now: c.Now,
		log: c.Log, timing: c.Timing.withDefaults(), slots: make(map[grant.HostID]*slot),
	}, nil
}

// Register adds the HostLink service to a gRPC server.
func (h *Hub) Register(r grpc.ServiceRegistrar) { apiv1.RegisterHostLinkServer(r, h) }

// Run serves until ctx is done, then ends every stream and waits for them.
func (h *Hub) Run(ctx context.Context) error {
	<-ctx.Done()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.stop()
	h.handlers.Wait()
	return nil
}

// Changed says that the grants of these hosts changed: each that is connected gets its new state at
// once. It never blocks, and many calls become one push.
func (h *Hub) Changed(hosts ...grant.HostID) {
	for _, id := range hosts {
		if s := h.known(id); s != nil {
			if c := s.present(); c != nil {
				c.changed()
			}
		}
	}
}

// TrustChanged says that there is a newer trust version: every connected host gets it, and then its
// state. It never blocks.
func (h *Hub) TrustChanged() {
	h.mu.Lock()
	slots := h.allSlots()
	h.mu.Unlock()
	for _, s := range slots {
		if c := s.present(); c != nil {
			c.trustMoved.Store(true)
			c.changed()
		}
	}
}

// known returns a host's slot, or nil when the host was not seen since start.
func (h *Hub) known(id grant.HostID) *slot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.slots[id]
}

// enter registers a handler and returns the host's slot; false when the Hub is closing.
func (h *Hub) enter(id grant.HostID) (*slot, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, false
	}
	s := h.slots[id]
	if s == nil {
		s = &slot{turn: make(chan struct{}, 1)}
		h.slots[id] = s
	}
	h.handlers.Add(1)
	return s, true
}

// allSlots needs h.mu.
func (h *Hub) allSlots() []*slot {
	out := make([]*slot, 0, len(h.slots))
	for _, s := range h.slots {
		out = append(out, s)
	}
	return out
}

func (s *slot) present() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// mayRecord says whether a record about misbehaviour of this host is due: one in recordEvery.
func (s *slot) mayRecord(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.recorded.IsZero() && now.Sub(s.recorded).Abs() < recordEvery {
		return false
	}
	s.recorded = now
	return true
}

// recordEvery keeps a misbehaving host from filling the trail.
const recordEvery = 10 * time.Minute
