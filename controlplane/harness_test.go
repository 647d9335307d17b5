package controlplane_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// house is a control plane on loopback with real TLS, and people and hosts that dial it.
type house struct {
	t      *testing.T
	dir    string
	addr   string
	pin    [sha256.Size]byte
	config controlplane.Config
	stop   func()
	admin  *person
	// ahead is by how many nanoseconds the server's clock is ahead of the world's.
	ahead atomic.Int64
}

func (h *house) now() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) }

type person struct {
	t    *testing.T
	h    *house
	name string
	key  ssh.Signer
	conn *grpc.ClientConn
	apiv1.SignInClient
	apiv1.AccessClient
	apiv1.DirectoryClient
}

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	must(t, err)
	return signer
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build starts a fresh control plane with dana as admin, signed in.
func build(t *testing.T, tune func(*controlplane.Config)) *house {
	t.Helper()
	h := &house{t: t, dir: filepath.Join(t.TempDir(), "data")}
	key := newKey(t)
	pin, err := controlplane.Init(t.Context(), controlplane.Setup{
		DataDir: h.dir, Organisation: "acme", URL: "127.0.0.1:7443", Admin: "dana",
		AdminKey: grant.SSHKeyText(key.PublicKey()), Now: time.Now, Log: hclog.NewNullLogger(),
	})
	must(t, err)
	raw, err := base64.RawURLEncoding.DecodeString(pin)
	must(t, err)
	h.pin = [sha256.Size]byte(raw)
	h.config = controlplane.DefaultConfig()
	h.config.DataDir, h.config.Listen = h.dir, "127.0.0.1:0"
	if tune != nil {
		tune(&h.config)
	}
	h.start()
	t.Cleanup(func() { h.stop() })
	h.admin = h.signIn("dana", key)
	return h
}

func (h *house) start() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := controlplane.New(ctx, h.config, h.now, "test", hclog.NewNullLogger())
	if err != nil {
		cancel()
		h.t.Fatal(err)
	}
	h.addr = s.Addr().String()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("the server ended with %v", err)
		}
	})
}

// dial opens a connection with a client certificate, or without one.
func (h *house) dial(cert *tls.Certificate) *grpc.ClientConn {
	h.t.Helper()
	config := join.PinnedTLS(h.pin, time.Now, nil)
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	conn, err := grpc.NewClient(h.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	must(h.t, err)
	h.t.Cleanup(func() { conn.Close() })
	return conn
}

func selfSigned(t *testing.T, key ed25519.PrivateKey) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (h *house) person(name string, key ssh.Signer, conn *grpc.ClientConn) *person {
	return &person{
		t: h.t, h: h, name: name, key: key, conn: conn, SignInClient: apiv1.NewSignInClient(conn),
		AccessClient: apiv1.NewAccessClient(conn), DirectoryClient: apiv1.NewDirectoryClient(conn),
	}
}

// signIn signs a challenge with an SSH key and returns a person on a session of a fresh key.
func (h *house) signIn(name string, key ssh.Signer) *person {
	h.t.Helper()
	pub, session, err := ed25519.GenerateKey(rand.Reader)
	must(h.t, err)
	stranger := apiv1.NewSignInClient(h.dial(nil))
	c, err := stranger.Challenge(h.t.Context(), &apiv1.ChallengeRequest{})
	must(h.t, err)
	sig, err := sshsig.Sign(key, sshsig.NamespaceLogin,
		identity.LoginMessage(c.GetChallenge(), pub, h.pin))
	must(h.t, err)
	_, err = stranger.Login(h.t.Context(), &apiv1.LoginRequest{
		User: name, Challenge: c.GetChallenge(), SessionPublicKey: pub, Sshsig: sig,
	})
	must(h.t, err)
	return h.person(name, key, h.dial(selfSigned(h.t, session)))
}

// add makes a user and signs them in.
func (h *house) add(name string) *person {
	h.t.Helper()
	key := newKey(h.t)
	_, err := h.admin.PutUser(h.t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: name, SshKeys: []string{grant.SSHKeyText(key.PublicKey())},
	}})
	must(h.t, err)
	return h.signIn(name, key)
}

func (h *house) group(name string, members ...string) {
	h.t.Helper()
	_, err := h.admin.PutGroup(h.t.Context(),
		&apiv1.PutGroupRequest{Group: &apiv1.Group{Name: name, Members: members}})
	must(h.t, err)
}

// opsRole is what most tests ask for.
func opsRole(approvals uint32) *apiv1.Role {
	return &apiv1.Role{
		Name: "ops", AllowLogin: true, MaxDurationMs: time.Hour.Milliseconds(), ApproverGroup: "sre",
		Approvals: approvals, SudoRules: []*curfewv1.SudoRule{{
			RunAs: "root", Command: "/usr/bin/systemctl",
			Args: []string{"restart", "nginx.service"}, Contained: true,
		}},
	}
}

func (h *house) role(r *apiv1.Role) {
	h.t.Helper()
	_, err := h.admin.PutRole(h.t.Context(), &apiv1.PutRoleRequest{Role: r})
	must(h.t, err)
}

