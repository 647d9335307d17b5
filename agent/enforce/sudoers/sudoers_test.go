package sudoers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var end = time.Date(2026, 11, 24, 12, 30, 15, 0, time.UTC)

func dropin(rules ...*curfewv1.SudoRule) Dropin {
	return Dropin{
		Grant: grant.ID{1, 2, 3}, RequestID: "k3v9x2m7q4ab", Login: "alice", End: end, Rules: rules,
	}
}

func checker(t *testing.T) Checker {
	t.Helper()
	c := Checker{
		Sudo: "/usr/bin/sudo", Visudo: "/usr/sbin/visudo", Cvtsudoers: "/usr/bin/cvtsudoers", Timeout: 20 * time.Second,
	}
	for _, program := range []string{c.Visudo, c.Cvtsudoers} {
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("this test asks the real sudo: install the package sudo: %v", err)
		}
	}
	return c
}

func TestRenderGolden(t *testing.T) {
	got, err := Render(dropin(
		&curfewv1.SudoRule{
			RunAs: "root", Command: "/usr/bin/systemctl",
			Args: []string{"restart", "nginx.service"}, Contained: true,
		},
		&curfewv1.SudoRule{RunAs: "www-data", Command: "/usr/bin/id"},
		&curfewv1.SudoRule{RunAs: "root", Command: "/usr/bin/journalctl", AnyArgs: true},
		&curfewv1.SudoRule{
			RunAs: "root", Command: "/opt/a:b/c=d", Args: []string{"--x=1,2", "-u", "%H:@"},
		},
		&curfewv1.SudoRule{RunAs: "root", All: true},
	))
	if err != nil {
		t.Fatal(err)
	}
	want := "# Curfew grant " + (grant.ID{1, 2, 3}).String() + ` of request k3v9x2m7q4ab. ` +
		`Written by curfew-agent, which undoes changes.
Defaults:alice pam_session, pam_acct_mgmt, use_pty, timestamp_timeout=0
alice ALL=(root) NOTAFTER=20261124123015Z NOPASSWD: /usr/bin/systemctl restart nginx.service
alice ALL=(www-data) NOTAFTER=20261124123015Z NOPASSWD: /usr/bin/id ""
alice ALL=(root) NOTAFTER=20261124123015Z NOPASSWD: /usr/bin/journalctl
alice ALL=(root) NOTAFTER=20261124123015Z NOPASSWD: /opt/a\:b/c\=d --x\=1\,2 -u %H\:@
alice ALL=(ALL:ALL) NOTAFTER=20261124123015Z NOPASSWD: ALL
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := checker(t).Syntax(context.Background(), got); err != nil {
		t.Error(err)
	}
}

// genRule draws any rule that internal/grant lets through.
func genRule() *rapid.Generator[*curfewv1.SudoRule] {
	const text = `[a-zA-Z0-9/._+@%:=,\-]{1,12}`
	return rapid.Custom(func(t *rapid.T) *curfewv1.SudoRule {
		r := &curfewv1.SudoRule{RunAs: rapid.StringMatching(`[a-z_][a-z0-9_-]{0,8}`).Draw(t, "as")}
		switch rapid.IntRange(0, 8).Draw(t, "kind") {
		case 0:
			r.RunAs, r.All = "root", true
			return r
		case 1:
			r.AnyArgs = true
		case 2:
		default:
			r.Args = rapid.SliceOfN(rapid.StringMatching(text), 1, 5).Draw(t, "args")
		}
		parts := rapid.SliceOfN(rapid.StringMatching(`[a-zA-Z0-9_+@%:=,\-][a-zA-Z0-9._+@%:=,\-]{0,8}`),
			1, 4).Draw(t, "path")
		r.Command = "/" + strings.Join(parts, "/")
		return r
	})
}

// Promise 9: what sudo parses from a drop-in is exactly the approved typed rule.
func TestSudoReadsExactlyTheTypedRules(t *testing.T) {
	c := checker(t)
	rapid.Check(t, func(rt *rapid.T) {
		d := dropin(rapid.SliceOfN(genRule(), 1, 6).Draw(rt, "rules")...)
		for _, r := range d.Rules {
			if err := grant.CheckSudoRule(r); err != nil {
				rt.Fatalf("the generator drew a rule that is refused: %v", err)
			}
		}
		text, err := Render(d)
		if err != nil {
			rt.Fatal(err)
		}
		back, err := Parse(text)
		if err != nil {
			rt.Fatalf("%v\n%s", err, text)
		}
		if err := same(d, back); err != nil {
			rt.Fatal(err)
		}
		differ(rt, c, d, text)
	})
}

// differ compares sudo's reading of text with the typed rules.
func differ(t rapid.TB, c Checker, d Dropin, text []byte) {
	out, err := c.run(context.Background(), c.Cvtsudoers, text, "-f", "json", "-")
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, text)
	}
	got, err := ParsePolicy(out)
	if err != nil {
		t.Fatal(err)
	}
	want := Meaning(d)
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if want, err = ParsePolicy(raw); err != nil { // the same Go types as what was read
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("typed -, sudo's reading +:\n%s\n%s", diff, text)
	}
}

func TestRefused(t *testing.T) {
	ok := &curfewv1.SudoRule{RunAs: "root", Command: "/bin/true"}
	cases := map[string]Dropin{
		"no rules":            dropin(),
		"all as a lesser one": dropin(&curfewv1.SudoRule{RunAs: "www-data", All: true}),
		"missing rule":        dropin(ok, nil),
	}
	inject := []string{
		"\n", ",", ":", "=", "!", "#", "%", "\\", "@include /tmp/x", "ALL", "-", "*", "\x00", "a\nroot",
		"a b", "é", "a\\", "a.b", "a~", "../x", "\u202e", strings.Repeat("a", 300),
	}
	for _, bad := range inject {
		d := dropin(ok)
		d.Login = "a" + bad
		if bad != "-" {
			cases[fmt.Sprintf("login %q", bad)] = d
		}
		d = dropin(ok)
		d.RequestID = bad
		cases[fmt.Sprintf("request %q", bad)] = d
		as := &curfewv1.SudoRule{RunAs: bad, Command: "/bin/true"}
		cases[fmt.Sprintf("run as %q", bad)] = dropin(as)
	}
	for _, bad := range []string{
		"true", "/bin/../bin/true", "/bin/true\n", "/bin/tr*e", "/bin/true ALL", "/bin/true #", "", "/",
		"/bin/true\\", "/bin/true;x", "sudoedit", "!/bin/true", "/bin/[a]", "^/bin/.*$", "/bin//x",
	} {
		cases[fmt.Sprintf("command %q", bad)] = dropin(
			&curfewv1.SudoRule{RunAs: "root", Command: bad})
	}
	for _, bad := range []string{
		"", " ", "a b", "\n", "*", "?", "[a]", `"`, "'", "\\", "!", "#x", "a\tb", "^.*$", "\x7f", "é",
	} {
		cases[fmt.Sprintf("argument %q", bad)] = dropin(
			&curfewv1.SudoRule{RunAs: "root", Command: "/bin/true", Args: []string{bad}})
	}
	for name, d := range cases {
		text, err := Render(d)
		if !errors.Is(err, ErrRule) || text != nil {
			t.Errorf("%s: rendered as %q, error %v", name, text, err)
		}
	}
}

