package e2e

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// apply puts a policy file into force as an admin does, and waits until hosts have the trust file that
// follows from it.
func (s *story) apply(policy string, hosts ...string) {
	s.t.Helper()
	s.ok(s.Admin.Write("policy.yaml", []byte(policy), 0o644))
	s.curfew(s.Admin, 0, []string{"admin", "policy", "apply", "policy.yaml"})
	var shown struct{ Trust struct{ Version int } }
	s.ok(s.Admin.Query(s.ctx, &shown, "admin", "trust", "show"))
	for _, host := range hosts {
		s.within(20*time.Second, host+" to have the trust file", func() (bool, string) {
			out := s.on(host, "curfew-agent status --json")
			var has struct {
				TrustVersion int `json:"trust_version"`
			}
			s.ok(json.Unmarshal([]byte(out), &has))
			return shown.Trust.Version > 1 && has.TrustVersion >= shown.Trust.Version, out
		})
	}
}

// asks makes a request with whatever flags and returns its id.
func (s *story) asks(who *stage.Person, args ...string) string {
	s.t.Helper()
	args = append([]string{"request", "--reason", "ticket OPS-7: it hangs", "--no-wait"}, args...)
	r := s.curfew(who, 0, args)
	return strings.TrimSpace(r.Out)
}

// opens asks, has bob approve, and waits until every host enforces it.
func (s *story) opens(who, approver *stage.Person, args ...string) string {
	s.t.Helper()
	id := s.asks(who, args...)
	s.curfew(approver, 0, []string{"approve", id, "--yes"})
	s.ok(s.Applied(s.ctx, who, id))
	return id
}

var (
	notAfter = regexp.MustCompile(`NOTAFTER=(\d{14})Z`)
	expiry   = regexp.MustCompile(`expiry-time="(\d{14})Z?"`)
)

// dated is the one end that a host's file carries.
func (s *story) dated(host, glob string, re *regexp.Regexp) time.Time {
	s.t.Helper()
	text := s.on(host, "cat "+glob)
	m := re.FindStringSubmatch(text)
	if m == nil {
		s.t.Fatalf("%s on %s carries no end:\n%s", glob, host, text)
	}
	end, err := time.Parse("20060102150405", m[1])
	s.ok(err)
	return end
}

const firstUse = `policy: 1
roles:
  ops:
    login: true
    max: 4h
    sudo: [{command: /usr/bin/systemctl, args: [restart, nginx.service], contained: true}]
rules:
  - name: when-you-come
    roles: [ops]
    then: {approvals: [sre], start: first_use}
`

const restart = "sudo -n /usr/bin/systemctl restart nginx.service"

