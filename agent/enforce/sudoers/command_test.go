package sudoers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckCommand(t *testing.T) {
	root := t.TempDir()
	mkdir := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	program := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	mkdir("usr/bin", 0o755)
	mkdir("open", 0o777)
	mkdir("sticky", 0o1777)
	mkdir("theirs", 0o755)
	program("usr/bin/ok", 0o755)
	program("usr/bin/loose", 0o757)
	program("usr/bin/plain", 0o644)
	program("open/x", 0o755)
	program("sticky/x", 0o755)
	program("theirs/x", 0o755)
	program("theirs/hers", 0o755)
	link("usr/bin", "bin")
	link("/usr/bin/ok", "usr/bin/absolute")
	link("../../open/x", "usr/bin/astray")
	link("loop", "usr/bin/loop")
	if err := os.Chown(filepath.Join(root, "theirs"), 1000, 1000); err != nil {
		t.Fatalf("this test changes owners; run it as root: %v", err)
	}
	for command, want := range map[string]string{
		"/usr/bin/ok": "", "/bin/ok": "", "/usr/bin/absolute": "", "/bin/absolute": "",
		"/usr/bin/loose": "can be changed", "/usr/bin/plain": "not a program",
		"/open/x": "can be changed", "/sticky/x": "can be changed", "/theirs/x": "belongs to uid 1000",
		"/usr/bin/astray": "can be changed", "/usr/bin/loop": "too many", "/usr/bin": "not a program",
		"/usr/bin/none": "no such file", "/usr/bin/ok/x": "not a folder",
	} {
		err := CheckCommand(root, command)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", command, err, want)
		}
	}
}

// The host's own programs, as a role would name them.
func TestCheckCommandOnThisHost(t *testing.T) {
	if err := CheckCommand("/", "/usr/bin/env"); err != nil {
		t.Error(err)
	}
	if _, err := exec.LookPath("/bin/ls"); err == nil {
		if err := CheckCommand("/", "/bin/ls"); err != nil {
			t.Error(err)
		}
	}
}
