package agentcli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/doctor"
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
		{[]string{"join", "--server", "x:1", "--cloud", "aws", "a"}, "a token and --cloud"},
		{[]string{"join", "--server", "x:1", "--cloud", "oci"}, "want aws, gcp or azure"},
		{[]string{"join", "--server", "x:1", "--cloud", "aws"}, "--ca-pin"},
		{[]string{"join", "--server", "x:1", "--cloud", "aws", "--ca-pin", "AAAA"}, "43 characters"},
		{[]string{"status", "now"}, `takes no argument "now"`},
		{[]string{"link", "--log-level", "loud"}, "unknown log level"},
		{[]string{"enforce-on", "now"}, `takes no argument "now"`},
		{[]string{"enforce-off", "--for", "1h"}, "unknown flag"},
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

// Each certificate is spoken of before it ends, and what keeps a host from enforcing fails the command.
func TestFindings(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for left, want := range map[time.Duration]string{
		-time.Second: "it ended 2026-11-24T11:59:59Z", time.Hour: "it ends 2026-11-24T13:00:00Z",
		2 * soon: "",
	} {
		err := lasts(now.Add(left), now, soon)
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%v left: %v, want %q", left, err, want)
		}
	}
	list := []doctor.Finding{
		{What: "one"}, {What: "two", Err: errors.New("is\x1b[2J odd"), Mend: "type two", Warning: true},
	}
	if err := problems(list); err != nil {
		t.Errorf("a warning fails: %v", err)
	}
	list = append(list, doctor.Finding{What: "three", Err: errors.New("is broken"), Mend: "type three"})
	if err := problems(list); err == nil || !strings.Contains(err.Error(), "1 problem: three") {
		t.Errorf("a problem does not fail: %v", err)
	}
	var out, structured bytes.Buffer
	printFindings(&out, list, true)
	for _, want := range []string{
		"ok       one\n", "warning  two: is", "problem  three: is broken\n         mend it: type three\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing:\n%s", want, out.String())
		}
	}
	if strings.ContainsRune(out.String(), '\x1b') {
		t.Error("an escape sequence reaches the terminal")
	}
	if err := findingsJSON(&structured, list); err != nil ||
		!strings.Contains(structured.String(), `"level": "problem"`) {
		t.Errorf("%v\n%s", err, structured.String())
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
