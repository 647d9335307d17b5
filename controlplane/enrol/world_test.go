package enrol_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Store that keeps its contract with one mutex.
type memory struct {
	mu      sync.Mutex
	tokens  map[[32]byte]enrol.JoinToken
	hosts   map[grant.HostID]enrol.Host
	records []trail.Record
	trust   []byte
	// instances have joined by their cloud's word.
	instances map[[32]byte]bool
	accepted  map[grant.HostID][]string
}

func (m *memory) PutJoinToken(_ context.Context, t enrol.JoinToken, r trail.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t.Hash] = t
	m.records = append(m.records, r)
	return nil
}

func (m *memory) EnrolHost(
	_ context.Context, hash [32]byte,
	decide func(enrol.JoinToken) (enrol.Host, trail.Record, error),
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[hash]
	if !ok {
		return enrol.ErrNoToken
	}
	h, r, err := decide(t)
	if err != nil {
		return err
	}
	if !t.UsedAt.IsZero() {
		return enrol.ErrTokenUsed
	}
	if err := m.insert(h, r); err != nil {
		return err
	}
	t.UsedAt = h.EnrolledAt
	m.tokens[hash] = t
	return nil
}

func (m *memory) insert(h enrol.Host, r trail.Record) error {
	if _, known := m.hosts[h.ID]; known {
		return enrol.ErrKeyKnown
	}
	for _, other := range m.hosts {
		if other.Name == h.Name && !other.Removed {
			return enrol.ErrNameTaken
		}
	}
	m.hosts[h.ID], m.records = h, append(m.records, r)
	return nil
}

func (m *memory) EnrolInstance(
	_ context.Context, instance [32]byte, h enrol.Host, r trail.Record,
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.instances[instance] {
		return enrol.ErrInstanceKnown
	}
	if err := m.insert(h, r); err != nil {
		return err
	}
	m.instances[instance] = true
	return nil
}

func (m *memory) EnrolledHost(_ context.Context, id grant.HostID) (enrol.Host, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.hosts[id]
	if !ok {
		return h, enrol.ErrNoHost
	}
	return h, nil
}

func (m *memory) PutAccepted(_ context.Context, id grant.HostID, names []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accepted[id] = names
	return nil
}

func (m *memory) PutCertificate(
	_ context.Context, id grant.HostID, end time.Time, by string,
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, ok := m.hosts[id]
	if !ok {
		return enrol.ErrNoHost
	}
	h.CertificateEnds, h.CertifiedBy = end, by
	m.hosts[id] = h
	return nil
}

func (m *memory) NewestTrust(context.Context) ([]byte, error) { return m.trust, nil }

func (m *memory) change(id grant.HostID, f func(*enrol.Host)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.hosts[id]
	f(&h)
	m.hosts[id] = h
}

func (m *memory) count() (hosts, used int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tokens {
		if !t.UsedAt.IsZero() {
			used++
		}
	}
	return len(m.hosts), used
}

// clock is set by the test.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// world is a control plane on loopback that can do nothing but enrol.
type world struct {
	t         *testing.T
	store     *memory
	clock     *clock
	authority *enrol.Authority
	service   *enrol.Service
	address   string
}

func newWorld(t *testing.T) *world { return newWorldWith(t, nil) }

// newWorldWith may change the configuration.
func newWorldWith(t *testing.T, change func(*enrol.Config)) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{at: time.Now()}, store: &memory{
		tokens: make(map[[32]byte]enrol.JoinToken), hosts: make(map[grant.HostID]enrol.Host),
		trust: []byte("the trust envelope"), instances: make(map[[32]byte]bool),
		accepted: make(map[grant.HostID][]string),
	}}
	var err error
	if w.authority, err = enrol.CreateAuthority(t.TempDir(), "example", w.clock.now()); err != nil {
		t.Fatal(err)
	}
	c := enrol.Config{
		Store: w.store, Authority: w.authority, Organisation: "example", Now: w.clock.now,
		Log: hclog.NewNullLogger(),
	}
	if change != nil {
		change(&c)
	}
	w.service, err = enrol.New(c)
	if err != nil {
		t.Fatal(err)
	}
	config, err := w.authority.ServerTLS(w.clock.now, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	w.service.Register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = listener.Addr().String()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serving: %v", err)
		}
	})
	return w
}

// client connects; cert may be nil.
func (w *world) client(cert *tls.Certificate) apiv1.EnrolmentClient {
	w.t.Helper()
	config := join.ClientTLS(w.authority.Certificate(), w.clock.now)
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return cert, nil
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+w.address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return apiv1.NewEnrolmentClient(conn)
}

func (w *world) token(name string, labels map[string]string) string {
	w.t.Helper()
	token, _, err := w.service.CreateToken(context.Background(), "admin", name, labels)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// machine is what wants to become a host.
type machine struct {
	root, link ed25519.PrivateKey
}

func newMachine(t *testing.T) machine {
	t.Helper()
	return machine{newKey(t), newKey(t)}
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (m machine) id() grant.HostID {
	return grant.HostIDOf(m.root.Public().(ed25519.PublicKey))
}

func newCSR(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (m machine) request(t *testing.T, token, name string) *apiv1.EnrolRequest {
	t.Helper()
	csr := newCSR(t, m.link)
	return &apiv1.EnrolRequest{
		Token: token, RootPublicKey: m.root.Public().(ed25519.PublicKey), Csr: csr,
		Signature: ed25519.Sign(m.root, join.Message(token, csr)), Name: name,
		AgentVersion: "0.1.0",
	}
}

// enrolled makes a machine a host and returns its certificate.
func (w *world) enrolled(m machine, name string) *tls.Certificate {
	w.t.Helper()
	resp, err := w.client(nil).Enrol(context.Background(),
		m.request(w.t, w.token(name, nil), ""))
	if err != nil {
		w.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{resp.GetCertificate()}, PrivateKey: m.link}
}

// reasonOf is the code that people's clients see.
func reasonOf(err error) apiv1.Code {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*apiv1.Reason); ok {
			return r.GetCode()
		}
	}
	return apiv1.Code_CODE_UNSPECIFIED
}

var errTest = errors.New("the disk is full")
