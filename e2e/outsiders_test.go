package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/pace"
)

// outsidersGetIn demands that root, the unmanaged local lou and the break-glass user log in and that
// lou's own sudo rule works, each within the limit that promise 7 allows.
func (s *story) outsidersGetIn(lou *stage.Person, when string) {
	s.t.Helper()
	watch := pace.Start()
	s.ssh(lou, "web1", 0, "sudo -n /usr/bin/id -u", "0")
	r, err := lou.Command(s.ctx, "ssh", "-o", "BatchMode=yes", "rescue@web1", "id -un")
	s.ok(err)
	s.expect(r, "rescue logs in "+when, 0, "rescue")
	r, err = lou.Command(s.ctx, "ssh", "-o", "BatchMode=yes", "root@web1", "su lou -c 'id -un'")
	s.ok(err)
	s.expect(r, "root logs in "+when, 0, "lou")
	if took := watch.Elapsed(); took > 10*time.Second {
		s.t.Errorf("%s: three logins took %s", when, took)
	}
}

// outsider makes lou a person who logs in on web1 as himself, rescue and root by keys of old.
func (s *story) outsider() *stage.Person {
	s.t.Helper()
	lou, err := s.Person(s.ctx, "lou")
	s.ok(err)
	for _, login := range []string{"lou", "rescue"} {
		s.ok(lou.LetIn(s.ctx, s.Hosts["web1"], login))
	}
	s.on("web1", "mkdir -p /root/.ssh; cp ~lou/.ssh/authorized_keys /root/.ssh/; chown -R root: /root/.ssh")
	return lou
}

// Whoever Curfew does not manage logs in with the agent absent, stopped and answering garbage; whom
// it manages is denied within 2 s and told to try again.
func TestOutsidersNeverDependOnTheAgent(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	lou := s.outsider()
	s.outsidersGetIn(lou, "with the agent well")

	s.on("web1", "systemctl kill --signal=STOP curfew-enforce.service")
	s.outsidersGetIn(lou, "with the agent stopped")
	watch := pace.Start()
	s.ssh(alice, "web1", 255, "true", "try again")
	if took := watch.Elapsed(); took > 3500*time.Millisecond {
		t.Errorf("alice waited %s for her refusal", took)
	}
	s.on("web1", "systemctl kill --signal=CONT curfew-enforce.service")
	s.works(alice, 5*time.Second)

	s.on("web1", "systemctl stop curfew-agent.target curfew-enforce.service curfew-link.service")
	s.outsidersGetIn(lou, "with the agent absent")
	s.ssh(alice, "web1", 255, "true", "try again")

	s.ok(s.Hosts["web1"].Write("/root/garbage.sh", []byte(garbageServer), 0o755))
	s.on("web1", "systemd-run --unit=garbage /root/garbage.sh; sleep 0.5")
	s.outsidersGetIn(lou, "with garbage on the agent's socket")
	s.ssh(alice, "web1", 255, "true")

	s.on("web1", "systemctl stop garbage; systemctl start curfew-agent.target")
	s.works(alice, 5*time.Second)
}

// garbageServer answers the gate's socket with noise. Perl is Debian's essential.
const garbageServer = `#!/usr/bin/perl
use Socket;
socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die $!;
unlink "/run/curfew/gate.sock";
bind($s, pack_sockaddr_un("/run/curfew/gate.sock")) or die $!;
listen($s, 10) or die $!;
while (accept(my $c, $s)) { recv($c, my $m, 4096, 0); send($c, "\xff" x 600, 0); close $c; }
`

// An installed host observes: nobody is denied, and what would have been is on the trail.
func TestObservingDeniesNobody(t *testing.T) {
	s := tell(t, stage.Options{Agent: strings.Replace(stage.DefaultAgent, "enforce", "observe", 1)})
	gus, err := s.Person(s.ctx, "gus")
	s.ok(err)
	s.ok(gus.LetIn(s.ctx, s.Hosts["web1"], "gus"))
	s.ssh(gus, "web1", 0, "id -un", "gus")
	s.within(10*time.Second, "the trail to say what would have been denied", func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "log", "--json")
		return err == nil && strings.Contains(r.Out, "gate.would_deny") &&
			strings.Contains(r.Out, "gus"), r.Out
	})
}

// A touched, deleted or added drop-in is put right within 100 ms and reported.
func TestDriftIsPutRight(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	for name, touch := range map[string]string{
		"deleted": `rm /run/curfew/sudoers.d/*`,
		"touched": `echo 'alice ALL=(ALL) NOPASSWD: ALL' >>"$(ls /run/curfew/sudoers.d/*)"`,
		"added":   `(umask 337; echo 'gus ALL=(ALL) NOPASSWD: ALL' >/run/curfew/sudoers.d/gus)`,
		"a link":  `ln -s /etc/shadow /run/curfew/sudoers.d/link`,
	} {
		// The clock runs on the host, from the touch to the first look that finds all well.
		out, kept := s.timed("web1", `
good=$(cat /run/curfew/sudoers.d/*); names=$(ls -A /run/curfew/sudoers.d)
`+touch+`
t0=$(date +%s%N)
for i in $(seq 1 2000); do
  if [ "$(ls -A /run/curfew/sudoers.d)" = "$names" ] &&
     [ "$(cat /run/curfew/sudoers.d/* 2>/dev/null)" = "$good" ]; then
    echo $(( ($(date +%s%N)-t0)/1000000 )); exit 0
  fi
  sleep 0.005
done
echo never; ls -la /run/curfew/sudoers.d`)
		t.Logf("%s: put right after %s ms", name, out)
		if ms, err := strconv.ParseFloat(out, 64); err != nil || ms*kept >= 100 {
			t.Errorf("a %s drop-in was put right after %s ms, want under 100", name, out)
		}
	}
	s.works(alice, 2*time.Second)
	s.within(10*time.Second, "the trail to report the drift", func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "log", "--json")
		return err == nil && strings.Contains(r.Out, "drift.repaired"), r.Out
	})
}
