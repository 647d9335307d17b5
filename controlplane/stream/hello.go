package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const protocolVersion = 1

// greet checks that the host is served and takes its Hello.
func (c *conn) greet() error {
	if err := c.lookUp(); err != nil {
		return err
	}
	timer := time.NewTimer(c.hub.timing.Hello)
	defer timer.Stop()
	select {
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	case <-timer.C:
		return errSilent
	case m := <-c.in:
		body, err := c.open(m)
		if err != nil {
			return err
		}
		return c.takeHello(body.GetHello())
	}
}

// lookUp reads the host anew from the Store.
func (c *conn) lookUp() error {
	host, err := c.hub.store.LinkedHost(c.ctx, c.host.ID)
	if errors.Is(err, ErrNoHost) {
		return &refusal{text: "this host is not enrolled; enrol it with curfew-agent join"}
	}
	if err != nil {
		return fmt.Errorf("reading host %s: %w", c.host.ID, err)
	}
	if host.Refused != "" {
		return &refusal{text: host.Refused + "; enrol the host anew"}
	}
	c.host = host
	c.chain = host.Chain
	return nil
}

// open verifies a message under the root half's key. A bad one ends the stream: an honest link does
// not carry any.
func (c *conn) open(m *curfewv1.SignedHostMessage) (*curfewv1.HostMessage, error) {
	body, err := grant.OpenHostMessage(m, c.host.RootKey)
	if err == nil {
		return body, nil
	}
	c.log.Warn("message refused", "host", c.host.Name, "error", err)
	if c.slot.mayRecord(c.hub.now()) {
		r := c.record(KindHostForged, map[string]string{"why": grant.VisibleText(err.Error())})
		if err := c.hub.store.AppendRecord(c.ctx, r); err != nil {
			return nil, fmt.Errorf("recording a bad message: %w", err)
		}
	}
	return nil, status.Error(codes.PermissionDenied, "a message is not signed by this host")
}

func (c *conn) takeHello(hello *curfewv1.Hello) error {
	bad := func(format string, args ...any) error {
		return status.Errorf(codes.InvalidArgument, format, args...)
	}
	switch {
	case hello == nil:
		return bad("the first message is not Hello")
	case hello.GetProtocol() != protocolVersion:
		return bad("protocol %d is not spoken here; %d is", hello.GetProtocol(), protocolVersion)
	case !bytes.Equal(hello.GetHostId(), c.host.ID[:]):
		return bad("Hello is of another host than the certificate")
	case len(hello.GetNonce()) != grant.NonceSize:
		return bad("nonce of %d bytes, want %d", len(hello.GetNonce()), grant.NonceSize)
	case len(hello.GetBootId()) > maxShort || len(hello.GetAgentVersion()) > maxShort:
		return bad("boot id or agent version is too long")
	}
	for _, raw := range hello.GetGrantIds() {
		id, err := grant.IDFromBytes(raw)
		if err != nil {
			return bad("%v", err)
		}
		c.held[id] = struct{}{}
	}
	c.hello = hello
	c.trustVersion, c.trailCount = hello.GetTrustVersion(), hello.GetTrailCount()
	c.nonce = hello.GetNonce()
	return nil
}

// judge holds the host's event chain against the durable one. The text says what is wrong; empty
// when nothing is.
func judge(stored trail.Chain, hello *curfewv1.Hello) string {
	switch {
	case hello.GetEventCount() < stored.Count:
		return fmt.Sprintf("the host reports %d events where %d are known: "+
			"a restored disk or a cloned image", hello.GetEventCount(), stored.Count)
	case hello.GetEventCount() == stored.Count && !bytes.Equal(hello.GetEventHead(), stored.Head):
		return fmt.Sprintf("event %d of the host is not the one known here: "+
			"a restored disk or a cloned image", stored.Count)
	}
	return ""
}