// By a rule that starts with the first use, everything stands ready and the clock stands still until
// the first login, or the first sudo of somebody who only elevates; then all ends follow.
func TestTheClockStartsWithTheFirstUse(t *testing.T) {
	s := tell(t, stage.Options{Name: "firstuse"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	carol, err := s.Person(s.ctx, "carol")
	s.ok(err)
	s.ok(carol.LetIn(s.ctx, s.Hosts["web1"], "carol"))
	s.apply(firstUse, "web1")
	began := func(id string) bool {
		return strings.Contains(s.curfew(bob, 0, []string{"log", "--request", id}).Out, "grant.started")
	}

	whole := s.lasting(15 * time.Second)
	asked := time.Now()
	id := s.opens(alice, bob, "web1", "--role", "ops", "--for", whole.String())
	ready := time.Now()
	latest := s.endOn("web1")
	if latest.Before(asked.Add(time.Hour)) {
		t.Errorf("unused, it ends %s, which is no latest start", latest)
	}
	s.curfew(alice, 0, []string{"show", id, "--json"}, `"first_use":true`, `"start_at":null`)

	hers := s.opens(carol, bob, "web1", "--role", "ops", "--for", "10m")
	s.ssh(carol, "web1", 0, "id -un", "carol")
	if began(hers) {
		t.Error("carol's own login, which is no grant's, started the clock")
	}
	s.ssh(carol, "web1", 0, restart)
	s.within(10*time.Second, "carol's sudo to start the clock", func() (bool, string) {
		return began(hers), "no grant.started"
	})
	if end := s.endOf(carol, hers); end.After(time.Now().Add(10 * time.Minute)) {
		t.Errorf("carol's 10 minutes end %s", end)
	}
	s.curfew(carol, 0, []string{"done", hers})
	s.within(purgeLimit, "carol's rule to go", func() (bool, string) {
		a := s.status("web1")
		return len(a.Grants) == 1, ""
	})

	time.Sleep(time.Until(ready.Add(whole + time.Second))) // longer than it lasts
	if began(id) || !s.endOn("web1").Equal(latest) {
		t.Fatalf("unused, its clock ran: it ends %s", s.endOn("web1"))
	}
	first := time.Now()
	s.ssh(alice, "web1", 0, restart)
	end := s.endOn("web1")
	if end.Before(first.Add(whole).Truncate(time.Second)) || end.After(time.Now().Add(whole)) {
		t.Errorf("first used at %s it ends %s, not %s later", first, end, whole)
	}
	for what, at := range map[string]time.Time{
		"NOTAFTER":    s.dated("web1", "/run/curfew/sudoers.d/*", notAfter),
		"expiry-time": s.dated("web1", "/run/curfew/keys/alice", expiry),
	} {
		if off := at.Sub(end).Abs(); off > time.Second {
			t.Errorf("%s is %s, the end %s", what, at, end)
		}
	}
	s.within(5*time.Second, "the control plane to tell the end", func() (bool, string) {
		shown := s.endOf(alice, id)
		return began(id) && shown.Sub(end).Abs() <= time.Second, shown.String()
	})
	s.session(alice, "web1")
	time.Sleep(time.Until(end))
	s.gone("web1", "alice", mark, purgeLimit)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
}

// One session only: sudo works inside it, nobody gets in beside it, not even after the root half was
// killed, and the grant goes with it.
func TestSingleUseIsOneSession(t *testing.T) {
	s := tell(t, stage.Options{Name: "singleuse"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id := s.opens(alice, bob, "web1", "--role", "ops", "--for", "10m", "--single-use")
	tty := s.terminal(alice, "ssh", "-tt", "alice@web1")
	_, err = tty.Expect(s.ctx, `alice@web1`)
	s.ok(err)
	sudo := func(answer string) {
		t.Helper()
		s.ok(tty.Send(restart + " && echo it is $((" + answer + "))\n"))
		_, err := tty.Expect(s.ctx, "it is [0-9]+")
		s.ok(err)
	}
	sudo("20+22")
	s.ssh(alice, "web1", 255, "true", "one session")

	s.on("web1", "systemctl kill --signal=KILL --kill-whom=main curfew-enforce.service")
	s.within(10*time.Second, "the root half to be back and refuse a second login", func() (bool, string) {
		r, err := alice.SSH(s.ctx, "web1", "true")
		s.ok(err)
		if r.Exit == 0 {
			t.Fatal("after a restart a second login opens")
		}
		return strings.Contains(r.Err, "one session"), r.String()
	})
	sudo("21+23")

	s.ok(tty.Send("exit\n"))
	exit, err := tty.Wait(s.ctx)
	if err != nil || exit != 0 {
		t.Errorf("the session was ended with %d, %v", exit, err)
	}
	s.gone("web1", "alice", mark, purgeLimit)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	s.within(10*time.Second, "the request to end as used", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"show", id, "--json"})
		return strings.Contains(r.Out, `"ended"`) && strings.Contains(r.Out, `"used"`), r.Out
	})
}

// The one session may end while nobody watches: the root half that comes back ends the grant.
func TestSingleUseEndsThoughTheRootHalfWasDead(t *testing.T) {
	s := tell(t, stage.Options{Name: "usedaway"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.opens(alice, bob, "web1", "--role", "ops", "--for", "10m", "--single-use")
	tty := s.terminal(alice, "ssh", "-tt", "alice@web1")
	_, err = tty.Expect(s.ctx, `alice@web1`)
	s.ok(err)
	s.die("web1")
	s.ok(tty.Send("exit\n"))
	_, err = tty.Wait(s.ctx)
	s.ok(err)
	s.on("web1", "systemctl unmask --runtime --quiet curfew-enforce.service curfew-link.service; "+
		"systemctl start curfew-enforce.service curfew-link.service")
	s.gone("web1", "alice", mark, purgeLimit)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
}

// Hosts by label and a start time: approved ahead, nothing is open before, and all open by themselves.
func TestOpensAtItsTimeOnSelectedHosts(t *testing.T) {
	s := tell(t, stage.Options{Name: "later", Hosts: []string{"web1", "web2", "spare"}})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	for _, host := range []string{"web1", "web2"} {
		s.curfew(s.Admin, 0, []string{"admin", "host", "label", host, "env=prod"})
	}
	const ahead = 20 * time.Second
	before := time.Now()
	id := s.asks(alice, "--select", "env=prod", "--role", "docs", "--for", "10m", "--at", "+20s")
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	start := before.Add(ahead)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	s.ssh(alice, "web2", 255, "true", "Permission denied")
	early := func() string {
		return s.on("web1", "ls /run/curfew/keys") + s.on("web2", "ls /run/curfew/keys")
	}
	for time.Now().Before(start.Add(-time.Second)) {
		seen := early()
		if seen != "" && time.Now().Before(start) {
			t.Fatalf("%s before its time it is open: %s", time.Until(start), seen)
		}
		time.Sleep(200 * time.Millisecond)
	}
	time.Sleep(time.Until(start))
	s.ok(s.Applied(s.ctx, alice, id))
	for _, host := range []string{"web1", "web2"} {
		s.within(20*time.Second, host+" to open", func() (bool, string) {
			return s.holds(host, id), ""
		})
		s.ssh(alice, host, 0, "id -un", "alice")
		if end := s.endOn(host); end.Before(start.Add(10 * time.Minute).Truncate(time.Second)) {
			t.Errorf("on %s the wait was taken off: it ends %s", host, end)
		}
	}
	s.ssh(alice, "spare", 255, "true", "Permission denied")
}

const standing = `policy: 1
roles:
  ops:
    login: true
    max: 4h
    sudo: [{command: /usr/bin/systemctl, args: [restart, nginx.service], contained: true}]
  root: {login: true, max: 1h, sudo: [{all: true}]}
rules:
  - name: fire
    who: [pager]
    roles: [root]
    then: {emergency: true, max_duration: 30m}
  - name: at-once
    who: [dev]
    roles: [ops]
    then: auto
`

// A standing rule opens at once where the host's own file lets it; an emergency too, and is reviewed.
func TestStandingRulesUnderTheHostsCeiling(t *testing.T) {
	s := tell(t, stage.Options{
		Name: "standing", Hosts: []string{"web1", "web2"},
		Agent: strings.Replace(stage.DefaultAgent, "ceiling:\n", "ceiling:\n  standing: any\n", 1),
	})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	never := strings.Replace(stage.DefaultAgent, "ceiling:\n", "ceiling:\n  standing: none\n", 1)
	s.ok(s.Hosts["web2"].Write("/etc/curfew/agent.yaml", []byte(never), 0o644))
	s.ok(s.Admin.Must(s.ctx, "admin", "group", "set", "dev", "alice"))
	s.ok(s.Admin.Must(s.ctx, "admin", "group", "set", "pager", "alice"))
	s.apply(standing, "web1", "web2")
	refused := func(id string) {
		t.Helper()
		s.within(20*time.Second, "web2 to refuse it", func() (bool, string) {
			r := s.curfew(alice, 0, []string{"show", id})
			return strings.Contains(r.Out, "ceiling.standing"), r.Out
		})
		s.ssh(alice, "web2", 255, "true", "Permission denied")
	}

	id := s.asks(alice, "web1", "--role", "ops", "--for", "10m")
	s.ok(s.Applied(s.ctx, alice, id))
	s.works(alice, 2*time.Second)
	refused(s.asks(alice, "web2", "--role", "ops", "--for", "10m"))
	s.curfew(bob, 3, []string{
		"request", "web1", "--role", "ops", "--for", "10m", "--reason", "not of dev", "--no-wait",
	})

	fire := s.asks(alice, "web1", "--role", "root", "--for", "10m", "--emergency")
	s.ok(s.Applied(s.ctx, alice, fire))
	s.ssh(alice, "web1", 0, "sudo -n id -u", "0")
	refused(s.asks(alice, "web2", "--role", "root", "--for", "10m", "--emergency"))
	s.curfew(alice, 0, []string{"show", fire, "--json"}, `"emergency":true`, `"review_due":true`)
	s.curfew(alice, 3, []string{"review", fire, "--justified", "--comment", "I say so"})
	s.curfew(s.Admin, 0, []string{"review", fire, "--not-justified", "--comment", "it could have waited"})
	s.curfew(alice, 0, []string{"show", fire, "--json"}, `"review_due":false`)
	s.curfew(alice, 0, []string{"show", fire}, "it could have waited")
}
