package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// backstopLimit is promise 3: with the agent dead, PID 1 ends the grant's cgroups within 30 s of its end.
const backstopLimit = 30 * time.Second

// die kills both halves of a host's agent and lets nothing start them again.
func (s *story) die(host string) {
	s.t.Helper()
	s.on(host, `systemctl mask --runtime --quiet curfew-enforce.service curfew-link.service
systemctl kill --signal=KILL curfew-enforce.service curfew-link.service`)
	s.within(5*time.Second, "both halves to be dead", func() (bool, string) {
		out := s.on(host, "pgrep -a '^curfew-(agent|enforce)$' || true")
		return out == "", out
	})
}

// bare opens sshd and sudo beside the host's own, without PAM, so that the locks behind it can be
// tried by themselves: sshd at port 2222 with the keys of grants, sudo by tryBareSudo.
func (s *story) bare(host string) {
	s.t.Helper()
	s.on(host, `systemd-run --quiet --unit=bare /usr/sbin/sshd -D -o Port=2222 -o UsePAM=no \
  -o AuthorizedKeysFile=/run/curfew/keys/%u -o PidFile=none
for kind in auth account session; do echo "$kind sufficient pam_permit.so"; done >/etc/pam.d/bare`)
}

// trySudo runs sudo as a uid, whose rules the drop-ins of grants hold. service is the PAM service.
func (s *story) trySudo(host, uid, service string) (said string, allowed bool) {
	s.t.Helper()
	s.on(host, "cp -n /etc/pam.d/sudo /root/sudo; cp "+service+" /etc/pam.d/sudo")
	out := s.on(host, "setpriv --reuid="+uid+" --regid="+uid+
		" --clear-groups env DONT_FAKE_MONOTONIC=1 sudo -n id -u 2>&1 || true")
	return out, out == "0"
}

const (
	barePAM = "/etc/pam.d/bare"
	realPAM = "/root/sudo"
)

// With both halves of the agent dead, PID 1 ends what runs under a grant, also where the agent's
// program is gone, and each lock by itself keeps access from opening again.
func TestBackstopEndsWhatADeadAgentCannot(t *testing.T) {
	s := tell(t, stage.Options{Name: "backstop", Hosts: []string{"web1", "web2"}})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	s.bare("web1")
	lasts := s.lasting(35 * time.Second)
	r := s.curfew(alice, 0, []string{
		"request", "web1", "web2", "--role", "root", "--for", lasts.String(),
		"--reason", "both web servers hang", "--no-wait",
	})
	id := strings.TrimSpace(r.Out)
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	s.ok(s.Applied(s.ctx, alice, id))
	s.within(10*time.Second, "both hosts to apply it", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"show", id, "--json"})
		return strings.Count(r.Out, `"applied"`) == 2, r.Out
	})
	hers, err := s.Grant(s.ctx, carol, bob, "web1", "root", lasts)
	s.ok(err)

	var parties []*party
	for _, one := range []struct {
		who  *stage.Person
		host string
		list []survivor
	}{
		{alice, "web1", append(ordinary(), elevated()...)},
		{carol, "web1", elevated()},
		// Without the agent's program PID 1 knows the grant's cgroups and nothing else.
		{alice, "web2", append(ordinary(), caged()...)},
	} {
		p := s.gather(one.host, one.who.Name(), 86401+50*len(parties), one.list...)
		tty := s.terminal(one.who, "ssh", "-tt", one.who.Name()+"@"+one.host)
		_, err := tty.Expect(s.ctx, one.who.Name()+"@"+one.host)
		s.ok(err)
		s.ok(tty.Send(p.script("survive-"+one.who.Name()) + "\n"))
		p.begun()
		parties = append(parties, p)
		if one.who == alice {
			defer s.hangsUp(tty)
		}
	}
	own := s.gather("web1", "carol", 86901, survivor{name: "her own job", begin: "nohup MARK >/dev/null &"})
	s.ssh(carol, "web1", 0, own.script("live"))
	own.begun()

	s.die("web1")
	s.die("web2")
	s.on("web2", "rm /usr/bin/curfew-agent /usr/lib/curfew/curfew-enforce")
	locks := s.locksOf("web1", alice)
	locks.open()
	end := s.endOf(alice, id)
	if carols := s.endOf(carol, hers); carols.After(end) {
		end = carols
	}
	if time.Until(end) < 0 {
		t.Fatalf("the grant ended before all was prepared")
	}
	time.Sleep(time.Until(end) + 2*time.Second)
	locks.shut()
	for _, p := range parties {
		p.noneOutlivesBy(end, backstopLimit)
	}
	own.allLive()
	locks.shut()
	locks.clockSetBack()

	s.on("web1", `systemctl unmask --runtime --quiet curfew-enforce.service curfew-link.service
systemctl start curfew-agent.target`)
	s.within(5*time.Second, "the agent to close what it finds", func() (bool, string) {
		out := s.on("web1", "ls -A /run/curfew/sudoers.d /run/curfew/keys; getent passwd alice || true")
		closed := strings.TrimPrefix(out, "/run/curfew/keys:\n\n/run/curfew/sudoers.d:")
		return closed == "" || closed != out && strings.Contains(closed, "nologin"), out
	})
	own.allLive()
}

