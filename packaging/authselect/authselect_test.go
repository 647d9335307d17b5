// Package authselect holds only tests: what the profile for authselect makes lets nobody past Curfew and locks
// nobody out. The program itself is not to be had where tests run: its operators are played here, as
// authselect-profiles(5) describes them.
package authselect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/agent/doctor"
)

// stacks are the templates that become PAM stacks.
var stacks = []string{
	"system-auth", "password-auth", "fingerprint-auth", "smartcard-auth", "switchable-auth", "postlogin",
}

// services include the stacks as packages of Fedora and RHEL have it, by what they include.
var services = map[string][]string{
	"account required pam_nologin.so\naccount include %[1]s\nsession optional pam_keyinit.so force revoke\n" +
		"session include %[1]s\nsession include postlogin\n": {"sshd:password-auth", "login:system-auth"},
	"account sufficient pam_succeed_if.so uid = 0 use_uid quiet\naccount include %[1]s\n" +
		"session include %[1]s\nsession include postlogin\n": {"su:system-auth"},
	"account include su\nsession optional pam_keyinit.so force revoke\nsession include su\n": {"su-l:"},
	"account include %[1]s\nsession optional pam_keyinit.so revoke\nsession required pam_limits.so\n" +
		"session include %[1]s\n": {"sudo:system-auth"},
	"account include sudo\nsession optional pam_keyinit.so force revoke\nsession include sudo\n": {"sudo-i:"},
	"account required pam_access.so\naccount include %[1]s\nsession required pam_loginuid.so\n" +
		"session include %[1]s\n": {"crond:password-auth", "atd:password-auth"},
	"account include %[1]s\nsession required pam_loginuid.so\nsession include %[1]s\n": {"systemd-user:system-auth"},
	"auth substack %[1]s\naccount required pam_nologin.so\naccount include %[1]s\nsession include %[1]s\n": {
		"gdm-password:password-auth", "gdm-fingerprint:fingerprint-auth", "gdm-smartcard:smartcard-auth",
		"gdm-switchable-auth:switchable-auth",
	},
}

// One feature more or less must not open a way past Curfew: none, each, each two and all of them are tried.
func TestNobodyPassesByTheProfile(t *testing.T) {
	features := features(t)
	if len(features) != 12 {
		t.Errorf("features %q: the README names twelve", features)
	}
	root := t.TempDir()
	sets := [][]string{nil, features}
	for i, f := range features {
		sets = append(sets, []string{f})
		for _, g := range features[:i] {
			sets = append(sets, []string{g, f})
		}
	}
	for _, with := range sets {
		furnish(t, root, with)
		h := doctor.Host{
			Root: root, Clock: func() error { return nil },
			Run: func(context.Context, ...string) ([]byte, error) { return nil, errors.New("no program is here") },
		}
		looked := make(map[string]bool)
		for _, f := range doctor.Look(t.Context(), h) {
			name, _, _ := strings.Cut(f.What, ",")
			if name != "PAM" && name != "nsswitch.conf" && !strings.HasPrefix(f.What, "other services") {
				continue
			}
			looked[f.What] = true
			if f.Err != nil {
				t.Errorf("with %q, %s: %v", with, f.What, f.Err)
			}
		}
		for _, what := range []string{"PAM, account of sshd", "PAM, session of sudo", "nsswitch.conf, group"} {
			if !looked[what] {
				t.Fatalf("the doctor does not look at %s", what)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// furnish writes what the profile becomes with some features, and who includes it.
func furnish(t *testing.T, root string, with []string) {
	t.Helper()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range stacks {
		text := generate(t, name, with)
		write("etc/pam.d/"+name, text)
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > 0 && !slices.Contains([]string{
				"auth", "account", "password", "session", "-session",
			}, f[0]) || len(f) == 1 || strings.ContainsAny(line, `{}"`) {
				t.Fatalf("with %q, %s has the line %q", with, name, line)
			}
		}
	}
	write("etc/nsswitch.conf", generate(t, "nsswitch.conf", with))
	for text, names := range services {
		for _, name := range names {
			name, stack, _ := strings.Cut(name, ":")
			if stack != "" {
				write("etc/pam.d/"+name, fmt.Sprintf(text, stack))
			} else {
				write("etc/pam.d/"+name, text)
			}
		}
	}
}

var (
	condition = regexp.MustCompile(`\{(continue|stop|include|exclude) if "([^"]+)"\}`)
	choice    = regexp.MustCompile(`\{if (not )?"([^"]+)":([^{}|]*)(?:\|([^{}|]*))?\}`)
)

// generate plays the operators of authselect-profiles(5) that the oldest authselect knows: no "and", no "or".
func generate(t *testing.T, name string, with []string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if m := condition.FindStringSubmatch(line); m != nil {
			has := slices.Contains(with, m[2])
			switch {
			case m[1] == "continue" && !has, m[1] == "stop" && has:
				return out.String()
			case m[1] == "continue", m[1] == "stop", m[1] == "include" && !has, m[1] == "exclude" && has:
				continue
			}
			line = condition.ReplaceAllLiteralString(line, "")
		}
		line = choice.ReplaceAllStringFunc(line, func(op string) string {
			m := choice.FindStringSubmatch(op)
			if slices.Contains(with, m[2]) != (m[1] != "") {
				return m[3]
			}
			return m[4]
		})
		out.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return out.String()
}

// features are those that the templates name; the README must explain each, and name no other.
func features(t *testing.T) []string {
	t.Helper()
	var all []string
	quoted := regexp.MustCompile(`if (?:not )?"([^"]+)"`)
	for _, name := range append([]string{"nsswitch.conf"}, stacks...) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range quoted.FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	readme, err := os.ReadFile("README")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile(`(?m)^(with\S*)::$`).FindAllStringSubmatch(string(readme), -1) {
		told = append(told, m[1])
	}
	slices.Sort(told)
	if !slices.Equal(all, told) {
		t.Errorf("the templates know the features %q, the README %q", all, told)
	}
	return all
}
