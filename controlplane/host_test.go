package controlplane_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// host is a machine with real keys and a real ledger, and no enforcement.
type host struct {
	h      *house
	name   string
	root   ed25519.PrivateKey
	cert   *tls.Certificate
	mu     sync.Mutex // guards ledger and chain
	ledger *grant.Ledger
	chain  trail.Chain
	// acked is how many events the control plane called durable; they are dropped here.
	acked atomic.Uint64
	// slow is how long this host takes to answer, in nanoseconds.
	slow atomic.Int64
	// late: this host refuses grants, and says so as the agent does.
	late atomic.Bool
	// held is the set of break-glass codes that the control plane said it has.
	held []byte
	// wish is what its newest state wants for a rollout, last the last that wanted anything.
	wish, last *curfewv1.Rollout
	// renew is the set that it was last asked to replace.
	renew []byte
	// welcomes is how often it was welcomed.
	welcomes atomic.Int64
	// say carries what to send.
	say  chan *curfewv1.HostMessage
	quit context.CancelFunc
	done chan struct{}
}

func (h *house) join(name string) *host { return h.joinWith(name, nil) }

func (h *house) joinWith(name string, labels map[string]string) *host {
	h.t.Helper()
	tok, err := h.admin.CreateJoinToken(h.t.Context(),
		&apiv1.CreateJoinTokenRequest{Name: name, Labels: labels})
	must(h.t, err)
	rootPub, root, err := ed25519.GenerateKey(rand.Reader)
	must(h.t, err)
	_, link, err := ed25519.GenerateKey(rand.Reader)
	must(h.t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, link)
	must(h.t, err)
	resp, err := apiv1.NewEnrolmentClient(h.dial(nil)).Enrol(h.t.Context(), &apiv1.EnrolRequest{
		Token: tok.GetToken(), RootPublicKey: rootPub, Csr: csr,
		Signature: ed25519.Sign(root, join.Message(tok.GetToken(), csr)), Name: name,
		SshHostKeys: []string{grant.SSHKeyText(newKey(h.t).PublicKey())}, AgentVersion: "test",
	})
	must(h.t, err)
	ledger, err := grant.NewLedger(grant.HostIDOf(rootPub), resp.GetTrustEnvelope())
	must(h.t, err)
	m := &host{
		h: h, name: name, root: root, ledger: ledger, say: make(chan *curfewv1.HostMessage, 16),
		cert: &tls.Certificate{Certificate: [][]byte{resp.GetCertificate()}, PrivateKey: link},
	}
	m.connect()
	h.t.Cleanup(m.disconnect)
	return m
}

func clock() grant.Clock {
	now := time.Now()
	return grant.Clock{Wall: now, Boot: time.Since(began), BootID: "boot"}
}

var began = time.Now()

func (m *host) disconnect() {
	m.quit()
	<-m.done
}

func (m *host) connect() {
	ctx, cancel := context.WithCancel(context.Background())
	m.quit, m.done = cancel, make(chan struct{})
	conn := m.h.dial(m.cert)
	go func() {
		defer close(m.done)
		if err := m.live(ctx, conn); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
			m.h.t.Logf("host %s: %v", m.name, err)
		}
	}()
}

func (m *host) send(
	s grpc.BidiStreamingClient[curfewv1.SignedHostMessage, curfewv1.ControlMessage],
	msg *curfewv1.HostMessage,
) error {
	signed, err := grant.SignHostMessage(msg, m.root)
	if err != nil {
		return err
	}
	return s.Send(signed)
}

// live speaks PROTOCOL.md section 2 with the real ledger behind it.
func (m *host) live(ctx context.Context, conn *grpc.ClientConn) error {
	s, err := apiv1.NewHostLinkClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	hello := m.hello()
	m.mu.Unlock()
	if err := m.send(s, &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Hello{Hello: hello}}); err != nil {
		return err
	}
	received := make(chan *curfewv1.ControlMessage)
	failed := make(chan error, 1)
	go func() {
		for {
			msg, err := s.Recv()
			if err != nil {
				failed <- err
				return
			}
			received <- msg
		}
	}()
	for {
		out := new(curfewv1.HostMessage)
		select {
		case err := <-failed:
			return err
		case out = <-m.say:
		case msg := <-received:
			ack := m.take(msg)
			if ack == nil {
				continue
			}
			time.Sleep(time.Duration(m.slow.Load()))
			out.Body = &curfewv1.HostMessage_Ack{Ack: ack}
		}
		if err := m.send(s, out); err != nil {
			return err
		}
	}
}

