package stream_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// world is a control plane on loopback: real TLS, real gRPC, a real Issuer, a store in memory.
type world struct {
	t         *testing.T
	store     *memory
	authority *enrol.Authority
	issuer    *issue.Issuer
	hub       *stream.Hub
	address   string
	heard     chan grant.HostID
}

func newWorld(t *testing.T, timing stream.Timing) *world {
	t.Helper()
	w := &world{t: t, store: newMemory(), heard: make(chan grant.HostID, 1024)}
	var err error
	if w.authority, err = enrol.CreateAuthority(t.TempDir(), "example", time.Now()); err != nil {
		t.Fatal(err)
	}
	w.issuer, err = issue.New(issue.Config{
		Store: w.store, Key: newKey(t), Now: time.Now, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.hub, err = stream.New(stream.Config{
		Store: w.store, Issuer: w.issuer, Now: time.Now, Log: hclog.NewNullLogger(), Timing: timing,
		Identify: func(ctx context.Context) (grant.HostID, error) {
			return w.authority.HostOf(ctx, time.Now())
		},
		Heard: func(id grant.HostID) {
			select {
			case w.heard <- id:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.serve(timing)
	return w
}

func (w *world) serve(timing stream.Timing) {
	w.t.Helper()
	config, err := w.authority.ServerTLS(time.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	server := grpc.NewServer(append(stream.ServerOptions(timing),
		grpc.Creds(credentials.NewTLS(config)))...)
	w.hub.Register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	go func() { ran <- w.hub.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		select {
		case err := <-ran:
			if err != nil {
				w.t.Errorf("hub: %v", err)
			}
		case <-time.After(patience):
			w.t.Error("the hub does not stop")
		}
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			w.t.Errorf("serving: %v", err)
		}
	})
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// machine is a host's disk: its keys, its event chain and what it holds.
type machine struct {
	id     grant.HostID
	root   ed25519.PrivateKey
	cert   tls.Certificate
	boot   string
	chain  trail.Chain
	events []*curfewv1.Event
	held   []grant.ID
	trust  uint64
	count  uint64 // trail
	head   []byte
	epoch  uint64
	seq    uint64
}

func (w *world) machine(name string) *machine {
	w.t.Helper()
	m := &machine{root: newKey(w.t), boot: "boot 1", trust: 1}
	pub := m.root.Public().(ed25519.PublicKey)
	m.id = grant.HostIDOf(pub)
	link := newKey(w.t)
	cert, err := w.authority.SignHost(link.Public(), m.id, time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	m.cert = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: link}
	w.store.enrol(m.id, name, pub)
	return m
}

// clone copies the disk, as it is.
func (m *machine) clone(boot string) *machine {
	c := *m
	c.boot, c.events, c.held = boot, slices.Clone(m.events), slices.Clone(m.held)
	return &c
}

func (m *machine) event(t *testing.T, kind string) *curfewv1.Event {
	t.Helper()
	e := &curfewv1.Event{Kind: kind, TimeMs: time.Now().UnixMilli(), BootId: m.boot}
	if err := m.chain.Append(e); err != nil {
		t.Fatal(err)
	}
	m.events = append(m.events, e)
	return e
}

func (m *machine) hello() *curfewv1.Hello {
	h := &curfewv1.Hello{
		Protocol: 1, HostId: m.id[:], AgentVersion: "0.1.0", BootId: m.boot, TrustVersion: m.trust,
		Epoch: m.epoch, Sequence: m.seq, TrailCount: m.count, TrailHead: m.head,
		EventCount: m.chain.Count, EventHead: m.chain.Head, Nonce: nonce(0),
	}
	for _, id := range m.held {
		h.GrantIds = append(h.GrantIds, bytes.Clone(id[:]))
	}
	return h
}

func nonce(n byte) []byte { return bytes.Repeat([]byte{n}, grant.NonceSize) }

// line is one connection of a machine.
type line struct {
	t      *testing.T
	m      *machine
	stream apiv1.HostLink_ConnectClient
	conn   *grpc.ClientConn
	issuer ed25519.PublicKey
}

// dial opens a stream and sends nothing.
func (w *world) dial(m *machine, opts ...grpc.DialOption) *line {
	w.t.Helper()
	config := join.ClientTLS(w.authority.Certificate(), time.Now)
	if m.cert.Certificate != nil {
		config.Certificates = []tls.Certificate{m.cert}
	}
	conn, err := grpc.NewClient("passthrough:///"+w.address, append(opts,
		grpc.WithTransportCredentials(credentials.NewTLS(config)))...)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	w.t.Cleanup(func() { cancel(); conn.Close() })
	s, err := apiv1.NewHostLinkClient(conn).Connect(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	return &line{t: w.t, m: m, stream: s, conn: conn, issuer: w.issuer.PublicKey()}
}

// connect opens a stream, says Hello and waits for Welcome.
func (w *world) connect(m *machine) *line {
	w.t.Helper()
	l := w.dial(m)
	l.say(&curfewv1.HostMessage_Hello{Hello: m.hello()})
	if l.next().GetWelcome() == nil {
		w.t.Fatal("no Welcome")
	}
	return l
}

func (l *line) sign(body *curfewv1.HostMessage) *curfewv1.SignedHostMessage {
	l.t.Helper()
	signed, err := grant.SignHostMessage(body, l.m.root)
	if err != nil {
		l.t.Fatal(err)
	}
	return signed
}

// say sends a message signed by the machine. A stream that is over shows when it is read.
func (l *line) say(body any) {
	l.t.Helper()
	m := new(curfewv1.HostMessage)
	switch b := body.(type) {
	case *curfewv1.HostMessage_Hello:
		m.Body = b
	case *curfewv1.Event:
		m.Body = &curfewv1.HostMessage_Event{Event: b}
	case *curfewv1.Ack:
		m.Body = &curfewv1.HostMessage_Ack{Ack: b}
	case *curfewv1.Heartbeat:
		m.Body = &curfewv1.HostMessage_Heartbeat{Heartbeat: b}
	default:
		l.t.Fatalf("cannot say %T", body)
	}
	l.sendRaw(l.sign(m))
}

func (l *line) sendRaw(m *curfewv1.SignedHostMessage) {
	_ = l.stream.Send(m) // an error here is read from the stream
}

func (l *line) next() *curfewv1.ControlMessage {
	l.t.Helper()
	m, err := l.stream.Recv()
	if err != nil {
		l.t.Fatalf("the stream ended: %v", err)
	}
	return m
}

// seen is what came before a state, with the state.
type seen struct {
	grants []string
	trust  []string
	state  *curfewv1.HostState
}

// untilState reads up to the next state, checks it and acknowledges it, as a root half does.
func (l *line) untilState() seen {
	l.t.Helper()
	s := l.readState()
	l.ack(s.state)
	return s
}

func (l *line) readState() seen {
	l.t.Helper()
	var s seen
	for {
		m := l.next()
		switch b := m.GetBody().(type) {
		case *curfewv1.ControlMessage_Grant:
			s.grants = append(s.grants, string(b.Grant.GetEnvelope()))
		case *curfewv1.ControlMessage_Trust:
			s.trust = append(s.trust, string(b.Trust.GetEnvelope()))
		case *curfewv1.ControlMessage_State:
			state, err := grant.OpenState(b.State.GetEnvelope(), []ed25519.PublicKey{l.issuer})
			if err != nil {
				l.t.Fatal(err)
			}
			l.checkTrail(state, b.State)
			s.state = state
			return s
		}
	}
}

// checkTrail is what a host demands of each state.
func (l *line) checkTrail(s *curfewv1.HostState, m *curfewv1.State) {
	l.t.Helper()
	if !bytes.Equal(s.GetHostId(), l.m.id[:]) || s.GetSequence() <= l.m.seq {
		l.t.Errorf("state %d of host %x after %d", s.GetSequence(), s.GetHostId(), l.m.seq)
	}
	err := trail.CheckExtends(
		l.m.count, l.m.head, s.GetTrailCount(), s.GetTrailHead(), m.GetProof())
	if err != nil || m.GetProofFrom() != l.m.count {
		l.t.Errorf("proof from %d, want %d: %v", m.GetProofFrom(), l.m.count, err)
	}
	l.m.epoch, l.m.seq = s.GetEpoch(), s.GetSequence()
	l.m.count, l.m.head = s.GetTrailCount(), s.GetTrailHead()
}

func (l *line) ack(s *curfewv1.HostState, results ...*curfewv1.GrantResult) {
	l.t.Helper()
	l.say(&curfewv1.Ack{
		Epoch: s.GetEpoch(), Sequence: s.GetSequence(), Accepted: true, Grants: results,
		TrailCount: s.GetTrailCount(),
	})
}

// end reads until the stream ends and returns its status and what Refused said.
func (l *line) end() (code codes.Code, refused string) {
	l.t.Helper()
	for {
		m, err := l.stream.Recv()
		if err != nil {
			return status.Code(err), refused
		}
		if r := m.GetRefused(); r != nil {
			refused = r.GetReason()
		}
	}
}

// untilEventAck reads up to the acknowledgement of at least n events, answering states on the way.
func (l *line) untilEventAck(n uint64) {
	l.t.Helper()
	for {
		m := l.next()
		if a := m.GetEventAck(); a != nil && a.GetCount() >= n {
			return
		}
		if s := m.GetState(); s != nil {
			state, err := grant.OpenState(s.GetEnvelope(), []ed25519.PublicKey{l.issuer})
			if err != nil {
				l.t.Fatal(err)
			}
			l.checkTrail(state, s)
			l.ack(state)
		}
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
