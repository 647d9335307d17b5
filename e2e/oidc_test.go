package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/oidctest"
)

const issuer = "https://idp:8443"

// deprovisionAfter is what the story's control plane is told, and what it must keep.
const deprovisionAfter = 30 * time.Second

// idp is an OpenID provider on a machine of its own in the world.
type idp struct {
	s         *story
	cert, key []byte // PEM
	client    *http.Client
}

func newIDP(t *testing.T) *idp {
	t.Helper()
	cert, key := selfSigned(t, "idp")
	return &idp{cert: cert, key: key}
}

// selfSigned makes a certificate for one name of the world, and its key, both PEM.
func selfSigned(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &signer.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// trusting is a client outside of all machines that believes one certificate of the world's.
func (s *story) trusting(cert []byte) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return s.Dial(ctx, address)
		},
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
	}}
}

// options make a control plane that believes the provider.
func (i *idp) options() stage.Options {
	return stage.Options{
		Control: fmt.Sprintf(`issuer_ca_file: /etc/curfew/issuer-ca.pem
oidc:
  issuer: %s
  client_id: %s
  client_secret_file: /etc/curfew/oidc-secret
  claims: {manager: manager}
  create_users: true
  deprovision_after: %s
`, issuer, oidctest.ClientID, deprovisionAfter),
		ControlFiles: map[string]string{
			"/etc/curfew/issuer-ca.pem": string(i.cert),
			"/etc/curfew/oidc-secret":   oidctest.ClientSecret + "\n",
		},
	}
}

// open starts the provider's process in the world.
func (i *idp) open(s *story, users ...string) {
	s.t.Helper()
	i.s = s
	root, err := stage.Root()
	s.ok(err)
	program := filepath.Join(s.t.TempDir(), "provider")
	build := exec.CommandContext(s.ctx, "go", "build", "-o", program, "./e2e/provider")
	build.Dir, build.Env = root, append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		s.t.Fatalf("building the provider: %v\n%s", err, out)
	}
	machine, err := s.AddLaptop(s.ctx, "idp")
	s.ok(err)
	s.ok(machine.Put("bin/provider", program))
	s.ok(machine.Write("cert.pem", i.cert, 0o600))
	s.ok(machine.Write("key.pem", i.key, 0o600))
	cmd := machine.Cmd(s.ctx, append([]string{
		"provider", "serve", issuer, "cert.pem", "key.pem", ":8443",
	}, users...)...)
	s.ok(cmd.Start())
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	i.client = s.trusting(i.cert)
	s.within(20*time.Second, "the provider to answer", func() (bool, string) {
		resp, err := i.client.Get(issuer + "/.well-known/openid-configuration")
		if err != nil {
			return false, err.Error()
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK, resp.Status
	})
}

// wish tells the provider what the story needs.
func (i *idp) wish(path, body string) {
	i.s.t.Helper()
	resp, err := i.client.Post(issuer+"/test/"+path, "application/json", strings.NewReader(body))
	i.s.ok(err)
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		i.s.t.Fatalf("the provider answers %s %s", resp.Status, text)
	}
}

// signIn signs a person in by the browser on their laptop.
func (i *idp) signIn(p *stage.Person, more string) stage.Result {
	i.s.t.Helper()
	i.s.ok(p.Write("issuer-ca.pem", i.cert, 0o600))
	r, err := p.Command(i.s.ctx, "bash", "-c", "BROWSER='provider browse issuer-ca.pem "+p.Name()+
		"' curfew login "+more)
	i.s.ok(err)
	return r
}

