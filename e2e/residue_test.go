package e2e

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// rss is a service's resident memory in KiB, and how much of it is not pages of files.
func (s *story) rss(host, unit string) (all, anonymous int) {
	s.t.Helper()
	out := s.on(host, `grep -E '^(VmRSS|RssAnon)' /proc/$(systemctl show -P MainPID `+unit+`)/status`)
	for _, m := range regexp.MustCompile(`(VmRSS|RssAnon):\s+(\d+) kB`).FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[2])
		s.ok(err)
		if m[1] == "VmRSS" {
			all = n
		} else {
			anonymous = n
		}
	}
	return all, anonymous
}

// wakes is how often the threads of a service have gone to sleep of their own accord.
func (s *story) wakes(host, unit string) (n int) {
	s.t.Helper()
	out := s.on(host, `cat /proc/$(systemctl show -P MainPID `+unit+`)/task/*/status`)
	for _, m := range regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)$`).FindAllStringSubmatch(out, -1) {
		one, err := strconv.Atoi(m[1])
		s.ok(err)
		n += one
	}
	return n
}

// What runs on every host is small: the root half at most 16 MiB resident after it has worked, the link
// half at most 24, and both sleep while nothing happens. The units stay as closed as they were.
//
// How much of a core that takes is the machine's to say, and `make bench idle` asks it; how often something
// wakes is the program's. Either half does at most about 900 times a minute, most of it Go's own scheduler.
func TestHalvesAreSmall(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "sudo -n id -u", "0")
	s.curfew(alice, 0, []string{"done", id})
	s.purged(alice, id)
	const most = 3000
	before := map[string]int{"curfew-enforce": 0, "curfew-link": 0}
	for unit := range before {
		before[unit] = s.wakes("web1", unit)
	}
	time.Sleep(62 * time.Second) // two sweeps, heartbeats and rescans: idling is what is being told
	for unit, n := range before {
		n = s.wakes("web1", unit) - n
		t.Logf("%s wakes %d times in a minute in which nothing happens", unit, n)
		if n <= 0 || n > most {
			t.Errorf("%s wakes %d times in an idle minute; want some, and at most %d", unit, n, most)
		}
	}
	for unit, most := range map[string]int{"curfew-enforce": 16 << 10, "curfew-link": 24 << 10} {
		all, anonymous := s.rss("web1", unit)
		t.Logf("%s: %d KiB resident, %d of them its own", unit, all, anonymous)
		if all == 0 || all > most {
			t.Errorf("%s has %d KiB resident; want at most %d", unit, all, most)
		}
	}
	for unit, most := range map[string]float64{"curfew-enforce": 2.5, "curfew-residue": 4} {
		out := s.on("web1", "systemd-analyze security --no-pager "+unit+" | tail -n 1")
		score := regexp.MustCompile(`: (\d+\.\d+) `).FindStringSubmatch(out)
		if score == nil {
			t.Fatalf("no score in %q", out)
		}
		n, err := strconv.ParseFloat(score[1], 64)
		s.ok(err)
		t.Logf("%s scores %.1f", unit, n)
		if n > most {
			t.Errorf("%s scores %.1f; want at most %.1f", unit, n, most)
		}
	}
}

// withGroup is an agent's file that lets grants give the group web.
func withGroup(agent string) string {
	return strings.Replace(agent, "  max_duration: 8h\n", "  max_duration: 8h\n  allowed_groups: [web]\n", 1)
}

// anotherDisk gives a host a local file system of its own that everybody may write.
const anotherDisk = "mkdir -p /data; mount -t tmpfs -o mode=1777 tmpfs /data"

// purged waits until a request's grant on a host is purged, which includes the look over all disks.
func (s *story) purged(who *stage.Person, id string) time.Duration {
	s.t.Helper()
	// The look is at low priority and no promise in seconds.
	return s.within(2*time.Minute, "request "+id+" to be purged", func() (bool, string) {
		r := s.curfew(who, 0, []string{"show", id, "--json"})
		return strings.Contains(r.Out, `"aftermath":"purged"`) ||
			strings.Contains(r.Out, `"aftermath": "purged"`), r.Out
	})
}

// A setgid copy of a program, made under a grant with a unix group, no longer opens the group's files,
// and what ran it is dead. What others hold by right is left alone: members by /etc/group, services,
// and the setgid programs of the host itself.
func TestSetgidCopyLosesTheGroup(t *testing.T) {
	s := tell(t, stage.Options{Agent: withGroup(stage.DefaultAgent)})
	s.on("web1", `groupadd web; usermod -aG web lou
