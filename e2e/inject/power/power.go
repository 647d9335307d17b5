// Package power gives tests a disk that loses its power: an ext4 file system in a file, which forgets
// what was not synced to it, as a real one does. Killing a process is no power loss: the kernel still
// has what it wrote, and writes it down later.
package power

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Device makes an ext4 file system of size bytes on a loop device, and returns the device. It is let
// go when the test ends.
func Device(t testing.TB, size int64) string {
	t.Helper()
	device := Run(t, "losetup", "--find", "--show", format(t, size))
	t.Cleanup(func() { Run(t, "losetup", "--detach", device) })
	return device
}

func format(t testing.TB, size int64) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk.ext4")
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	// -m 0: root may not use more than others, so that full is full.
	Run(t, "mkfs.ext4", "-q", "-F", "-m", "0", file)
	return file
}

// Run runs a command and returns its output.
func Run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Cut takes the power from the ext4 file system that holds path. From now on everything there is an
// I/O error, and what was not synced is lost: its log is not flushed (EXT4_IOC_SHUTDOWN in the
// kernel's fs/ext4/ext4.h).
func Cut(path string) error {
	const shutdown, noLogFlush = 0x8004587d, 2
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cutting the power of %s: %w", path, err)
	}
	return nil
}

// Disk is such a file system, mounted on a folder.
type Disk struct {
	t      testing.TB
	file   string
	device string
	// Path is where it is mounted.
	Path string
}

// NewDisk makes a disk of size bytes and mounts it until the test ends.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	d := &Disk{t: t, file: format(t, size), Path: filepath.Join(t.TempDir(), "disk")}
	if err := os.Mkdir(d.Path, 0o700); err != nil {
		t.Fatal(err)
	}
	d.mount()
	t.Cleanup(func() {
		if err := unix.Unmount(d.Path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		Run(t, "losetup", "--detach", d.device)
	})
	return d
}

func (d *Disk) mount() {
	d.t.Helper()
	d.device = Run(d.t, "losetup", "--find", "--show", d.file)
	if err := unix.Mount(d.device, d.Path, "ext4", 0, ""); err != nil {
		d.t.Fatalf("mounting %s: %v", d.device, err)
	}
}

// Cut takes the power away.
func (d *Disk) Cut() error { return Cut(d.Path) }

// Restore mounts the disk again, as a boot does: its log is replayed. Nobody may have it open. It is
// a copy of the disk: whoever made a mount namespace meanwhile, such as another test's host, keeps
// the old file system alive, which would be found dead where it is mounted again.
func (d *Disk) Restore() {
	d.t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = unix.Unmount(d.Path, 0); err == nil {
			break
		}
	}
	if err != nil {
		d.t.Fatalf("unmounting %s: %v", d.Path, err)
	}
	Run(d.t, "losetup", "--detach", d.device)
	old := d.file
	d.file = filepath.Join(d.t.TempDir(), "disk.ext4")
	Run(d.t, "cp", "--sparse=always", old, d.file)
	if err := os.Remove(old); err != nil { // the loop device holds on to it as long as it must
		d.t.Fatal(err)
	}
	d.mount()
}
