package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/pace"
)

// openFor gives alice the ops role on web1, for longer where this machine is slow, and checks that it
// works.
func (s *story) openFor(d time.Duration) (alice, bob *stage.Person, id string) {
	s.t.Helper()
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err = s.Grant(s.ctx, alice, bob, "web1", "ops", s.lasting(d))
	s.ok(err)
	s.ssh(alice, "web1", 0, "sudo -n /usr/bin/systemctl restart nginx.service")
	return alice, bob, id
}

// works demands that the grant's login and rule do; limit is what a restart may take.
func (s *story) works(alice *stage.Person, limit time.Duration) {
	s.t.Helper()
	s.within(limit, "alice's access to work", func() (bool, string) {
		r, err := alice.SSH(s.ctx, "web1", "sudo -n /usr/bin/systemctl restart nginx.service")
		s.ok(err)
		return r.Exit == 0, r.String()
	})
}

// Killing the root half changes nothing for a live grant, and it expires on time all the same.
func TestRootHalfKilledAndRestarted(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(25 * time.Second)
	end := s.endOn("web1")
	s.on("web1", "systemctl kill --signal=KILL --kill-whom=main curfew-enforce.service")
	s.within(5*time.Second, "the root half to be back", func() (bool, string) {
		out := s.on("web1", "systemctl is-active curfew-enforce.service || true")
		return out == "active", out
	})
	s.works(alice, 5*time.Second)
	watch := pace.Start()
	s.on("web1", "systemctl restart curfew-enforce.service")
	if took := watch.Elapsed(); took > time.Second {
		t.Errorf("the root half was ready after %s, want at most 1 s", took)
	}
	tty, err := alice.StartPTY(s.ctx, "ssh", "-tt", "alice@web1", mark)
	s.ok(err)
	t.Cleanup(func() { tty.Close() })
	time.Sleep(time.Until(end) - 2*time.Second)
	s.on("web1", "systemctl kill --signal=KILL --kill-whom=main curfew-enforce.service")
	s.gone("web1", "alice", mark, 2*time.Second+5*time.Second)
	s.ssh(alice, "web1", 255, "true")
}

// With the root half dead when the window closes, its restart purges before it serves.
func TestRootHalfDeadAtTheEnd(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(12 * time.Second)
	end := s.endOn("web1")
	tty, err := alice.StartPTY(s.ctx, "ssh", "-tt", "alice@web1", mark)
	s.ok(err)
	t.Cleanup(func() { tty.Close() })
	s.on("web1", "systemctl stop curfew-gate.socket curfew-enforce.service")
	time.Sleep(time.Until(end) + time.Second)
	s.ssh(alice, "web1", 255, "true")
	s.on("web1", "systemctl start curfew-enforce.service")
	s.gone("web1", "alice", mark, 5*time.Second)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
}

// Without link half or control plane a live grant works on, and still ends on time.
func TestLinkAndControlPlaneStopped(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(30 * time.Second)
	end := s.endOn("web1")
	s.on("web1", "systemctl stop curfew-link.service")
	s.works(alice, 5*time.Second)
	s.on("web1", "systemctl start curfew-link.service")
	_, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	s.works(alice, 5*time.Second)
	r, err := alice.Curfew(s.ctx, "ls")
	s.ok(err)
	s.expect(r, "ls without a control plane", 6, "control:7443")
	time.Sleep(time.Until(end))
	s.gone("web1", "alice", mark, purgeLimit)
	_, err = s.Control.Exec(s.ctx, "systemctl", "start", "curfew-controlplane.service")
	s.ok(err)
	s.ok(s.Connected(s.ctx, "web1"))
	s.within(20*time.Second, "the end to reach the trail", func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "log", "--json")
		return err == nil && strings.Contains(r.Out, "grant.ended"), r.Out
	})
}

// A reboot keeps a live grant and opens nothing that ended while the host was down.
func TestHostRebooted(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{"web1", "web2"}})
	alice, bob, _ := s.openFor(10 * time.Minute)
	uid := s.on("web1", "id -u alice")
	s.ok(s.Hosts["web1"].Reboot(s.ctx))
	s.works(alice, 15*time.Second)
	if now := s.on("web1", "id -u alice"); now != uid {
		t.Errorf("alice's uid was %s and is %s", uid, now)
	}

	_, err := s.Grant(s.ctx, alice, bob, "web2", "ops", s.lasting(8*time.Second))
	s.ok(err)
	end := s.endOn("web2")
	s.ok(s.Hosts["web2"].PowerOff(s.ctx))
	// Nobody may come back through a control plane that is away either.
	_, err = s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	time.Sleep(time.Until(end))
	s.ok(s.Hosts["web2"].Start(s.ctx))
	s.ssh(alice, "web2", 255, "true")
	s.within(5*time.Second, "web2 to hold nothing", func() (bool, string) {
		out := s.on("web2", "ls -A /run/curfew/sudoers.d /run/curfew/keys; getent passwd alice || true")
		return !strings.Contains(out, "alice") || strings.Contains(out, "nologin"), out
	})
}