echo for the group >/srv/secret; chgrp web /srv/secret; chmod 640 /srv/secret
install -m 2755 -o root -g web /bin/sleep /usr/local/bin/websleep`)
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.ok(s.Admin.Must(s.ctx, "admin", "role", "set", "web", "--login", "--group", "web",
		"--max", "1h", "--approvers", "sre", "--approvals", "1"))
	id, err := s.Grant(s.ctx, alice, bob, "web1", "web", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, `set -e; cat /srv/secret; umask 022
for f in cat sleep bash; do cp /bin/$f /var/tmp/$f; chgrp web /var/tmp/$f; chmod 2755 /var/tmp/$f; done`,
		"for the group")
	s.on("web1", `runuser -u carol -- /var/tmp/cat /srv/secret
# carol, who is in no such group, makes a copy of her own by the group that she borrows
runuser -u carol -- /var/tmp/bash -pc 'umask 022; cp /bin/cat /var/tmp/hers; chgrp web /var/tmp/hers; chmod 2755 /var/tmp/hers'
test "$(stat -c %U:%G:%a /var/tmp/hers)" = carol:web:2755
systemd-run -q --uid=carol /var/tmp/sleep 86431
systemd-run -q --uid=lou --gid=web /bin/sleep 86432
systemd-run -q --uid=daemon --gid=web /bin/sleep 86433
systemd-run -q --uid=carol /usr/local/bin/websleep 86435
systemd-run -q --uid=carol -p SupplementaryGroups=web /bin/sleep 86434`)
	s.curfew(alice, 0, []string{"done", id})
	s.purged(alice, id)
	s.within(5*time.Second, "carol's borrowed gid to end", func() (bool, string) {
		out := s.on("web1", "pgrep -af '[s]leep 86431' || true")
		return out == "", out
	})
	s.on("web1", `for f in cat bash hers; do
  test "$(stat -c %a /var/tmp/$f)" = 755
done
test "$(stat -c %a /usr/local/bin/websleep)" = 2755
! runuser -u carol -- /var/tmp/cat /srv/secret 2>/dev/null
! runuser -u carol -- /var/tmp/hers /srv/secret 2>/dev/null
runuser -u lou -- cat /srv/secret
for n in 86432 86433 86434 86435; do pgrep -f "[s]leep $n" >/dev/null; done`)
	s.curfew(bob, 0, []string{"log", "--request", id}, "grant.residue", "grant.purged", "/var/tmp/hers")
	s.curfew(bob, 0, []string{"log"}, "process.killed")
}

// Setuid shells of an ended uid, wherever they were left on a local file system, give the uid to nobody.
// Until all disks were looked at, the grant has ended with residue, also for who looks.
func TestSetuidShellLosesTheUid(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.on("web1", anotherDisk)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	uid := strings.TrimSpace(s.ssh(alice, "web1", 0, "id -u").Out)
	s.ssh(alice, "web1", 0, `set -e; chmod 711 ~
for d in /tmp /var/tmp /dev/shm ~ /data; do
  mkdir -p $d/a/b; chmod 755 $d/a $d/a/b; cp /bin/bash $d/a/b/sh; chmod 6755 $d/a/b/sh
