package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

var joinLine = regexp.MustCompile(`curfew-agent join[^\n"]*`)

// A token enrols one host, once; keys are made on the host, and the private ones stay there.
func TestEnrolmentIsOneLineOnce(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"web1", "web2"}})
	if got := s.on("web1", `stat -c '%a %U' /var/lib/curfew/root.key /var/lib/curfew`); got !=
		"600 root\n700 root" {
		t.Errorf("the root half's key is kept as %q", got)
	}
	if got := s.on("web1", `stat -c %U /var/lib/curfew-link/link.key`); got != "curfew-link" {
		t.Errorf("the link's key is %s's", got)
	}
	s.curfew(s.Admin, 0, []string{"hosts"}, "web1", "web2")
	s.curfew(s.Admin, 0, []string{"admin", "host", "rm", "web2"})
	r := s.curfew(s.Admin, 0, []string{"admin", "host", "add", "web2", "--label", "env=prod"})
	line := joinLine.FindString(r.Out)
	if line == "" {
		t.Fatalf("no line to join with in %s", r)
	}
	s.on("web2", `systemctl stop curfew-agent.target curfew-enforce curfew-link
rm -rf /var/lib/curfew/* /var/lib/curfew-link/*`)
	s.on("web2", line+" --start")
	s.ok(s.Connected(s.ctx, "web2"))
	s.curfew(s.Admin, 0, []string{"hosts", "--json"}, "prod")
	s.on("web2", "systemctl stop curfew-agent.target curfew-enforce curfew-link; rm -rf /var/lib/curfew/* /var/lib/curfew-link/*")
	out, err := s.Hosts["web2"].Shell(s.ctx, line+" 2>&1")
	if err == nil || !strings.Contains(string(out), "token") {
		t.Errorf("a token was good twice: %v\n%s", err, out)
	}
}

// A cloned image, with the same keys as a host that lives, is noticed and refused.
func TestClonedImageIsRefused(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"web1", "web2"}})
	alice, _, _ := s.openFor(10 * time.Minute)
	// web2 becomes a clone of web1: same keys, same ledger, same events.
	s.on("web2", "systemctl stop curfew-agent.target curfew-enforce curfew-link; rm -rf /var/lib/curfew /var/lib/curfew-link")
	disk, err := s.Hosts["web1"].Shell(s.ctx, "tar -C /var/lib -c curfew curfew-link | base64 -w0")
	s.ok(err)
	s.ok(s.Hosts["web2"].Write("/root/clone", disk, 0o600))
	// A copy with a machine-id of its own says nothing, so that the host is not refused for it.
	s.on("web2", "base64 -d /root/clone | tar -C /var/lib -xp; systemctl start curfew-agent.target || true")
	s.within(time.Minute, "the copy to know that it is one", func() (bool, string) {
		log, err := s.Hosts["web2"].Journal(s.ctx, "curfew-link.service")
		s.ok(err)
		return strings.Contains(log, "this disk is a copy"), log
	})
	// A clone with the machine-id, too.
	s.on("web2", "rm /var/lib/curfew-link/machine-id; systemctl restart curfew-link")
	s.within(20*time.Second, "the clone to be noticed", func() (bool, string) {
		r := s.curfew(s.Admin, 0, []string{"hosts", "--json"})
		return strings.Contains(r.Out, "clone"), r.Out
	})
	s.ssh(alice, "web2", 255, "true")
	s.curfew(s.Admin, 0, []string{"log"}, "clone")
}
