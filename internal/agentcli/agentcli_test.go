package agentcli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent"
)

func run(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Main(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"join"}, "curfew admin host add"},
		{[]string{"join", "--server", "x:1"}, "needs --server and a token"},
		{[]string{"join", "--server", "x:1", "a", "b"}, "one token is enough"},
		{[]string{"join", "--server", "x:1", "--token", "a", "b"}, "one token is enough"},
		{[]string{"join", "--labels", "x"}, "unknown flag"},
		{[]string{"status", "now"}, `takes no argument "now"`},
		{[]string{"enforce", "--log-level", "loud"}, "unknown log level"},
	} {
		code, _, stderr := run(tt.args...)
		if code != exitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: exit %d, %q; want %q", tt.args, code, stderr, tt.want)
		}
	}
	if code, out, _ := run("version"); code != 0 || strings.TrimSpace(out) == "" {
		t.Errorf("version: exit %d, %q", code, out)
	}
	if code, out, _ := run("--help"); code != 0 || !strings.Contains(out, "join") ||
		strings.Contains(out, "purge") {
		t.Errorf("help: exit %d\n%s", code, out)
	}
}

func TestBadTokenIsRefusedBeforeAnythingIsKept(t *testing.T) {
	if _, err := os.Stat("/var/lib/curfew"); err == nil {
		t.Fatal("this machine is a Curfew host; the test must not touch it")
	}
	code, _, stderr := run("join", "--server", "127.0.0.1:1", "cft1.nonsense")
	if code != exitFailed || !strings.Contains(stderr, "join token") {
		t.Errorf("exit %d, %q", code, stderr)
	}
	if _, err := os.Stat("/var/lib/curfew"); err == nil {
		t.Error("a store was made for a token that is none")
	}
}

func TestStatusTable(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	err := printStatus(&out, &agent.Status{
		Version: "v1", HostID: "ab", Name: "web1", Mode: "enforce", Connected: true, Trust: 2, Epoch: 1,
		Sequence: 7, Events: 9,
		Grants: []agent.GrantStatus{{
			Request: "k3v9x2m7q4ab", Login: "alice", Role: "ops", Class: "account", Status: "applied",
			Start: now, End: now.Add(10 * time.Minute),
		}},
		Sessions: []agent.SessionStatus{{
			Request: "k3v9x2m7q4ab", Login: "alice", Service: "sshd", PID: 42, Remote: "10.0.0.1",
			Since: now, Commands: []string{"bash", "evil\x1b[2J"},
		}},
		Problems: []string{"something\nis wrong"},
	}, now)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"web1", "connected", "state (1, 7)", "k3v9x2m7q4ab", "10m0s", "applied", "42",
		`something\nis wrong`, `evil\x1b[2J`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing:\n%s", want, out.String())
		}
	}
	if strings.ContainsRune(out.String(), '\x1b') {
		t.Error("an escape sequence reaches the terminal")
	}
}

// A host where everything is installed is well but for the root half; one where nothing is says how
// to mend each thing.
func TestDoctor(t *testing.T) {
	root := t.TempDir()
	var out bytes.Buffer
	if err := diagnose(context.Background(), &out, root); err == nil {
		t.Error("an empty host is well")
	}
	if strings.Contains(out.String(), "ok       sshd") || strings.Count(out.String(), "mend it:") < 10 {
		t.Errorf("an empty host:\n%s", out.String())
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\ncurfew-link:x:999:999::/:/usr/sbin/nologin\n",
		"etc/group":  "curfew-users:x:990:\n", "etc/curfew/agent.yaml": "mode: enforce\n",
		"var/lib/curfew/ledger.json":                      "{}",
		"usr/lib/x86_64-linux-gnu/security/pam_curfew.so": "",
		"usr/lib/x86_64-linux-gnu/libnss_curfew.so.2":     "",
		"etc/sudoers.d/curfew":                            "#includedir /run/curfew/sudoers.d\n",
		"etc/ssh/sshd_config":                             "Include /etc/ssh/sshd_config.d/*.conf\n",
		"etc/ssh/sshd_config.d/50-curfew.conf":            "Match Group curfew-users\n",
		"etc/nsswitch.conf":                               "passwd: files curfew\ngroup: files curfew systemd\nshadow: files curfew\n",
		"etc/pam.d/common-account":                        "account [default=die] pam_curfew.so\n",
		"etc/pam.d/common-session":                        "session x pam_curfew.so\n",
		"etc/pam.d/common-session-noninteractive":         "session x pam_curfew.so\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out.Reset()
	if err := diagnose(context.Background(), &out, root); err == nil ||
		strings.Count(out.String(), "problem  ") != 1 ||
		!strings.Contains(out.String(), "systemctl enable --now curfew-agent.target") {
		t.Errorf("everything but the root half: %v\n%s", err, out.String())
	}
	commented := filepath.Join(root, "etc/pam.d/common-account")
	if err := os.WriteFile(commented, []byte("# account pam_curfew.so\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	_ = diagnose(context.Background(), &out, root) // it fails either way
	if !strings.Contains(out.String(), "problem  PAM, common-account") {
		t.Errorf("a commented line counts:\n%s", out.String())
	}
}

func TestExampleSettingsAreTheDefaults(t *testing.T) {
	name := filepath.Join(t.TempDir(), "curfew", "agent.yaml")
	if err := writeExample(name); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var plain []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "# ") {
			line = line[1:]
		}
		plain = append(plain, line)
	}
	got, err := agent.ParseSettings([]byte(strings.Join(plain, "")))
	if err != nil {
		t.Fatal(err)
	}
	want := agent.DefaultSettings()
	if got.Mode != want.Mode || got.Ceiling.MaxDuration != want.Ceiling.MaxDuration ||
		got.UIDRange != want.UIDRange || got.Skel != want.Skel || got.LeaseAction != want.LeaseAction ||
		got.BreakGlassGroup != want.BreakGlassGroup || len(got.GatedUsers) != 0 {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := os.WriteFile(name, []byte("mode: enforce\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeExample(name); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(name); string(data) != "mode: enforce\n" {
		t.Error("an admin's file is overwritten")
	}
}
