package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// People sign in with their SSH key, from a file or an agent. A session is bound to a key on the
// device: its traces on another device open nothing.
func TestSignInWithTheSSHKey(t *testing.T) {
	s := tell(t, stage.Options{Hosts: []string{}})
	alice, err := s.Person(s.ctx, "alice")
	s.ok(err)
	s.curfew(alice, 0, []string{"whoami"}, "alice")
	s.curfew(alice, 0, []string{"logout"})
	s.curfew(alice, 4, []string{"ls"}, "curfew login")

	r, err := alice.Command(s.ctx, "bash", "-c", `eval "$(ssh-agent -s)" >/dev/null
ssh-add -q ~/.ssh/id_ed25519 && mv ~/.ssh/id_ed25519 ~/.ssh/away && curfew login
mv ~/.ssh/away ~/.ssh/id_ed25519; kill "$SSH_AGENT_PID"; curfew whoami`)
	s.ok(err)
	s.expect(r, "login by agent", 0, "alice")

	mallory, err := s.Person(s.ctx, "mallory")
	s.ok(err)
	config, err := alice.Command(s.ctx, "bash", "-c", "cat ~/.config/curfew/config.yaml")
	s.ok(err)
	s.ok(mallory.Write(".config/curfew/config.yaml", []byte(config.Out), 0o600))
	r = s.curfew(mallory, 0, []string{"whoami"})
	if strings.Contains(r.Out, "alice") {
		t.Errorf("mallory is taken for alice: %s", r)
	}
	s.curfew(mallory, 3, []string{"admin", "user", "ls"})
	s.curfew(mallory, 4, []string{"login", "--user", "alice"})
}

// Bad input is refused with the reason, by the API, before anybody is bothered with it.
func TestBadInputIsRefusedWithWords(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	ask := func(args ...string) []string { return append([]string{"request", "--no-wait"}, args...) }
	for _, c := range []struct {
		exit int
		args []string
		word string
	}{
		{2, ask("web1", "--role", "ops", "--for", "0s", "--reason", "x"), "duration"},
		{2, ask("web1", "--role", "ops", "--for", "-5m", "--reason", "x"), "duration"},
		{2, ask("web1", "--role", "ops", "--for", "5h", "--reason", "x"), "4h"},
		{1, ask("web1", "--role", "nope", "--for", "5m", "--reason", "x"), "nope"},
		{1, ask("nope", "--role", "ops", "--for", "5m", "--reason", "x"), "nope"},
		{2, ask("web1;id", "--role", "ops", "--for", "5m", "--reason", "x"), "host name"},
		{2, ask("web1", "--role", "ops", "--for", "5m", "--reason", " "), "reason"},
		{2, ask("web1", "--role", "ops", "--for", "5m", "--reason", strings.Repeat("x", 4097)), "4096"},
		{2, []string{"request", "web1"}, "--role"},
		{1, []string{"show", "000000000000"}, "000000000000"},
	} {
		r, err := alice.Curfew(s.ctx, c.args...)
		s.ok(err)
		if r.Exit != c.exit || !strings.Contains(r.Err, c.word) || strings.Contains(r.Err, "internal error") {
			t.Errorf("curfew %.80q: want exit %d and %q, got %s", c.args, c.exit, c.word, r)
		}
	}
	for _, c := range [][]string{
		{"admin", "user", "add", "../../etc", "--key", "ssh-ed25519 AAAA"},
		{"admin", "user", "add", "a.b", "--key", "ssh-ed25519 AAAA"},
		{"admin", "user", "add", "аlice", "--key", "ssh-ed25519 AAAA"}, // Cyrillic а
		{"admin", "role", "set", "evil", "--sudo", "/usr/bin/id\nALL=ALL", "--approvers", "sre", "--approvals", "1", "--max", "1h"},
		{"admin", "role", "set", "evil", "--sudo", "/bin/bash", "--contained", "--approvers", "sre", "--approvals", "1", "--max", "1h"},
		{"admin", "role", "set", "evil", "--sudo", "/usr/bin/*", "--approvers", "sre", "--approvals", "1", "--max", "1h"},
		{"admin", "group", "set", "sre", "nobody-such"},
	} {
		r, err := s.Admin.Curfew(s.ctx, c...)
		s.ok(err)
		if r.Exit == 0 || strings.Contains(r.Err, "internal error") || strings.Contains(r.Err, "panic") {
			t.Errorf("curfew %q: want a refusal, got %s", c, r)
		}
	}
	_ = bob
}

// What the API lets through the host may still refuse: its own ceiling, in words that reach the
// requester.
func TestHostsCeilingRefuses(t *testing.T) {
	s := tell(t, stage.Options{Agent: `mode: enforce
ceiling:
  max_duration: 30m
  allow_root_equivalent: false
`})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	for role, words := range map[string]string{"root": "root-equivalent", "docs": "30m"} {
		d := map[string]time.Duration{"root": 10 * time.Minute, "docs": time.Hour}[role]
		id, err := alice.Ask(s.ctx, "web1", role, d)
		s.ok(err)
		s.curfew(bob, 0, []string{"approve", id, "--yes"})
		s.within(10*time.Second, "the host's refusal to be shown", func() (bool, string) {
			r := s.curfew(alice, 0, []string{"show", id})
			return strings.Contains(r.Out, words) && regexp.MustCompile(`(?i)rejected|refused`).MatchString(r.Out), r.Out
		})
	}
	s.ssh(alice, "web1", 255, "true")
}

// A ceiling that is lowered under a live grant ends what is over it, at once.
func TestLoweredCeilingEndsWhatIsOverIt(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _, tty := s.openRootShell(10 * time.Minute)
	lower := strings.Replace(stage.DefaultAgent, "equivalent: true", "equivalent: false", 1)
	s.ok(s.Hosts["web1"].Write("/etc/curfew/agent.yaml", []byte(lower), 0o644))
	s.gone("web1", "alice", mark, purgeLimit)
	s.hangsUp(tty)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
}

// A broken configuration is refused with line and field, and the old one stays.
func TestBrokenConfigSaysLineAndField(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	s.ok(s.Hosts["web1"].Write("/etc/curfew/agent.yaml",
		[]byte("mode: enforce\nceiling:\n  max_duration: 8h\n  allow_rot: true\n"), 0o644))
	s.within(5*time.Second, "the agent to refuse it", func() (bool, string) {
		out := s.on("web1", "journalctl -q --no-pager -u curfew-enforce -n 20")
		return strings.Contains(out, "line 4") && strings.Contains(out, "allow_rot"), out
	})
	s.works(alice, 2*time.Second)
	s.within(10*time.Second, "the control plane to hear of it", func() (bool, string) {
		r := s.curfew(s.Admin, 0, []string{"hosts", "--json"})
		return strings.Contains(r.Out, "allow_rot"), r.Out
	})
}
