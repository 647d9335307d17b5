package stream

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Limits on what a host says. Text is in bytes.
const (
	// MaxBatch bounds the events of one PutEvents.
	MaxBatch      = 64
	maxBatchBytes = 512 << 10
	maxShort      = 128
	maxDetail     = 1 << 10
)

// take handles one message and, when it is an event, those that follow it at once.
func (c *conn) take(m *curfewv1.SignedHostMessage) error {
	body, err := c.open(m)
	if err != nil {
		return err
	}
	if body.GetEvent() != nil {
		return c.takeEvents(m, body.GetEvent())
	}
	return c.takeOne(m, body)
}

func (c *conn) takeOne(m *curfewv1.SignedHostMessage, body *curfewv1.HostMessage) error {
	c.slot.saw(c.hub.now())
	switch b := body.GetBody().(type) {
	case *curfewv1.HostMessage_Ack:
		return c.takeAck(b.Ack)
	case *curfewv1.HostMessage_Heartbeat:
		return c.takeHeartbeat(b.Heartbeat)
	case *curfewv1.HostMessage_BreakGlassSet:
		return c.takeCodes(m, b.BreakGlassSet)
	case nil:
		return nil // of a host of the next version: reports of another kind are ignored
	}
	return status.Error(codes.InvalidArgument, "unexpected message")
}

// takeEvents stores an event and the ones that already wait behind it in one transaction, then
// acknowledges them.
func (c *conn) takeEvents(m *curfewv1.SignedHostMessage, e *curfewv1.Event) error {
	var (
		batch []HostEvent
		next  = c.chain
		other *curfewv1.HostMessage
		size  int
	)
	for {
		done, ev, err := c.link(&next, m, e)
		if err != nil {
			return err
		}
		if !done {
			batch = append(batch, ev)
			size += len(m.GetBody())
		}
		if len(batch) >= MaxBatch || size >= maxBatchBytes {
			break
		}
		var more bool
		if m, more = c.waiting(); !more {
			break
		}
		body, err := c.open(m)
		if err != nil {
			return err
		}
		if e = body.GetEvent(); e == nil {
			other = body
			break
		}
	}
	if err := c.storeEvents(next, batch); err != nil {
		return err
	}
	if other != nil {
		return c.takeOne(m, other)
	}
	return nil
}

func (c *conn) waiting() (*curfewv1.SignedHostMessage, bool) {
	select {
	case m := <-c.in:
		return m, true
	default:
		return nil, false
	}
}

// link holds an event against the chain. done is true for one that is durable already.
func (c *conn) link(
	chain *trail.Chain, m *curfewv1.SignedHostMessage, e *curfewv1.Event,
) (done bool, ev HostEvent, err error) {
	if e.GetNumber() <= chain.Count {
		return true, ev, c.checkRepeated(chain, e)
	}
	if c.host.Restored && e.GetNumber() > chain.Count+1 {
		if err := c.skipLost(chain, e); err != nil {
			return false, ev, err
		}
	}
	next, err := chain.Next(e)
	switch {
	case err == nil:
	case e.GetNumber() != chain.Count+1:
		return false, ev, status.Errorf(codes.FailedPrecondition,
			"event %d came after %d: some are missing", e.GetNumber(), chain.Count)
	case errors.Is(err, trail.ErrFork):
		return false, ev, c.refuseHost(fmt.Sprintf("event %d of the host does not continue the "+
			"chain known here: a restored disk or a cloned image", e.GetNumber()))
	default:
		return false, ev, status.Errorf(codes.InvalidArgument, "%v", err)
	}
	*chain = next
	raw, err := proto.Marshal(m)
	if err != nil {
		return false, ev, fmt.Errorf("encoding event %d: %w", e.GetNumber(), err)
	}
	return false, c.eventOf(e, raw), nil
}

// skipLost goes on behind the events that a restore of the control plane lost, once: the host was told
// that they are durable and holds them no more. What follows is chained as ever.
func (c *conn) skipLost(chain *trail.Chain, e *curfewv1.Event) error {
	c.host.Restored = false
	err := c.hub.store.AppendRecord(c.ctx, c.record(KindHostEventsLost, map[string]string{
		"from": fmt.Sprint(chain.Count + 1), "to": fmt.Sprint(e.GetNumber() - 1),
		"why": "the control plane was restored from a backup",
	}))
	if err != nil {
		return fmt.Errorf("recording lost events of host %s: %w", c.host.Name, err)
	}
	*chain = trail.Chain{Count: e.GetNumber() - 1, Head: e.GetPrevious()}
	return nil
}

// checkRepeated accepts an event that came again and refuses a different one under its number.
func (c *conn) checkRepeated(chain *trail.Chain, e *curfewv1.Event) error {
	if e.GetNumber() == 0 {
		return status.Error(codes.InvalidArgument, "events are numbered from 1")
	}
	digest, err := trail.EventDigest(e)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "%v", err)
	}
	known := chain.Head
	switch {
	case e.GetNumber() == chain.Count:
	case e.GetNumber() > c.chain.Count:
		return nil // earlier in this very batch: chained to what follows it
	default:
		known, err = c.hub.store.EventDigest(c.ctx, c.host.ID, e.GetNumber())
		if err != nil {
			return fmt.Errorf("reading event %d of host %s: %w", e.GetNumber(), c.host.Name, err)
		}
	}
	if !bytes.Equal(known, digest[:]) {
		return c.refuseHost(fmt.Sprintf("event %d of the host is not the one known here: "+
			"a restored disk or a cloned image", e.GetNumber()))
	}
	return nil
}

