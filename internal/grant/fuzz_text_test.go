package grant_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// A name that passes has nothing that any file, shell or terminal could read as syntax.
func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"alice", "web1.example.org", "0123456789ab", "a.b", "../x", "-a", "ALL", "a\nb", "аlice",
		"a\x00", "~", "www-data", strings.Repeat("a", 129),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for what, c := range checks {
			if err := c.check(s); err != nil {
				if !clean(err.Error()) {
					t.Errorf("%s: the refusal of %q has control characters: %q", what, s, err)
				}
				continue
			}
			if s == "" || len(s) > c.limit || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
				t.Errorf("%s %q is accepted", what, s)
			}
			if strings.ContainsAny(s[:1], "-.") || strings.Contains(s, "..") && what != "org" {
				t.Errorf("%s %q is accepted", what, s)
			}
			if strings.Contains(s, ".") && what != "host" && what != "org" {
				t.Errorf("%s %q with a dot is accepted: sudo skips such a file", what, s)
			}
		}
	})
}

// What people see has no control byte, ever, and plain text is left as it is.
func FuzzVisibleText(f *testing.F) {
	for _, s := range []string{
		"plain", "a\nb", "\x1b[2J", "\u202e", "\u200b", "\xff\xfe", "\u0085", "語", "👍\ufe0f", "\u3164",
		"\U000e0001", "\\n", "\u2028",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := grant.VisibleText(s)
		if !clean(got) {
			t.Errorf("%q becomes %q", s, got)
		}
		if plain := strings.Trim(s, "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,-/\\") == ""; plain &&
			got != s {
			t.Errorf("plain %q becomes %q", s, got)
		}
		if utf8.RuneCountInString(got) < utf8.RuneCountInString(s) {
			t.Errorf("%q loses characters: %q", s, got)
		}
	})
}

// A rule that passes is one path and plain words.
func FuzzSudoRule(f *testing.F) {
	f.Add("root", "/usr/bin/systemctl", "restart nginx.service", false, false, true)
	f.Add("root", "", "", true, false, false)
	f.Add("www-data", "/bin/id", "", false, true, false)
	f.Add("root\n", "/bin/../bin/sh", "-c *", false, false, true)
	f.Fuzz(func(t *testing.T, as, command, args string, all, anyArgs, contained bool) {
		r := &curfewv1.SudoRule{
			RunAs: as, Command: command, All: all, AnyArgs: anyArgs, Contained: contained,
		}
		if args != "" {
			r.Args = strings.Split(args, " ")
		}
		if text := grant.RuleText(r); !clean(text) {
			t.Errorf("shown as %q", text)
		}
		if err := grant.CheckSudoRule(r); err != nil {
			if !clean(err.Error()) {
				t.Errorf("the refusal has control characters: %q", err)
			}
			return
		}
		const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+@%:=,-"
		for _, word := range append([]string{as, command}, r.GetArgs()...) {
			if strings.Trim(word, plain) != "" {
				t.Errorf("%q is accepted", word)
			}
		}
		if (all || anyArgs || !contained) != grant.RuleRootEquivalent(r) {
			t.Errorf("%s: the label lies", grant.RuleText(r))
		}
		if !all && (!strings.HasPrefix(command, "/") || strings.Contains(command+"/", "/../") ||
			strings.Contains(command, "//")) {
			t.Errorf("command %q is accepted", command)
		}
	})
}

// A key that passes has one form, on one line, without options.
func FuzzSSHKey(f *testing.F) {
	key := granttest.NewPerson("alice", 0).SSHKey
	for _, s := range []string{
		key, key + " comment", `command="x" ` + key, key + "\n" + key, "ssh-rsa " + key[12:], "# " + key, "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := grant.CanonicalSSHKey(line)
		if err != nil {
			return
		}
		again, err := grant.CanonicalSSHKey(got)
		if err != nil || again != got {
			t.Errorf("%q is not canonical: %v", got, err)
		}
		if !clean(got) || strings.Count(got, " ") != 1 || !strings.Contains(line, strings.Fields(got)[1]) {
			t.Errorf("%q becomes %q", line, got)
		}
	})
}