// People come by the organisation's provider, with a session bound to their device and a key that
// they enrol themselves; whom the provider disables loses a live root shell in time, and everything
// else with it. An outage before that takes nothing from anybody. Pipelines come by its tokens.
func TestProviderSaysWhoComesAndGoes(t *testing.T) {
	i := newIDP(t)
	s := tell(t, i.options())
	i.open(s, "alice")
	bob, err := s.Person(s.ctx, "bob")
	s.ok(err)
	s.curfew(s.Admin, 0, []string{"admin", "group", "set", "sre", "bob"})
	s.ok(s.Roles(s.ctx))
	alice, err := s.Guest(s.ctx, "alice")
	s.ok(err)
	s.ok(alice.Put("bin/provider", filepath.Join(s.Dir(), "laptops/idp/home/bin/provider")))
	s.expect(i.signIn(alice, "--sso --server "+stage.Server+" --ca-pin "+s.Pin), "login --sso", 0,
		"as alice until")
	s.curfew(alice, 0, []string{"keys", "add"}, "is yours now")
	r := s.curfew(alice, 0, []string{"sessions"}, "oidc")
	if fields := strings.Split(strings.TrimSpace(r.Out), "\t"); len(fields) != 10 || fields[9] != "*" {
		t.Errorf("alice's session reads %q", r.Out)
	}
	mallory, err := s.Person(s.ctx, "mallory")
	s.ok(err)
	config, err := alice.Command(s.ctx, "bash", "-c", "cat ~/.config/curfew/config.yaml")
	s.ok(err)
	s.ok(mallory.Write(".config/curfew/config.yaml", []byte(config.Out), 0o600))
	if r := s.curfew(mallory, 0, []string{"whoami"}); strings.Contains(r.Out, "alice") {
		t.Errorf("mallory is taken for alice: %s", r)
	}

	_, err = s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	tty := s.rootShell(alice)
	i.wish("down", "")
	time.Sleep(deprovisionAfter) // it must have been asked, in vain
	s.curfew(alice, 0, []string{"whoami"}, "alice")
	if out := s.on("web1", "pgrep -f '[s]leep 86413' -a || true"); !strings.Contains(out, mark) {
		t.Fatal("an outage of the provider ended a grant")
	}
	i.wish("up", "")
	i.wish("disable?user=alice", "")
	s.gone("web1", "alice", mark, deprovisionAfter)
	s.hangsUp(tty)
	s.curfew(alice, 4, []string{"ls"})
	s.curfew(alice, 4, []string{"login", "--ssh"})
	s.curfew(s.Admin, 0, []string{"log"}, "user.disabled")

	i.pipeline(bob)
}

// pipeline lets a CI's runner ask with a token that it gets as GitHub Actions hands them out.
func (i *idp) pipeline(bob *stage.Person) {
	s := i.s
	s.t.Helper()
	s.curfew(s.Admin, 0, []string{
		"admin", "workload", "set", "deploy", "--issuer", issuer, "--subject", "repo:acme/shop:*",
	})
	s.curfew(s.Admin, 0, []string{
		"admin", "role", "set", "restart", "--contained", "--sudo", "/usr/bin/systemctl restart nginx.service",
		"--max", "1h", "--approvers", "sre", "--approvals", "1",
	})
	i.wish("actions", `{"sub": "repo:acme/shop:ref:refs/heads/main"}`)
	runner, err := s.Guest(s.ctx, "runner")
	s.ok(err)
	s.ok(runner.Write("issuer-ca.pem", i.cert, 0o600))
	in := func(exit int, script string, words ...string) stage.Result {
		s.t.Helper()
		r, err := runner.Command(s.ctx, "bash", "-c", "export SSL_CERT_FILE=$HOME/issuer-ca.pem "+
			"ACTIONS_ID_TOKEN_REQUEST_TOKEN='"+oidctest.Runner+"' "+
			"ACTIONS_ID_TOKEN_REQUEST_URL='"+issuer+"/actions/token?api-version=2.0'\n"+script)
		s.ok(err)
		s.expect(r, script, exit, words...)
		return r
	}
	in(0, "curfew login --workload --server "+stage.Server+" --ca-pin "+s.Pin, "as deploy")
	const ask = "curfew request web1 --role restart --for 5m --reason 'deploy 1.2' "
	id := strings.TrimSpace(in(0, ask+"--no-wait").Out)
	s.curfew(bob, 0, []string{"deny", id, "--reason", "not today"})
	in(5, ask+"--timeout 1s", "not there after")
	in(2, ask+"--for never", "duration")
	done := make(chan stage.Result, 1)
	go func() { done <- in(0, ask+"--timeout 60s", "applied") }()
	s.within(20*time.Second, "the pipeline's request to wait for bob", func() (bool, string) {
		r, err := bob.Curfew(s.ctx, "ls", "--json")
		return err == nil && strings.Count(r.Out, `"state":"pending"`) == 2, r.Out
	})
	for _, line := range strings.Split(s.curfew(bob, 0, []string{"ls", "--json"}).Out, "\n") {
		if _, rest, ok := strings.Cut(line, `"id":"`); ok && strings.Contains(line, `"state":"pending"`) {
			s.ok(bob.Must(s.ctx, "approve", rest[:12], "--yes"))
		}
	}
	<-done
}
