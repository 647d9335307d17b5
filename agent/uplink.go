package agent

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	writeTimeout = 10 * time.Second
	maxUnsent    = 64
	eventBatch   = 32
)

// uplink is the link socket: it hands signed messages to whatever link half is connected, and what
// comes down to the owner. One connection at a time; a new one replaces the old.
type uplink struct {
	key ed25519.PrivateKey
	// allowed is the uid of the link half; root may connect too.
	allowed uint32
	rec     *recorder
	log     hclog.Logger
	// hello makes the first message of a connection; deliver takes each message that came down. Both
	// run in the owner and return when it is done.
	hello   func(context.Context) (*curfewv1.HostMessage, error)
	deliver func(context.Context, *curfewv1.ControlMessage) error

	mu      sync.Mutex
	current *connection // nil when nobody is connected
}

// connection is one link half's.
type connection struct {
	conn *net.UnixConn
	out  chan *curfewv1.HostMessage
	// events has no room of its own: a backlog of events must not crowd out what is said meanwhile.
	events chan *curfewv1.HostMessage
	stop   context.CancelFunc
	// welcomed gets the number of events that the control plane holds, once.
	welcomed chan uint64
}

// serve accepts until ctx ends. It closes the listener.
func (u *uplink) serve(ctx context.Context, l *net.UnixListener) error {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // wakes Accept
	defer stop()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return group.Wait()
			}
			return errors.Join(fmt.Errorf("accepting on the link socket: %w", err), group.Wait())
		}
		if err := u.check(conn); err != nil {
			u.log.Warn("refused a connection on the link socket", "error", err)
			_ = conn.Close() // refused
			continue
		}
		connCtx, c := u.replace(ctx, conn)
		group.Go(func() error { u.run(connCtx, c); return nil })
	}
}

func (u *uplink) check(conn *net.UnixConn) error {
	uid, err := peerUID(conn)
	if err != nil {
		return err
	}
	if uid != 0 && uid != u.allowed {
		return fmt.Errorf("uid %d is not the link half", uid)
	}
	return nil
}

func (u *uplink) replace(
	ctx context.Context, conn *net.UnixConn,
) (context.Context, *connection) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.current != nil {
		u.current.stop()
	}
	c := &connection{
		conn: conn, out: make(chan *curfewv1.HostMessage, maxUnsent),
		events: make(chan *curfewv1.HostMessage), welcomed: make(chan uint64, 1),
	}
	ctx, c.stop = context.WithCancel(ctx)
	u.current = c
	return ctx, c
}

// run carries one connection until either side ends it.
func (u *uplink) run(ctx context.Context, c *connection) {
	defer c.stop()
	group, ctx := errgroup.WithContext(ctx)
	closed := context.AfterFunc(ctx, func() { _ = c.conn.Close() }) // wakes reader and writer
	defer closed()
	group.Go(func() error { return u.write(ctx, c) })
	group.Go(func() error { return u.read(ctx, c) })
	group.Go(func() error { return u.pump(ctx, c) })
	u.log.Info("the link half is connected")
	err := group.Wait()
	u.mu.Lock()
	if u.current == c {
		u.current = nil
	}
	u.mu.Unlock()
	u.log.Info("the link half is disconnected", "error", err)
}

// send queues a message for the connection that is there. A link that does not keep up is cut off:
// the next Hello heals what was lost.
func (u *uplink) send(m *curfewv1.HostMessage) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.current == nil {
		return
	}
	select {
	case u.current.out <- m:
	default:
		u.log.Warn("the link half does not keep up and is cut off")
		u.current.stop()
		u.current = nil
	}
}

func (u *uplink) connected() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.current != nil
}

func (u *uplink) write(ctx context.Context, c *connection) error {
	hello, err := u.hello(ctx)
	if err != nil {
		return fmt.Errorf("making the hello: %w", err)
	}
	if err := u.writeOne(c, hello); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-c.out:
			if err := u.writeOne(c, m); err != nil {
				return err
			}
		case m := <-c.events:
			if err := u.writeOne(c, m); err != nil {
				return err
			}
		}
	}
}

func (u *uplink) writeOne(c *connection, m *curfewv1.HostMessage) error {
	signed, err := grant.SignHostMessage(m, u.key)
	if err != nil {
		return err
	}
	b, err := proto.Marshal(signed)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	return frame.Write(c.conn, b)
}

func (u *uplink) read(ctx context.Context, c *connection) error {
	for {
		b, err := frame.Read(c.conn, frame.Max)
		if err != nil {
			return err
		}
		m := new(curfewv1.ControlMessage)
		if err := proto.Unmarshal(b, m); err != nil {
			return fmt.Errorf("reading a message from the control plane: %w", err)
		}
		if w := m.GetWelcome(); w != nil {
			select {
			case c.welcomed <- w.GetEventCount():
			default:
				return errors.New("the control plane welcomes twice")
			}
		}
		if err := u.deliver(ctx, m); err != nil {
			return err
		}
	}
}

// pump sends the events that the control plane lacks, and each new one.
func (u *uplink) pump(ctx context.Context, c *connection) error {
	var sent uint64
	select {
	case <-ctx.Done():
		return ctx.Err()
	case sent = <-c.welcomed:
	}
	for {
		events, more, err := u.rec.after(sent, eventBatch)
		if err != nil {
			return err
		}
		for _, e := range events {
			m := &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: e}}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case c.events <- m:
				sent = e.GetNumber()
			}
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-more:
		}
	}
}
