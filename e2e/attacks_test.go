package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// squat tries, as whoever runs it, to take the place of each of the agent's sockets, and to reach
// those that are not for him. It prints what it could do.
const squat = `#!/usr/bin/perl
use Socket;
my $dir = "/run/curfew";
my %reach = map { $_ => 1 } @ARGV;
for my $name ("gate", "link", "admin") {
  my $at = "$dir/$name.sock";
  my $type = $name eq "gate" ? SOCK_SEQPACKET : SOCK_STREAM;
  socket(my $s, AF_UNIX, $type, 0) or die $!;
  print "reaches $at\n" if connect($s, pack_sockaddr_un($at)) && !$reach{$name};
  print "removes $at\n" if unlink $at;
  print "moves $at\n" if rename $at, "$at.old";
  print "links $at\n" if symlink "/tmp/mine", $at;
  for my $bound ($at, "$dir/.$name.sock.new") {
    socket(my $b, AF_UNIX, $type, 0) or die $!;
    print "binds $bound\n" if bind($b, pack_sockaddr_un($bound));
  }
}
print "moves $dir\n" if rename $dir, "$dir.old";
print "makes a folder in /run\n" if mkdir "/run/curfew2";
print "has tried\n";
`

// forger has a socket in the gate's place that root made and another serves, says yes to everything
// and keeps what it is told.
const forger = `#!/usr/bin/perl
use Socket; use POSIX;
my $at = "/run/curfew/gate.sock";
socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die $!;
unlink $at;
bind($s, pack_sockaddr_un($at)) or die $!;
chmod 0666, $at;
open(my $told, ">", "/run/told") or die $!;
POSIX::setuid(scalar getpwnam("lou")) or die $!;
listen($s, 10) or die $!;
while (accept(my $c, $s)) {
  send($c, "CFA1\x01\x00\x00\x00", 0);
  recv($c, my $m, 4096, 0);
  syswrite($told, "told $m\n") if length $m;
  close $c;
}
`

// Nobody but root takes the place of the agent's sockets, before it runs, while it runs and after it
// died; and a peer that is not root is told nothing and not believed. Attack A10.
func TestSocketsAreNobodysToTake(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	lou, err := s.Person(s.ctx, "lou")
	s.ok(err)
	s.ok(lou.LetIn(s.ctx, s.Hosts["web1"], "lou"))
	s.ok(s.Hosts["web1"].Write("/usr/local/bin/squat", []byte(squat), 0o755))
	s.ok(s.Hosts["web1"].Write("/usr/local/bin/forger", []byte(forger), 0o755))
	try := func(when string) {
		t.Helper()
		for who, reaches := range map[string]string{"lou": "", "alice": "", "curfew-link": "link"} {
			out := s.on("web1", "runuser -u "+who+" -- /usr/local/bin/squat "+reaches)
			if out != "has tried" {
				t.Errorf("%s, %s:\n%s", when, who, out)
			}
		}
	}
	try("with the agent there")
	s.on("web1", "systemctl stop curfew-agent.target curfew-enforce.service curfew-link.service")
	try("with the agent stopped")
	s.on("web1", "systemctl start curfew-agent.target; systemctl kill -s KILL curfew-enforce.service; "+
		"systemctl stop curfew-agent.target curfew-enforce.service curfew-link.service")
	try("after the agent died")

	s.on("web1", "systemd-run --unit=forger /usr/local/bin/forger; sleep 0.5")
	s.ssh(alice, "web1", 255, "true", "try again")
	s.ssh(lou, "web1", 0, "sudo -n /usr/bin/id -u", "0")
	if told := s.on("web1", "systemctl is-active forger; cat /run/told"); told != "active" {
		t.Errorf("the forger was told:\n%s", told)
	}
	s.on("web1", "systemctl stop forger; systemctl start curfew-agent.target")
	s.works(alice, 5*time.Second)
}

const extrausers = "/usr/lib/libnss_extrausers.so.2"