// locks are what keeps alice out of a host whose agent is dead, each by itself.
type locks struct {
	*story
	host, uid string
	who       *stage.Person
}

func (s *story) locksOf(host string, who *stage.Person) locks {
	s.t.Helper()
	return locks{s, host, s.on(host, "id -u "+who.Name()), who}
}

// bareSSH logs in without PAM.
func (l locks) bareSSH() stage.Result {
	l.t.Helper()
	r, err := l.who.Command(l.ctx, "ssh", "-p", "2222", "-o", "BatchMode=yes", l.who.Name()+"@"+l.host,
		"echo in")
	l.ok(err)
	return r
}

// open demands that all locks but PAM's are open before the end: what is shut later was not shut by
// how it is tried. PAM's asks the agent, which is dead.
func (l locks) open() {
	l.t.Helper()
	if out := l.on(l.host, "getent passwd alice; id -Gn alice"); !strings.Contains(out, "/bin/bash") ||
		!strings.Contains(out, "curfew-users") {
		l.t.Errorf("before the end NSS says %s", out)
	}
	if out, allowed := l.trySudo(l.host, l.uid, barePAM); !allowed {
		l.t.Errorf("before the end sudo's rule does not hold: %s", out)
	}
	if r := l.bareSSH(); r.Exit != 0 {
		l.t.Errorf("before the end sshd refuses the key: %s", r)
	}
	l.ssh(l.who, l.host, 255, "true", "try again")
}

// shut demands that each lock by itself is shut.
func (l locks) shut() {
	l.t.Helper()
	l.on(l.host, "test -s /run/curfew/keys/alice; ls /run/curfew/sudoers.d/* >/dev/null")
	if out := l.on(l.host, "getent passwd alice; id -Gn alice"); !strings.Contains(out, "nologin") ||
		strings.Contains(out, "curfew-users") {
		l.t.Errorf("NSS: after the end it says %s", out)
	}
	if out, allowed := l.trySudo(l.host, l.uid, barePAM); allowed {
		l.t.Errorf("NOTAFTER: after the end sudo says %s", out)
	}
	if out, allowed := l.trySudo(l.host, l.uid, realPAM); allowed {
		l.t.Errorf("PAM account of sudo: after the end it says %s", out)
	}
	if r := l.bareSSH(); r.Exit != 255 || !strings.Contains(r.Err, "Permission denied") {
		l.t.Errorf("expiry-time: after the end sshd says %s", r)
	}
	l.ssh(l.who, l.host, 255, "true")
	l.planted()
}

