package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSettings(t *testing.T) {
	got, err := ParseSettings([]byte(`# what this host permits
mode: enforce
ceiling:
  max_duration: 2h
  allowed_groups: [web, adm]
  allow_root_equivalent: true
gated_users: [bob]
elevate_users: [carol]
uid_range: {min: 1900000000, max: 1900000999}
lease_action: terminate
skel: ""
`))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultSettings()
	want.Mode, want.LeaseAction, want.Skel = "enforce", LeaseTerminate, ""
	want.Ceiling = Ceiling{
		MaxDuration: 2 * time.Hour, AllowedGroups: []string{"web", "adm"}, AllowRootEquivalent: true,
		Standing: "contained",
	}
	want.GatedUsers, want.ElevateUsers = []string{"bob"}, []string{"carol"}
	want.UIDRange.Max = 1900000999
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestNoSettingsMeanDefaults(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.yaml")
	for name, content := range map[string]string{"empty": "", "comments": "# nothing\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := LoadSettings(file)
		if diff := cmp.Diff(DefaultSettings(), got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	got, err := LoadSettings(filepath.Join(dir, "missing.yaml"))
	if diff := cmp.Diff(DefaultSettings(), got); err != nil || diff != "" {
		t.Errorf("missing: %v\n%s", err, diff)
	}
	if _, err := LoadSettings(dir); err == nil {
		t.Error("a folder is taken for a file")
	}
	if DefaultSettings().Mode != "observe" || DefaultSettings().Ceiling.AllowRootEquivalent {
		t.Error("an installation must deny nobody and grant no root before somebody decided so")
	}
}

func TestBrokenSettingsNameLineAndField(t *testing.T) {
	for content, want := range map[string]string{
		"mode: enforced\n":                               "line 1: mode: ",
		"mode: enforce\nmodes: x\n":                      "line 2: modes: ",
		"\n\nceiling:\n  max_duration: soon\n":           "line 4: ceiling.max_duration: ",
		"ceiling:\n  max_duration: 0s\n":                 "line 2: ceiling.max_duration: ",
		"ceiling:\n  max_duration: -5m\n":                "line 2: ceiling.max_duration: ",
		"ceiling:\n  allowed_groups: [root]\n":           "line 2: ceiling.allowed_groups: ",
		"ceiling:\n  allowed_groups: [curfew-link]\n":    "line 2: ceiling.allowed_groups: ",
		"ceiling:\n  allow_root: true\n":                 "line 2: ceiling.allow_root: ",
		"mode: enforce\nmode: observe\n":                 "line 2: ",
		"gated_users: [bob, bob]\n":                      "line 1: gated_users: ",
		"gated_users: [root]\n":                          "line 1: gated_users: ",
		"gated_users: ['a b']\n":                         "line 1: gated_users: ",
		"gated_users: [bob]\n\nelevate_users: [bob]\n":   "line 3: elevate_users: ",
		"uid_range: {min: 0, max: 5}\n":                  "line 1: uid_range: ",
		"uid_range: {min: -1}\n":                         "line 1: ",
		"home_root: home\n":                              "line 1: home_root: ",
		"shell: /bin/bash:x\n":                           "line 1: shell: ",
		"skel: /etc/../x\n":                              "line 1: skel: ",
		"lease_action: hold\n":                           "line 1: lease_action: ",
		"break_glass_group: ''\n":                        "line 1: break_glass_group: ",
		"mode: [enforce\n":                               "line ",
		"- mode\n":                                       "line 1: ",
		"mode: enforce\n---\nmode: observe\n":            "line ",
		"mode: &x enforce\nshell: *y\n":                  "line 2: ",
		"mode: {a: b}\n":                                 "line 1: mode.a: ",
		"ceiling: 5\n":                                   "line 1: ceiling: ",
		"mode: enforce\nceiling:\n  max_duration: [1]\n": "line 3: ceiling.max_duration: ",
	} {
		got, err := ParseSettings([]byte(content))
		if err == nil {
			t.Errorf("%q is accepted: %+v", content, got)
			continue
		}
		if !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %q, want %q…", content, err, want)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("mode: enforce\nceiling: {max_duration: 1h}\n"))
	f.Add([]byte("gated_users: [a]\nuid_range: {min: 1000, max: 2000}\n"))
	f.Add([]byte("&a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSettings(data)
		if err != nil {
			return
		}
		if field, err := s.check(); err != nil {
			t.Errorf("accepted with a bad %s: %v", field, err)
		}
	})
}
