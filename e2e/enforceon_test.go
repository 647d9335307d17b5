package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// observing manages gus and carol, and denies nobody.
const observing = `mode: observe
ceiling:
  max_duration: 8h
  allow_root_equivalent: true
gated_users: [gus]
elevate_users: [carol]
`

// asRoot runs a command in a new login of root's over ssh.
func (s *story) asRoot(p *stage.Person, exit int, command string, words ...string) stage.Result {
	s.t.Helper()
	r, err := p.Command(s.ctx, "ssh", "-o", "BatchMode=yes", "-o", "ControlPath=none", "root@web1", command)
	s.ok(err)
	s.expect(r, "root on web1: "+command, exit, words...)
	return r
}

// gus tries to log in, who has a key of old and no grant.
func (s *story) gus(p *stage.Person, exit int, when string, words ...string) {
	s.t.Helper()
	r, err := p.Command(s.ctx, "ssh", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ControlPath=none",
		"gus@web1", "id -un")
	s.ok(err)
	s.expect(r, "gus "+when, exit, words...)
}

// gusGetsIn waits until he does.
func (s *story) gusGetsIn(p *stage.Person, when string) {
	s.t.Helper()
	s.within(time.Minute, "gus to get in "+when, func() (bool, string) {
		r, err := p.Command(s.ctx, "ssh", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ControlPath=none",
			"gus@web1", "id -un")
		return err == nil && r.Exit == 0, r.String()
	})
}

func (s *story) modeIs(want string) {
	s.t.Helper()
	s.within(30*time.Second, "the host to say "+want, func() (bool, string) {
		out := s.on("web1", "curfew-agent status 2>&1 | grep '^mode' || true")
		return strings.TrimSpace(strings.TrimPrefix(out, "mode")) == want, out
	})
}

// A host that observes is switched to enforce on trial: unless that is confirmed in a login that was opened
// since, it observes again by itself, with the agent alive and with the agent dead. A confirmed host goes on
// enforcing until enforce-off, which needs no agent.
func TestEnforcingIsOnTrialUntilANewLoginConfirms(t *testing.T) {
	s := tell(t, stage.Options{Name: "enforceon", Agent: observing})
	lou := s.outsider()
	s.ok(lou.LetIn(s.ctx, s.Hosts["web1"], "gus"))
	s.gus(lou, 0, "before anything", "gus")
	s.ok(s.FakeClocks(s.ctx, s.Hosts["web1"]))

	old := s.terminal(lou, "ssh", "-tt", "root@web1")
	_, err := old.Expect(s.ctx, "root@web1")
	s.ok(err)
	s.asRoot(lou, 0, "curfew-agent enforce-on", "on trial until", "enforce-on --confirm")
	s.gus(lou, 255, "in the trial", "curfew request web1")
	s.ssh(lou, "web1", 0, "sudo -n /usr/bin/id -u", "0")
	s.ok(old.Send("curfew-agent enforce-on --confirm; echo says-$?\n"))
	said, err := old.Expect(s.ctx, `says-\d`)
	s.ok(err)
	if !strings.Contains(old.Transcript(), "older than the trial") || !strings.HasSuffix(said, "says-1") {
		t.Errorf("an older login confirms: %s", old.Transcript())
	}
	s.asRoot(lou, 1, "curfew-agent enforce-on", "confirm that from a new login")
	s.asRoot(lou, 0, "curfew-agent enforce-on --confirm", "Confirmed")
	s.modeIs("enforce")
	s.asRoot(lou, 1, "curfew-agent enforce-on --confirm", "no trial of enforcing to confirm")

	s.die("web1")
	s.gus(lou, 255, "with a dead agent", "try again")
	s.asRoot(lou, 0, "curfew-agent enforce-off", "nobody is denied", "has not taken it in")
	s.gus(lou, 0, "after enforce-off", "gus")
	s.live("web1")
	s.modeIs("observe")
	s.within(30*time.Second, "the mark to be gone", func() (bool, string) {
		out := s.on("web1", "ls /run/curfew")
		return !strings.Contains(out, "observe") && !strings.Contains(out, "trial"), out
	})
	s.gus(lou, 0, "after enforce-off, with the agent back", "gus")

	s.asRoot(lou, 0, "curfew-agent enforce-on --for 15s")
	s.die("web1")
	s.gusGetsIn(lou, "after a trial that the agent did not live to end")
	s.live("web1")
	s.modeIs("observe")

	s.asRoot(lou, 0, "curfew-agent enforce-on")
	s.gus(lou, 255, "in the last trial", "curfew request web1")
	s.ok(s.SetClocks(s.ctx, s.Hosts["web1"], 11*time.Minute, 11*time.Minute))
	s.gusGetsIn(lou, "after an unconfirmed trial")
	s.modeIs("observe")
}

// live undoes die.
func (s *story) live(host string) {
	s.t.Helper()
	s.on(host, `systemctl unmask --runtime --quiet curfew-enforce.service curfew-link.service
systemctl start curfew-agent.target`)
	s.ok(s.Connected(s.ctx, host))
}