// An account never comes to stand beside somebody of the same name or number, whatever name service
// he is in: another module as LDAP's would be, or systemd's user records. Attack A9.
func TestAccountsClashWithNobodyElsewhere(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	module, err := os.ReadFile(extrausers)
	if err != nil {
		t.Fatalf("this story needs Debian's libnss-extrausers (make deps): %v", err)
	}
	s.ok(s.Hosts["web1"].Write(extrausers, module, 0o644))
	s.on("web1", `sed -i -E 's/^(passwd|group|shadow):(\s+)files/\1:\2files extrausers/' /etc/nsswitch.conf
mkdir -p /var/lib/extrausers /etc/userdb; cd /var/lib/extrausers
echo 'zoe:*:70000:70000::/home/zoe:/bin/bash' >passwd; echo 'zoe:*:70000:' >group; : >shadow
cp passwd passwd.0; cp group group.0
getent passwd zoe`)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "docs", time.Minute)
	s.ok(err)
	uid := s.on("web1", "id -u alice")
	s.ssh(alice, "web1", 0, "id -un", "alice")
	s.curfew(alice, 0, []string{"done", id})
	s.gone("web1", "alice", "nothing-runs-here", purgeLimit)

	for _, clash := range []struct{ what, make, key, says string }{
		{
			"the login in another module", "echo 'alice:*:70001:70001::/home/a:/bin/bash' >>passwd",
			"passwd alice", "alice:*:70001:",
		},
		{
			"the uid in another module", "echo 'mallory:*:" + uid + ":70001::/:/bin/sh' >>passwd",
			"passwd " + uid, "mallory:*:" + uid,
		},
		{
			"a group of the login's name", "echo 'alice:*:70001:zoe' >>group",
			"group alice", "alice:*:70001:zoe",
		},
		{
			"a group of the uid's number", "echo 'ops:*:" + uid + ":zoe' >>group",
			"group " + uid, "ops:*:" + uid,
		},
		{
			"the login in systemd's records", `echo '{"userName":"alice","uid":70002,"gid":70002,` +
				`"disposition":"regular"}' >/etc/userdb/alice.user; ln -s alice.user /etc/userdb/70002.user`,
			"passwd alice", "alice:x:70002:",
		},
		{
			"the uid in systemd's records", fmt.Sprintf(`echo '{"userName":"mallory","uid":%[1]s,`+
				`"gid":70002,"disposition":"regular"}' >/etc/userdb/mallory.user; `+
				`ln -s mallory.user /etc/userdb/%[1]s.user`, uid),
			"passwd " + uid, "mallory:x:" + uid,
		},
	} {
		s.on("web1", "cd /var/lib/extrausers; "+clash.make)
		var there string
		s.within(10*time.Second, clash.what+" to be there", func() (bool, string) {
			there = s.on("web1", "getent "+clash.key+" || true")
			return strings.HasPrefix(there, clash.says), there
		})
		id, err := alice.Ask(s.ctx, "web1", "docs", time.Minute)
		s.ok(err)
		s.curfew(bob, 0, []string{"approve", id, "--yes"})
		s.within(20*time.Second, clash.what+" to be refused", func() (bool, string) {
			r, err := alice.Curfew(s.ctx, "show", id, "--json")
			return err == nil && strings.Contains(r.Out, "in this host's directory"), r.String()
		})
		s.ssh(alice, "web1", 255, "true", "Permission denied")
		if now := s.on("web1", "getent "+clash.key); now != there {
			t.Errorf("%s: the host found %q and finds %q", clash.what, there, now)
		}
		s.curfew(alice, 0, []string{"done", id})
		s.on("web1", `cd /var/lib/extrausers; cp passwd.0 passwd; cp group.0 group; rm -f /etc/userdb/*`)
	}
	_, err = s.Grant(s.ctx, alice, bob, "web1", "docs", time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "id -u", uid)
}

// What a person leaves in their home, in spools and in shared folders leads root nowhere: links,
// pipes, hard links, sockets and a tree without end. The purge takes no longer, and nothing of the
// system's changes hands. Attack A8.
func TestThePurgeIsLedNowhere(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, `set -e
mkdir -p ~/.config/systemd ~/deep /tmp/alice-tree
for at in ~ /tmp /var/tmp /dev/shm /run/user/$(id -u) ~/deep; do
  ln -s /etc/passwd $at/a-link; ln -s /etc $at/a-folder; ln -s / $at/.a-root
  ln -s /proc/self/root/etc/shadow $at/a-magic; ln -s $at/a-loop $at/a-loop
  mkfifo -m 666 $at/a-pipe; ln /etc/hostname $at/a-hard 2>/dev/null || true
  ln -s /dev/zero $at/a-zero
  perl -MSocket -e 'socket(S,AF_UNIX,SOCK_STREAM,0);bind(S,pack_sockaddr_un("$ARGV[0]/a-socket"))' $at
done
ln -s /etc/systemd/system ~/.config/systemd/user
ln -sfn /etc ~/.ssh; rm -f ~/.bashrc; mkfifo ~/.bashrc
cd ~/deep; for i in $(seq 300); do mkdir d; cd d; done
cp /bin/cat /tmp/alice-tree/cat; chmod 4755 /tmp/alice-tree/cat; ln -s /bin/cat /tmp/alice-tree/real
chmod 6755 /tmp/alice-tree/cat`)
	look := `cd /; { find etc bin/ sbin/ usr/bin usr/sbin root -xdev -printf '%p %y %m %u %g %s %l %n\n' 2>/dev/null
sha256sum /etc/passwd /etc/group /etc/shadow /etc/hostname /etc/nsswitch.conf
stat -c '%n %a %u %g' / /tmp /var/tmp /dev/shm /run /home /etc/systemd/system /dev/zero; } | sort`
	before := s.on("web1", look)
	s.curfew(alice, 0, []string{"done", id})
	s.gone("web1", "alice", "nothing-runs-here", purgeLimit)
	s.within(10*time.Second, "the sweep to be through", func() (bool, string) {
		r, err := alice.Curfew(s.ctx, "show", id, "--json")
		return err == nil && strings.Contains(r.Out, `"ended"`), r.String()
	})
	after := s.on("web1", look)
	if before != after {
		t.Errorf("the purge changed the system:\n%s", firstDifference(before, after))
	}
	// And the way in is as it was: a second grant meets the same home. The pipe in place of .bashrc is
	// hers to mend: her own shell would wait for it.
	s.on("web1", "rm /home/alice/.bashrc")
	_, err = s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "id -un", "alice")
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return x[i] + "\nnow\n" + y[i]
		}
	}
	return fmt.Sprintf("%d lines, now %d", len(x), len(y))
}

