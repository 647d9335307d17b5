package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// Whatever the holder of a Curfew account left running or waiting is gone with the grant: promise 2
// and attack A21.
func TestNothingOfAnAccountOutlivesItsExpiry(t *testing.T) {
	s := tell(t, stage.Options{Name: "survivors"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "root", s.lasting(45*time.Second))
	s.ok(err)
	s.ssh(alice, "web1", 0, "true")
	list := append(ordinary(), elevated()...)
	list = append(list,
		survivor{
			name: "lingering", begin: `sudo loginctl enable-linger LOGIN`,
			seen: `ls /var/lib/systemd/linger/LOGIN`,
		},
		survivor{
			name: "a crontab", begin: `echo '* * * * * MARK' | crontab -`,
			seen: `ls /var/spool/cron/crontabs/LOGIN`,
		},
		survivor{
			name: "an at job", begin: `echo MARK | at now + 1 hour`,
			seen: `find /var/spool/cron/atjobs -type f -uid UID`,
		},
		survivor{
			name: "an ssh-agent", begin: `ssh-agent -a /tmp/survivor-agent`,
			seen: `ss -xlH | grep /tmp/survivor-agent`,
		},
		survivor{name: "a forwarded agent", seen: `ss -xlH | grep -E '/tmp/ssh-[^/]*/agent'`},
		survivor{name: "a second shell of a ControlMaster"},
		survivor{name: "a forward of ssh -N", look: func() bool {
			r, err := alice.Command(s.ctx, "bash", "-c",
				"read -t 1 line </dev/tcp/127.0.0.1/2201 && echo $line")
			return err == nil && strings.HasPrefix(r.Out, "SSH-2.0")
		}},
		survivor{name: "a reverse forward", seen: `ss -ltnH 'sport = :2202'`},
		survivor{name: "the foreground of a terminal"},
	)
	p := s.gather("web1", "alice", 86401, list...)
	script := p.script("survive")

	master := s.terminal(alice, "ssh-agent", "sh", "-c",
		"ssh-add -q; exec ssh -A -M -S ~/.master -tt alice@web1")
	_, err = master.Expect(s.ctx, `alice@web1`)
	s.ok(err)
	s.ok(master.Send(script + "; " + p.markOf("the foreground of a terminal") + "\n"))
	second := s.terminal(alice, "ssh", "-S", "~/.master", "alice@web1",
		p.markOf("a second shell of a ControlMaster"))
	forward := s.terminal(alice, "ssh", "-N", "-o", "ControlPath=none", "-o", "ExitOnForwardFailure=yes",
		"-L", "2201:127.0.0.1:22", "-R", "2202:127.0.0.1:22", "alice@web1")
	p.begun()
	p.killSudo()

	end := s.endOf(alice, id)
	if left := time.Until(end); left < time.Second {
		t.Fatalf("it took until %s before the end to begin all survivors", left)
	}
	time.Sleep(time.Until(end))
	p.noneOutlives(end)
	s.gone("web1", "alice", mark, purgeLimit)
	s.hangsUp(master)
	s.hangsUp(second)
	s.hangsUp(forward)
}

// markOf is the command that only this survivor runs.
func (p *party) markOf(name string) string {
	p.t.Helper()
	for _, one := range p.list {
		if one.name == name {
			return one.mark
		}
	}
	p.t.Fatalf("no survivor %q", name)
	return ""
}

// fast makes a daemon's clock run twenty times as fast: a minute of cron's takes three seconds.
const fast = `[Service]
Environment=LD_PRELOAD=%s DONT_FAKE_MONOTONIC=1
Environment="FAKETIME=+0 x20"
`

func (s *story) hasten(host, daemon string) {
	s.t.Helper()
	library := s.on(host, "ls /usr/lib/*/faketime/libfaketime.so.1")
	path := "/etc/systemd/system/" + daemon + ".service.d/fast.conf"
	s.ok(s.Hosts[host].Write(path, fmt.Appendf(nil, fast, library), 0o644))
	s.on(host, "systemctl daemon-reload; systemctl restart "+daemon)
}

// A gated local user's account is his own, but nothing of his runs without a grant: all of it goes,
// and what cron and at hold for him waits for the next grant.
func TestNothingOfAGatedUserOutlivesRevocation(t *testing.T) {
	s := tell(t, stage.Options{Name: "gated"})
	_, bob, err := s.Cast(s.ctx)
	s.ok(err)
	gus, err := s.Person(s.ctx, "gus")
	s.ok(err)
	s.ok(gus.LetIn(s.ctx, s.Hosts["web1"], "gus"))
	id, err := s.Grant(s.ctx, gus, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	s.hasten("web1", "cron")
	p := s.gather("web1", "gus", 86401, append(ordinary(), append(elevated(),
		survivor{name: "a job of cron's", begin: `echo '* * * * * MARK' | crontab -`},
		survivor{name: "a job of at's", begin: `echo MARK | at now`},
	)...)...)
	const later = "sleep 86499"
	tty := s.terminal(gus, "ssh", "-tt", "gus@web1", p.script("survive")+
		"; echo "+later+" | at now + 2 minutes; echo ready; exec bash")
	_, err = tty.Expect(s.ctx, `ready`)
	s.ok(err)
	p.begun()
	p.killSudo()
	const kept = "getent passwd gus; id gus; crontab -u gus -l; ls /var/spool/cron/atjobs | grep -v ^="
	account := s.on("web1", kept)

	s.curfew(bob, 0, []string{"revoke", id, "--reason", "wrong host"})
	p.noneOutlives(time.Now())
	s.hangsUp(tty)
	s.ssh(gus, "web1", 255, "true", "curfew request web1")
	if now := s.on("web1", kept); now != account {
		t.Errorf("gus had\n%s\nand has\n%s", account, now)
	}
	s.on("web1", "date '+%F %T' >/run/ended; sleep 1")
	s.hasten("web1", "atd")
	for _, daemon := range []string{"CRON", "atd"} {
		s.within(20*time.Second, daemon+" to be refused", func() (bool, string) {
			out := s.on("web1", `journalctl -q --no-pager --since "$(cat /run/ended)" -t `+daemon)
			return strings.Contains(out, "Permission denied"), out
		})
	}
	if ran := s.on("web1", "pgrep -fxa '"+later+"' || true"); ran != "" {
		t.Errorf("a job of at's ran after the end: %s", ran)
	}
	p.noneOutlives(time.Now())
}

// A local user who only elevates loses what ran under the grant and nothing else.
func TestElevateOnlyUserLosesOnlyWhatTheGrantOpened(t *testing.T) {
	s := tell(t, stage.Options{Name: "elevateonly"})
	_, bob, err := s.Cast(s.ctx)
	s.ok(err)
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	id, err := s.Grant(s.ctx, carol, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	s.hasten("web1", "cron")
	own := s.gather("web1", "carol", 86401, append(ordinary(),
		// Such a job stands in cron's own cgroup, with an audit session of its own.
		survivor{name: "a job of cron's that used sudo", begin: `echo '* * * * * sudo -n true && MARK' | crontab -`},
	)...)
	under := s.gather("web1", "carol", 86451, append(elevated(),
		survivor{name: "her own process under sudo", begin: `sudo setpriv --reuid=UID --clear-groups setsid -f MARK`},
	)...)
	tty := s.terminal(carol, "ssh", "-tt", "carol@web1")
	_, err = tty.Expect(s.ctx, `carol@web1`)
	s.ok(err)
	s.ok(tty.Send(own.script("live") + "; " + under.script("survive") + "\n"))
	own.begun()
	under.begun()
	under.killSudo()
	// Neither its sudo nor its login are there any more to be known by.
	orphan := s.gather("web1", "carol", 86491, survivor{
		name: "an orphan of a login that is over", begin: orphaned,
	})
	s.ssh(carol, "web1", 0, orphan.script("orphan"))
	orphan.begun()

	s.curfew(carol, 0, []string{"done", id})
	over := time.Now()
	under.noneOutlives(over)
	orphan.noneOutlives(over)
	own.allLive()
	s.ok(tty.Send("echo still $((20+22))\n"))
	_, err = tty.Expect(s.ctx, "still 42")
	s.ok(err)
	s.ssh(carol, "web1", 0, "id -un", "carol")
	s.ssh(carol, "web1", 1, "sudo -n true")
}

// Two overlapping requests of one person: the end of the first takes the sudo children and scopes of
// the first alone, whoever the person is.
func TestOverlappingElevationsEndAlone(t *testing.T) {
	s := tell(t, stage.Options{Name: "overlap"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	s.ok(s.Admin.Must(s.ctx, "admin", "role", "set", "root2", "--login", "--sudo-all", "--max", "1h",
		"--approvers", "sre", "--approvals", "1"))
	one := func(login string, number int) *party {
		return s.gather("web1", login, number, survivor{name: "sudo -b", begin: `sudo -b MARK`},
			survivor{name: "an orphan of sudo -i", begin: `sudo -i setsid -f MARK`})
	}
	open := func(who *stage.Person, role string, d time.Duration) string {
		id, err := s.Grant(s.ctx, who, bob, "web1", role, d)
		s.ok(err)
		return id
	}
	start := func(p *party, who *stage.Person, name string) *world.Terminal {
		tty := s.terminal(who, "ssh", "-tt", p.login+"@web1")
		_, err := tty.Expect(s.ctx, p.login+`@web1`)
		s.ok(err)
		s.ok(tty.Send(p.script(name) + "\n"))
		p.begun()
		return tty
	}

	// Alice's login belongs to the grant that ends last, docs, her elevation to the other.
	root := open(alice, "root", 10*time.Minute)
	docs := open(alice, "docs", 20*time.Minute)
	rooted := one("alice", 86401)
	aliceTTY := start(rooted, alice, "rooted")
	// Carol's elevations belong to the grant with a rule that ends first; the second comes first.
	second := open(carol, "root2", 20*time.Minute)
	stays := one("carol", 86411)
	start(stays, carol, "stays")
	first := open(carol, "root", 10*time.Minute)
	goes := one("carol", 86421)
	carolTTY := start(goes, carol, "goes")

	s.curfew(alice, 0, []string{"done", root})
	rooted.noneOutlives(time.Now())
	s.curfew(carol, 0, []string{"done", first})
	goes.noneOutlives(time.Now())
	stays.allLive()
	for _, tty := range []*world.Terminal{aliceTTY, carolTTY} {
		s.ok(tty.Send("echo still $((20+22))\n"))
		_, err = tty.Expect(s.ctx, "still 42")
		s.ok(err)
	}
	s.ssh(carol, "web1", 0, "sudo -n id -u", "0")
	s.curfew(carol, 0, []string{"done", second})
	stays.noneOutlives(time.Now())
	s.curfew(alice, 0, []string{"done", docs})
	s.hangsUp(aliceTTY)
}
