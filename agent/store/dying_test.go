package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/agent/folder"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// dying is a kernel that performs the first n calls that change the disk and then is dead: the
// process was killed between two of them. A write that it dies in puts half of its bytes down.
type dying struct {
	folder.Linux
	left int
}

var errDead = errors.New("the process is dead")

func (d *dying) step() error {
	if d.left <= 0 {
		return errDead
	}
	d.left--
	return nil
}

func (d *dying) Openat2(dirfd int, path string, how *unix.OpenHow) (int, error) {
	if how.Flags&unix.O_CREAT != 0 {
		if err := d.step(); err != nil {
			return -1, err
		}
	}
	return d.Linux.Openat2(dirfd, path, how)
}

func (d *dying) Write(fd int, p []byte) (int, error) {
	if err := d.step(); err != nil {
		if d.left == 0 {
			d.left--
			_, _ = d.Linux.Write(fd, p[:len(p)/2]) // the half that made it
		}
		return 0, err
	}
	return d.Linux.Write(fd, p)
}

func (d *dying) Mkdirat(dirfd int, name string, mode uint32) error {
	return errors.Join(d.step(), d.Linux.Mkdirat(dirfd, name, mode))
}

func (d *dying) Fchmod(fd int, mode uint32) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Linux.Fchmod(fd, mode)
}

func (d *dying) Ftruncate(fd int, size int64) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Linux.Ftruncate(fd, size)
}

func (d *dying) Fsync(fd int) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Linux.Fsync(fd)
}

func (d *dying) Renameat(dirfd int, from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Linux.Renameat(dirfd, from, to)
}

func (d *dying) Unlinkat(dirfd int, name string, flags int) error {
	if err := d.step(); err != nil {
		return err
	}
	return d.Linux.Unlinkat(dirfd, name, flags)
}

func open(t rapid.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Directory: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closed(t rapid.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func newDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "curfew")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func event(kind, login string) *curfewv1.Event {
	return &curfewv1.Event{Kind: kind, Login: login, TimeMs: 1, BootId: "b"}
}
