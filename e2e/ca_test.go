package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// The control plane's CA is replaced, and then lost, under a session that lives through all of it. Hosts
// go over to the new one by themselves; one that was off is named, and told by hand. What is refused in
// between is what would lose a host.
func TestCAIsReplacedAndLost(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"web1", "web2"}})
	alice, bob, _, tty := s.openRootShell(time.Hour)
	control := func(args string) (string, error) {
		out, err := s.Control.Shell(s.ctx, "runuser -u curfew-controlplane -- curfew-controlplane "+args+" 2>&1")
		return string(out), err
	}
	ca := func(args string) string {
		t.Helper()
		out, err := control("ca " + args)
		if err != nil {
			t.Fatalf("ca %s: %v\n%s", args, err, out)
		}
		return out
	}
	until := func(words string) {
		t.Helper()
		s.within(time.Minute, "ca show to say "+words, func() (bool, string) {
			out := ca("show")
			return strings.Contains(out, words), out
		})
	}
	alive := func(when string) {
		t.Helper()
		s.ok(tty.Send("echo " + when + "-$((40 + 2))\n"))
		_, err := tty.Expect(s.ctx, when+"-42")
		s.ok(err)
		if !s.runs("web1") {
			t.Errorf("%s the session's process is gone", when)
		}
	}
	s.on("web2", "systemctl stop curfew-link.service")
	ca("rotate")
	until("1 of 2 hosts do not accept yet: web2")
	for _, p := range []*stage.Person{s.Admin, alice, bob} {
		s.curfew(p, 0, []string{"login"})
	}
	if out, err := control("ca switch"); err == nil || !strings.Contains(out, "web2 do not accept the new CA yet") {
		t.Fatalf("a switch that loses a host: %v\n%s", err, out)
	}
	s.on("web2", "systemctl start curfew-link.service")
	until("all 2 hosts accept")
	s.on("web2", "systemctl stop curfew-link.service")
	ca("switch")
	until("1 of 2 show certificates from an older CA: web2")
	s.ok(s.Connected(s.ctx, "web1")) // and the admin has noticed nothing
	alive("switched")
	if out, err := control("ca drop"); err == nil || !strings.Contains(out, "web2 still show certificates from an old CA") {
		t.Fatalf("a drop that loses a host: %v\n%s", err, out)
	}
	s.on("web2", "systemctl start curfew-link.service")
	until("all 2 show certificates from the CA in force")
	ca("drop")
	s.ok(s.Connected(s.ctx, "web2"))
	_, err := s.Grant(s.ctx, alice, bob, "web2", "ops", time.Hour)
	s.ok(err)
	alive("dropped")

	// The key is lost, and the server dies.
	out, err := s.Control.Shell(s.ctx, `systemctl stop curfew-controlplane.service
rm /var/lib/curfew-controlplane/ca.key
runuser -u curfew-controlplane -- curfew-controlplane ca rotate --lost 2>/dev/null
systemctl start curfew-controlplane.service`)
	s.ok(err)
	pin := strings.TrimSpace(string(out))
	for _, p := range []*stage.Person{s.Admin, alice, bob} {
		s.curfew(p, 1, []string{"login"}, "pinned")
		s.curfew(p, 0, []string{"login", "--ca-pin", pin})
	}
	for _, host := range []string{"web1", "web2"} {
		s.within(30*time.Second, host+" to believe nobody", func() (bool, string) {
			log, err := s.Hosts[host].Journal(s.ctx, "curfew-link.service")
			s.ok(err)
			return strings.Contains(log, "unknown authority"), log
		})
		if wrong, err := s.Hosts[host].Shell(s.ctx, "curfew-agent trust-ca "+s.Pin+" 2>&1"); err == nil {
			t.Errorf("%s trusts a CA that the control plane has not: %s", host, wrong)
		}
		s.on(host, "curfew-agent trust-ca "+pin+"; systemctl restart curfew-link.service")
		s.ok(s.Connected(s.ctx, host))
	}
	until("all 2 show certificates from the CA in force")
	alive("lost")
	s.ssh(alice, "web2", 0, "sudo -n /usr/bin/systemctl restart nginx.service")
	s.curfew(s.Admin, 0, []string{"log"}, "ca.prepared", "ca.switched", "ca.dropped", "ca.replaced")
}
