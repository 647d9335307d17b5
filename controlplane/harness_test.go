package controlplane_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"path/filepath"
	"runtime/debug"
	"strings"
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
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// house is a control plane on loopback with real TLS, and people and hosts that dial it.
type house struct {
	t           *testing.T
	dir         string
	addr        string
	scimAddr    string
	metricsAddr string
	pin         [sha256.Size]byte
	config      controlplane.Config
	stop        func()
	done        <-chan error // how the server ended, once; nil from then on
	admin       *person
	// adminKey is dana's SSH key.
	adminKey ed25519.PrivateKey
	// ahead is by how many nanoseconds the server's clock is ahead of the world's.
	ahead atomic.Int64
	// trap names a function of the server's that panics, once, when it asks for the time.
	trap atomic.Pointer[string]
}

func (h *house) now() time.Time {
	if at := h.trap.Load(); at != nil && strings.Contains(string(debug.Stack()), *at) &&
		h.trap.CompareAndSwap(at, nil) {
		panic("in " + *at)
	}
	return time.Now().Add(time.Duration(h.ahead.Load()))
}

type person struct {
	t    *testing.T
	h    *house
	name string
	key  ssh.Signer
	conn *grpc.ClientConn
	// session is the public key of this sign-in, cert what is seen of it on the wire.
	session ed25519.PublicKey
	cert    *tls.Certificate
	apiv1.SignInClient
	apiv1.AccessClient
	apiv1.DirectoryClient
	apiv1.PolicyClient
	apiv1.BreakGlassClient
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
	h := &house{t: t, dir: filepath.Join(t.TempDir(), "data"), adminKey: newPrivate(t)}
	key, err := ssh.NewSignerFromKey(h.adminKey)
	must(t, err)
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
	if s.SCIMAddr() != nil {
		h.scimAddr = s.SCIMAddr().String()
	}
	if s.MetricsAddr() != nil {
		h.metricsAddr = s.MetricsAddr().String()
	}
	done := make(chan error, 1)
	h.done = done
	go func() {
		done <- s.Run(ctx)
		close(done)
	}()
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
		PolicyClient: apiv1.NewPolicyClient(conn), BreakGlassClient: apiv1.NewBreakGlassClient(conn),
	}
}

// loginMessage is what an SSH key signs to sign in.
func loginMessage(challenge []byte, pub ed25519.PublicKey, pin [sha256.Size]byte) []byte {
	return signin.Binding{Challenge: challenge, Session: pub, CA: pin}.Login()
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
		loginMessage(c.GetChallenge(), pub, h.pin))
	must(h.t, err)
	_, err = stranger.Login(h.t.Context(), &apiv1.LoginRequest{
		User: name, Challenge: c.GetChallenge(), SessionPublicKey: pub, Sshsig: sig,
	})
	must(h.t, err)
	cert := selfSigned(h.t, session)
	p := h.person(name, key, h.dial(cert))
	p.session, p.cert = pub, cert
	return p
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

// holds gives a person access to a host that enforces it, and returns the request.
func (p *person) holds(approver *person, on *host) *apiv1.Request {
	p.t.Helper()
	r := p.ask("web1")
	_, err := approver.approve(r)
	must(p.t, err)
	on.eventually(1)
	p.until(r.GetId(), "applied", applied)
	return r
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
