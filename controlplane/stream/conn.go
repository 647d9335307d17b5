package stream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Why a connection ends; its handler maps each to a gRPC status.
var (
	errClosing  = status.Error(codes.Unavailable, "the control plane is shutting down")
	errReplaced = status.Error(codes.Aborted, "replaced by a newer connection of this host")
	errSilent   = status.Error(codes.DeadlineExceeded, "no Hello in time")
	errSlow     = status.Error(codes.ResourceExhausted, "the host does not take its messages")
	errPanicked = status.Error(codes.Internal, "internal error; connect again")
	errBusy     = status.Error(codes.Unavailable, "another connection of this host is being judged")
)

// refusal ends a stream with a Refused message.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// inbox bounds the messages that wait for a connection's owner; more wait in the host.
const inbox = 16

// conn is one host's stream. Its handler's goroutine owns all fields except those marked shared.
type conn struct {
	hub    *Hub
	slot   *slot
	stream grpc.BidiStreamingServer[curfewv1.SignedHostMessage, curfewv1.ControlMessage]
	log    hclog.Logger
	host   Host
	hello  *curfewv1.Hello

	// Shared: ctx ends with the connection; cancel gives the cause.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// Shared: in comes from the receiver, out goes to the sender.
	in  chan *curfewv1.SignedHostMessage
	out chan *curfewv1.ControlMessage
	// Shared: wake holds one signal that grants or trust changed.
	wake       chan struct{}
	trustMoved atomic.Bool
	// Shared: when the oldest change came that no state carries yet; nil for none.
	moved atomic.Pointer[time.Time]
	// Shared: somebody asked for new break-glass codes of the host.
	renewCodes atomic.Bool
	// Shared: a newcomer that presents the same key asks here whether this host is alive; the
	// channel it sends is closed when it is.
	probes chan chan struct{}
	// Shared: closed when the owner has stopped.
	done chan struct{}

	chain        trail.Chain
	trustVersion uint64
	// held are the grants that the host has or was sent.
	held map[grant.ID]struct{}
	// resent are those that it lost once already.
	resent     map[grant.ID]struct{}
	trailCount uint64
	// sealedFrom is the trailCount that the newest state was sealed for.
	sealedFrom uint64
	nonce      []byte
	// follows: the host's newest heartbeat says that it follows rollouts.
	follows bool
	// due says that a state must go out, not before next.
	due      bool
	next     time.Time
	lastSent time.Time
	failures int
	pending  []item
	lastAck  [32]byte
	// pushes are the states that carry changes, until the host has answered.
	pushes []push
	probe  chan struct{}
	// probeFrom is the sequence from which on an ack answers the probe; 0 before it is known.
	probeFrom uint64
	// lastFrom is the sequence of the first state that ends everything, of a host that was removed; told
	// is true once the host has accepted one.
	lastFrom uint64
	told     bool
	parted   bool // everything is said
	// compared: what the host has seen was held against what is here.
	compared bool
}

// Connect implements curfew.api.v1.HostLink.
func (h *Hub) Connect(
	stream grpc.BidiStreamingServer[curfewv1.SignedHostMessage, curfewv1.ControlMessage],
) error {
	id, err := h.identify(stream.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, "no valid host certificate")
	}
	s, ok := h.enter(id)
	if !ok {
		return errClosing
	}
	defer h.handlers.Done()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer context.AfterFunc(h.stopped, func() { cancel(errClosing) })()
	c := &conn{
		hub: h, slot: s, stream: stream, log: h.log.With("host_id", id.String()),
		host: Host{ID: id}, ctx: ctx, cancel: cancel,
		in:     make(chan *curfewv1.SignedHostMessage, inbox),
		out:    make(chan *curfewv1.ControlMessage),
		wake:   make(chan struct{}, 1),
		probes: make(chan chan struct{}, 1),
		done:   make(chan struct{}),
		held:   make(map[grant.ID]struct{}),
		resent: make(map[grant.ID]struct{}),
	}
	h.handlers.Add(2)
	sent, served := make(chan struct{}), false
	go c.receive()
	go c.send(sent)
	defer func() {
		if !served { // it panicked, which is the guard's to answer; the helpers must end all the same
			close(c.done)
			_ = c.finish(errPanicked, sent)
		}
	}()
	err = c.serve()
	served = true
	close(c.done)
	return c.finish(err, sent)
}

