// Package join is what a machine must know to join a control plane and to recognise it ever after:
// the join token's language, the pin of the CA, the name in the server's certificate and the name
// in a host's (PROTOCOL.md section 2). The control plane, the agent's link half and the CLI share
// it. It computes; it opens no file and no connection.
package join

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// ServerName stands as DNS name in every server certificate of a control plane, so that clients
// verify one fixed name below the pinned CA and reach it by any address or name.
const ServerName = "curfew-controlplane"

const (
	tokenPrefix = "cft1."
	secretBytes = 16
	maxToken    = 128
)

// Token is a one-use invitation: 128 random bits, and the pin of the CA that will answer.
type Token struct {
	Secret [secretBytes]byte
	Pin    [sha256.Size]byte
}

// NewToken draws a token for the control plane whose CA has this pin.
func NewToken(random io.Reader, pin [sha256.Size]byte) (Token, error) {
	t := Token{Pin: pin}
	if _, err := io.ReadFull(random, t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("drawing a join token: %w", err)
	}
	return t, nil
}

// String is the one text form: cft1.SECRET.PIN, base64url without padding.
func (t Token) String() string {
	enc := base64.RawURLEncoding
	return tokenPrefix + enc.EncodeToString(t.Secret[:]) + "." + enc.EncodeToString(t.Pin[:])
}

// ParseToken reads a token; only the exact text form is accepted.
func ParseToken(s string) (Token, error) {
	bad := errors.New("not a join token: it has the form cft1.SECRET.PIN; " +
		"an admin makes one")
	if len(s) > maxToken || !strings.HasPrefix(s, tokenPrefix) {
		return Token{}, bad
	}
	secret, pin, ok := strings.Cut(s[len(tokenPrefix):], ".")
	if !ok {
		return Token{}, bad
	}
	enc := base64.RawURLEncoding.Strict()
	a, errA := enc.DecodeString(secret)
	b, errB := enc.DecodeString(pin)
	if errA != nil || errB != nil || len(a) != secretBytes || len(b) != sha256.Size {
		return Token{}, bad
	}
	t := Token{Secret: [secretBytes]byte(a), Pin: [sha256.Size]byte(b)}
	if t.String() != s {
		return Token{}, bad
	}
	return t, nil
}

// TokenHash is how a token is stored: SHA-256 of its text.
func TokenHash(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// Message is what the root half's key signs at enrolment: it ties the key to this token and to this
// link key, so that neither can be exchanged on the way.
func Message(token string, csr []byte) []byte {
	hash, request := TokenHash(token), sha256.Sum256(csr)
	return bytes.Join([][]byte{[]byte("curfew enrol v1\x00"), hash[:], request[:]}, nil)
}

// Pin is the SHA-256 of a CA certificate's DER.
func Pin(caDER []byte) [sha256.Size]byte { return sha256.Sum256(caDER) }

// HostURI is the name of a host in its certificate: curfew://host/HEX-ID.
func HostURI(id grant.HostID) *url.URL {
	return &url.URL{Scheme: "curfew", Host: "host", Path: "/" + id.String()}
}

// HostOf reads the host id from a certificate. It does not verify the certificate.
func HostOf(cert *x509.Certificate) (grant.HostID, error) {
	if len(cert.URIs) != 1 {
		return grant.HostID{}, errors.New("certificate names no host")
	}
	text, ok := strings.CutPrefix(cert.URIs[0].String(), "curfew://host/")
	id, err := grant.ParseHostID(text)
	if !ok || err != nil {
		return grant.HostID{}, errors.New("certificate names no host")
	}
	return id, nil
}

// ClientTLS verifies a control plane by its CA, or by one of several while it changes, whatever address
// it is reached at. Add a client certificate where one is needed.
func ClientTLS(ca *x509.Certificate, now func() time.Time, more ...*x509.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	for _, cert := range append(more, ca) {
		roots.AddCert(cert)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName, RootCAs: roots, Time: now,
	}
}

// PinnedTLS verifies a control plane when only its CA's pin is known: the server sends the CA
// along, and the chain must lead to the certificate with that pin. found hears of that
// certificate.
func PinnedTLS(
	pin [sha256.Size]byte, now func() time.Time, found func(ca *x509.Certificate),
) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: ServerName, Time: now,
		// The check below replaces the standard one, which knows roots but not pins.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			ca, err := verifyPinned(state.PeerCertificates, pin, now())
			if err == nil && found != nil {
				found(ca)
			}
			return err
		},
	}
}

func verifyPinned(
	chain []*x509.Certificate, pin [sha256.Size]byte, now time.Time,
) (*x509.Certificate, error) {
	for _, ca := range chain {
		sum := Pin(ca.Raw)
		if subtle.ConstantTimeCompare(sum[:], pin[:]) != 1 {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca)
		_, err := chain[0].Verify(x509.VerifyOptions{
			DNSName: ServerName, Roots: roots, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		})
		if err != nil {
			return nil, fmt.Errorf("verifying the control plane's certificate: %w", err)
		}
		return ca, nil
	}
	return nil, errors.New("the server does not have the CA that the pin names: " +
		"wrong address, or somebody is in between")
}