func (c *conn) storeEvents(next trail.Chain, batch []HostEvent) error {
	c.slot.saw(c.hub.now())
	if len(batch) > 0 {
		err := c.hub.store.PutEvents(c.ctx, c.host.ID, c.chain, next, batch)
		if errors.Is(err, ErrChainMoved) {
			return status.Error(codes.Aborted, "another stream stored events of this host")
		}
		if err != nil {
			return fmt.Errorf("storing events of host %s: %w", c.host.Name, err)
		}
		c.chain = next
	}
	// A repeated event is acknowledged again: the first acknowledgement was lost.
	c.queue(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_EventAck{
		EventAck: &curfewv1.EventAck{Count: c.chain.Count},
	}})
	for _, e := range batch {
		if e.Ended != nil {
			c.hub.heard(c.host.ID)
			break
		}
	}
	return c.part()
}

// takeAck stores what the host says of its grants and sends again, once, what it lost.
func (c *conn) takeAck(a *curfewv1.Ack) error {
	if len(a.GetGrants()) > grant.MaxLive || len(a.GetDetail()) > maxDetail {
		return status.Error(codes.InvalidArgument, "ack is over its limits")
	}
	ack := Ack{
		Epoch: a.GetEpoch(), Sequence: a.GetSequence(), Accepted: a.GetAccepted(),
		Detail: grant.VisibleText(a.GetDetail()), At: c.hub.now(),
	}
	for _, g := range a.GetGrants() {
		r, err := resultOf(g)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "%v", err)
		}
		ack.Results = append(ack.Results, r)
	}
	c.slot.acked(ack)
	c.answered(ack)
	c.trailCount = a.GetTrailCount()
	if ack.Accepted {
		c.resend(ack.Results)
	} else if c.sealedFrom != c.trailCount {
		// Sealed before the answer to the state before it came: its proof began at another count. What
		// it said, a revocation perhaps, must not wait for the next heartbeat.
		c.dueIn(c.hub.timing.MinGap)
	}
	if c.probe != nil && c.probeFrom != 0 && ack.Sequence >= c.probeFrom {
		c.answerProbe()
	}
	c.storeAck(a, ack)
	if ack.Accepted && c.lastFrom > 0 && ack.Sequence >= c.lastFrom {
		c.told = true
	}
	return c.part()
}

func resultOf(g *curfewv1.GrantResult) (Result, error) {
	id, err := grant.IDFromBytes(g.GetGrantId())
	if err != nil {
		return Result{}, err
	}
	if len(g.GetDetail()) > maxDetail {
		return Result{}, fmt.Errorf("detail of grant %s is over its limit", id.Short())
	}
	r := Result{ID: id, Status: g.GetStatus(), Detail: grant.VisibleText(g.GetDetail())}
	if g.GetStartMs() > 0 {
		r.Start = time.UnixMilli(g.GetStartMs())
	}
	if g.GetEndMs() > 0 {
		r.End = time.UnixMilli(g.GetEndMs())
	}
	return r, nil
}

// resend makes grants that the host does not hold due again: at once the first time, afterwards
// with each heartbeat's state.
func (c *conn) resend(results []Result) {
	for _, r := range results {
		if r.Status != curfewv1.GrantStatus_GRANT_STATUS_MISSING {
			continue
		}
		delete(c.held, r.ID)
		if _, again := c.resent[r.ID]; !again && len(c.resent) < grant.MaxLive {
			c.resent[r.ID] = struct{}{}
			c.dueIn(c.hub.timing.MinGap)
		}
	}
}

// storeAck writes only what is new: most acks repeat the last one under the next sequence.
func (c *conn) storeAck(a *curfewv1.Ack, ack Ack) {
	bare := &curfewv1.Ack{Accepted: a.GetAccepted(), Detail: a.GetDetail(), Grants: a.GetGrants()}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	sum := sha256.Sum256(raw)
	if err == nil && sum == c.lastAck {
		return
	}
	if err := c.hub.store.PutAck(c.ctx, c.host.ID, ack); err != nil {
		c.lastAck = [32]byte{} // the next ack, of the next heartbeat, brings it again
		c.log.Error("storing an ack", "host", c.host.Name, "error", err)
		return
	}
	c.lastAck = sum
	c.hub.heard(c.host.ID)
}

// takeHeartbeat keeps sessions and health and answers with a state that carries the nonce.
func (c *conn) takeHeartbeat(b *curfewv1.Heartbeat) error {
	if len(b.GetNonce()) != grant.NonceSize {
		return status.Errorf(codes.InvalidArgument, "nonce of %d bytes, want %d",
			len(b.GetNonce()), grant.NonceSize)
	}
	if len(b.GetSessions()) > maxSessions || len(b.GetProblems()) > maxProblems {
		return status.Error(codes.InvalidArgument, "heartbeat is over its limits")
	}
	c.nonce, c.follows = b.GetNonce(), b.GetRollout().GetFollows()
	c.dueIn(answerGap * c.hub.timing.MinGap)
	if c.slot.beat(b) {
		c.hub.heard(c.host.ID)
	}
	return c.part()
}