func TestParseRefusesWhatRenderDoesNotWrite(t *testing.T) {
	text, err := Render(dropin(&curfewv1.SudoRule{
		RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "a=b"},
	}))
	if err != nil {
		t.Fatal(err)
	}
	edits := map[string]func(string) string{
		"second rule of another": func(s string) string { return s + "bob ALL=(root) NOPASSWD: ALL\n" },
		"include":                func(s string) string { return s + "@include /tmp/x\n" },
		"two spaces":             func(s string) string { return strings.Replace(s, "restart ", "restart  ", 1) },
		"no escape":              func(s string) string { return strings.Replace(s, `a\=b`, "a=b", 1) },
		"no NOTAFTER":            func(s string) string { return strings.Replace(s, "NOTAFTER=20261124123015Z ", "", 1) },
		"local NOTAFTER":         func(s string) string { return strings.Replace(s, "15Z", "15", 1) },
		"weaker settings":        func(s string) string { return strings.Replace(s, "pam_session", "!pam_session", 1) },
		"cut":                    func(s string) string { return s[:len(s)-1] },
		"any target":             func(s string) string { return strings.Replace(s, "(root)", "(ALL:ALL)", 1) },
		"continued line":         func(s string) string { return strings.Replace(s, "restart", "\\\nrestart", 1) },
		"empty":                  func(string) string { return "" },
	}
	for name, edit := range edits {
		if d, err := Parse([]byte(edit(string(text)))); err == nil {
			t.Errorf("%s: accepted as %+v", name, d)
		}
	}
	if _, err := Parse(text); err != nil {
		t.Errorf("untouched: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, rules := range [][]*curfewv1.SudoRule{
		{{RunAs: "root", All: true}},
		{{RunAs: "root", Command: "/bin/a,b:c=d", Args: []string{"x=y", "-z"}}},
		{{RunAs: "www-data", Command: "/bin/id"}, {RunAs: "root", Command: "/bin/ls", AnyArgs: true}},
	} {
		text, err := Render(dropin(rules...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(bytes.Replace(text, []byte("NOPASSWD: "), []byte("NOPASSWD: \\\n"), 1))
	}
	f.Add([]byte("Defaults:alice !pam_session\nalice ALL=(ALL:ALL) NOPASSWD: ALL\n"))
	c := Checker{Cvtsudoers: "/usr/bin/cvtsudoers", Timeout: 20 * time.Second}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Render(d)
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%q is read as %+v, which is rendered as %q (%v)", text, d, again, err)
		}
		differ(t, c, d, text)
	})
}

