package folder

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// On a full disk, what is not larger than what it replaces is written all the same, and nothing else.
func TestReserveLetsFilesShrinkOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=700"); err != nil {
		t.Fatalf("this test mounts; run it as root: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	f := open(t, dir)
	text := func(n int) File { return File{Data: bytes.Repeat([]byte("x"), n), Mode: 0o600} }
	if err := f.Write("a", text(20000)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is enough already
		if err := f.Reserve(32 << 10); err != nil {
			t.Fatal(err)
		}
	}
	full, err := os.Create(filepath.Join(dir, "full"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = full.Write(make([]byte, 4096))
	}
	if err := full.Close(); err != nil {
		t.Fatal(err)
	}
	for _, more := range []struct {
		name string
		size int
	}{{"new", 10}, {"a", 30000}} {
		if err := f.Write(more.name, text(more.size)); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%d bytes of %s on a full disk: %v", more.size, more.name, err)
		}
	}
	if err := f.Write("a", text(19000)); err != nil {
		t.Errorf("less than there was: %v", err)
	}
	if got, err := f.Read("a", 1<<20); err != nil || len(got) != 19000 {
		t.Errorf("it holds %d bytes: %v", len(got), err)
	}
	// The old file has made room for the next time.
	if err := f.Reserve(16 << 10); err != nil {
		t.Error(err)
	}
	if err := f.Reserve(1 << 20); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than there is: %v", err)
	}
}

// Nothing that stands in the reserve's place is followed.
func TestReserveFollowsNothing(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	f := open(t, dir)
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(string) error{
		"link": func(at string) error { return os.Symlink(outside, at) },
		"pipe": func(at string) error { return unix.Mkfifo(at, 0o600) },
		"dir":  func(at string) error { return os.Mkdir(at, 0o700) },
	} {
		if err := f.Remove(reserve); err != nil {
			t.Fatal(err)
		}
		if err := put(filepath.Join(dir, reserve)); err != nil {
			t.Fatal(err)
		}
		if err := f.Reserve(4096); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if info, err := os.Stat(outside); err != nil || info.Size() != 0 {
		t.Errorf("a link was followed: %v", err)
	}
}
