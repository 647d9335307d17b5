package join_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
)

func TestTokenComesBack(t *testing.T) {
	token, err := join.NewToken(rand.Reader, join.Pin([]byte("ca")))
	if err != nil {
		t.Fatal(err)
	}
	again, err := join.ParseToken(token.String())
	if err != nil || again != token {
		t.Fatalf("%v, %v; want %v", again, err, token)
	}
	if !strings.HasPrefix(token.String(), "cft1.") || len(token.String()) != 5+22+1+43 {
		t.Errorf("token has the form %q", token)
	}
}

func TestTokenHasOneForm(t *testing.T) {
	token, err := join.NewToken(bytes.NewReader(make([]byte, 16)), join.Pin([]byte("ca")))
	if err != nil {
		t.Fatal(err)
	}
	good := token.String()
	secret, pin, _ := strings.Cut(strings.TrimPrefix(good, "cft1."), ".")
	for name, bad := range map[string]string{
		"empty":             "",
		"other prefix":      "cft2." + secret + "." + pin,
		"no pin":            "cft1." + secret,
		"short secret":      "cft1." + secret[:20] + "." + pin,
		"short pin":         "cft1." + secret + "." + pin[:40],
		"padding":           "cft1." + secret + "==." + pin,
		"trailing newline":  good + "\n",
		"leading space":     " " + good,
		"spare bits set":    "cft1." + secret[:21] + "B." + pin,
		"newline inside":    "cft1." + secret[:5] + "\n" + secret[5:] + "." + pin,
		"standard alphabet": "cft1." + strings.Repeat("+", 22) + "." + pin,
		"long":              good + strings.Repeat("A", 1<<20),
	} {
		if _, err := join.ParseToken(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMessageTiesTokenAndRequest(t *testing.T) {
	a := join.Message("token", []byte("csr"))
	if !bytes.HasPrefix(a, []byte("curfew enrol v1\x00")) || len(a) != 16+32+32 {
		t.Errorf("message of %d bytes: %q", len(a), a)
	}
	for _, other := range [][]byte{
		join.Message("token2", []byte("csr")), join.Message("token", []byte("csr2")),
	} {
		if bytes.Equal(a, other) {
			t.Error("two enrolments have one message")
		}
	}
}

func TestHostNameInCertificates(t *testing.T) {
	id := grant.HostID{0xab, 2, 3}
	got, err := join.HostOf(&x509.Certificate{URIs: []*url.URL{join.HostURI(id)}})
	if err != nil || got != id {
		t.Fatalf("%v, %v; want %v", got, err, id)
	}
	for name, uris := range map[string][]*url.URL{
		"none":         nil,
		"two":          {join.HostURI(id), join.HostURI(grant.HostID{4})},
		"other scheme": {{Scheme: "spiffe", Host: "host", Path: "/" + id.String()}},
		"other kind":   {{Scheme: "curfew", Host: "user", Path: "/" + id.String()}},
		"short":        {{Scheme: "curfew", Host: "host", Path: "/" + id.String()[:62]}},
		"query":        {{Scheme: "curfew", Host: "host", Path: "/" + id.String(), RawQuery: "x"}},
		"upper case":   {{Scheme: "curfew", Host: "host", Path: "/" + strings.ToUpper(id.String())}},
	} {
		if got, err := join.HostOf(&x509.Certificate{URIs: uris}); err == nil {
			t.Errorf("%s: read as %s", name, got)
		}
	}
}

// authority is a CA with one leaf below it.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

// serve listens with a leaf of the CA and shows the chain; it returns the address.
func (a authority) serve(
	t *testing.T, change func(*x509.Certificate), chain ...[]byte,
) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: []string{join.ServerName},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(leaf)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{
			Certificate: append([][]byte{der}, chain...), PrivateKey: key,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			// The handshake's outcome is the client's to report.
			_ = conn.(*tls.Conn).HandshakeContext(context.Background())
			conn.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr).String()
}

func dial(address string, config *tls.Config) error {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, config)
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestPinDecidesWhoTheControlPlaneIs(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	otherName := func(c *x509.Certificate) { c.DNSNames = []string{"web1"} }
	asClient := func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for name, c := range map[string]struct {
		address string
		ok      bool
	}{
		"honest":               {ca.serve(t, nil, ca.cert.Raw), true},
		"no CA sent":           {ca.serve(t, nil), false},
		"another CA":           {other.serve(t, nil, other.cert.Raw), false},
		"our CA only attached": {other.serve(t, nil, ca.cert.Raw), false},
		"both attached":        {other.serve(t, nil, other.cert.Raw, ca.cert.Raw), false},
		"expired":              {ca.serve(t, expired, ca.cert.Raw), false},
		"another name":         {ca.serve(t, otherName, ca.cert.Raw), false},
		"a host's certificate": {ca.serve(t, asClient, ca.cert.Raw), false},
	} {
		var found *x509.Certificate
		err := dial(c.address, join.PinnedTLS(join.Pin(ca.cert.Raw), time.Now,
			func(cert *x509.Certificate) { found = cert }))
		if (err == nil) != c.ok {
			t.Errorf("%s, by pin: %v", name, err)
		}
		if (found != nil) != c.ok || c.ok && !found.Equal(ca.cert) {
			t.Errorf("%s: found %v", name, found != nil)
		}
		if name == "no CA sent" {
			continue // whoever has the CA does not need it sent
		}
		if err := dial(c.address, join.ClientTLS(ca.cert, time.Now)); (err == nil) != c.ok {
			t.Errorf("%s, by CA: %v", name, err)
		}
	}
}
