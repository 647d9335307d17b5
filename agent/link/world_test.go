package link_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 25 * time.Second

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

// control is what a link needs of a control plane: a CA, a port, and a stream whose other end the
// test holds.
type control struct {
	apiv1.UnimplementedHostLinkServer
	apiv1.UnimplementedEnrolmentServer
	t       *testing.T
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey
	clock   *clock
	address string
	server  *grpc.Server

	mu       sync.Mutex
	token    string
	enrolled *apiv1.EnrolRequest
	renewals int
	// announced are the CAs that it says it is known by; nil: its own. accepted is what the link last
	// said that it accepts.
	announced [][]byte
	accepted  [][]byte
	staleCert bool
	life      time.Duration
	enrolErr  error
	// certs counts connections by the serial number of the client's certificate.
	certs   map[string]int
	streams chan *hostStream
}

// hostStream is the control plane's end of one stream; it lives until end is closed.
type hostStream struct {
	apiv1.HostLink_ConnectServer
	end chan error
}

func newControl(t *testing.T) *control {
	t.Helper()
	c := &control{
		t: t, clock: &clock{at: time.Now()}, life: 7 * 24 * time.Hour,
		certs: make(map[string]int), streams: make(chan *hostStream, 64),
	}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	c.ca = c.sign(&x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: c.clock.now().Add(-time.Hour), NotAfter: c.clock.now().Add(1e5 * time.Hour),
	}, &c.key.PublicKey)
	token, err := join.NewToken(rand.Reader, join.Pin(c.ca.Raw))
	if err != nil {
		t.Fatal(err)
	}
	c.token = token.String()
	c.listen("127.0.0.1:0")
	return c
}

// sign certifies pub; the CA's own certificate is the first that it signs.
func (c *control) sign(template *x509.Certificate, pub any) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		c.t.Fatal(err)
	}
	template.SerialNumber = serial
	parent := c.ca
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert
}

func (c *control) hostCertificate(id grant.HostID, pub any) *x509.Certificate {
	return c.sign(&x509.Certificate{
		Subject:   pkix.Name{CommonName: id.String()},
		NotBefore: c.clock.now(), NotAfter: c.clock.now().Add(c.life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{join.HostURI(id)},
	}, pub)
}

// listen starts the server; stop ends it, and listen at the same address starts it again.
func (c *control) listen(address string) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	leaf := c.sign(&x509.Certificate{
		NotBefore: c.clock.now().Add(-time.Hour), NotAfter: c.clock.now().Add(1e5 * time.Hour),
		DNSNames:    []string{join.ServerName},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, &key.PublicKey)
	c.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert,
		Certificates: []tls.Certificate{{
			Certificate: [][]byte{leaf.Raw, c.ca.Raw}, PrivateKey: key,
		}},
	})), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
		MinTime: 4 * time.Second, PermitWithoutStream: true,
	}))
	apiv1.RegisterHostLinkServer(c.server, c)
	apiv1.RegisterEnrolmentServer(c.server, c)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		c.t.Fatal(err)
	}
	c.address = listener.Addr().String()
	served := make(chan error, 1)
	server := c.server
	go func() { served <- server.Serve(listener) }()
	c.t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			c.t.Errorf("serving: %v", err)
		}
	})
}

func (c *control) Connect(s apiv1.HostLink_ConnectServer) error {
	cert := clientCertificate(s.Context())
	if cert == nil {
		return status.Error(codes.Unauthenticated, "no certificate")
	}
	c.mu.Lock()
	c.certs[cert.SerialNumber.String()]++
	c.mu.Unlock()
	h := &hostStream{HostLink_ConnectServer: s, end: make(chan error, 1)}
	select {
	case c.streams <- h:
	case <-s.Context().Done():
		return s.Context().Err()
	}
	select {
	case err := <-h.end:
		return err
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

func clientCertificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil
	}
	return info.State.PeerCertificates[0]
}

