package stage

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// Packages are built anew for whatever they are made of, and for nothing else.
func TestTreeState(t *testing.T) {
	tree := t.TempDir()
	put(t, tree+"/cmd/main.go", "package main", 0o644)
	put(t, tree+"/bin/main", "built", 0o755)
	before, err := treeState(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, text string
		mode       os.FileMode
		same       bool
	}{
		{"bin/main", "built anew", 0o755, true},
		{".git/index", "x", 0o644, true},
		{"dist/stories/lock", "", 0o644, true},
		{"cmd/main_test.go", "package main", 0o644, true},
		{"cmd/MUTATIONS.md", "# Breaks", 0o644, true},
		{"e2e/main.go", "package e2e", 0o644, true},
		{"cmd/main.go", "package other", 0o644, false},
		{"cmd/main.go", "package other", 0o755, false},
		{"cmd/bin/x", "a folder of another name", 0o644, false},
	} {
		put(t, filepath.Join(tree, tt.path), tt.text, tt.mode)
		after, err := treeState(tree)
		if err != nil || (after == before) != tt.same {
			t.Errorf("with %s the state is the same: %t, want %t; %v", tt.path, after == before, tt.same, err)
		}
		before = after
	}
}

// What another process holds is not removed under it.
func TestPackagesInUseStay(t *testing.T) {
	all := t.TempDir()
	put(t, all+"/used/a.deb", "", 0o644)
	put(t, all+"/unused/a.deb", "", 0o644)
	if _, err := lock(t.Context(), all+"/used", unix.O_RDONLY, unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	forgetPackages(all)
	if _, err := os.Stat(all + "/used/a.deb"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(all + "/unused"); err == nil {
		t.Error("what nobody needs is kept")
	}
}