// FuzzTypedRule puts rules of any text into a drop-in. One that the typed grammar lets through is read
// by sudo as exactly that rule; any other leaves no text at all.
func FuzzTypedRule(f *testing.F) {
	f.Add("root", "/usr/bin/systemctl", "restart nginx.service", false, false, true)
	f.Add("www-data", "/bin/id", "", false, true, false)
	f.Add("root", "", "", true, false, false)
	f.Add("root", "/bin/a,b:c=d", "x=y -- -z @include #1 %wheel", false, false, false)
	f.Add("root\n", "/bin/../sh", "-c *", false, false, true)
	f.Add("ALL", "/bin/tr\\ue", "\\", false, false, true)
	c := Checker{Cvtsudoers: "/usr/bin/cvtsudoers", Timeout: 20 * time.Second}
	f.Fuzz(func(t *testing.T, as, command, args string, all, anyArgs, contained bool) {
		r := &curfewv1.SudoRule{
			RunAs: as, Command: command, All: all, AnyArgs: anyArgs, Contained: contained,
		}
		if args != "" {
			r.Args = strings.Split(args, " ")
		}
		d := dropin(r, &curfewv1.SudoRule{RunAs: "root", Command: "/bin/true"})
		refused := grant.CheckSudoRule(r)
		text, err := Render(d)
		if (err != nil) != (refused != nil) || (err != nil) != (text == nil) {
			t.Fatalf("the grammar says %v, the drop-in %v with %q", refused, err, text)
		}
		if err != nil {
			return
		}
		back, err := Parse(text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if err := same(d, back); err != nil {
			t.Fatal(err)
		}
		differ(t, c, d, text)
	})
}

func TestSyntaxNeedsAnHonestVisudo(t *testing.T) {
	text, err := Render(dropin(&curfewv1.SudoRule{RunAs: "root", Command: "/bin/true"}))
	if err != nil {
		t.Fatal(err)
	}
	script := func(name, body string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := map[string]struct {
		visudo string
		want   error
	}{
		"missing":  {"/nonexistent/visudo", ErrTool},
		"hanging":  {script("visudo", "exec sleep 60"), ErrTool},
		"lying":    {script("visudo", "exit 0"), ErrTool},
		"killed":   {script("visudo", "kill -9 $$"), ErrTool},
		"refusing": {script("visudo", "echo no; exit 1"), ErrRule},
	}
	for name, tt := range tests {
		start := pace.Start()
		c := Checker{Visudo: tt.visudo, Timeout: 300 * time.Millisecond}
		if err := c.Syntax(context.Background(), text); !errors.Is(err, tt.want) {
			t.Errorf("%s visudo: %v, want %v", name, err, tt.want)
		}
		if took := start.Elapsed(); took > 5*time.Second {
			t.Errorf("%s visudo took %v", name, took)
		}
	}
	real := checker(t)
	if err := real.Syntax(context.Background(), []byte("alice ALL=(\n")); !errors.Is(err, ErrRule) {
		t.Errorf("real visudo on broken text: %v", err)
	}
}

// A host with another sudo says so: nothing would read the rules, and "applied" would be a lie.
func TestAnotherSudoIsRefused(t *testing.T) {
	script := func(body string) string {
		path := filepath.Join(t.TempDir(), "sudo")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct{ sudo, says string }{
		"the real one": {"/usr/bin/sudo", ""},
		"sudo-rs":      {script("echo sudo-rs 0.2.8 >&2"), `calls itself "sudo-rs 0.2.8"`},
		"a wrapper":    {script("echo hello; echo Sudo version 1.9.13"), `calls itself "hello"`},
		"mute":         {script("exit 0"), `calls itself ""`},
		"missing":      {"/nonexistent/sudo", ErrTool.Error()},
		"broken":       {script("echo no >&2; exit 1"), ErrTool.Error()},
		"confined":     {script("echo no >&2; echo Sudo version 1.9.13; exit 1"), ""},
		"hanging":      {script("exec sleep 60"), ErrTool.Error()},
	} {
		limit := 20 * time.Second
		if name == "hanging" {
			limit = 300 * time.Millisecond
		}
		err := Checker{Sudo: tt.sudo, Timeout: limit}.Genuine(context.Background())
		if tt.says == "" && err != nil || tt.says != "" && (err == nil ||
			!strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s: %v, want %q", name, err, tt.says)
		}
	}
}

func TestStanding(t *testing.T) {
	c := checker(t)
	ours := dropin(&curfewv1.SudoRule{RunAs: "root", Command: "/bin/true"})
	text, err := Render(ours)
	if err != nil {
		t.Fatal(err)
	}
	who := Person{
		Login: "alice", UID: 1900000001, Groups: []string{"alice", "web"},
		GIDs: []uint32{1900000001, 33}, Targets: []string{"root"},
	}
	tests := map[string]struct {
		sudoers string
		want    int
	}{
		"root and the admins only":   {"root ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n", 0},
		"by name":                    {"alice ALL=(root) /bin/ls\n", 1},
		"by group":                   {"%web ALL=(root) /bin/ls\n", 1},
		"by gid":                     {"%#33 ALL=(root) /bin/ls\n", 1},
		"by uid":                     {"#1900000001 ALL=(root) /bin/ls\n", 1},
		"everybody":                  {"ALL ALL=(root) NOPASSWD: /bin/ls\n", 1},
		"everybody but her":          {"ALL, !alice ALL=(root) NOPASSWD: /bin/ls\n", 0},
		"by alias":                   {"User_Alias X = bob, alice\nX ALL=(root) /bin/ls\n", 1},
		"netgroup":                   {"+people ALL=(root) /bin/ls\n", 1},
		"ours":                       {string(text), 0},
		"ours, and the same twice":   {string(text) + string(text), 1},
		"ours without its end":       {strings.ReplaceAll(string(text), "NOTAFTER=20261124123015Z ", ""), 1},
		"no PAM session":             {"Defaults !pam_session\n", 1},
		"no PAM session for her":     {"Defaults:alice !pam_session\n", 1},
		"no PAM session for bob":     {"Defaults:bob !pam_session\n", 0},
		"no account check as root":   {"Defaults>root !pam_acct_mgmt\n", 1},
		"another PAM service":        {"Defaults pam_service=other\n", 1},
		"the usual PAM services":     {"Defaults pam_service=sudo, pam_login_service=sudo-i\n", 0},
		"no PAM session per command": {"Defaults!/bin/ls !pam_session\n", 1},
		"unrelated settings":         {"Defaults env_reset, mail_badpass, secure_path=\"/bin\"\n", 0},
	}
	for name, tt := range tests {
		c.Sudoers = filepath.Join(t.TempDir(), "sudoers")
		if err := os.WriteFile(c.Sudoers, []byte(tt.sudoers), 0o440); err != nil {
			t.Fatal(err)
		}
		p, err := c.Policy(context.Background())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := Standing(p, who, []Dropin{ours}); len(got) != tt.want {
			t.Errorf("%s: found %q, want %d", name, got, tt.want)
		}
	}
}