// tell puts an event on the host's chain, sends it and waits until it is called durable.
func (m *host) tell(e *curfewv1.Event) {
	m.h.t.Helper()
	m.mu.Lock()
	e.TimeMs, e.BootId = time.Now().UnixMilli(), "boot"
	must(m.h.t, m.chain.Append(e))
	m.mu.Unlock()
	m.say <- &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: e}}
	for range 500 {
		if m.acked.Load() >= e.GetNumber() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.h.t.Fatalf("event %d of host %s is not acknowledged", e.GetNumber(), m.name)
}

func (m *host) hello() *curfewv1.Hello {
	l := m.ledger
	nonce, err := l.NewNonce(clock(), rand.Reader)
	if err != nil {
		panic(err)
	}
	id := l.Host()
	hello := &curfewv1.Hello{
		Protocol: 1, HostId: id[:], AgentVersion: "test", BootId: "boot",
		EventCount: m.chain.Count, EventHead: m.chain.Head, TrustVersion: l.TrustVersion(),
		Epoch: l.Epoch(), Sequence: l.Sequence(), TrailCount: l.TrailCount(), TrailHead: l.TrailHead(),
		Nonce: nonce,
	}
	for _, g := range l.HeldIDs() {
		hello.GrantIds = append(hello.GrantIds, g[:])
	}
	return hello
}

// take applies one message; the ack of a state comes back.
func (m *host) take(msg *curfewv1.ControlMessage) *curfewv1.Ack {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch b := msg.GetBody().(type) {
	case *curfewv1.ControlMessage_Welcome:
		m.held = b.Welcome.GetBreakGlassSet()
		m.welcomes.Add(1)
	case *curfewv1.ControlMessage_BreakGlassRenew:
		m.renew = b.BreakGlassRenew.GetSetId()
	case *curfewv1.ControlMessage_Trust:
		if err := m.ledger.AcceptTrust(b.Trust.GetEnvelope()); err != nil {
			m.h.t.Errorf("host %s refuses the trust file: %v", m.name, err)
		}
	case *curfewv1.ControlMessage_Grant:
		_, err := m.ledger.AcceptGrant(b.Grant.GetEnvelope(), clock(),
			grant.Ceiling{MaxDuration: time.Hour, RootEquivalent: true, Standing: grant.StandingAny})
		if err != nil && !errors.Is(err, grant.ErrTombstoned) && !m.late.Load() {
			m.h.t.Errorf("host %s refuses a grant: %v", m.name, err)
		}
	case *curfewv1.ControlMessage_State:
		return m.state(b.State)
	case *curfewv1.ControlMessage_EventAck:
		m.acked.Store(b.EventAck.GetCount())
	}
	return nil
}

func (m *host) state(state *curfewv1.State) *curfewv1.Ack {
	change, err := m.ledger.AcceptState(state, clock())
	ack := &curfewv1.Ack{
		Accepted: err == nil, Epoch: m.ledger.Epoch(), Sequence: m.ledger.Sequence(),
		TrailCount: m.ledger.TrailCount(),
	}
	if err != nil {
		ack.Detail = err.Error()
		// A state that was sealed before this host's last answer arrived is refused and sent again.
		m.h.t.Logf("host %s refuses a state: %v", m.name, err)
		return ack
	}
	if change.LeaseRenewed {
		m.wish = change.Rollout
		if m.wish != nil {
			m.last = m.wish
		}
	}
	for _, live := range m.ledger.Live(clock()) {
		ack.Grants = append(ack.Grants, &curfewv1.GrantResult{
			GrantId: live.ID[:], Status: curfewv1.GrantStatus_GRANT_STATUS_APPLIED,
			StartMs: live.Start.UnixMilli(), EndMs: live.End.UnixMilli(),
		})
	}
	for _, id := range change.Missing {
		result := &curfewv1.GrantResult{
			GrantId: bytesOf(id), Status: curfewv1.GrantStatus_GRANT_STATUS_MISSING,
		}
		if why := m.ledger.Refusal(id); why != "" {
			result.Status, result.Detail = curfewv1.GrantStatus_GRANT_STATUS_REJECTED, why
		}
		ack.Grants = append(ack.Grants, result)
	}
	return ack
}

func bytesOf(id grant.ID) []byte { return id[:] }

// grants are the windows that are open on the host now.
func (m *host) grants() []grant.Live {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.Live(clock())
}

// eventually waits for n open windows.
func (m *host) eventually(n int) []grant.Live {
	m.h.t.Helper()
	for range 500 {
		if live := m.grants(); len(live) == n {
			return live
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.h.t.Fatalf("host %s has %d open windows, want %d", m.name, len(m.grants()), n)
	return nil
}