done
ln /tmp/a/b/sh /tmp/hard; ln -s /usr/bin/passwd /tmp/a/link; mkfifo /tmp/a/b/pipe`)
	// A shell of the next user's: whose uid does it have?
	shell := func(path string) string {
		return s.on("web1", "runuser -u carol -- "+path+" -pc 'id -u' 2>&1 || true")
	}
	// /tmp and /dev/shm are mounted nosuid here, as nspawn does; their bits are looked at below.
	shells := []string{"/var/tmp/a/b/sh", "/home/alice/a/b/sh", "/data/a/b/sh"}
	for _, path := range shells {
		if got := shell(path); got != uid {
			t.Fatalf("before the end %s has uid %q; want alice's, %s: the story tells nothing", path, got, uid)
		}
	}
	// PID 1 starts the sweep, and now cannot.
	s.on("web1", "systemctl mask --runtime --now curfew-residue.service")
	s.curfew(alice, 0, []string{"done", id})
	s.gone("web1", "alice", mark, purgeLimit)
	s.within(10*time.Second, "the residue to be told", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"show", id})
		return strings.Contains(r.Out, "with residue"), r.Out
	})
	s.on("web1", "curfew-agent status | grep -q '"+id+" (files)'")
	s.on("web1", "systemctl unmask --runtime curfew-residue.service; systemctl daemon-reload")
	s.purged(alice, id)
	carol := s.on("web1", "id -u carol")
	for _, path := range shells {
		if got := shell(path); got != carol {
			t.Errorf("%s gives carol uid %q", path, got)
		}
	}
	got := s.on("web1", "find / /tmp /dev/shm /data -xdev -uid "+uid+" -perm /6000 -type f; "+
		"stat -c %a /usr/bin/passwd /tmp/a/b/sh /tmp/hard | tr '\n' ' '")
	if got != "4755 755 755" { // what was in /dev/shm logind may have removed
		t.Errorf("left with setuid bits, or taken from the host's own passwd:\n%s", got)
	}
	r := s.curfew(alice, 0, []string{"show", id}, "Purged", "/data/a/b/sh")
	if strings.Contains(r.Out, "with residue") {
		t.Errorf("a purged grant is still shown with residue:\n%s", r.Out)
	}
}

// What root leaves behind is told on the trail, to who asks for the request and on the host, also when
// the agent was killed in mid-grant. Nothing of it is undone.
func TestRootsResidueIsReported(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.on("web1", `echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBMwBRGCOzGCFXMgpIvmEyeCz4C9EFGWAbUzbCdGhRvW lou@x' >>/home/lou/.ssh/authorized_keys
systemd-run -q --unit before sleep 86450`)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	s.within(time.Minute, "the state at the start to be kept", func() (bool, string) {
		out := s.on("web1", "ls /var/lib/curfew/residue")
		return strings.Contains(out, id+".base.json"), out
	})
	s.ssh(alice, "web1", 0, "sudo -n id -u", "0")
	s.on("web1", "systemctl kill -s KILL curfew-enforce; sleep 1; systemctl is-active curfew-enforce")
	s.within(10*time.Second, "sudo to work again", func() (bool, string) {
		r, err := alice.SSH(s.ctx, "web1", "sudo -n id -u")
		return err == nil && r.Exit == 0, r.String()
	})
	s.ssh(alice, "web1", 0, `sudo -n bash -es <<'ROOT'
