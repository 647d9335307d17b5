package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// purgeLimit is promise 2 and 4: nothing lives on 2 s after an end. The rest is what it takes to look.
const purgeLimit = 2*time.Second + time.Second

// open gives alice a root role on web1 and a terminal there in which sudo has opened a root shell
// that runs `sleep MARK`.
func (s *story) openRootShell(d time.Duration) (alice, bob *stage.Person, id string, tty *world.Terminal) {
	s.t.Helper()
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err = s.Grant(s.ctx, alice, bob, "web1", "root", s.lasting(d))
	s.ok(err)
	tty = s.rootShell(alice)
	return alice, bob, id, tty
}

// mark is a sleep that only a session of a story runs.
const mark = "sleep 86413"

func (s *story) rootShell(alice *stage.Person) *world.Terminal {
	s.t.Helper()
	tty, err := alice.StartPTY(s.ctx, "ssh", "-tt", "alice@web1")
	s.ok(err)
	s.t.Cleanup(func() { tty.Close() })
	s.ok(tty.Send("sudo -i\n"))
	_, err = tty.Expect(s.ctx, `root@web1`)
	s.ok(err)
	s.ok(tty.Send(mark + " &\n"))
	s.within(5*time.Second, "the root shell to run "+mark, func() (bool, string) {
		out := s.on("web1", "pgrep -f '[s]leep 86413' -a || true")
		return strings.Contains(out, mark), out
	})
	return tty
}

// hangsUp demands that the connection of a terminal ended.
func (s *story) hangsUp(tty *world.Terminal) {
	s.t.Helper()
	if exit, err := tty.Wait(s.ctx); err != nil || exit == 0 {
		s.t.Errorf("the ssh connection ended with %d, %v", exit, err)
	}
}

// At the end of the window the account, key, rule, tickets, connection and root shells are gone.
func TestExpiryEndsEverything(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, id, tty := s.openRootShell(15 * time.Second)
	time.Sleep(time.Until(s.endOn("web1")))
	s.gone("web1", "alice", mark, purgeLimit)
	s.hangsUp(tty)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	s.within(10*time.Second, "the request to end", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"show", id, "--json"})
		return strings.Contains(r.Out, `"ended"`) && strings.Contains(r.Out, "expired"), r.Out
	})
}

// Revocation ends it at once.
func TestRevocationEndsEverything(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, id, tty := s.openRootShell(10 * time.Minute)
	s.curfew(bob, 0, []string{"revoke", id, "--reason", "wrong host"})
	s.gone("web1", "alice", mark, purgeLimit)
	s.hangsUp(tty)
	if !strings.Contains(tty.Transcript(), "revoked") {
		t.Errorf("the session was not told why:\n%s", tty.Transcript())
	}
	s.ssh(alice, "web1", 255, "true", "Permission denied")
}

// The holder hands back early.
func TestDoneEndsEverything(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, id, tty := s.openRootShell(10 * time.Minute)
	s.curfew(bob, 3, []string{"done", id})
	s.curfew(alice, 0, []string{"done", id})
	s.gone("web1", "alice", mark, purgeLimit)
	s.hangsUp(tty)
}

// An extension needs a new approval over new terms, and the session lives on past the old end.
func TestExtensionKeepsTheSession(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, id, tty := s.openRootShell(25 * time.Second)
	first := s.endOn("web1")
	before := s.on("web1", "ls /run/curfew/sudoers.d")
	s.curfew(alice, 0, []string{"extend", id, "--for", "10m", "--reason", "not done", "--no-wait"})
	s.curfew(alice, 3, []string{"approve", id, "--yes"})
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	s.within(5*time.Second, "the host to swap the rule", func() (bool, string) {
		now := s.on("web1", "ls /run/curfew/sudoers.d")
		return now != before && now != "" && !strings.Contains(now, "\n"), now
	})
	time.Sleep(time.Until(first) + purgeLimit) // the old end passes: that is what is being told
	out := s.on("web1", "pgrep -f '[s]leep 86413' -a || true")
	if !strings.Contains(out, mark) {
		t.Fatalf("the root shell died with the first window")
	}
	s.ok(tty.Send("echo still $((20+22))\n"))
	_, err := tty.Expect(s.ctx, "still 42")
	s.ok(err)
	s.ssh(alice, "web1", 0, "sudo -n id -u", "0")
	s.curfew(alice, 0, []string{"done", id})
	s.gone("web1", "alice", mark, purgeLimit)
}

// A session is told on its terminal that its end comes, scaled for a short grant.
func TestWarningBeforeTheEnd(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	id, err := s.Grant(s.ctx, alice, bob, "web1", "docs", s.lasting(20*time.Second))
	s.ok(err)
	tty, err := alice.StartPTY(s.ctx, "ssh", "-tt", "alice@web1")
	s.ok(err)
	t.Cleanup(func() { tty.Close() })
	for range 2 {
		_, err = tty.Expect(s.ctx, `ends at [0-9:]+ UTC \(in [0-9]+s\)\. To keep it: curfew extend `+id)
		s.ok(err)
	}
	s.hangsUp(tty)
}

// Two overlapping requests of one person: the end of the first leaves the second's session alone.
func TestOverlappingRequestsEndAlone(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	first, err := s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	second, err := s.Grant(s.ctx, alice, bob, "web1", "root", 10*time.Minute)
	s.ok(err)
	tty := s.rootShell(alice)
	s.curfew(alice, 0, []string{"done", first})
	s.within(5*time.Second, "the first to end", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"show", first})
		return strings.Contains(r.Out, "ended"), r.Out
	})
	s.ok(tty.Send("echo still $((20+22))\n"))
	_, err = tty.Expect(s.ctx, "still 42")
	s.ok(err)
	s.curfew(alice, 0, []string{"done", second})
	s.gone("web1", "alice", mark, purgeLimit)
}

// The oldest and the newest Debian that Curfew supports open and end a root shell alike.
func TestOtherDebiansEndEverything(t *testing.T) {
	for _, release := range []string{"bullseye", "trixie"} {
		t.Run(release, func(t *testing.T) {
			s := tell(t, stage.Options{Release: release, Name: release})
			alice, _, id, tty := s.openRootShell(10 * time.Minute)
			s.curfew(alice, 0, []string{"done", id})
			s.gone("web1", "alice", mark, purgeLimit)
			s.hangsUp(tty)
			s.ssh(alice, "web1", 255, "true", "Permission denied")
		})
	}
}
