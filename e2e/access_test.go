package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A person with a grant has an account, a key and exactly the approved rule; without, nothing.
func TestGrantOpensExactlyWhatWasApproved(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.ssh(alice, "web1", 255, "true", "Permission denied")

	_, err = s.Grant(s.ctx, alice, bob, "web1", "ops", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "id -un; pwd", "alice\n/home/alice")
	s.ssh(alice, "web1", 0, "sudo -n /usr/bin/systemctl restart nginx.service")
	s.ssh(alice, "web1", 1, "sudo -n /usr/bin/systemctl restart ssh.service", "password is required")
	s.ssh(alice, "web1", 1, "sudo -n /usr/bin/systemctl restart nginx.service --now",
		"password is required")
	s.ssh(alice, "web1", 1, "sudo -n /usr/bin/id", "password is required")
	s.ssh(alice, "web1", 1, "sudo -n -i", "password is required")
	s.curfew(alice, 0, []string{"ssh", "web1", "id", "-un"}, "alice")

	account := strings.Split(s.on("web1", "getent passwd alice"), ":")
	if account[1] != "*" || account[2] < "1900000000" || account[2] > "1999999999" ||
		account[2] != account[3] {
		t.Errorf("alice's account is %v", account)
	}
	if got := s.on("web1", "stat -c '%a %U' /home/alice"); got != "700 alice" {
		t.Errorf("alice's home is %s", got)
	}
	if key := s.on("web1", "cat /run/curfew/keys/alice"); !strings.Contains(key, `expiry-time="20`) {
		t.Errorf("the key carries no expiry: %s", key)
	}
	rule := s.on("web1", "cat /run/curfew/sudoers.d/*")
	for _, want := range []string{"NOTAFTER=", "use_pty", "pam_acct_mgmt", "timestamp_timeout=0"} {
		if !strings.Contains(rule, want) {
			t.Errorf("the drop-in lacks %s:\n%s", want, rule)
		}
	}
}

// A role without sudo opens the login and nothing else; a root role opens a root shell.
func TestRolesDiffer(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"web1", "web2"}})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	_, err = s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "id -un", "alice")
	s.ssh(alice, "web1", 1, "sudo -n /usr/bin/systemctl restart nginx.service")
	s.ssh(alice, "web2", 255, "true", "Permission denied")

	id, err := s.Grant(s.ctx, alice, bob, "web2", "root", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web2", 0, "sudo -n -i id -u", "0")
	s.ssh(alice, "web2", 0, "sudo -n su - -c 'id -u'", "0")
	s.curfew(alice, 0, []string{"show", id}, "ROOT-EQUIVALENT")
}

// A local user whom Curfew gates is told what to type; one whom it does not manage notices nothing.
func TestRefusalSaysWhatToType(t *testing.T) {
	s := tell(t, stage.Options{})
	gus, err := s.Person(s.ctx, "gus")
	s.ok(err)
	lou, err := s.Person(s.ctx, "lou")
	s.ok(err)
	s.ok(gus.LetIn(s.ctx, s.Hosts["web1"], "gus"))
	s.ok(lou.LetIn(s.ctx, s.Hosts["web1"], "lou"))
	r := s.ssh(gus, "web1", 255, "true", "gus", "curfew request web1 --role")
	var told int
	for line := range strings.Lines(r.Err) {
		if strings.Contains(line, "curfew request") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("want one line that says what to type, got %d in:\n%s", told, r.Err)
	}
	s.ssh(lou, "web1", 0, "sudo -n /usr/bin/id -u", "0")
}

// A local user of the elevate-only kind gets the rule for the window, his account untouched.
func TestElevateOnlyUserKeepsHisAccount(t *testing.T) {
	s := tell(t, stage.Options{})
	_, bob, err := s.Cast(s.ctx)
	s.ok(err)
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	before := s.on("web1", "getent passwd carol; getent shadow carol; id carol; cat ~carol/.ssh/authorized_keys")
	s.ssh(carol, "web1", 0, "id -un", "carol")
	s.ssh(carol, "web1", 1, "sudo -n /usr/bin/systemctl restart nginx.service")
	_, err = s.Grant(s.ctx, carol, bob, "web1", "ops", 10*time.Minute)
	s.ok(err)
	s.ssh(carol, "web1", 0, "sudo -n /usr/bin/systemctl restart nginx.service")
	s.ssh(carol, "web1", 1, "sudo -n /usr/bin/id")
	after := s.on("web1", "getent passwd carol; getent shadow carol; id carol; cat ~carol/.ssh/authorized_keys")
	if before != after {
		t.Errorf("carol's account changed from\n%s\nto\n%s", before, after)
	}
}
