package enrol_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const hostKey = "ssh-ed25519 " +
	"AAAAC3NzaC1lZDI1NTE5AAAAIIQl8yIPbiQz9wqzMhlVLpyBkFfaqIhbk2Dxd8Ev0iYu"

func TestAMachineBecomesAHost(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	token := w.token("web1", map[string]string{"env": "prod"})
	req := m.request(t, token, "")
	req.Address = "192.0.2.7"
	req.Labels = map[string]string{"env": "test", "rack": "b4"}
	req.SshHostKeys = []string{hostKey + " root@web1"}
	resp, err := w.client(nil).Enrol(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	id := m.id()
	if !bytes.Equal(resp.GetHostId(), id[:]) || resp.GetName() != "web1" ||
		resp.GetOrganisation() != "example" ||
		string(resp.GetTrustEnvelope()) != "the trust envelope" ||
		join.Pin(resp.GetCaCertificate()) != w.authority.Pin() {
		t.Errorf("answer %v", resp)
	}
	host, err := w.store.EnrolledHost(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"env": "prod", "rack": "b4"}, host.Labels); diff != "" {
		t.Errorf("the admin's labels do not win:\n%s", diff)
	}
	if host.Name != "web1" || host.Address != "192.0.2.7" || len(host.SSHHostKeys) != 1 ||
		strings.Contains(host.SSHHostKeys[0], "root@web1") {
		t.Errorf("stored host %+v", host)
	}
	checkCertificate(t, w, resp.GetCertificate(), m)
	last := w.store.records[len(w.store.records)-1]
	if last.Kind != enrol.KindHostEnrolled || last.HostID != id.String() ||
		last.Details["token_by"] != "admin" {
		t.Errorf("trail says %+v", last)
	}
}

