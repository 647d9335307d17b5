package power

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What was synced is there after a power loss, what was not is gone, and in between nothing works.
func TestPowerLoss(t *testing.T) {
	d := NewDisk(t, 8<<20)
	synced, lost := filepath.Join(d.Path, "synced"), filepath.Join(d.Path, "lost")
	for _, name := range []string{synced, lost} {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if name == synced {
			dir, err := os.Open(d.Path)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Sync(), dir.Sync(), dir.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, "after"), nil, 0o600); !errors.Is(err, unix.EIO) {
		t.Errorf("writing without power: %v", err)
	}
	d.Restore()
	if data, err := os.ReadFile(synced); err != nil || string(data) != "x" {
		t.Errorf("what was synced: %q, %v", data, err)
	}
	if data, err := os.ReadFile(lost); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was not synced: %q, %v", data, err)
	}
}