func (c *control) Enrol(
	_ context.Context, r *apiv1.EnrolRequest,
) (*apiv1.EnrolResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.enrolErr != nil {
		return nil, c.enrolErr
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	c.enrolled = r
	id := grant.HostIDOf(r.GetRootPublicKey())
	return &apiv1.EnrolResponse{
		HostId: id[:], Name: "web1", Organisation: "example",
		Certificate:   c.hostCertificate(id, csr.PublicKey).Raw,
		CaCertificate: c.ca.Raw, TrustEnvelope: []byte("trust"),
	}, nil
}

func (c *control) Renew(
	ctx context.Context, r *apiv1.RenewRequest,
) (*apiv1.RenewResponse, error) {
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return nil, err
	}
	cert := clientCertificate(ctx)
	if cert == nil {
		return nil, status.Error(codes.PermissionDenied, "no certificate")
	}
	id, err := join.HostOf(cert)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renewals++
	return &apiv1.RenewResponse{Certificate: c.hostCertificate(id, csr.PublicKey).Raw}, nil
}

func (c *control) Authorities(
	_ context.Context, r *apiv1.AuthoritiesRequest,
) (*apiv1.AuthoritiesResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accepted = r.GetAccepts()
	out := &apiv1.AuthoritiesResponse{Certificates: c.announced, Renew: c.staleCert}
	if out.Certificates == nil {
		out.Certificates = [][]byte{c.ca.Raw}
	}
	return out, nil
}

// says is how many CAs the link last said that it accepts.
func (c *control) says() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.accepted)
}

// renewed is how many renewals were asked for.
func (c *control) renewed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewals
}

// accept waits for the link's next stream.
func (c *control) accept() *hostStream {
	c.t.Helper()
	select {
	case s := <-c.streams:
		return s
	case <-time.After(patience):
		c.t.Fatal("the link does not connect")
		return nil
	}
}

// rootHalf is the other end of the link socket.
type rootHalf struct {
	t        *testing.T
	path     string
	listener net.Listener
}

func newRootHalf(t *testing.T) *rootHalf {
	t.Helper()
	r := &rootHalf{t: t, path: filepath.Join(t.TempDir(), "link.sock")}
	r.listen()
	return r
}

func (r *rootHalf) listen() {
	r.t.Helper()
	listener, err := net.Listen("unix", r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.listener = listener
	r.t.Cleanup(func() { listener.Close() })
}

func (r *rootHalf) accept() net.Conn {
	r.t.Helper()
	if err := r.listener.(*net.UnixListener).SetDeadline(time.Now().Add(patience)); err != nil {
		r.t.Fatal(err)
	}
	conn, err := r.listener.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (c *control) joinConfig(dir string) link.JoinConfig {
	c.t.Helper()
	return link.JoinConfig{
		Server: c.address, Token: c.token, RootKey: newKey(c.t), Directory: dir, UID: -1, GID: -1,
		AgentVersion: "0.1.0", Now: c.clock.now,
	}
}

// joined makes a folder with the identity of a host.
func (c *control) joined() string {
	c.t.Helper()
	dir := filepath.Join(c.t.TempDir(), "link")
	if _, err := link.Join(context.Background(), c.joinConfig(dir)); err != nil {
		c.t.Fatal(err)
	}
	return dir
}

// run starts a link and stops it with the test.
func (c *control) run(dir string, r *rootHalf, change func(*link.Config)) (stop func()) {
	c.t.Helper()
	config := link.Config{
		Directory: dir, Socket: r.path, Now: c.clock.now, Log: hclog.NewNullLogger(),
		Timing: link.Timing{MaxBackoff: 300 * time.Millisecond, RenewCheck: 20 * time.Millisecond},
	}
	if change != nil {
		change(&config)
	}
	l, err := link.New(config)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				c.t.Errorf("the link ends with %v", err)
			}
		case <-time.After(patience):
			c.t.Error("the link does not stop")
		}
	})
	c.t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
