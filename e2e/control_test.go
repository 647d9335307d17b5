package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/pace"
)

// A control plane stands alone and is ready within a second; backup and restore are one command each.
// Hosts that are connected meanwhile go on with a restored one: a session lives through it, no older
// state counts, and people are told what was lost. A second restore of the same backup is obeyed too.
func TestBackupAndRestore(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, id, tty := s.openRootShell(10 * time.Minute)
	control := func(script string) string {
		t.Helper()
		out, err := s.Control.Shell(s.ctx, script)
		s.ok(err)
		return strings.TrimSpace(string(out))
	}
	control("runuser -u curfew-controlplane -- curfew-controlplane backup /tmp/b.tar")
	// Lost by the restore, but not before the host has seen it: newer than what will be restored.
	later, err := s.Grant(s.ctx, alice, bob, "web1", "docs", time.Hour)
	s.ok(err)
	restore := `systemctl stop curfew-controlplane.service
mv /var/lib/curfew-controlplane "$(mktemp -u /var/lib/lost.XXXXXX)"
install -d -o curfew-controlplane -g curfew-controlplane -m 700 /var/lib/curfew-controlplane
runuser -u curfew-controlplane -- curfew-controlplane restore /tmp/b.tar >&2`
	control(restore)
	watch := pace.Start()
	control("systemctl start curfew-controlplane.service")
	if took := watch.Elapsed(); took > time.Second {
		t.Errorf("the control plane was ready after %s, want at most 1 s", took)
	}
	// Sessions are not restored: who was signed in then may have been shut out since.
	for _, p := range []*stage.Person{s.Admin, alice, bob} {
		s.curfew(p, 0, []string{"login"})
	}
	s.ok(s.Connected(s.ctx, "web1"))
	s.logged("host.lost_by_restore", "web1")
	s.curfew(s.Admin, 0, []string{"hosts", "--json"}, "1 grants that it held")
	if !s.runs("web1") {
		t.Error("the session did not live through the restore")
	}
	s.ok(tty.Send("echo still-$((40 + 2))\n"))
	_, err = tty.Expect(s.ctx, "still-42")
	s.ok(err)
	s.curfew(alice, 1, []string{"show", later})
	// Again, and the host has seen more of the first restored one than the second knows.
	control(restore + "; systemctl start curfew-controlplane.service")
	for _, p := range []*stage.Person{s.Admin, alice, bob} {
		s.curfew(p, 0, []string{"login"})
	}
	s.ok(s.Connected(s.ctx, "web1"))
	if !s.runs("web1") {
		t.Error("the session did not live through the second restore")
	}
	s.curfew(alice, 0, []string{"show", id}, "granted")
	s.curfew(bob, 0, []string{"revoke", id, "--reason", "after the restore"})
	s.gone("web1", "alice", mark, purgeLimit)
	s.curfew(s.Admin, 0, []string{"log", "--verify"})
}