// Installing again, upgrading under live sessions, and removing and installing anew lock nobody out,
// end no session and leave PAM, NSS and sudo set up as they were. (authd#461, guest-oslogin#123,
// kanidm#4001)
func TestUpgradesLockNobodyOut(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	lou, err := s.Person(s.ctx, "lou")
	s.ok(err)
	s.ok(lou.LetIn(s.ctx, s.Hosts["web1"], "lou"))
	const sum = `cd /etc; sha256sum nsswitch.conf pam.d/* sudoers.d/* ssh/sshd_config.d/*; ` +
		`find / -xdev -name '*.curfew-new'`
	before := s.on("web1", sum)

	const many = 10
	r, err := alice.Command(s.ctx, "bash", "-c", fmt.Sprintf(`for i in $(seq %d); do
  setsid -f ssh -o BatchMode=yes -o ControlPath=none alice@web1 'exec sleep 7531' >/dev/null 2>&1; done`, many))
	s.ok(err)
	s.expect(r, "many sessions", 0)
	sessions := func() string { return s.on("web1", "pgrep -u alice -cf '^sleep 753[1]' || true") }
	s.within(20*time.Second, "all sessions of one person to open", func() (bool, string) {
		n := sessions()
		return n == fmt.Sprint(many), n
	})

	stop, failures := make(chan struct{}), make(chan string, 1)
	go func() {
		var failed strings.Builder
		logins := 0
		for done := false; !done; logins++ {
			select {
			case <-stop:
				done = true
			default:
			}
			r, err := lou.SSH(s.ctx, "web1", "sudo -n /usr/bin/id -u")
			if err != nil || r.Exit != 0 || strings.TrimSpace(r.Out) != "0" {
				fmt.Fprintf(&failed, "login %d: %v %s\n", logins, err, r)
			}
		}
		failures <- failed.String()
	}()
	root, err := stage.Root()
	s.ok(err)
	for range 3 {
		out, err := exec.CommandContext(s.ctx, root+"/packaging/install.sh", "--root",
			fmt.Sprintf("/proc/%d/root", s.Hosts["web1"].PID()), "agent").CombinedOutput()
		if err != nil {
			t.Fatalf("install.sh: %v\n%s", err, out)
		}
		s.on("web1", "/usr/lib/curfew/setup agent; systemctl daemon-reload; "+
			"systemctl restart curfew-enforce.service curfew-link.service")
		s.works(alice, 5*time.Second)
	}
	close(stop)
	if failed := <-failures; failed != "" {
		t.Errorf("during the upgrades somebody was locked out:\n%s", failed)
	}
	if after := s.on("web1", sum); after != before {
		t.Errorf("after the upgrades:\n%s\nbefore\n%s", after, before)
	}
	if n := sessions(); n != fmt.Sprint(many) {
		t.Errorf("%s of %d sessions live after the upgrades", n, many)
	}
	s.on("web1", "kill $(pgrep -u alice -f '^sleep 753[1]' | head -1)")
	s.within(5*time.Second, "one session to end alone", func() (bool, string) {
		n := sessions()
		return n == fmt.Sprint(many-1), n
	})
	s.works(alice, 5*time.Second)

	s.on("web1", "systemctl stop curfew-agent.target curfew-enforce.service curfew-link.service; "+
		"/usr/lib/curfew/setup --remove agent")
	if left := s.on("web1", "grep -rl curfew /etc/nsswitch.conf /etc/pam.d /etc/sudoers.d || true"); left != "" {
		t.Errorf("removed, and named in %s", left)
	}
	s.ssh(lou, "web1", 0, "sudo -n /usr/bin/id -u", "0")
	s.on("web1", "/usr/lib/curfew/setup agent; systemctl start curfew-agent.target")
	if after := s.on("web1", sum); after != before {
		t.Errorf("removed and installed again:\n%s\nbefore\n%s", after, before)
	}
	s.works(alice, 5*time.Second)
	s.ssh(lou, "web1", 0, "sudo -n /usr/bin/id -u", "0")
}
