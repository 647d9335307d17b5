package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	// grantsAtOnce bounds the sealed grants that are in memory for one host.
	grantsAtOnce = 8
	// answerGap times MinGap is the least time between two states that only answer heartbeats.
	answerGap = 10
	// sealRetry and maxFailures bound what happens while the Store fails.
	sealRetry   = time.Second
	maxFailures = 5
)

// item is one thing that waits to be sent: a message, or grants that are read when their turn
// comes.
type item struct {
	msg    *curfewv1.ControlMessage
	grants []grant.ID
	// state is set beside the msg that carries it.
	state *issue.Sealed
}

// run is the owner's loop: it sends what waits before it takes more from the host, so that neither
// side can make the other's queue grow.
func (c *conn) run() error {
	c.queue(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Welcome{
		Welcome: &curfewv1.Welcome{
			HostName: c.host.Name, EventCount: c.chain.Count, BreakGlassSet: c.host.CodeSet,
		},
	}})
	c.queueRenewal()
	c.trustMoved.Store(true) // sends what the Hello lacks
	c.due = true
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if c.parted && len(c.pending) == 0 {
			return &refusal{text: "this host was removed by an admin"}
		}
		if err := c.prepare(); err != nil {
			return err
		}
		if err := c.step(timer); err != nil {
			return err
		}
	}
}

// step waits for the next thing and does it.
func (c *conn) step(timer *time.Timer) error {
	var (
		out  chan<- *curfewv1.ControlMessage
		in   = c.in
		head *curfewv1.ControlMessage
	)
	wait := c.hub.timing.Send
	switch {
	case len(c.pending) > 0:
		out, head, in = c.out, c.pending[0].msg, nil
	case c.due:
		wait = time.Until(c.next)
	default:
		wait = time.Hour
	}
	timer.Reset(max(wait, 0))
	select {
	case <-c.ctx.Done():
		return c.ended()
	case out <- head:
		c.sent(c.pending[0])
		c.pending[0] = item{}
		c.pending = c.pending[1:]
	case m := <-in:
		return c.take(m)
	case <-c.wake:
		c.dueIn(c.hub.timing.MinGap)
	case answer := <-c.probes:
		c.probe, c.probeFrom = answer, 0
		c.due, c.next = true, time.Now()
	case <-timer.C:
		if len(c.pending) > 0 {
			return errSlow
		}
	}
	return nil
}

// ended is the cause of a connection's end; a host that went away is no failure.
func (c *conn) ended() error {
	cause := context.Cause(c.ctx)
	var r *refusal
	if errors.As(cause, &r) {
		return r
	}
	if _, ok := status.FromError(cause); ok {
		return cause
	}
	return status.Error(codes.Canceled, "the host is gone")
}

// dueIn makes a state due, gap after the last one at the earliest.
func (c *conn) dueIn(gap time.Duration) {
	at := c.lastSent.Add(gap)
	if !c.due || at.Before(c.next) {
		c.next = at
	}
	c.due = true
}

func (c *conn) queue(m *curfewv1.ControlMessage) { c.pending = append(c.pending, item{msg: m}) }

// prepare fills the queue when it is empty and a state is due, and reads grants whose turn has
// come.
func (c *conn) prepare() error {
	if c.renewCodes.Swap(false) {
		if err := c.lookUp(); err != nil {
			return err
		}
		c.queueRenewal()
	}
	if len(c.pending) == 0 && c.due && !time.Now().Before(c.next) {
		if err := c.queueState(); err != nil {
			return err
		}
	}
	for len(c.pending) > 0 && c.pending[0].msg == nil {
		if err := c.readGrants(c.pending[0].grants); err != nil {
			return err
		}
	}
	return nil
}

