package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// errGone means that the root half has closed the connection: it is dead.
var errGone = errors.New("the root half is gone")

// plane is the control plane as the host sees it, on the link half's socket.
type plane struct {
	*granttest.World
	conn  net.Conn
	hello *curfewv1.Hello
	in    chan *curfewv1.HostMessage
	ended chan struct{} // closed when the connection is read to its end

	mu     sync.Mutex // guards what follows
	chain  trail.Chain
	events []*curfewv1.Event
	broken error
	added  chan struct{} // closed and replaced with each event, and when the connection ends
	over   bool
}

func newPlane() *plane {
	return &plane{World: granttest.NewWorld(), added: make(chan struct{})}
}

// dial connects as soon as the root half listens, and takes its hello.
func (p *plane) dial(ctx context.Context, socket string) error {
	var conn net.Conn
	for {
		var err error
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reaching the root half: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if p.conn != nil {
		p.conn.Close()
		<-p.ended // what the host said before has been read
	}
	p.conn, p.in, p.ended = conn, make(chan *curfewv1.HostMessage, 1024), make(chan struct{})
	p.mu.Lock()
	p.over = false
	p.mu.Unlock()
	go p.read(conn, p.in, p.ended)
	m, err := p.wait(ctx, func(m *curfewv1.HostMessage) bool { return m.GetHello() != nil })
	if err != nil {
		return err
	}
	p.hello = m.GetHello()
	p.mu.Lock()
	count := p.chain.Count
	p.mu.Unlock()
	if p.hello.GetEventCount() < count {
		return fmt.Errorf("the host knows of %d events, and has sent %d", p.hello.GetEventCount(), count)
	}
	return p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Welcome{
		Welcome: &curfewv1.Welcome{HostName: "web1", EventCount: count},
	}})
}

func (p *plane) read(conn net.Conn, in chan<- *curfewv1.HostMessage, ended chan<- struct{}) {
	defer func() {
		defer close(ended)
		p.mu.Lock()
		p.over = true
		close(p.added)
		p.added = make(chan struct{})
		p.mu.Unlock()
		close(in)
		conn.Close()
	}()
	for {
		b, err := frame.Read(conn, frame.Max)
		if err != nil {
			return
		}
		signed := new(curfewv1.SignedHostMessage)
		if err := proto.Unmarshal(b, signed); err != nil {
			p.breaks(err)
			return
		}
		m, err := grant.OpenHostMessage(signed, granttest.Public(p.HostKey))
		if err != nil {
			p.breaks(err)
			return
		}
		if e := m.GetEvent(); e != nil {
			p.event(e)
			continue
		}
		in <- m
	}
}

func (p *plane) breaks(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken = errors.Join(p.broken, err)
}

// event demands that the host's chain goes on where it was, whatever happened to the host.
func (p *plane) event(e *curfewv1.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := p.chain.Next(e)
	if err != nil {
		last := p.events[len(p.events)-1]
		p.broken = errors.Join(p.broken, fmt.Errorf("event %d %s after %d %s: %w", e.GetNumber(),
			e.GetKind(), last.GetNumber(), last.GetKind(), err))
		return
	}
	p.chain = next
	p.events = append(p.events, e)
	close(p.added)
	p.added = make(chan struct{})
}

// problem is what was wrong with anything that the host has said.
func (p *plane) problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

func (p *plane) send(m *curfewv1.ControlMessage) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := frame.Write(p.conn, b); err != nil {
		return errors.Join(errGone, err)
	}
	return nil
}

// deliver sends grants, and a state that lists them with whatever else is live. No state follows
// without its grants.
func (p *plane) deliver(live []*access, ended ...*access) error {
	s := p.HostState(time.Now(), p.hello.GetNonce(), ids(live)...)
	slices.SortFunc(ended, func(a, b *access) int { return bytes.Compare(a.id[:], b.id[:]) })
	for _, a := range ended {
		s.Ended = append(s.Ended, &curfewv1.Ended{
			GrantId: a.id[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "bob",
		})
	}
	var errs []error
	for _, a := range live {
		errs = append(errs, p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Grant{
			Grant: &curfewv1.GrantEnvelope{Envelope: a.envelope},
		}}))
	}
	return errors.Join(append(errs, p.send(&curfewv1.ControlMessage{
		Body: &curfewv1.ControlMessage_State{
			State: &curfewv1.State{Envelope: granttest.SealState(s, p.Issuer)},
		},
	}))...)
}

func (p *plane) wait(
	ctx context.Context, fits func(*curfewv1.HostMessage) bool,
) (*curfewv1.HostMessage, error) {
	for {
		select {
		case m, ok := <-p.in:
			if !ok {
				return nil, errGone
			}
			if fits(m) {
				return m, nil
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the host to speak: %w", context.Cause(ctx))
		}
	}
}

// ack waits for the answer to the newest state.
func (p *plane) ack(ctx context.Context) (*curfewv1.Ack, error) {
	m, err := p.wait(ctx, func(m *curfewv1.HostMessage) bool {
		return m.GetAck() != nil && (!m.GetAck().GetAccepted() || m.GetAck().GetSequence() == p.Sequence)
	})
	return m.GetAck(), err
}

// until waits for an event, past or coming.
func (p *plane) until(ctx context.Context, fits func(*curfewv1.Event) bool) error {
	for {
		p.mu.Lock()
		there, more, over := slices.ContainsFunc(p.events, fits), p.added, p.over
		p.mu.Unlock()
		switch {
		case there:
			return nil
		case over:
			return errGone
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("waiting for an event: %w", context.Cause(ctx))
		}
	}
}

// told tells whether an event of this kind has come for a request.
func told(kind string, a *access) func(*curfewv1.Event) bool {
	return func(e *curfewv1.Event) bool {
		return e.GetKind() == kind && e.GetRequestId() == a.request
	}
}

// access is one grant of the tests'.
type access struct {
	request, login string
	id             grant.ID
	envelope       []byte
}

func ids(list []*access) []grant.ID {
	var out []grant.ID
	for _, a := range list {
		out = append(out, a.id)
	}
	return out
}

// grant seals a new request's grant for a login.
func (p *plane) grant(login string, edit func(*curfewv1.Terms)) *access {
	a := &access{request: newRequest(), login: login}
	terms := p.Terms(time.Now().Add(-time.Minute), func(t *curfewv1.Terms) {
		t.RequestId, t.Login, t.Requester = a.request, login, login
		t.SudoRules = []*curfewv1.SudoRule{{
			RunAs: "root", Command: "/usr/bin/sleep", Args: []string{nap(login)}, Contained: true,
		}}
		edit(t)
	})
	a.id, a.envelope = p.Grant(terms, p.Bob)
	return a
}
