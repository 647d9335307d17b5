package enrol

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
)

// Lives of certificates. A host renews from two thirds of its certificate's life on; one that was
// off for longer may still renew, and nothing else, for LateRenewal.
const (
	CALife      = 20 * 365 * 24 * time.Hour
	ServerLife  = 7 * 24 * time.Hour
	HostLife    = 7 * 24 * time.Hour
	LateRenewal = 90 * 24 * time.Hour
	// backdate lets a client whose clock is behind use a fresh certificate.
	backdate = time.Hour
)

// Names of the CA's two files in the control plane's data folder.
const (
	CAKeyFile  = "ca.key"
	CACertFile = "ca.crt"
)

// Authority is the control plane's own CA. It certifies the server and the link keys of hosts, and
// nothing else. Safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// next takes its place one day; nil for none. old are those whose place it took and that still count
	// for hosts.
	next *x509.Certificate
	old  []*x509.Certificate

	mu sync.Mutex // guards server
	// server is the newest server certificate; its key never leaves this process.
	server *tls.Certificate
}

// CreateAuthority makes a CA and writes its key (0600) and certificate into dir, durably. It
// refuses to touch files that exist: hosts have pinned that CA.
func CreateAuthority(dir, organisation string, now time.Time) (*Authority, error) {
	if err := grant.CheckOrganisation(organisation); err != nil {
		return nil, fmt.Errorf("creating the CA: %w", err)
	}
	der, key, err := writeAuthority(dir, CAKeyFile, CACertFile, organisation, now)
	if err != nil {
		return nil, err
	}
	return newAuthority(der, key)
}

// writeAuthority draws a CA and writes its two files.
func writeAuthority(dir, keyName, certName, organisation string, now time.Time) (
	der []byte, key *ecdsa.PrivateKey, err error,
) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("drawing the CA's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Curfew CA of " + organisation},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(CALife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err = x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, nil, fmt.Errorf("making the CA's certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the CA's key: %w", err)
	}
	err = writeNew(filepath.Join(dir, keyName), 0o600, "PRIVATE KEY", keyDER)
	if err == nil {
		err = writeNew(filepath.Join(dir, certName), 0o644, "CERTIFICATE", der)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("writing the CA: %w", err)
	}
	return der, key, nil
}

// LoadAuthority reads the CA from dir. It refuses a key that others can read and a key that is not
// the certificate's.
func LoadAuthority(dir string) (*Authority, error) {
	if err := finishSwitch(dir); err != nil {
		return nil, fmt.Errorf("loading the CA: %w", err)
	}
	key, err := readAuthorityKey(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, err
	}
	der, err := readPEM(filepath.Join(dir, CACertFile), "CERTIFICATE")
	if err != nil {
		return nil, fmt.Errorf("loading the CA: %w", err)
	}
	a, err := newAuthority(der, key)
	if err != nil {
		return nil, err
	}
	return a, a.loadOthers(dir)
}

func readAuthorityKey(path string) (*ecdsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("loading the CA: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("CA key %s has mode %04o: others can read it; chmod 0600 it",
			path, info.Mode().Perm())
	}
	keyDER, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, fmt.Errorf("loading the CA: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return nil, fmt.Errorf("loading the CA's key from %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("CA key %s is not an ECDSA key", path)
	}
	return key, nil
}

func newAuthority(der []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing the CA's certificate: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the CA's certificate is not of the CA's key")
	}
	return &Authority{cert: cert, key: key}, nil
}

// Certificate is the CA's own.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// Pin is the SHA-256 of the CA certificate's DER, which join tokens and clients carry.
func (a *Authority) Pin() [sha256.Size]byte { return join.Pin(a.cert.Raw) }

