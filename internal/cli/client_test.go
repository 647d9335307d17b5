package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// authority signs certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return authority{key: key, cert: certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, public, key)}
}

func certify(
	t *testing.T, template, parent *x509.Certificate, public ed25519.PublicKey,
	key ed25519.PrivateKey,
) *x509.Certificate {
	t.Helper()
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a authority) leaf(t *testing.T, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(template)
	}
	return certify(t, template, a.cert, public, a.key)
}

// Only a chain to the pinned CA that names the control plane is believed.
func TestCheckChain(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	pin := sha256.Sum256(ours.cert.Raw)
	good := ours.leaf(t, nil)
	chain := func(certs ...*x509.Certificate) []*x509.Certificate { return certs }
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		why   string // empty: believed
	}{
		{"the control plane", chain(good, ours.cert), ""},
		{"with another certificate between", chain(good, theirs.cert, ours.cert), ""},
		{"nothing", nil, "no certificate"},
		{"without the CA", chain(good), "does not hold the pinned CA"},
		{"another CA", chain(theirs.leaf(t, nil), theirs.cert), "does not hold the pinned CA"},
		{
			"another CA's, with ours shown beside it",
			chain(theirs.leaf(t, nil), theirs.cert, ours.cert), "unknown authority",
		},
		{"the CA itself", chain(ours.cert, ours.cert), "not valid for any names"},
		{"a host's certificate", chain(ours.leaf(t, func(c *x509.Certificate) {
			c.DNSNames = []string{"web1"}
		}), ours.cert), "not " + serverName},
		{"a client's certificate", chain(ours.leaf(t, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), ours.cert), "key usage"},
		{"an old one", chain(ours.leaf(t, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Minute)
		}), ours.cert), "expired"},
	} {
		ca, err := checkChain(c.chain, [][32]byte{pin}, time.Now())
		switch {
		case c.why == "" && (err != nil || !ca.Equal(ours.cert)):
			t.Errorf("%s: %v", c.name, err)
		case c.why != "" && (err == nil || !strings.Contains(err.Error(), c.why)):
			t.Errorf("%s: %v; want an error with %q", c.name, err, c.why)
		}
	}
	// While the CA changes either is believed, and which it was is known.
	both := [][32]byte{pin, sha256.Sum256(theirs.cert.Raw)}
	if ca, err := checkChain(chain(theirs.leaf(t, nil), theirs.cert), both, time.Now()); err != nil ||
		!ca.Equal(theirs.cert) {
		t.Errorf("the next CA's: %v", err)
	}
}

// What the control plane says it will be known by is remembered, and believed from then on.
func TestAnnouncedAuthorities(t *testing.T) {
	ours, next := newAuthority(t).cert, newAuthority(t).cert
	cfg := &config{Server: "cp:7443", User: "alice", CA: pemCertificate(ours), ca: ours}
	for _, c := range []struct {
		said [][]byte
		pins int
	}{
		{[][]byte{ours.Raw}, 1},
		{[][]byte{ours.Raw, next.Raw}, 2},
		{nil, 1}, // of a control plane of the version before
		{[][]byte{{1, 2}, next.Raw}, 2},
	} {
		cfg.announced(c.said)
		dir := t.TempDir()
		if err := cfg.save(dir); err != nil {
			t.Fatal(err)
		}
		read, err := loadConfig(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := read.pins(); len(got) != c.pins || got[0] != sha256.Sum256(ours.Raw) {
			t.Errorf("%d CAs said: %d are believed", len(c.said), len(got))
		}
	}
}

func TestServerAddress(t *testing.T) {
	for given, want := range map[string]string{
		"cp": "cp:7443", "cp:1": "cp:1", "10.0.0.1": "10.0.0.1:7443", "[::1]": "[::1]:7443",
		"::1": "[::1]:7443", "[::1]:8": "[::1]:8",
		"": "", "cp:": "", "cp:x": "", "cp:0": "", "cp:99999": "", "https://cp": "", "a b": "", ":1": "",
		"user@cp": "", "a:b:c": "",
	} {
		got, err := serverAddress(given)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("serverAddress(%q) = %q, %v; want %q", given, got, err, want)
		}
	}
}

// An address comes from an agent: it must never become an option of ssh.
func TestSSHArgs(t *testing.T) {
	host := func(address string) *apiv1.Host {
		return &apiv1.Host{Id: make([]byte, 32), Name: "web1", Address: address}
	}
	for address, want := range map[string]string{
		"":                  "-l alice web1 -v",
		"10.0.0.1":          "-l alice 10.0.0.1 -v",
		"web1.example.org":  "-l alice web1.example.org -v",
		"web1:2222":         "-p 2222 -l alice web1 -v",
		"2001:db8::1":       "-l alice 2001:db8::1 -v",
		"[2001:db8::1]:22":  "-p 22 -l alice 2001:db8::1 -v",
		"-oProxyCommand=id": "", "web1 -oProxyCommand=id": "", "a;b": "", "a\nb": "", "user@web1": "",
		"[-v]:22": "", "-v": "", "web1:-1": "",
	} {
		argv, err := sshArgs(host(address), "alice", "/tmp/known hosts", "", []string{"-v"})
		if want == "" {
			if err == nil {
				t.Errorf("address %q is used: %q", address, argv)
			}
			continue
		}
		if err != nil || !strings.HasSuffix(strings.Join(argv, " "), "ControlPath=none "+want) {
			t.Errorf("address %q: %q, %v; want the end %q", address, argv, err, want)
		}
	}
	if _, err := sshArgs(host("web1"), "-oX", "/tmp/k", "", nil); err == nil {
		t.Error("a login that is an option is used")
	}
}