func checkCertificate(t *testing.T, w *world, der []byte, m machine) {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := join.HostOf(cert); err != nil || got != m.id() {
		t.Errorf("certificate of %s, %v; want %s", got, err, m.id())
	}
	if cert.Subject.CommonName != m.id().String() || cert.IsCA {
		t.Errorf("certificate for %q, CA %v", cert.Subject.CommonName, cert.IsCA)
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if diff := cmp.Diff(usages, cert.ExtKeyUsage); diff != "" {
		t.Errorf("a host's certificate is good for more than being a client:\n%s", diff)
	}
	if life := cert.NotAfter.Sub(w.clock.now()).Round(time.Minute); life != enrol.HostLife {
		t.Errorf("certificate lives %s, want %s", life, enrol.HostLife)
	}
	if !m.link.Public().(ed25519.PublicKey).Equal(cert.PublicKey) {
		t.Error("certificate is of another key")
	}
}

// A17: of many who present one token at once, exactly one becomes a host.
func TestOneTokenOneHost(t *testing.T) {
	w := newWorld(t)
	token := w.token("", nil)
	var (
		wg  sync.WaitGroup
		won atomic.Int32
	)
	for i := range 8 {
		m, client := newMachine(t), w.client(nil)
		req := m.request(t, token, fmt.Sprintf("web%d", i))
		wg.Go(func() {
			_, err := client.Enrol(context.Background(), req)
			switch {
			case err == nil:
				won.Add(1)
			case reasonOf(err) != apiv1.Code_CODE_DENIED:
				t.Errorf("a loser hears %v", err)
			}
		})
	}
	wg.Wait()
	hosts, used := w.store.count()
	if won.Load() != 1 || hosts != 1 || used != 1 {
		t.Errorf("%d enrolled, %d hosts, %d used tokens; want one of each", won.Load(), hosts, used)
	}
}

func TestTokenEndsAfterThirtyMinutes(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	token := w.token("web1", nil)
	w.clock.pass(enrol.TokenLife)
	_, err := w.client(nil).Enrol(context.Background(), m.request(t, token, ""))
	if reasonOf(err) != apiv1.Code_CODE_DENIED {
		t.Errorf("after 30 minutes: %v", err)
	}
	w.clock.pass(-time.Second)
	if _, err := w.client(nil).Enrol(context.Background(), m.request(t, token, "")); err != nil {
		t.Errorf("a second earlier: %v", err)
	}
}

// A17: whoever guesses is stopped soon, and an honest machine elsewhere is not.
func TestGuessedTokensAreLimited(t *testing.T) {
	w := newWorld(t)
	limited := 0
	for range 30 {
		guess, err := join.NewToken(rand.Reader, w.authority.Pin())
		if err != nil {
			t.Fatal(err)
		}
		m := newMachine(t)
		_, err = w.client(nil).Enrol(context.Background(), m.request(t, guess.String(), "web1"))
		switch reasonOf(err) {
		case apiv1.Code_CODE_LIMIT:
			limited++
		case apiv1.Code_CODE_DENIED:
		default:
			t.Fatalf("a guess is answered %v", err)
		}
	}
	if limited != 20 {
		t.Errorf("%d of 30 guesses were limited, want 20", limited)
	}
	m := newMachine(t)
	token := w.token("web1", nil)
	req := m.request(t, token, "")
	if _, err := w.client(nil).Enrol(context.Background(), req); reasonOf(err) !=
		apiv1.Code_CODE_LIMIT {
		t.Errorf("right after the guesses: %v", err)
	}
	w.clock.pass(10 * time.Second)
	if _, err := w.client(nil).Enrol(context.Background(), req); err != nil {
		t.Errorf("ten seconds later the honest machine hears %v", err)
	}
}

// Honest machines behind one address are not limited, however many.
func TestHonestMachinesAreNotLimited(t *testing.T) {
	w := newWorld(t)
	for i := range 30 {
		m := newMachine(t)
		_, err := w.client(nil).Enrol(context.Background(),
			m.request(t, w.token(fmt.Sprintf("web%d", i), nil), ""))
		if err != nil {
			t.Fatalf("machine %d: %v", i, err)
		}
	}
}

// request keeps the table below within its columns.
type request = apiv1.EnrolRequest

const (
	denied  = apiv1.Code_CODE_DENIED
	invalid = apiv1.Code_CODE_INVALID
)

func TestEnrolRefuses(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	resign := func(m machine, r *request) {
		r.Signature = ed25519.Sign(m.root, join.Message(r.Token, r.Csr))
	}
	many := make(map[string]string)
	for i := range 33 {
		many[fmt.Sprint("k", i)] = "v"
	}
	for name, c := range map[string]struct {
		change func(machine, *request)
		want   apiv1.Code
	}{
		"no token": {func(_ machine, r *request) {
			r.Token = ""
		}, denied},
		"token in a shell": {func(_ machine, r *request) {
			r.Token = "$(reboot)"
		}, denied},
		"no signature": {func(_ machine, r *request) {
			r.Signature = nil
		}, invalid},
		"another root key": {func(_ machine, r *request) {
			r.RootPublicKey = newKey(t).Public().(ed25519.PublicKey)
		}, invalid},
		"short root key": {func(_ machine, r *request) {
			r.RootPublicKey = r.RootPublicKey[:31]
		}, invalid},
		"another link key": {func(_ machine, r *request) {
			r.Csr = newCSR(t, newKey(t))
		}, invalid},
		"csr of another's key": {func(m machine, r *request) {
			r.Csr = bytes.Clone(r.Csr)
			r.Csr[len(r.Csr)-1] ^= 1
			resign(m, r)
		}, invalid},
		"garbage csr": {func(m machine, r *request) {
			r.Csr = []byte("x")
			resign(m, r)
		}, invalid},
		"long csr": {func(m machine, r *request) {
			r.Csr = make([]byte, 9<<10)
			resign(m, r)
		}, invalid},
		"RSA link key": {func(m machine, r *request) {
			r.Csr = newCSR(t, rsaKey)
			resign(m, r)
		}, invalid},
		"short link key": {func(m machine, r *request) {
			r.Csr = newCSR(t, p224)
			resign(m, r)
		}, invalid},
		"other name": {func(_ machine, r *request) {
			r.Name = "web2"
		}, invalid},
		"upper case": {func(_ machine, r *request) {
			r.Name = "Web1"
		}, invalid},
		"path": {func(_ machine, r *request) {
			r.Name = "../web1"
		}, invalid},
		"homoglyph": {func(_ machine, r *request) {
			r.Name = "wеb1"
		}, invalid},
		"long name": {func(_ machine, r *request) {
			r.Name = strings.Repeat("a", 300)
		}, invalid},
		"option as address": {func(_ machine, r *request) {
			r.Address = "-oProxyCommand=id"
		}, invalid},
		"address with newline": {func(_ machine, r *request) {
			r.Address = "web1\nx"
		}, invalid},
		"label with newline": {func(_ machine, r *request) {
			r.Labels = map[string]string{"a": "b\nc"}
		}, invalid},
		"too many labels": {func(_ machine, r *request) {
			r.Labels = many
		}, invalid},
		"bad host key": {func(_ machine, r *request) {
			r.SshHostKeys = []string{"ssh-dss AAAA"}
		}, invalid},
		"host key with option": {func(_ machine, r *request) {
			r.SshHostKeys = []string{`command="id" ` + hostKey}
		}, invalid},
		"escape in version": {func(_ machine, r *request) {
			r.AgentVersion = "\x1b[2J"
		}, invalid},
	} {
		t.Run(name, func(t *testing.T) {
			w, m := newWorld(t), newMachine(t)
			token := w.token("web1", nil)
			req := m.request(t, token, "")
			c.change(m, req)
			if _, err := w.client(nil).Enrol(context.Background(), req); reasonOf(err) != c.want {
				t.Errorf("answer %v, want %s", err, c.want)
			}
			if hosts, used := w.store.count(); hosts != 0 || used != 0 {
				t.Errorf("%d hosts and %d used tokens after a refusal", hosts, used)
			}
			// A refusal spends nothing.
			_, err := w.client(nil).Enrol(context.Background(), m.request(t, token, ""))
			if err != nil {
				t.Errorf("the honest request afterwards: %v", err)
			}
		})
	}
}

func TestNamesAndKeysEnrolOnce(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	w.enrolled(m, "web1")
	twin := machine{root: m.root, link: newKey(t)}
	_, err := w.client(nil).Enrol(context.Background(), twin.request(t, w.token("web2", nil), ""))
	if reasonOf(err) != apiv1.Code_CODE_CONFLICT {
		t.Errorf("the same root key again: %v", err)
	}
	other := newMachine(t)
	token := w.token("web1", nil)
	_, err = w.client(nil).Enrol(context.Background(), other.request(t, token, ""))
	if reasonOf(err) != apiv1.Code_CODE_CONFLICT || !strings.Contains(err.Error(), "web1") {
		t.Errorf("the same name again: %v", err)
	}
	w.store.change(m.id(), func(h *enrol.Host) { h.Removed = true })
	_, err = w.client(nil).Enrol(context.Background(), other.request(t, token, ""))
	if err != nil {
		t.Errorf("the name of a removed host: %v", err)
	}
	_, err = w.client(nil).Enrol(context.Background(), m.request(t, w.token("web3", nil), ""))
	if reasonOf(err) != apiv1.Code_CODE_CONFLICT {
		t.Errorf("the key of a removed host: %v", err)
	}
}

// failing is a store whose transaction fails.
type failing struct{ *memory }

func (failing) EnrolHost(
	context.Context, [32]byte, func(enrol.JoinToken) (enrol.Host, trail.Record, error),
) error {
	return errTest
}

func TestInternalErrorsStayInside(t *testing.T) {
	w, m := newWorld(t), newMachine(t)
	service, err := enrol.New(enrol.Config{
		Store: failing{w.store}, Authority: w.authority, Organisation: "example", Now: w.clock.now,
		Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = service.Enrol(context.Background(), m.request(t, w.token("web1", nil), ""))
	if reasonOf(err) != apiv1.Code_CODE_INTERNAL || strings.Contains(err.Error(), "disk") {
		t.Errorf("the caller hears %v", err)
	}
}

func TestTokensRefuseBadInput(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		host   string
		labels map[string]string
	}{
		"name":        {"Web 1", nil},
		"label name":  {"web1", map[string]string{"a b": "c"}},
		"empty label": {"web1", map[string]string{"": "c"}},
	} {
		_, _, err := w.service.CreateToken(context.Background(), "admin", c.host, c.labels)
		if err == nil {
			t.Errorf("%s: a token was made", name)
		}
	}
	if len(w.store.tokens) != 0 {
		t.Errorf("%d tokens stored", len(w.store.tokens))
	}
}

// What is stored opens nothing: the token cannot be read back.
func TestTokenIsStoredAsHash(t *testing.T) {
	w := newWorld(t)
	token := w.token("web1", nil)
	stored, ok := w.store.tokens[join.TokenHash(token)]
	if !ok || len(w.store.tokens) != 1 {
		t.Fatal("the token is not stored under its hash")
	}
	text := fmt.Sprintf("%+v %+v", stored, w.store.records)
	if strings.Contains(text, token[5:27]) {
		t.Error("the secret stands in the store or on the trail")
	}
	if d := stored.ExpiresAt.Sub(w.clock.now()); d != 30*time.Minute {
		t.Errorf("a token lives %s", d)
	}
}