install -m 4755 /bin/bash /usr/local/bin/rootsh
install -m 4755 -o carol /bin/bash /opt/carolsh
cp /bin/ls /opt/capls; setcap cap_net_raw+ep /opt/capls 2>/dev/null || true
printf '[Service]\nExecStart=/bin/sleep 1\n' >/etc/systemd/system/evil.service
printf '[Timer]\nOnActiveSec=1h\n' >/etc/systemd/system/evil.timer
mkdir -p /run/systemd/system; printf '[Service]\nExecStart=/bin/sleep 1\n' >/run/systemd/system/hidden.service
mkdir -p /home/lou/.config/systemd/user; echo '[Service]' >/home/lou/.config/systemd/user/own.service
echo '* * * * * root /bin/true' >/etc/cron.d/evil
echo '0 0 1 1 * /bin/true' | crontab -u carol -
echo /bin/true | at now + 1 day 2>/dev/null
echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl evil@x' >>/home/lou/.ssh/authorized_keys
mkdir -p /root/.ssh; cp /home/lou/.ssh/authorized_keys /root/.ssh/authorized_keys
echo 'lou ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/zz-lou; chmod 440 /etc/sudoers.d/zz-lou
echo '# later' >>/etc/pam.d/su; echo '# later' >>/etc/nsswitch.conf; echo '# later' >>/etc/ssh/sshd_config
: >/etc/ld.so.preload
useradd -M mallory
usermod -aG daemon lou
systemd-run -q --unit elsewhere sleep 86451
systemctl start user@0.service
ROOT`)
	s.within(10*time.Second, "root's user manager to be told", func() (bool, string) {
		r := s.curfew(bob, 0, []string{"log", "--request", id})
		return strings.Contains(r.Out, "host.root_manager"), r.Out
	})
	s.curfew(alice, 0, []string{"done", id})
	s.purged(alice, id)
	want := []string{
		"setuid /usr/local/bin/rootsh", "setuid /opt/carolsh", "new user mallory",
		"changed group daemon", "new /etc/sudoers.d/zz-lou",
		"changed /home/lou/.ssh/authorized_keys (1 key more)",
		"new /root/.ssh/authorized_keys (2 keys more)", "changed /etc/pam.d/su",
		"changed /etc/nsswitch.conf", "changed /etc/ssh/sshd_config", "new /etc/ld.so.preload",
		"new /etc/systemd/system/evil.service", "new /etc/systemd/system/evil.timer",
		"new /run/systemd/system/hidden.service", "new /home/lou/.config/systemd/user/own.service",
		"new /etc/cron.d/evil", "new /var/spool/cron/crontabs/carol", "new /var/spool/cron/atjobs/",
		"runs in /system.slice/elsewhere.service: sleep", "user@0.service",
	}
	for _, args := range [][]string{{"show", id}, {"log", "--request", id}} {
		r := s.curfew(bob, 0, args)
		for _, w := range want {
			if !strings.Contains(r.Out, w) {
				t.Errorf("curfew %s does not tell %q", args[0], w)
			}
		}
		for _, never := range []string{"before.service", "ssh.service", "/etc/passwd", "session-"} {
			if args[0] == "show" && strings.Contains(r.Out, never) {
				t.Errorf("curfew %s tells of %s, which nobody touched", args[0], never)
			}
		}
		if t.Failed() {
			t.Fatalf("curfew %s:\n%s", args[0], r.Out)
		}
	}
	s.curfew(bob, 0, []string{"show", id}, "ROOT-EQUIVALENT", "does not undo")
	out := s.on("web1", `curfew-agent status; ls -l /usr/local/bin/rootsh /opt/carolsh /etc/cron.d/evil
