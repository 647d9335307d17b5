package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/mailtest"
)

const breakGlassAgent = stage.DefaultAgent + `break_glass:
  enabled: true
  codes: 3
  max_duration: 30m
  sudo:
    - {command: /usr/bin/systemctl, args: [restart, nginx.service], contained: true}
`

// receiver runs this test binary on a laptop of its own as a receiver, and collects what it prints.
func (s *story) receiver(name, env string, files map[string]string) *lines {
	s.t.Helper()
	l, err := s.AddLaptop(s.ctx, name)
	s.ok(err)
	self, err := os.Executable()
	s.ok(err)
	s.ok(l.Put("bin/receiver", self))
	for path, text := range files {
		s.ok(l.Write(path, []byte(text), 0o600))
	}
	cmd := l.Cmd(s.ctx, "receiver")
	cmd.Env = append(cmd.Env, env)
	heard := new(lines)
	cmd.Stdout = heard
	s.ok(cmd.Start())
	s.t.Cleanup(func() { cmd.Cancel(); cmd.Wait() })
	return heard
}

// glass has carol try a code on a host, as she does over ssh.
func (s *story) glass(carol *stage.Person, host, code, flags string) stage.Result {
	s.t.Helper()
	r, err := carol.SSH(s.ctx, host, `echo `+code+` | curfew-agent break-glass --reason "INC-7: nginx hangs" `+flags)
	s.ok(err)
	return r
}

// While the control plane is away, a code that a custodian fetched before opens its host, once, there,
// for its time and not longer; it is told of when the control plane is back, and a new set closes it.
func TestBreakGlassOpensACutOffHost(t *testing.T) {
	cert, ca, err := mailtest.Certificate("mail")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	s := tellFor(t, 8*time.Minute, stage.Options{
		Name: "breakglass", Later: []string{"web2"}, Agent: breakGlassAgent,
		Control: `
webhooks:
  - url: http://hooks:8080/curfew
    secret_file: /etc/curfew/hook.secret
mail:
  server: mail:2525
  from: curfew@acme.org
  ca_file: /etc/curfew/mail.pem
`,
		ControlFiles: map[string]string{
			"/etc/curfew/hook.secret": "a secret of at least thirty-two bytes", "/etc/curfew/mail.pem": string(ca),
		},
	})
	hooks := s.receiver("hooks", "CURFEW_E2E_HOOK=:8080", nil)
	mails := s.receiver("mail", "CURFEW_E2E_MAIL=:2525", map[string]string{
		"mail.pem": string(ca) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
	})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	for _, name := range []string{"bob", "dana", "alice"} {
		s.ok(s.Admin.Must(s.ctx, "admin", "user", "set", name, "--email", name+"@acme.org"))
	}

	// web1 joined before there was anybody to seal codes to; web2 has its codes from enrolment on.
	s.curfew(s.Admin, 0, []string{"hosts"}, "run curfew-agent break-glass renew")
	s.ok(s.Join(s.ctx, "web2"))
	s.within(20*time.Second, "web1 to have codes for bob", func() (bool, string) {
		out, err := s.Hosts["web1"].Shell(s.ctx, "curfew-agent break-glass renew 2>&1")
		return err == nil && strings.Contains(string(out), "sealed to: bob"), string(out)
	})
	codes := make(map[string]string)
	for _, host := range []string{"web1", "web2"} {
		s.within(20*time.Second, host+"'s codes", func() (bool, string) {
			r, err := bob.Curfew(s.ctx, "admin", "break-glass", "get", host)
			codes[host] = strings.TrimSpace(r.Out)
			return err == nil && r.Exit == 0, r.String()
		})
		if !regexp.MustCompile(`^([0-9A-Z]{5}-){6}[0-9A-Z]{5}$`).MatchString(codes[host]) {
			t.Fatalf("%q is no code", codes[host])
		}
	}
	s.curfew(alice, 3, []string{"admin", "break-glass", "get", "web1"})
	s.curfew(s.Admin, 3, []string{"admin", "break-glass", "get", "web1"}, "sealed to bob")
	s.expect(s.glass(carol, "web1", codes["web1"], ""), "a code while the control plane is there", 1,
		"the control plane is there")

	_, err = s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	// Another host's code tells when codes count: nothing is spent by it.
	s.within(2*time.Minute, "codes to count", func() (bool, string) {
		r := s.glass(carol, "web1", codes["web2"], "")
		time.Sleep(2 * time.Second)
		return strings.Contains(r.Err, "not one of this host's"), r.String()
	})
	s.ssh(carol, "web1", 1, restart)
	s.expect(s.glass(carol, "web1", codes["web1"], "--for 2h"), "too long", 1, "at most 30m")
	s.expect(s.glass(carol, "web1", codes["web1"], "--for 20s"), "a code", 0, "access for carol", "2 left")
	opened := time.Now()
	s.ssh(carol, "web1", 0, restart)
	s.expect(s.glass(carol, "web1", codes["web1"], ""), "the same code again", 1, "used before")
	s.on("web1", "curfew-agent status | grep 'by code'")
	time.Sleep(time.Until(opened.Add(20*time.Second + purgeLimit)))
	s.ssh(carol, "web1", 1, restart)
	if heard := hooks.String() + mails.String(); strings.Contains(heard, "break_glass.used") {
		t.Errorf("a use was told of while the control plane was away: %s", heard)
	}

	_, err = s.Control.Exec(s.ctx, "systemctl", "start", "curfew-controlplane.service")
	s.ok(err)
	s.ok(s.Connected(s.ctx, "web1"))
	s.within(time.Minute, "the alarm by webhook and by mail", func() (bool, string) {
		hook, mail := hooks.String(), mails.String()
		seen := hook + mail
		return strings.Contains(hook, `"event":"break_glass.used"`) && strings.Contains(hook, "v1=") &&
			strings.Contains(mail, "mail to [bob@acme.org]") && strings.Contains(mail, "mail to [dana@acme.org]") &&
			strings.Contains(mail, "BREAK-GLASS: carol opened access on web1 by code 1"), seen
	})
	if strings.Contains(mails.String(), "alice@acme.org") {
		t.Error("alice, who approves nothing, got the alarm")
	}
	log := s.curfew(s.Admin, 0, []string{"log"}, "break_glass.used", "break_glass.refused", "break_glass.fetched",
		"INC-7: nginx hangs").Out
	if strings.Contains(log, codes["web1"]) {
		t.Error("a code is on the trail")
	}
	s.curfew(s.Admin, 0, []string{"log", "--verify"})
	s.curfew(s.Admin, 0, []string{"hosts"}, "1 break-glass codes used")
	s.curfew(bob, 0, []string{"admin", "break-glass", "ls", "web1"}, "1\tbob\t", "\tcarol\t")

	s.curfew(s.Admin, 0, []string{"admin", "break-glass", "rotate", "web1"})
	s.within(time.Minute, "a new set", func() (bool, string) {
		r := s.curfew(bob, 0, []string{"admin", "break-glass", "ls", "web1"})
		return !strings.Contains(r.Out, "carol"), r.Out + s.on("web1", "journalctl -q --no-pager -u curfew-codes.service")
	})
	if r := s.curfew(s.Admin, 0, []string{"hosts"}); strings.Contains(r.Out, "codes used") {
		t.Errorf("the alarm stays: %s", r.Out)
	}
}
