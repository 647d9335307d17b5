package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A host that is taken out of service ends all that runs there, root's shell included, and is refused from
// then on; one that cannot be told is said to be so, and is told when it comes. The same machine joins anew.
func TestRemovedHostEndsEverything(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"web1", "web2"}})
	alice, bob, id, _ := s.openRootShell(10 * time.Minute)
	away, err := s.Grant(s.ctx, alice, bob, "web2", "ops", time.Hour)
	s.ok(err)
	s.on("web2", "systemctl stop curfew-link.service")
	s.within(30*time.Second, "web2 to be away", func() (bool, string) {
		r := s.curfew(s.Admin, 0, []string{"hosts"})
		return strings.Contains(r.Out, "web2\toffline"), r.Out
	})
	s.curfew(s.Admin, 1, []string{"admin", "host", "rm", "web2"}, "web2 is not connected",
		"1 of its grants are live there", "at most until", "when its lease is over", "--force")
	s.curfew(alice, 0, []string{"show", away}, "granted")

	s.curfew(s.Admin, 0, []string{"admin", "host", "rm", "web1"}, "host web1 removed; it has", "curfew-agent")
	s.gone("web1", "alice", mark, purgeLimit)
	s.curfew(alice, 0, []string{"show", id}, "ended")
	s.parts("web1")
	s.ssh(alice, "web1", 255, "true")
	s.on("web1", "systemctl restart curfew-link.service")
	s.within(30*time.Second, "the certificate to be refused", func() (bool, string) {
		log, err := s.Hosts["web1"].Journal(s.ctx, "curfew-link.service")
		s.ok(err)
		return strings.Contains(log, "this host is not enrolled"), log
	})

	s.curfew(s.Admin, 0, []string{"admin", "host", "rm", "web2", "--force"}, "has not been told", away)
	s.ssh(alice, "web2", 0, "true") // as was said
	s.on("web2", "systemctl start curfew-link.service")
	s.within(30*time.Second, "web2 to be told when it is back", func() (bool, string) {
		out := s.on("web2", "ls /run/curfew/sudoers.d")
		return out == "", out
	})
	s.gone("web2", "alice", mark, purgeLimit)
	s.parts("web2")

	s.on("web1", `systemctl stop curfew-agent.target curfew-gate.socket curfew-enforce.service curfew-link.service
/usr/lib/curfew/curfew-enforce leave
rm -rf /var/lib/curfew /var/lib/curfew-link
systemd-tmpfiles --create`)
	s.ok(s.Join(s.ctx, "web1"))
	_, err = s.Grant(s.ctx, alice, bob, "web1", "ops", 10*time.Minute)
	s.ok(err)
	s.works(alice, 5*time.Second)
}

// parts waits until a removed host has said that nothing of its grants is left.
func (s *story) parts(host string) {
	s.t.Helper()
	s.logged("host.parted", host)
}

// logged waits for a record of the trail with all of some words.
func (s *story) logged(words ...string) {
	s.t.Helper()
	s.within(time.Minute, "a record of "+strings.Join(words, ", "), func() (bool, string) {
		r := s.curfew(s.Admin, 0, []string{"log"})
		for line := range strings.Lines(r.Out) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return true, line
			}
		}
		return false, r.Out
	})
}