// ServerTLS is the configuration of the one port for people and hosts: TLS 1.3, HTTP/2, a server
// certificate that names join.ServerName and the extra names or IP addresses and renews by itself,
// and a client certificate asked for but not required: HostOf and the sessions judge it.
func (a *Authority) ServerTLS(now func() time.Time, names ...string) (*tls.Config, error) {
	if _, err := a.serverCertificate(now(), names); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Time: now,
		ClientAuth: tls.RequestClientCert,
		// A resumed connection would carry a client certificate that was judged long ago.
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.serverCertificate(now(), names)
		},
	}, nil
}

// serverCertificate returns the present server certificate and makes a new one, with a new key,
// when two thirds of its life are over or the clock was set back before it.
func (a *Authority) serverCertificate(now time.Time, names []string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server != nil && now.After(a.server.Leaf.NotBefore) &&
		now.Before(renewAt(a.server.Leaf)) {
		return a.server, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("drawing the server's key: %w", err)
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: join.ServerName},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(ServerLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{join.ServerName},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, err := a.sign(template, &key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("making the server's certificate: %w", err)
	}
	a.server = &tls.Certificate{
		// The CA goes along, so that a joining machine can find what its token pins.
		Certificate: [][]byte{leaf.Raw, a.cert.Raw}, PrivateKey: key, Leaf: leaf,
	}
	return a.server, nil
}

// SignHost certifies a host's link key: the host's id as common name and URI, client
// authentication only, HostLife long.
func (a *Authority) SignHost(
	link crypto.PublicKey, id grant.HostID, now time.Time,
) (*x509.Certificate, error) {
	switch link.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey:
	default:
		return nil, fmt.Errorf("link key of type %T: want Ed25519 or ECDSA", link)
	}
	cert, err := a.sign(&x509.Certificate{
		Subject:   pkix.Name{CommonName: id.String()},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(HostLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{join.HostURI(id)},
	}, link)
	if err != nil {
		return nil, fmt.Errorf("certifying the link key of host %s: %w", id, err)
	}
	return cert, nil
}

// ServerCertificateEnd is when the present server certificate ends; zero before there is one.
func (a *Authority) ServerCertificateEnd() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.server == nil {
		return time.Time{}
	}
	return a.server.Leaf.NotAfter
}

func (a *Authority) sign(template *x509.Certificate, pub any) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// ErrNotHost means that a connection does not show a host certificate of this CA.
var ErrNotHost = errors.New("no valid host certificate")

// HostOf returns the host that the call's client certificate names, verified against this CA at
// now. The connection has proved possession of the link key. Whether the host is served is the
// Store's to say. ErrNotHost for people, strangers and ended certificates.
func (a *Authority) HostOf(ctx context.Context, now time.Time) (grant.HostID, error) {
	_, id, err := a.hostCertificate(ctx, now)
	return id, err
}

func (a *Authority) hostCertificate(
	ctx context.Context, now time.Time,
) (*x509.Certificate, grant.HostID, error) {
	cert := clientCertificate(ctx)
	if cert == nil {
		return nil, grant.HostID{}, ErrNotHost
	}
	id, err := a.verifyHost(cert, now)
	if err != nil {
		return nil, grant.HostID{}, fmt.Errorf("%w: %w", ErrNotHost, err)
	}
	return cert, id, nil
}

// clientCertificate is the call's client certificate, unverified; nil for none.
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

func (a *Authority) verifyHost(cert *x509.Certificate, now time.Time) (grant.HostID, error) {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	for _, old := range a.old {
		roots.AddCert(old)
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return grant.HostID{}, err
	}
	return join.HostOf(cert)
}

// renewAt is when two thirds of a certificate's life are over.
func renewAt(cert *x509.Certificate) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 3 * 2)
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("drawing a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}

func writeNew(path string, mode os.FileMode, block string, der []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: block, Bytes: der}), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func readPEM(path, block string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	b, rest := pem.Decode(data)
	if b == nil || b.Type != block || len(rest) > 0 {
		return nil, fmt.Errorf("%s is not one PEM block of type %q", path, block)
	}
	return b.Bytes, nil
}
