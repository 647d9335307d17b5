package grant_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/curfew-access/curfew/internal/grant"
)

// checks are all name rules with a name that passes and the longest length.
var checks = map[string]struct {
	check func(string) error
	good  []string
	limit int
}{
	"user":    {grant.CheckUserName, []string{"alice", "_apt", "a", "svc-1_x", "ev"}, 32},
	"group":   {grant.CheckGroupName, []string{"leads", "l2-on-call", "a"}, 32},
	"unix":    {grant.CheckUnixGroup, []string{"adm", "www-data", "_ssh"}, 32},
	"role":    {grant.CheckRoleName, []string{"ops", "db-admin", "r2"}, 32},
	"host":    {grant.CheckHostName, []string{"web1", "web1.example.org", "10.0.0.1"}, 128},
	"org":     {grant.CheckOrganisation, []string{"example.org", "acme"}, 64},
	"request": {grant.CheckRequestID, []string{"0123456789ab", "k3v9x2m7q4ab"}, 12},
}

// Attacks A6, A7 and A13: characters of sudoers, paths, shells and terminals; letters that look
// like others, fold to others or cannot be seen.
func TestNamesRefuseEverythingThatCouldBecomeSyntax(t *testing.T) {
	bad := []string{
		"", "\n", ",", ":", "=", "!", "#", "%", "\\", "@", "@include", "ALL", " ", "\t", "\r", "\x00",
		"\x1b[2J", "*", "?", "[a]", "{a}", "(", ")", "<", ">", "|", ";", "&", "$", "`", "'", "\"", "~",
		"/", "../", "..", "+", "-a", "Alice", "aliCe", "a b", "a\nb", "a\nroot ALL=(ALL) ALL", "a,b",
		"a%b", "a@b", "a#b", "a\\b", "a/b", "a~", "a\u0301", "\u0430lice" /* Cyrillic a */, "alıce", "ſam",
		"\u212Aate" /* Kelvin */, "ａlice" /* full width */, "ali\u200bce", "ali\u00adce", "\u202ealice",
		"alice\ufeff", "a\x7f", "a\x80", "\xff", strings.Repeat("a", 300),
	}
	for what, c := range checks {
		for _, good := range c.good {
			if err := c.check(good); err != nil {
				t.Errorf("%s %q: %v", what, good, err)
			}
		}
		for _, s := range bad {
			err := c.check(s)
			if err == nil {
				t.Errorf("%s %q is accepted", what, s)
			} else if !clean(err.Error()) {
				t.Errorf("%s %q: the refusal itself has control characters: %q", what, s, err)
			}
		}
		long := strings.Repeat("a", c.limit)
		if what == "host" {
			long = strings.Repeat("a.", c.limit/2-1) + "aa"
		}
		if err := c.check(long); err != nil {
			t.Errorf("%s of %d bytes: %v", what, len(long), err)
		}
		if err := c.check(long + "a"); err == nil {
			t.Errorf("%s of %d bytes is accepted", what, len(long)+1)
		}
	}
}

// Every single byte, at the front, in the middle and at the end.
func TestNamesByEveryByte(t *testing.T) {
	const lower, digit = "abcdefghijklmnopqrstuvwxyz", "0123456789"
	for _, c := range []struct {
		what       string
		check      func(string) error
		first, all string
	}{
		{"user", grant.CheckUserName, lower + "_", lower + digit + "_-"},
		{"unix group", grant.CheckUnixGroup, lower + "_", lower + digit + "_-"},
		{"group", grant.CheckGroupName, lower, lower + digit + "-"},
		{"role", grant.CheckRoleName, lower, lower + digit + "-"},
		{"host", grant.CheckHostName, lower + digit, lower + digit + "-."},
		{"organisation", grant.CheckOrganisation, lower + digit, lower + digit + "-."},
	} {
		for b := range 256 {
			ch := string([]byte{byte(b)})
			if ok := c.check(ch+"x") == nil; ok != strings.Contains(c.first, ch) {
				t.Errorf("%s beginning with %q: accepted %v", c.what, ch, ok)
			}
			if ok := c.check("x"+ch+"x") == nil; ok != strings.Contains(c.all, ch) {
				t.Errorf("%s with %q inside: accepted %v", c.what, ch, ok)
			}
		}
	}
}

func TestHostNameLabels(t *testing.T) {
	for _, s := range []string{
		".", "a.", ".a", "a..b", "-a", "a-", "a.-b", "a-.b",
		strings.Repeat("a", 64) + ".b",
	} {
		if grant.CheckHostName(s) == nil {
			t.Errorf("host name %q is accepted", s)
		}
	}
}

func TestRequestIDsAreDrawnInTheFormThatIsChecked(t *testing.T) {
	for b := range 256 {
		id, err := grant.NewRequestID(bytes.NewReader(bytes.Repeat([]byte{byte(b)}, 8)))
		if err != nil {
			t.Fatal(err)
		}
		if err := grant.CheckRequestID(id); err != nil {
			t.Error(err)
		}
	}
	if _, err := grant.NewRequestID(bytes.NewReader(nil)); err == nil {
		t.Error("a request id was drawn without randomness")
	}
	if grant.CheckRequestID("0123456789a") == nil {
		t.Error("eleven characters are accepted")
	}
}

func TestReasons(t *testing.T) {
	for _, s := range []string{"x", "nginx is down\nsee #1", "\u202e\x1b[2J{\"a\":1}", strings.Repeat("ä", 2048)} {
		if err := grant.CheckReason(s); err != nil {
			t.Errorf("%.20q: %v", s, err)
		}
	}
	for _, s := range []string{"", " \n\t", "\u2003", "\xff", strings.Repeat("x", 4097)} {
		if grant.CheckReason(s) == nil {
			t.Errorf("%.20q is accepted", s)
		}
	}
}

// A text that is cut stays text, wherever the limit falls.
func TestClipCutsBetweenCharacters(t *testing.T) {
	const text = "aйあ𝄞e\u0301"
	for limit := range len(text) + 2 {
		got := grant.Clip(text, limit)
		if !strings.HasPrefix(text, got) || !utf8.ValidString(got) || len(got) > limit ||
			len(got) < min(limit, len(text))-3 {
			t.Errorf("cut to %d bytes it is %q", limit, got)
		}
	}
}

func TestVisibleText(t *testing.T) {
	for in, want := range map[string]string{
		"plain, ümlaut 語 👍":   "plain, ümlaut 語 👍",
		"a\nb\tc":             `a\nb\tc`,
		"\x1b[2J\x07\x00\x7f": `\x1b[2J\x07\x00\x7f`,
		"\u0085\u009b":        `\u0085\u009b`,
		"\u202eevil\u2066":    `\u202eevil\u2066`,
		"a\u200bb\ufeff":      `a\u200bb\ufeff`,
		"\u2028\u00a0":        `\u2028\u00a0`,
		"\xff\xc3":            `\xff\xc3`,
		"x\u115f\u3164\u034f": `x\u115f\u3164\u034f`,
		"\ufe0f\U000e0041":    `\ufe0f\ue0041`,
		"\r\n":                `\x0d\n`,
	} {
		if got := grant.VisibleText(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// clean tells whether text can go to a terminal: one line, nothing that steers or hides.
func clean(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp,
			unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return false
		}
	}
	return true
}