// cast is alice, who asks, bob and erin, who approve, and the host web1.
func (h *house) cast(approvals uint32) (alice, bob, erin *person, web1 *host) {
	h.t.Helper()
	alice, bob, erin = h.add("alice"), h.add("bob"), h.add("erin")
	h.group("sre", "bob", "erin")
	h.role(opsRole(approvals))
	return alice, bob, erin, h.join("web1")
}

func (p *person) ask(hosts ...string) *apiv1.Request {
	p.t.Helper()
	r, err := p.CreateRequest(p.t.Context(), &apiv1.CreateRequestRequest{
		Hosts: hosts, Role: "ops", DurationMs: (10 * time.Minute).Milliseconds(), Reason: "it hangs",
	})
	must(p.t, err)
	return r.GetRequest()
}

func (p *person) sign(terms []byte) []byte {
	p.t.Helper()
	sig, err := sshsig.Sign(p.key, sshsig.NamespaceApprove, terms)
	must(p.t, err)
	return sig
}

func (p *person) approve(r *apiv1.Request) (*apiv1.Request, error) {
	resp, err := p.Approve(p.t.Context(), &apiv1.ApproveRequest{
		Id: r.GetId(), Revision: r.GetRevision(), Sshsig: p.sign(r.GetTerms()),
	})
	return resp.GetRequest(), err
}

func (p *person) get(id string) *apiv1.Request {
	p.t.Helper()
	r, err := p.GetRequest(p.t.Context(), &apiv1.GetRequestRequest{Id: id})
	must(p.t, err)
	return r.GetRequest()
}

// until waits for a request to be as it should.
func (p *person) until(id, what string, ok func(*apiv1.Request) bool) *apiv1.Request {
	p.t.Helper()
	var r *apiv1.Request
	for range 500 {
		if r = p.get(id); ok(r) {
			return r
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatalf("request %s did not become %s: %v", id, what, r)
	return nil
}

// refused demands that a call failed for this reason.
func refused(t *testing.T, err error, code apiv1.Code) *apiv1.Reason {
	t.Helper()
	if err == nil {
		t.Fatalf("want %s, got no error", code)
	}
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*apiv1.Reason); ok {
			if r.GetCode() != code {
				t.Fatalf("want %s, got %s: %s", code, r.GetCode(), r.GetText())
			}
			return r
		}
	}
	t.Fatalf("want %s, got an error without a reason: %v", code, err)
	return nil
}

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
	// say carries events to send.
	say  chan *curfewv1.Event
	quit context.CancelFunc
	done chan struct{}
}

func (h *house) join(name string) *host {
	h.t.Helper()
	tok, err := h.admin.CreateJoinToken(h.t.Context(), &apiv1.CreateJoinTokenRequest{Name: name})
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
		h: h, name: name, root: root, ledger: ledger, say: make(chan *curfewv1.Event, 16),
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
		case e := <-m.say:
			out.Body = &curfewv1.HostMessage_Event{Event: e}
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
	m.say <- e
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
	case *curfewv1.ControlMessage_Trust:
		if err := m.ledger.AcceptTrust(b.Trust.GetEnvelope()); err != nil {
			m.h.t.Errorf("host %s refuses the trust file: %v", m.name, err)
		}
	case *curfewv1.ControlMessage_Grant:
		_, err := m.ledger.AcceptGrant(b.Grant.GetEnvelope(), clock(),
			grant.Ceiling{MaxDuration: time.Hour, RootEquivalent: true})
		if err != nil && !errors.Is(err, grant.ErrTombstoned) {
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
	for _, live := range m.ledger.Live(clock()) {
		ack.Grants = append(ack.Grants, &curfewv1.GrantResult{
			GrantId: live.ID[:], Status: curfewv1.GrantStatus_GRANT_STATUS_APPLIED,
			StartMs: live.Start.UnixMilli(), EndMs: live.End.UnixMilli(),
		})
	}
	for _, id := range change.Missing {
		ack.Grants = append(ack.Grants, &curfewv1.GrantResult{
			GrantId: bytesOf(id), Status: curfewv1.GrantStatus_GRANT_STATUS_MISSING,
		})
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

// records reads the whole trail.
func (p *person) records() []*apiv1.Record {
	p.t.Helper()
	s, err := p.ListRecords(p.t.Context(), &apiv1.ListRecordsRequest{All: true})
	must(p.t, err)
	var out []*apiv1.Record
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(p.t, err)
		out = append(out, resp.GetRecords()...)
	}
}

// memory keeps a trail's tree hashes, as a reader does who checks the chain.
type memory struct {
	count  int
	hashes []tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (m *memory) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, x := range at {
		out[i] = m.hashes[x]
	}
	return out, nil
}

func (m *memory) add(t *testing.T, leaf []byte) {
	t.Helper()
	hashes, err := trail.NewHashes(uint64(m.count), leaf, m)
	must(t, err)
	m.hashes = append(m.hashes, hashes...)
	m.count++
}

// ended says whether the host knows that the grant of a request is over.
func (m *host) ended(r *apiv1.Request) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, over := m.ledger.Ended(grant.IDOf(r.GetTerms(), m.ledger.Host()))
	return over
}