// planted tries a key that nobody dates, which alice has put where sshd looks for hers once her
// account is in no group any more. Behind it stand PAM and, without PAM, nologin.
func (l locks) planted() {
	l.t.Helper()
	key, err := l.who.SSHKey(l.ctx)
	l.ok(err)
	undated := fmt.Sprintf("cat >%%s <<<%q", strings.TrimSpace(key))
	l.on(l.host, "install -d -m 700 -o alice ~alice/.ssh; "+
		fmt.Sprintf(undated, "~alice/.ssh/authorized_keys")+"; chown -R alice ~alice/.ssh")
	l.ssh(l.who, l.host, 255, "true", "try again")
	dated := l.on(l.host, "cat /run/curfew/keys/alice")
	l.on(l.host, fmt.Sprintf(undated, "/run/curfew/keys/alice"))
	if r := l.bareSSH(); r.Exit != 1 || strings.Contains(r.Out, "in\n") {
		l.t.Errorf("nologin: a shell opens: %s", r)
	}
	l.on(l.host, fmt.Sprintf("cat >/run/curfew/keys/alice <<<%q", dated))
}

// clockSetBack sets the host's clock back by an hour, to where the grant was open: sudo's and sshd's
// own dates hold no longer, NSS counts on the boot-time clock too and PAM asks.
func (l locks) clockSetBack() {
	l.t.Helper()
	l.on(l.host, `mkdir -p /etc/systemd/system/ssh.service.d
printf '[Service]\nEnvironment=DONT_FAKE_MONOTONIC=1\n' >/etc/systemd/system/ssh.service.d/clock.conf
systemctl daemon-reload
echo -1h >/etc/faketimerc
real=$(date +%s)
ls /usr/lib/*/faketime/libfaketime.so.1 >/etc/ld.so.preload
back=$(DONT_FAKE_MONOTONIC=1 date +%s)
test $((real-back)) -gt 3500
systemctl restart ssh`)
	out := l.on(l.host, "export DONT_FAKE_MONOTONIC=1; getent passwd alice; id -Gn alice")
	if !strings.Contains(out, "nologin") || strings.Contains(out, "curfew-users") {
		l.t.Errorf("the clock set back: NSS says %s", out)
	}
	if out, allowed := l.trySudo(l.host, l.uid, realPAM); allowed {
		l.t.Errorf("the clock set back: sudo says %s", out)
	}
	l.ssh(l.who, l.host, 255, "true", "try again")
	l.on(l.host, "rm /etc/ld.so.preload /etc/faketimerc; systemctl restart ssh")
}

// PID 1 has one timer for each request, at its end: replaced by an extension, gone with the request.
// Of two requests of one login it is the one that ends last which takes everything of the login's.
func TestBackstopTimerFollowsTheGrant(t *testing.T) {
	s := tell(t, stage.Options{Name: "timers"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	root, err := s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	s.timerStands(alice, root, true)
	docs, err := s.Grant(s.ctx, alice, bob, "web1", "docs", 20*time.Minute)
	s.ok(err)
	s.timerStands(alice, root, false)
	s.timerStands(alice, docs, true)

	s.curfew(alice, 0, []string{"extend", root, "--for", "30m", "--reason", "not done", "--no-wait"})
	s.curfew(bob, 0, []string{"approve", root, "--yes"})
	s.timerStands(alice, root, true)
	s.timerStands(alice, docs, false)

	s.curfew(alice, 0, []string{"done", docs})
	s.curfew(alice, 0, []string{"done", root})
	s.within(5*time.Second, "the timers to go", func() (bool, string) {
		out := s.on("web1", "systemctl list-units --all --plain --no-legend 'curfew-end-*'")
		return out == "", out
	})
}

// timerStands waits until the one timer of a request stands 5 s after its end, and takes the whole
// login or not.
func (s *story) timerStands(who *stage.Person, id string, whole bool) {
	s.t.Helper()
	s.within(10*time.Second, fmt.Sprintf("the timer of %s, whole %t", id, whole), func() (bool, string) {
		due := s.endOf(who, id).Add(5 * time.Second).UTC().Format("2006-01-02 15:04:05")
		out := s.on("web1", `
for unit in $(systemctl list-units --all --plain --no-legend 'curfew-end-`+id+`-*.timer' |
  cut -d' ' -f1); do
  systemctl show --property=TimersCalendar "$unit"
  systemctl show --property=ExecStart "${unit%.timer}.service"
done`)
		return strings.Count(out, "TimersCalendar") == 1 && strings.Contains(out, due) &&
			strings.Contains(out, "user-") == whole, "want " + due + "\n" + out
	})
}
