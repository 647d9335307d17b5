package folder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestOpenFollowsNothingAndTrustsNobody(t *testing.T) {
	base := t.TempDir()
	good := filepath.Join(base, "good")
	if err := os.MkdirAll(filepath.Join(good, "in"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(good, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	loose, foreign := filepath.Join(base, "loose"), filepath.Join(base, "foreign")
	for _, dir := range []string{loose, foreign} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(loose, 0o775); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(foreign, 1000, 1000); err != nil {
		t.Fatalf("this test changes owners; run it as root: %v", err)
	}
	for path, want := range map[string]error{
		good: nil, filepath.Join(base, "link"): unix.ELOOP, filepath.Join(base, "link/in"): unix.ELOOP,
		loose: ErrUnsafe, foreign: ErrUnsafe, filepath.Join(base, "none"): fs.ErrNotExist,
	} {
		f, err := Open(path, nil)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
		if err == nil {
			_ = f.Close()
		}
	}
	if _, err := Open("relative", nil); err == nil {
		t.Error("a relative path is opened")
	}
}

func TestNamesAreOneComponent(t *testing.T) {
	f := open(t, t.TempDir())
	for _, name := range []string{"", ".", "..", "a/b", "../x", "/etc/passwd", "a\x00b", strings.Repeat("a", 300)} {
		if err := f.Write(name, File{Mode: 0o600}); err == nil {
			t.Errorf("writes %q", name)
		}
		if _, err := f.Read(name, 10); err == nil {
			t.Errorf("reads %q", name)
		}
		if err := f.Remove(name); err == nil {
			t.Errorf("removes %q", name)
		}
		if err := f.Append(name, nil, 0o600); err == nil {
			t.Errorf("appends to %q", name)
		}
	}
}

func TestWriteReadHold(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	want := File{Data: []byte("hello"), Mode: 0o640, GID: 1000}
	if err := f.Write("a", want); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "a"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != 0o640 || st.Gid != 1000 || st.Uid != 0 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if same, err := f.Holds("a", want); err != nil || !same {
		t.Errorf("holds: %v, %v", same, err)
	}
	if got, err := f.Read("a", 5); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := f.Read("a", 4); err == nil {
		t.Error("reads more than the limit")
	}
	if _, err := f.Read("none", 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	names, err := f.List()
	if err != nil || len(names) != 1 || names[0] != "a" {
		t.Errorf("left in the folder: %q, %v", names, err)
	}
}

func TestRemoveFollowsNothing(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	keep := filepath.Join(outside, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, "tree/a/b/c")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{filepath.Join(dir, "tree/link"), filepath.Join(dir, "link")} {
		if err := os.Symlink(outside, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(deep, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir)
	for _, name := range []string{"tree", "link", "none"} {
		if err := f.Remove(name); err != nil {
			t.Error(err)
		}
	}
	if names, err := f.List(); err != nil || len(names) != 0 {
		t.Errorf("left: %q, %v", names, err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

func TestOwnFolderMayNotBeMountedOver(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	sub, err := f.SubOwn("own", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_ = sub.Close()
	own := filepath.Join(dir, "own")
	if err := unix.Mount("tmpfs", own, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatalf("this test mounts; run it as root: %v", err)
	}
	defer func() {
		if err := unix.Unmount(own, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if _, err := f.SubOwn("own", 0o755); !errors.Is(err, unix.EXDEV) {
		t.Errorf("mounted over: %v", err)
	}
	sub, err = f.Sub("own", 0o755)
	if err != nil {
		t.Errorf("where mounts are expected: %v", err)
	} else {
		_ = sub.Close()
	}
}

func TestAppendIsWholeOrNothing(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir)
	for _, text := range []string{"one", "two"} {
		if err := f.Append("log", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	full, err := Open(dir, full{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	if err := full.Append("log", []byte("three"), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("append on a full disk: %v", err)
	}
	if err := full.Write("new", File{Data: []byte("x"), Mode: 0o600}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write on a full disk: %v", err)
	}
	if got, err := f.Read("log", 100); err != nil || string(got) != "onetwo" {
		t.Errorf("log holds %q, %v", got, err)
	}
	if names, err := f.List(); err != nil || len(names) != 1 {
		t.Errorf("the failed write left %q, %v", names, err)
	}
	if err := os.Symlink("log", filepath.Join(dir, "alias")); err != nil {
		t.Fatal(err)
	}
	if err := f.Append("alias", []byte("x"), 0o600); !errors.Is(err, unix.ELOOP) {
		t.Errorf("appended through a link: %v", err)
	}
}

// full writes half of what it gets, then says that the disk is full.
type full struct{ Linux }

func (full) Write(fd int, p []byte) (int, error) {
	if len(p) > 1 {
		return Linux{}.Write(fd, p[:len(p)/2])
	}
	return 0, unix.ENOSPC
}
