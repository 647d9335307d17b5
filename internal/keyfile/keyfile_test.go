package keyfile_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/curfew-access/curfew/internal/keyfile"
)

func TestKeyIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grant.key")
	key, err := keyfile.Create(path, "grant key", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	again, err := keyfile.Load(path, "grant key")
	if err != nil || !again.Equal(key) {
		t.Errorf("another key came back: %v", err)
	}
	if _, err := keyfile.Create(path, "grant key", rand.Reader); err == nil {
		t.Error("a second key overwrote the first")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := keyfile.Load(path, "grant key"); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others can read: %v", err)
	}
	if err := os.WriteFile(path, []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keyfile.Load(path, "grant key"); err == nil {
		t.Error("garbage is a key")
	}
}
