package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const (
	serverName     = "curfew-controlplane"
	connectTimeout = 10 * time.Second
	callTimeout    = 20 * time.Second
	maxAnswer      = 32 << 20 // bytes of one answer: 1,000 requests with their reasons fit
	maxList        = 1000
)

// client is one pinned connection to the control plane and what is called over it.
type client struct {
	cfg       *config
	transport *transport
	conn      *grpc.ClientConn
	signIn    apiv1.SignInClient
	access    apiv1.AccessClient
	directory apiv1.DirectoryClient
	policy    apiv1.PolicyClient
	identity  apiv1.IdentityClient

	breakGlass apiv1.BreakGlassClient
	rollouts   apiv1.RolloutsClient
}

// transport makes the TLS connections and remembers why they failed, since gRPC only says
// "unavailable".
type transport struct {
	// pins are the CA that is pinned, and the one that shall take its place.
	pins [][32]byte
	cert tls.Certificate
	now  func() time.Time

	mu      sync.Mutex
	ca      *x509.Certificate // the pinned CA once seen; guarded by mu
	dialErr error             // guarded by mu
	pinErr  error             // guarded by mu
}

func newTransport(
	pins [][32]byte, key ed25519.PrivateKey, now func() time.Time,
) (*transport, error) {
	cert, err := sessionCertificate(key, now())
	if err != nil {
		return nil, err
	}
	return &transport{pins: pins, cert: cert, now: now}, nil
}

// dial prepares a client; the connection is made by the first call.
func dial(cfg *config, t *transport) (*client, error) {
	conn, err := grpc.NewClient("passthrough:///"+cfg.Server,
		grpc.WithTransportCredentials(credentials.NewTLS(t.tlsConfig())),
		grpc.WithContextDialer(t.dialContext),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
	)
	if err != nil {
		return nil, fail(exitFailed, "preparing the connection to %s: %w", cfg.Server, err)
	}
	return &client{
		cfg: cfg, transport: t, conn: conn,
		signIn:    apiv1.NewSignInClient(conn),
		access:    apiv1.NewAccessClient(conn),
		directory: apiv1.NewDirectoryClient(conn),
		policy:    apiv1.NewPolicyClient(conn),
		identity:  apiv1.NewIdentityClient(conn),

		breakGlass: apiv1.NewBreakGlassClient(conn),
		rollouts:   apiv1.NewRolloutsClient(conn),
	}, nil
}

func (t *transport) dialContext(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: connectTimeout}
	conn, err := d.DialContext(ctx, "tcp", address)
	t.mu.Lock()
	t.dialErr = err
	t.mu.Unlock()
	return conn, err
}

func (t *transport) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		// The pinned CA stands in for the system's roots: verify does the whole check, and does it
		// on every connection.
		InsecureSkipVerify: true,
		VerifyConnection:   t.verify,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &t.cert, nil
		},
	}
}

// verify accepts a chain that leads to the pinned CA and names the control plane, nothing else.
func (t *transport) verify(state tls.ConnectionState) error {
	ca, err := checkChain(state.PeerCertificates, t.pins, t.now())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ca, t.pinErr = ca, err
	return err
}

func checkChain(
	chain []*x509.Certificate, pins [][32]byte, now time.Time,
) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("it sent no certificate")
	}
	var ca *x509.Certificate
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		if slices.Contains(pins, sha256.Sum256(cert.Raw)) {
			ca = cert
		} else {
			between.AddCert(cert)
		}
	}
	if ca == nil {
		return nil, errors.New("its certificate chain does not hold the pinned CA")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: serverName, Roots: roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, err
	}
	return ca, nil
}

func (t *transport) errors() (dialErr, pinErr error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dialErr, t.pinErr
}

// pinnedCA is the CA certificate of the connection; nil before the first handshake.
func (t *transport) pinnedCA() *x509.Certificate {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ca
}

func (c *client) close() error { return c.conn.Close() }

// call makes one bounded call and explains its error.
func call[Q, A any](
	ctx context.Context, c *client,
	method func(context.Context, Q, ...grpc.CallOption) (A, error), question Q,
) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := method(ctx, question)
	return answer, c.explain(err)
}

func (c *client) request(ctx context.Context, id string) (*apiv1.Request, error) {
	answer, err := call(ctx, c, c.access.GetRequest, &apiv1.GetRequestRequest{Id: id})
	if err != nil {
		return nil, err
	}
	if answer.GetRequest().GetId() != id {
		return nil, fail(exitFailed, "the control plane answered with another request")
	}
	return answer.GetRequest(), nil
}

func (c *client) list(
	ctx context.Context, filter *apiv1.RequestFilter,
) ([]*apiv1.Request, error) {
	answer, err := call(ctx, c, c.access.ListRequests,
		&apiv1.ListRequestsRequest{Filter: filter})
	return answer.GetRequests(), err
}

// resolve completes an abbreviated request id.
func (c *client) resolve(ctx context.Context, prefix string) (string, error) {
	if err := grant.CheckRequestID(prefix); err == nil {
		return prefix, nil
	}
	if prefix == "" || strings.Trim(prefix, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return "", usage("%q is not a request id", prefix).hint("ids are listed by: curfew ls --all")
	}
	requests, err := c.list(ctx, &apiv1.RequestFilter{Limit: maxList})
	if err != nil {
		return "", err
	}
	var found []string
	for _, r := range requests {
		if strings.HasPrefix(r.GetId(), prefix) {
			found = append(found, r.GetId())
		}
	}
	switch len(found) {
	case 0:
		return "", fail(exitFailed, "no request that you may see begins with %q", prefix).
			hint("ids are listed by: curfew ls --all")
	case 1:
		return found[0], nil
	default:
		return "", usage("%q begins %d requests: %s", prefix, len(found),
			strings.Join(found[:min(len(found), 5)], ", ")).hint("write more of the id")
	}
}

// host finds an enrolled host by its exact name.
func (c *client) host(ctx context.Context, name string) (*apiv1.Host, error) {
	answer, err := call(ctx, c, c.access.ListHosts, &apiv1.ListHostsRequest{})
	if err != nil {
		return nil, err
	}
	for _, h := range answer.GetHosts() {
		if h.GetName() == name {
			return h, nil
		}
	}
	return nil, fail(exitFailed, "no host is called %q", name).
		hint("hosts are listed by: curfew hosts")
}