// Approvers hear of a request: a watch shows it, and a signed webhook arrives although its first
// delivery fails. Nobody approves their own.
func TestApproversHear(t *testing.T) {
	s := tell(t, stage.Options{Control: `
webhooks:
  - url: http://hooks:8080/curfew
    secret_file: credential:hook
`, ControlFiles: map[string]string{
		"/etc/curfew/hook.secret":                                     "a secret of at least thirty-two bytes",
		"/etc/systemd/system/curfew-controlplane.service.d/hook.conf": "[Service]\nLoadCredential=hook:/etc/curfew/hook.secret\n",
	}})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	hooks, err := s.AddLaptop(s.ctx, "hooks")
	s.ok(err)
	self, err := os.Executable()
	s.ok(err)
	s.ok(hooks.Put("bin/hook", self))
	receiver := hooks.Cmd(s.ctx, "hook")
	receiver.Env = append(receiver.Env, "CURFEW_E2E_HOOK=:8080")
	var heard lines
	receiver.Stdout = &heard
	s.ok(receiver.Start())
	t.Cleanup(func() { receiver.Cancel(); receiver.Wait() })

	watch, err := bob.StartPTY(s.ctx, "curfew", "watch", "--pending")
	s.ok(err)
	t.Cleanup(func() { watch.Close() })
	ask, err := alice.StartPTY(s.ctx, "curfew", "request", "web1", "--role", "ops", "--for", "10m",
		"--reason", "the web server hangs \x1b[31m\nlog: {\"forged\": true}")
	s.ok(err)
	t.Cleanup(func() { ask.Close() })
	_, err = watch.Expect(s.ctx, "alice")
	s.ok(err)
	var id string
	s.within(10*time.Second, "the request to be listed", func() (bool, string) {
		r := s.curfew(alice, 0, []string{"ls", "--json"})
		if m := regexp.MustCompile(`"id":\s*"([0-9a-z]{12})"`).FindStringSubmatch(r.Out); m != nil {
			id = m[1]
		}
		return id != "", r.Out
	})
	s.curfew(alice, 3, []string{"approve", id, "--yes"})
	s.within(30*time.Second, "the webhook", func() (bool, string) {
		text := heard.String()
		return strings.Contains(text, id) && strings.Contains(text, "v1="), text
	})
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	_, err = ask.Expect(s.ctx, "applied")
	s.ok(err)
	if exit, err := ask.Wait(s.ctx); err != nil || exit != 0 {
		t.Errorf("the request ended with %d, %v", exit, err)
	}
	for _, screen := range []string{ask.Transcript(), watch.Transcript(), heard.String()} {
		if strings.Contains(screen, "\x1b[31m") {
			t.Errorf("an escape sequence of the reason reached the reader: %q", screen)
		}
	}
	r := s.curfew(bob, 0, []string{"log", "--json"})
	if n := strings.Count(r.Out, "the web server hangs"); strings.Contains(r.Out, "\nlog:") || n == 0 {
		t.Errorf("the reason is not one record:\n%s", r.Out)
	}
}

// A host that is offline confirms when it is back, and the clock starts then.
func TestClockStartsAtTheHostsConfirmation(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.on("web1", "systemctl stop curfew-link.service")
	whole := s.lasting(20 * time.Second)
	id, err := alice.Ask(s.ctx, "web1", "ops", whole)
	s.ok(err)
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	time.Sleep(whole / 2) // of all it has, if the clock ran
	s.on("web1", "systemctl start curfew-link.service")
	s.ok(s.Applied(s.ctx, alice, id))
	end := s.endOn("web1")
	time.Sleep(time.Until(end) - whole/4)
	s.ssh(alice, "web1", 0, restart)
	time.Sleep(time.Until(end))
	s.within(purgeLimit, "the window to close", func() (bool, string) {
		out := s.on("web1", "ls /run/curfew/sudoers.d")
		return out == "", out
	})
}

// What happened can be seen: requests, grants, sessions and what they run, hosts, and a trail whose
// chain verifies.
func TestEverythingCanBeSeen(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, id, _ := s.openRootShell(10 * time.Minute)
	s.ssh(alice, "web1", 0, "true") // a change of sessions, at which the host reports at once
	s.within(10*time.Second, "the live session to be shown", func() (bool, string) {
		r := s.curfew(bob, 0, []string{"show", id, "--json"})
		return strings.Contains(r.Out, `"sshd"`) && strings.Contains(r.Out, "sleep") &&
			strings.Contains(r.Out, `"bob"`) && strings.Contains(r.Out, `"applied"`), r.Out
	})
	for _, args := range [][]string{
		{"ls"}, {"ls", "--json"}, {"show", id}, {"hosts"}, {"hosts", "--json"}, {"log"}, {"roles"},
	} {
		s.curfew(bob, 0, args)
	}
	s.curfew(alice, 0, []string{"hosts"}, "web1")
	for _, kind := range []string{"request", "approv", "grant.applied", "session.opened"} {
		s.curfew(bob, 0, []string{"log"}, kind)
	}
	s.curfew(bob, 0, []string{"log", "--verify"})
	// An alteration is detected: by the reader, who remembers the last head, and by the host.
	s.ok(s.tamper())
	r, err := bob.Curfew(s.ctx, "log", "--verify")
	s.ok(err)
	if r.Exit == 0 {
		t.Errorf("an altered trail verifies:\n%s", r)
	}
}
