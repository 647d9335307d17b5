// Package lsm holds only tests: what is shipped for SELinux and AppArmor compiles. Neither is in force on the
// machines that tests run on; docs/operate.md says so.
package lsm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSELinuxModuleCompiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../selinux")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("make", "-s", "-f", "/usr/share/selinux/devel/Makefile", "curfew.pp")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("e2e/deps.sh installs what this needs: %v\n%s", err, out)
	}
	// A policy package of a module begins with SELinux' own magic number.
	data, err := os.ReadFile(filepath.Join(dir, "curfew.pp"))
	if err != nil || len(data) < 4 || string(data[:4]) != "\x8f\xff\x7c\xf9" {
		t.Errorf("no policy package: % x, %v", data[:min(len(data), 4)], err)
	}
	for _, want := range []string{"curfew_enforce_t", "curfew_gate_client", "/run/curfew/nss"} {
		if !strings.Contains(string(data), want) {
			t.Errorf("the package does not name %s", want)
		}
	}
}

// Every place that the module labels is one that is installed or made.
func TestSELinuxLabelsWhatThereIs(t *testing.T) {
	labels, err := os.ReadFile("../selinux/curfew.fc")
	if err != nil {
		t.Fatal(err)
	}
	var known strings.Builder
	for _, name := range []string{"../files", "../../systemd/curfew-agent.tmpfiles.conf"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		known.Write(text)
	}
	known.WriteString("/var/lib/curfew/gate.conf /run/curfew/nss.db")
	for line := range strings.Lines(string(labels)) {
		path, _, ok := strings.Cut(line, "\t")
		path = strings.ReplaceAll(strings.TrimSuffix(path, "(/.*)?"), `\`, "")
		if ok && !strings.Contains(known.String(), path) {
			t.Errorf("%s is labelled and never made", path)
		}
	}
}

// The abstractions compile inside of a profile that includes them as others' profiles do.
func TestAppArmorCompiles(t *testing.T) {
	dir := t.TempDir()
	var includes string
	for _, name := range []string{"nameservice", "authentication"} {
		at, err := filepath.Abs("../apparmor/" + name)
		if err != nil {
			t.Fatal(err)
		}
		includes += `  include "` + at + "\"\n"
	}
	profile := filepath.Join(dir, "others")
	text := "abi <abi/3.0>,\ninclude <tunables/global>\nprofile others {\n  include <abstractions/nameservice>\n" +
		"  include <abstractions/authentication>\n" + includes + "}\n"
	if err := os.WriteFile(profile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte(strings.Replace(text, "profile others {", "profile others { fil e,", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, good := range map[string]bool{profile: true, "../apparmor/curfew-link": true, broken: false} {
		out, err := exec.Command("apparmor_parser", "--skip-kernel-load", "--skip-cache", file).CombinedOutput()
		if (err == nil) != good {
			t.Errorf("%s: %v, want good %t\n%s", file, err, good, out)
		}
	}
}