// claim makes this connection the one that is served.
//
// A reconnect of the same boot replaces what is left of the old stream. Another boot, or a chain
// that does not continue ours, is a rebooted host, a restored disk or a clone: the present stream
// is asked for a sign of life that only the root half can give. If it answers, two machines hold
// one key, and the newcomer is refused while the first goes on. If it does not, the newcomer is
// judged by its chain alone, and a fork makes the host refused until it is enrolled anew.
func (c *conn) claim() error {
	select {
	case c.slot.turn <- struct{}{}:
		defer func() { <-c.slot.turn }()
	default:
		return errBusy
	}
	if err := c.lookUp(); err != nil {
		return err
	}
	if old := c.slot.present(); old != nil {
		wrong := judge(c.chain, c.hello)
		if wrong != "" || old.hello.GetBootId() != c.hello.GetBootId() {
			if old.isAlive(c.ctx) {
				return c.refuseTwin(old, wrong)
			}
		}
		old.end(errReplaced)
		select {
		case <-old.done:
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
		// The old stream may have stored events until now.
		if err := c.lookUp(); err != nil {
			return err
		}
	}
	if wrong := judge(c.chain, c.hello); wrong != "" {
		return c.refuseHost(wrong)
	}
	return c.settle()
}

// settle takes the slot.
func (c *conn) settle() error {
	now := c.hub.now()
	c.slot.mu.Lock()
	c.slot.conn = c
	c.slot.health = Health{
		Connected: true, Since: now, LastSeen: now,
		AgentVersion: grant.VisibleText(c.hello.GetAgentVersion()),
		BootID:       grant.VisibleText(c.hello.GetBootId()),
		Mode:         c.slot.health.Mode,
		Epoch:        c.hello.GetEpoch(), Sequence: c.hello.GetSequence(),
	}
	seen := seenOf(c.slot.health)
	c.slot.mu.Unlock()
	if err := c.hub.store.PutSeen(c.ctx, c.host.ID, seen); err != nil {
		c.leave()
		return fmt.Errorf("noting that host %s is here: %w", c.host.Name, err)
	}
	c.log = c.log.With("host", c.host.Name)
	c.log.Info("host connected", "agent", seen.AgentVersion, "events", c.hello.GetEventCount())
	c.hub.heard(c.host.ID)
	return nil
}

// isAlive asks the owner of a connection for an ack to a fresh state.
func (c *conn) isAlive(ctx context.Context) bool {
	answer := make(chan struct{})
	timer := time.NewTimer(c.hub.timing.Probe)
	defer timer.Stop()
	select {
	case c.probes <- answer:
	default: // a probe that nobody answered is still there
	}
	select {
	case <-answer:
		return true
	case <-c.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// refuseTwin refuses a second machine with the key of one that is alive.
func (c *conn) refuseTwin(old *conn, wrong string) error {
	text := "another machine with this host's key is connected and alive: a cloned image"
	c.slot.note(text)
	if c.slot.mayRecord(c.hub.now()) {
		details := map[string]string{"why": text, "boot_id": grant.VisibleText(c.hello.GetBootId())}
		if wrong != "" {
			details["chain"] = wrong
		}
		if err := c.hub.store.AppendRecord(c.ctx, c.record(KindHostClone, details)); err != nil {
			return fmt.Errorf("recording a clone of host %s: %w", c.host.Name, err)
		}
	}
	old.log.Warn("another machine presents this host's key", "boot_id", c.hello.GetBootId())
	c.hub.heard(c.host.ID)
	return &refusal{text: text + "; enrol this machine anew, with keys of its own"}
}

// refuseHost marks the host refused for good.
func (c *conn) refuseHost(why string) error {
	r := c.record(KindHostRefused, map[string]string{"why": why})
	if err := c.hub.store.RefuseHost(c.ctx, c.host.ID, why, r); err != nil {
		return fmt.Errorf("refusing host %s: %w", c.host.Name, err)
	}
	c.hub.heard(c.host.ID)
	return &refusal{text: why + "; enrol the host anew"}
}

func (c *conn) record(kind string, details map[string]string) trail.Record {
	return trail.Record{
		TimeMS: c.hub.now().UnixMilli(), Kind: kind, Actor: "host " + c.host.Name,
		HostID: c.host.ID.String(), Host: c.host.Name, Details: details,
	}
}