// serve is the life of a connection in order: who is it, may it, then everything else.
func (c *conn) serve() error {
	if err := c.greet(); err != nil {
		return err
	}
	if err := c.claim(); err != nil {
		return err
	}
	defer c.leave()
	return c.run()
}

// finish tells the host why it is refused, ends the helpers and returns the stream's status.
func (c *conn) finish(err error, sent <-chan struct{}) error {
	var r *refusal
	if errors.As(err, &r) {
		c.log.Warn("host refused", "host", c.host.Name, "why", r.text)
		c.sayRefused(r)
		err = status.Error(codes.PermissionDenied, r.text)
	}
	close(c.out)
	// A sender that is stuck ends with the stream, right after this handler returns.
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-sent:
	case <-timer.C:
	}
	c.cancel(err)
	if _, ok := status.FromError(err); ok {
		return err
	}
	c.log.Error("stream ended", "host", c.host.Name, "error", err)
	return status.Error(codes.Unavailable, "internal error; connect again")
}

func (c *conn) sayRefused(r *refusal) {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case c.out <- &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Refused{
		Refused: &curfewv1.Refused{Reason: grant.VisibleText(r.text)},
	}}:
	case <-timer.C:
	}
}

// receive hands the host's messages to the owner. It ends with the stream.
func (c *conn) receive() {
	defer c.hub.handlers.Done()
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.cancel(fmt.Errorf("receiving: %w", gone(err)))
			return
		}
		select {
		case c.in <- m:
		case <-c.ctx.Done():
			return
		}
	}
}

// send gives the owner's messages to gRPC, so that a slow host blocks this goroutine and nothing
// else. It ends when the owner closes out, or with the stream.
func (c *conn) send(sent chan<- struct{}) {
	defer c.hub.handlers.Done()
	defer close(sent)
	for m := range c.out {
		if err := c.stream.Send(m); err != nil {
			c.cancel(fmt.Errorf("sending: %w", gone(err)))
			for range c.out { // the owner stops when it sees the cancel
			}
			return
		}
	}
}

// gone keeps a host that simply went away from looking like a failure.
func gone(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Canceled, "the host is gone")
}

// end makes the owner stop with this error.
func (c *conn) end(err error) { c.cancel(err) }

// changed asks for a new state; it never blocks.
func (c *conn) changed() {
	now := time.Now()
	c.moved.CompareAndSwap(nil, &now)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// leave gives the slot up, when it still is this connection's.
func (c *conn) leave() {
	c.slot.mu.Lock()
	mine := c.slot.conn == c
	if mine {
		c.slot.conn = nil
		c.slot.health.Connected = false
		c.slot.health.Sessions = nil
		c.slot.health.LastSeen = c.hub.now()
	}
	seen := seenOf(c.slot.health)
	c.slot.mu.Unlock()
	if !mine {
		return
	}
	// The stream's context is over; what was seen is still worth a moment.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), 2*time.Second)
	defer cancel()
	if err := c.hub.store.PutSeen(ctx, c.host.ID, seen); err != nil {
		c.log.Error("noting when the host was last seen", "error", err)
	}
	c.log.Info("host disconnected")
	c.hub.heard(c.host.ID)
}

// answerProbe tells the newcomer that waits that this host is alive.
func (c *conn) answerProbe() {
	if c.probe != nil {
		close(c.probe)
		c.probe, c.probeFrom = nil, 0
	}
}