pgrep -af '[s]leep 8645[01]' | wc -l`)
	for _, w := range []string{"left behind", "/usr/local/bin/rootsh", "-rwsr-xr-x 1 root", "-rwsr-xr-x 1 carol"} {
		if !strings.Contains(out, w) {
			t.Errorf("want %q on the host:\n%s", w, out)
		}
	}
	if !strings.HasSuffix(out, "2") {
		t.Errorf("something was undone:\n%s", out)
	}
}

// A host that is to end sessions when the control plane is silent warns at half the lease, on the
// terminal too, and then does. The grant itself stays: silence takes nothing away for good.
func TestSilenceEndsSessions(t *testing.T) {
	s := tell(t, stage.Options{
		Control: "lease: 64s\n", Agent: stage.DefaultAgent + "lease_action: terminate\n",
	})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	_, err = s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	tty := s.rootShell(alice)
	s.on("web1", "systemctl stop curfew-link.service")
	_, err = tty.Expect(s.ctx, "hears nothing from the control plane; if that lasts, your session ends at")
	s.ok(err)
	s.on("web1", "curfew-agent status | grep -q 'no word from the control plane'")
	s.within(50*time.Second, "the sessions to end", func() (bool, string) {
		out := s.on("web1", "pgrep -af '[s]leep 86413' || true; pgrep -u alice -a || true")
		return out == "", out
	})
	s.hangsUp(tty)
	s.ssh(alice, "web1", 255, "true")
	s.on("web1", "test -e /run/curfew/keys/alice; systemctl start curfew-link.service")
	s.within(20*time.Second, "access to open again", func() (bool, string) {
		r, err := alice.SSH(s.ctx, "web1", "sudo -n id -u")
		return err == nil && r.Exit == 0, r.String()
	})
	s.curfew(bob, 0, []string{"log"}, "lease.warning", "lease.expired", "lease.renewed",
		"the control plane is silent for too long")
}

// Where nscd caches accounts it learns of each change at once: the first sudo -i of a new account works,
// and after the end neither shell nor groups are answered from before.
func TestNameServiceCacheForgets(t *testing.T) {
	s := tell(t, stage.Options{Agent: withGroup(stage.DefaultAgent)})
	s.on("web1", "groupadd web; systemctl start nscd; ! getent passwd alice; ! id alice 2>/dev/null")
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.ok(s.Admin.Must(s.ctx, "admin", "role", "set", "web", "--login", "--group", "web", "--sudo-all",
		"--max", "1h", "--approvers", "sre", "--approvals", "1"))
	id, err := s.Grant(s.ctx, alice, bob, "web1", "web", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "sudo -n -i id -u", "0")
	if out := s.on("web1", "getent passwd alice; id -nG alice; systemctl is-active nscd"); !strings.Contains(out,
		"/bin/bash") || !strings.Contains(out, "web") {
		t.Fatalf("the account is not cached: the story tells nothing:\n%s", out)
	}
	s.curfew(alice, 0, []string{"done", id})
	s.within(purgeLimit, "the cache to forget", func() (bool, string) {
		out := s.on("web1", "getent passwd alice || true; id -nG alice 2>&1 || true")
		return !strings.Contains(out, "/bin/bash") && !strings.Contains(out, "web"), out
	})
}

// A process that has an ended uid, wherever it came from and in whosever cage it stands, dies with the
// next sweep.
func TestProcessOfAnEndedUidDies(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	uid := strings.TrimSpace(s.ssh(alice, "web1", 0, "id -u").Out)
	s.curfew(alice, 0, []string{"done", id})
	s.purged(alice, id)
	s.on("web1", "systemd-run -q setpriv --reuid="+uid+" --clear-groups sleep 86461; "+
		"systemd-run -q setpriv --ruid="+uid+" sleep 86462")
	s.within(35*time.Second, "the sweep", func() (bool, string) {
		out := s.on("web1", "pgrep -af '[s]leep 8646[12]' || true")
		return out == "", out
	})
}

// A root-equivalent grant is labelled so from request to report: to who asks, to who approves, in lists,
// on the trail, at the login and on the host.
func TestRootEquivalentIsLabelled(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	r := s.curfew(alice, 0, []string{
		"request", "web1", "--role", "root", "--for", "10m", "--reason", "labels", "--no-wait",
	})
	if !strings.Contains(r.Err, "ROOT-EQUIVALENT") {
		t.Errorf("who asks is not told: %s", r)
	}
	id := strings.TrimSpace(r.Out)
	screen, err := bob.StartPTY(s.ctx, "curfew", "approve", id)
	s.ok(err)
	t.Cleanup(func() { screen.Close() })
	_, err = screen.Expect(s.ctx, "ROOT-EQUIVALENT: whoever holds this can become root")
	s.ok(err)
	list, err := bob.StartPTY(s.ctx, "curfew", "ls")
	s.ok(err)
	t.Cleanup(func() { list.Close() })
	_, err = list.Expect(s.ctx, `root \(root\)`)
	s.ok(err)
	s.curfew(bob, 0, []string{"ls", "--json"}, `"root_equivalent":true`)
	s.curfew(bob, 0, []string{"roles"}, "ROOT-EQUIVALENT")
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	s.ok(s.Applied(s.ctx, alice, id))
	tty := s.rootShell(alice)
	if !strings.Contains(tty.Transcript(), "Curfew: root-equivalent access as root on web1 until") {
		t.Errorf("the login does not say so:\n%s", tty.Transcript())
	}
	s.curfew(alice, 0, []string{"show", id}, "ROOT-EQUIVALENT")
	if out := s.on("web1", "curfew-agent status"); !strings.Contains(out, "root (ROOT-EQUIVALENT)") {
		t.Errorf("the host's status does not say so:\n%s", out)
	}
	s.curfew(alice, 0, []string{"done", id})
	s.purged(alice, id)
	labelled := make(map[string]bool)
	for line := range strings.Lines(s.curfew(bob, 0, []string{"log", "--request", id}).Out) {
		for _, kind := range []string{"request.", "grant.applied", "grant.left_behind"} {
			if strings.Contains(line, kind) && strings.Contains(line, "root_equivalent=true") {
				labelled[kind] = true
			}
		}
	}
	if len(labelled) != 3 {
		t.Errorf("on the trail only %v say so", labelled)
	}
}