// readGrants replaces the head of the queue by the grants it names.
func (c *conn) readGrants(ids []grant.ID) error {
	envelopes, err := c.hub.store.GrantEnvelopes(c.ctx, c.host.ID, ids)
	if err != nil {
		return fmt.Errorf("reading grants of host %s: %w", c.host.Name, err)
	}
	items := make([]item, 0, len(envelopes)+len(c.pending))
	for _, e := range envelopes {
		c.held[e.ID] = struct{}{}
		items = append(items, item{msg: &curfewv1.ControlMessage{
			Body: &curfewv1.ControlMessage_Grant{Grant: &curfewv1.GrantEnvelope{Envelope: e.Bytes}},
		}})
	}
	c.pending = append(items, c.pending[1:]...)
	return nil
}

// queueState seals the host's next state and queues it behind the trust versions and grants that it
// needs.
func (c *conn) queueState() error {
	c.sealedFrom = c.trailCount
	moved := c.moved.Swap(nil)
	sealed, err := c.hub.issuer.SealState(c.ctx, c.host.ID, c.nonce, c.trailCount, c.follows)
	if errors.Is(err, issue.ErrNoHost) {
		return &refusal{text: "this host is no longer enrolled"}
	}
	if err == nil {
		err = c.queueTrust()
	}
	if err != nil {
		if moved != nil {
			c.moved.Store(moved) // what came since is younger
		}
		return c.retryLater(err)
	}
	c.failures, c.due = 0, false
	c.carries(sealed.Sequence, moved)
	if sealed.Last && c.lastFrom == 0 {
		if err := c.beginParting(sealed.Sequence); err != nil {
			return err
		}
	}
	if err := c.compareWithHost(sealed); err != nil {
		return err
	}
	if c.probe != nil && c.probeFrom == 0 {
		c.probeFrom = sealed.Sequence
	}
	var lack []grant.ID
	live := make(map[grant.ID]struct{}, len(sealed.Live))
	for _, id := range sealed.Live {
		live[id] = struct{}{}
		if _, held := c.held[id]; !held {
			lack = append(lack, id)
		}
	}
	c.forgetAllBut(live)
	for len(lack) > 0 {
		n := min(len(lack), grantsAtOnce)
		c.pending = append(c.pending, item{grants: lack[:n]})
		lack = lack[n:]
	}
	c.pending = append(c.pending, item{
		msg:   &curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_State{State: sealed.State}},
		state: sealed,
	})
	return nil
}

// forgetAllBut keeps the tables no larger than the live set: what is not live is never sent again.
func (c *conn) forgetAllBut(live map[grant.ID]struct{}) {
	for id := range c.held {
		if _, ok := live[id]; !ok {
			delete(c.held, id)
		}
	}
	for id := range c.resent {
		if _, ok := live[id]; !ok {
			delete(c.resent, id)
		}
	}
}

// retryLater keeps the stream through a short failure of the Store.
func (c *conn) retryLater(err error) error {
	if c.ctx.Err() != nil {
		return c.ended()
	}
	c.failures++
	c.log.Error("no state for the host", "host", c.host.Name, "failures", c.failures, "error", err)
	if c.failures > maxFailures {
		return err
	}
	c.next = time.Now().Add(sealRetry)
	c.trustMoved.Store(true)
	return nil
}

func (c *conn) queueTrust() error {
	if !c.trustMoved.Swap(false) {
		return nil
	}
	versions, err := c.hub.store.TrustAfter(c.ctx, c.trustVersion)
	if err != nil {
		return fmt.Errorf("reading trust versions after %d: %w", c.trustVersion, err)
	}
	for _, t := range versions {
		c.queue(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Trust{
			Trust: &curfewv1.TrustUpdate{Envelope: t.Envelope},
		}})
		c.trustVersion = t.Version
	}
	return nil
}

// sent notes what the sender took.
func (c *conn) sent(i item) {
	if i.state == nil {
		return
	}
	c.lastSent = time.Now()
	c.log.Debug("state sent", "epoch", i.state.Epoch, "sequence", i.state.Sequence,
		"live", len(i.state.Live))
}
