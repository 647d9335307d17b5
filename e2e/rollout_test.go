package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// rolloutSays waits until a rollout shows all of these.
func (s *story) rolloutSays(name string, words ...string) {
	s.t.Helper()
	s.within(3*time.Minute, "rollout "+name+" to say "+strings.Join(words, ", "), func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "admin", "rollout", "show", name)
		s.ok(err)
		for _, w := range words {
			if !strings.Contains(r.Out+r.Err, w) {
				return false, r.String() + s.on("web1", "journalctl -q --no-pager -n 20 -u curfew-rollout")
			}
		}
		return true, ""
	})
}

// hostDoes waits until a host itself says its mode.
func (s *story) hostDoes(host, mode string) {
	s.t.Helper()
	s.within(time.Minute, host+" to "+mode, func() (bool, string) {
		out := s.on(host, "curfew-agent status 2>&1 | grep '^mode' || true")
		return strings.TrimSpace(strings.TrimPrefix(out, "mode")) == mode, out
	})
}

// gusAt tries to log in as gus, who has a key of old and no grant.
func (s *story) gusAt(p *stage.Person, host string) stage.Result {
	s.t.Helper()
	r, err := p.Command(s.ctx, "ssh", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ControlPath=none",
		"gus@"+host, "id -un")
	s.ok(err)
	return r
}

func (s *story) gusIsLetIn(p *stage.Person, hosts ...string) {
	s.t.Helper()
	for _, host := range hosts {
		s.within(time.Minute, "gus to get in on "+host, func() (bool, string) {
			r := s.gusAt(p, host)
			return r.Exit == 0, r.String()
		})
	}
}

// A fleet is switched to enforcing in stages: a host that is not well pauses it, one whose root has said
// observe is left alone, refusals take back what it did and nothing else, and a host that hears the control
// plane no more observes again by itself.
func TestRolloutGoesInStagesAndComesBack(t *testing.T) {
	s := tell(t, stage.Options{
		Name: "rollout", Hosts: []string{"web1", "web2", "web3"}, Agent: observing + "follow_rollouts: true\n",
	})
	lou := s.outsider()
	for host, env := range map[string]string{"web1": "test", "web2": "prod", "web3": "late"} {
		for _, login := range []string{"gus", "rescue"} { // doctor demands that somebody breaks the glass
			s.ok(lou.LetIn(s.ctx, s.Hosts[host], login))
		}
		s.curfew(s.Admin, 0, []string{"admin", "host", "label", host, "env=" + env})
	}
	s.on("web3", "curfew-agent enforce-off")
	const away = "/etc/ssh/sshd_config.d/50-curfew.conf"
	s.on("web1", "mv "+away+" /root/; systemctl reload ssh")
	s.curfew(s.Admin, 0, []string{
		"admin", "rollout", "start", "winter", "--stage", "env=test", "--stage", "env=prod", "--stage", "env=late",
		"--soak", "10s", "--max-refusals", "1",
	}, "winter is running")
	s.rolloutSays("winter", "paused: web1 cannot enforce", "sshd")
	s.hostDoes("web1", "observe")
	s.on("web1", "mv /root/50-curfew.conf "+away+"; systemctl reload ssh")
	s.curfew(s.Admin, 0, []string{"admin", "rollout", "resume", "winter"}, "winter is running")

	s.rolloutSays("winter", "1 env=test\tweb1\tenforces", "stage 2 of 3")
	s.hostDoes("web1", "enforce")
	s.within(2*time.Minute, "web2 to enforce", func() (bool, string) {
		out := s.on("web2", "curfew-agent status 2>&1 | grep '^mode' || true")
		return strings.Contains(out, "enforce"), out
	})
	for range 2 {
		s.expect(s.gusAt(lou, "web2"), "gus on a host of the second stage", 255, "curfew request web2")
	}
	s.rolloutSays("winter", "winter is rolled back: 2 refusals", "web1\treturned", "web2\treturned")
	s.gusIsLetIn(lou, "web1", "web2", "web3")
	for _, host := range []string{"web1", "web2", "web3"} {
		s.hostDoes(host, "observe")
	}

	start := []string{"admin", "rollout", "start", "spring", "--stage", "env=late", "--soak", "1h"}
	s.curfew(s.Admin, 0, start)
	s.rolloutSays("spring", "web3\toverruled", "enforce-off --follow")
	s.hostDoes("web3", "observe")
	s.curfew(s.Admin, 0, []string{"admin", "rollout", "pause", "spring"})
	s.on("web3", "curfew-agent enforce-off --follow")
	s.ok(s.FakeClocks(s.ctx, s.Hosts["web3"]))
	s.ok(s.Connected(s.ctx, "web3"))
	s.curfew(s.Admin, 0, []string{"admin", "rollout", "resume", "spring"})
	s.rolloutSays("spring", "web3\ton trial")
	s.expect(s.gusAt(lou, "web3"), "gus in a trial", 255, "curfew request web3")
	_, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	s.expect(s.gusAt(lou, "web3"), "gus in a trial without a control plane", 255)
	s.ok(s.SetClocks(s.ctx, s.Hosts["web3"], 11*time.Minute, 11*time.Minute))
	s.gusIsLetIn(lou, "web3")
	s.hostDoes("web3", "observe")
}
