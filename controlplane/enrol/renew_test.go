package enrol_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func testLog(t *testing.T) hclog.Logger {
	t.Helper()
	return hclog.NewNullLogger()
}

func (w *world) renew(cert *tls.Certificate, csr []byte) ([]byte, error) {
	w.t.Helper()
	resp, err := w.client(cert).Renew(context.Background(), &apiv1.RenewRequest{Csr: csr})
	return resp.GetCertificate(), err
}

func TestRenewalKeepsTheHostAndTheKey(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	cert := w.enrolled(m, "web1")
	w.clock.pass(enrol.HostLife * 2 / 3)
	der, err := w.renew(cert, newCSR(t, m.link))
	if err != nil {
		t.Fatal(err)
	}
	checkCertificate(t, w, der, m)
	host, err := w.store.EnrolledHost(context.Background(), m.id())
	if err != nil {
		t.Fatal(err)
	}
	if left := host.CertificateEnds.Sub(w.clock.now()).Round(time.Minute); left != enrol.HostLife {
		t.Errorf("the store says that the certificate has %s left", left)
	}
}

// A machine that was switched off for a month comes back by itself; its old certificate is good for
// nothing else.
func TestLateRenewal(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	cert := w.enrolled(m, "web1")
	w.clock.pass(enrol.HostLife + 30*24*time.Hour)
	if _, err := w.renew(cert, newCSR(t, m.link)); err != nil {
		t.Errorf("a month late: %v", err)
	}
	w.clock.pass(enrol.LateRenewal)
	if _, err := w.renew(cert, newCSR(t, m.link)); reasonOf(err) != apiv1.Code_CODE_DENIED {
		t.Errorf("four months late: %v", err)
	}
}

func TestRenewRefuses(t *testing.T) {
	w, m, other := newWorld(t), newMachine(t), newMachine(t)
	cert := w.enrolled(m, "web1")
	w.enrolled(other, "web2")
	denied := func(name string, cert *tls.Certificate, csr []byte) {
		t.Helper()
		if _, err := w.renew(cert, csr); reasonOf(err) != apiv1.Code_CODE_DENIED {
			t.Errorf("%s: %v", name, err)
		}
	}
	csr := newCSR(t, m.link)
	denied("no certificate", nil, csr)
	denied("another key", cert, newCSR(t, newKey(t)))
	denied("another host's key", cert, newCSR(t, other.link))
	denied("self-signed certificate of the host's name", selfSigned(t, w, m.id(), m.link), csr)

	foreign, err := enrol.CreateAuthority(t.TempDir(), "example", w.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := foreign.SignHost(m.link.Public(), m.id(), w.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	denied("another CA's certificate",
		&tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: m.link}, csr)

	// A key that the CA certified once, but that is not the enrolled one.
	old := newKey(t)
	leaf, err = w.authority.SignHost(old.Public(), m.id(), w.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	denied("not the enrolled key",
		&tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: old}, newCSR(t, old))

	w.store.change(m.id(), func(h *enrol.Host) { h.Refused = "a cloned image" })
	denied("refused host", cert, csr)
	w.store.change(m.id(), func(h *enrol.Host) { h.Refused, h.Removed = "", true })
	denied("removed host", cert, csr)
	w.store.change(m.id(), func(h *enrol.Host) { h.Removed = false })
	if _, err := w.renew(cert, csr); err != nil {
		t.Errorf("the same call of a host that is served: %v", err)
	}
}

func selfSigned(t *testing.T, w *world, id grant.HostID, key ed25519.PrivateKey) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: id.String()},
		NotBefore: w.clock.now().Add(-time.Hour), NotAfter: w.clock.now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{join.HostURI(id)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestRenewalsAreLimitedByHost(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	cert := w.enrolled(m, "web1")
	csr := newCSR(t, m.link)
	var err error
	for i := 0; err == nil && i < 50; i++ {
		_, err = w.renew(cert, csr)
	}
	if reasonOf(err) != apiv1.Code_CODE_LIMIT {
		t.Errorf("fifty renewals in a row: %v", err)
	}
}

func TestAuthorityIsReadBack(t *testing.T) {
	dir := t.TempDir()
	a, err := enrol.CreateAuthority(dir, "example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, err := enrol.LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a.Pin() != b.Pin() || b.Pin() != join.Pin(a.Certificate().Raw) {
		t.Error("the CA that was read is not the one that was made")
	}
	if _, err := enrol.CreateAuthority(dir, "example", time.Now()); err == nil {
		t.Error("a second CA overwrote the first: every host has pinned it")
	}
	key := filepath.Join(dir, enrol.CAKeyFile)
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the CA's key has mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = enrol.LoadAuthority(dir)
	if err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

func TestAuthorityRefusesAnotherKey(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, other} {
		if _, err := enrol.CreateAuthority(d, "example", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	key, err := os.ReadFile(filepath.Join(other, enrol.CAKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"another CA's key": key, "cut": key[:len(key)/2], "doubled": append(key, key...),
		"empty": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, enrol.CAKeyFile), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := enrol.LoadAuthority(dir); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// The server renews its own certificate; clients that know the CA notice nothing.
func TestServerCertificateRenewsItself(t *testing.T) {
	w := newWorld(t)
	serial := func() string {
		t.Helper()
		var got string
		config := join.ClientTLS(w.authority.Certificate(), w.clock.now)
		config.VerifyConnection = func(s tls.ConnectionState) error {
			got = s.PeerCertificates[0].SerialNumber.String()
			return nil
		}
		conn, err := tls.Dial("tcp", w.address, config)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := serial()
	w.clock.pass(time.Hour)
	if serial() != first {
		t.Error("a new certificate after an hour")
	}
	w.clock.pass(enrol.ServerLife * 2 / 3)
	second := serial()
	if second == first {
		t.Error("no new certificate after two thirds of its life")
	}
	w.clock.pass(-30 * 24 * time.Hour)
	w.clock.pass(30 * 24 * time.Hour)
	w.clock.pass(10 * enrol.ServerLife)
	if serial() == second {
		t.Error("no new certificate long after its end")
	}
}
