// Package folder changes files in one folder by descriptors alone.
//
// The root half writes into places that others can reach; a path that is looked up twice can mean
// two things (Linux-PAM CVE-2025-6020, Teleport's create-file races). So a Folder is opened once,
// link by link without following any symbolic link, and everything in it is named by a single path
// component relative to that descriptor. A file is replaced whole: written beside under a hidden
// name with a dot, which sudo skips, fsynced, renamed, and the folder fsynced. The package decides
// nothing; agent/store keeps what the host has accepted in one, agent/enforce makes the drop-in
// folders equal to what it wants.
package folder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits on what one call does.
const (
	maxRetries = 64
	maxName    = 255
	maxEntries = 100_000
	maxDepth   = 64
)

// resolve is how every look-up goes: never out of the folder, never through a link. A file is never
// one that was mounted over its name either.
const (
	resolve     = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	resolveFile = resolve | unix.RESOLVE_NO_XDEV
)

// ErrUnsafe means that something on the way is not what it should be: a link, a strange type, a
// foreign owner, or writable by others.
var ErrUnsafe = errors.New("unsafe")

// Folder is an open directory. It is safe for use by one goroutine at a time.
type Folder struct {
	file   *os.File
	path   string
	kernel Kernel
}

// File is the whole desired content and metadata of one file, owned by the caller's own user.
type File struct {
	Data []byte
	Mode fs.FileMode
	// GID is the group that owns the file; 0 is root's.
	GID int
}

// Open opens the directory at an absolute path without following any symbolic link. It must belong
// to the caller and be writable by nobody else.
func Open(path string, kernel Kernel) (*Folder, error) {
	if kernel == nil {
		kernel = Linux{}
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("opening folder %q: not an absolute path", path)
	}
	fd, err := kernel.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open folder", Path: path, Err: err}
	}
	f := &Folder{file: os.NewFile(uintptr(fd), path), path: path, kernel: kernel}
	if err := f.check(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Folder) check() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd(), &st); err != nil {
		return &fs.PathError{Op: "stat folder", Path: f.path, Err: err}
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: folder %s belongs to uid %d, not to this process",
			ErrUnsafe, f.path, st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%w: folder %s is writable by others (mode %04o)",
			ErrUnsafe, f.path, st.Mode&0o7777)
	}
	return nil
}

// Path returns the path that the folder was opened by, for messages and watches.
func (f *Folder) Path() string { return f.path }

// Close releases the descriptor.
func (f *Folder) Close() error { return f.file.Close() }

func (f *Folder) fd() int { return int(f.file.Fd()) }

// Sub opens the directory at rel, a relative path below f, and makes the last component when it is
// missing. Whatever stands in the last component's place and is not a directory is removed.
func (f *Folder) Sub(rel string, mode fs.FileMode) (*Folder, error) {
	return f.sub(rel, mode, resolve)
}

// SubOwn is Sub for a folder that nobody may have mounted over: then it is an error.
func (f *Folder) SubOwn(rel string, mode fs.FileMode) (*Folder, error) {
	return f.sub(rel, mode, resolve|unix.RESOLVE_NO_XDEV)
}

func (f *Folder) sub(rel string, mode fs.FileMode, how uint64) (sub *Folder, err error) {
	parent, name := f, rel
	if dir := filepath.Dir(rel); dir != "." {
		if parent, err = f.open(dir); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, parent.Close()) }()
		name = filepath.Base(rel)
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	sub, err = parent.openAs(name, how)
	if err == nil {
		return sub, sub.setMode(mode)
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		if err := parent.Remove(name); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := parent.kernel.Mkdirat(parent.fd(), name, uint32(mode.Perm())); err != nil {
		return nil, &fs.PathError{Op: "mkdir", Path: filepath.Join(parent.path, name), Err: err}
	}
	if err := parent.Sync(); err != nil {
		return nil, err
	}
	if sub, err = parent.open(name); err != nil {
		return nil, err
	}
	return sub, sub.setMode(mode)
}

func (f *Folder) setMode(mode fs.FileMode) error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd(), &st); err != nil {
		return errors.Join(&fs.PathError{Op: "stat folder", Path: f.path, Err: err}, f.Close())
	}
	if st.Mode&0o7777 == uint32(mode.Perm()) && int(st.Uid) == os.Geteuid() {
		return nil
	}
	if err := f.kernel.Fchown(f.fd(), os.Geteuid(), os.Getegid()); err != nil {
		return errors.Join(&fs.PathError{Op: "chown folder", Path: f.path, Err: err}, f.Close())
	}
	if err := f.kernel.Fchmod(f.fd(), uint32(mode.Perm())); err != nil {
		return errors.Join(&fs.PathError{Op: "chmod folder", Path: f.path, Err: err}, f.Close())
	}
	return nil
}

func (f *Folder) open(rel string) (*Folder, error) { return f.openAs(rel, resolve) }

func (f *Folder) openAs(rel string, how uint64) (*Folder, error) {
	path := filepath.Join(f.path, rel)
	fd, err := f.kernel.Openat2(f.fd(), rel, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: how,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open folder", Path: path, Err: err}
	}
	return &Folder{file: os.NewFile(uintptr(fd), path), path: path, kernel: f.kernel}, nil
}

// List returns the names in the folder, sorted.
func (f *Folder) List() ([]string, error) {
	dup, err := f.open(".")
	if err != nil {
		return nil, err
	}
	defer func() { _ = dup.Close() }() // read only
	entries, err := dup.file.ReadDir(maxEntries)
	if err != nil && len(entries) == 0 && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("listing %s: %w", f.path, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names, nil
}

// Read returns a regular file of at most limit bytes that belongs to the caller and that nobody else
// may write. A missing file is fs.ErrNotExist.
func (f *Folder) Read(name string, limit int64) (data []byte, err error) {
	file, err := f.openFile(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	st, err := statRegular(file, f.join(name))
	if err != nil {
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("%w: %s belongs to uid %d with mode %04o",
			ErrUnsafe, f.join(name), st.Uid, st.Mode&0o7777)
	}
	if st.Size > limit {
		return nil, fmt.Errorf("reading %s: %d bytes, at most %d", f.join(name), st.Size, limit)
	}
	return readAll(file, f.join(name), limit)
}

// Holds tells whether name already is exactly want: regular, one link, same owner, mode and bytes.
func (f *Folder) Holds(name string, want File) (bool, error) {
	file, err := f.openFile(name, unix.O_RDONLY)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO),
		errors.Is(err, unix.EXDEV):
		return false, nil
	case err != nil:
		return false, err
	}
	defer func() { _ = file.Close() }() // read only
	st, err := statRegular(file, f.join(name))
	if err != nil {
		return false, nil //nolint:nilerr // a strange type is simply not the wanted file
	}
	if st.Size != int64(len(want.Data)) || st.Nlink != 1 || int(st.Uid) != os.Geteuid() ||
		int(st.Gid) != want.GID || st.Mode&0o7777 != uint32(want.Mode.Perm()) {
		return false, nil
	}
	have, err := readAll(file, f.join(name), st.Size)
	if err != nil {
		return false, err
	}
	return string(have) == string(want.Data), nil
}

// Write makes name exactly want, whatever stood there: the old content or the new, never a part.
// When it fails, the old content stands. On a full disk, what is not larger than what it replaces is
// written all the same as long as Reserve has kept room.
func (f *Folder) Write(name string, want File) error {
	err := f.replace(name, want)
	if !errors.Is(err, unix.ENOSPC) || !f.Shrinks(name, want) {
		return err
	}
	if errFree := f.Remove(reserve); errFree != nil {
		return errors.Join(err, errFree)
	}
	return f.replace(name, want)
}

func (f *Folder) replace(name string, want File) error {
	if err := checkName(name); err != nil {
		return err
	}
	beside := "." + name + ".new"
	if len(beside) > maxName {
		return fmt.Errorf("writing %s: name is too long", f.join(name))
	}
	if err := f.Remove(beside); err != nil {
		return err
	}
	if err := f.create(beside, want); err != nil {
		// Space or the disk is the likely cause; what was begun must not stay.
		return errors.Join(fmt.Errorf("writing %s: %w", f.join(name), err), f.Remove(beside))
	}
	err := f.kernel.Renameat(f.fd(), beside, name)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		if err = f.Remove(name); err == nil {
			err = f.kernel.Renameat(f.fd(), beside, name)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", f.join(name), err), f.Remove(beside))
	}
	return f.Sync()
}

func (f *Folder) create(name string, want File) error {
	fd, err := f.kernel.Openat2(f.fd(), name, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Mode:    0o600,
		Resolve: resolveFile,
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	err = f.fill(fd, want)
	return errors.Join(err, unix.Close(fd))
}

func (f *Folder) fill(fd int, want File) error {
	if err := f.writeAll(fd, want.Data); err != nil {
		return err
	}
	if err := f.kernel.Fchown(fd, os.Geteuid(), want.GID); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := f.kernel.Fchmod(fd, uint32(want.Mode.Perm())); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if err := f.kernel.Fsync(fd); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	return nil
}

func (f *Folder) writeAll(fd int, data []byte) error {
	for retries := 0; len(data) > 0; {
		n, err := f.kernel.Write(fd, data)
		if errors.Is(err, unix.EINTR) && retries < maxRetries {
			retries++
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if n <= 0 {
			return errors.New("write: nothing was written")
		}
		data = data[n:]
	}
	return nil
}

// Sync makes the names in the folder durable.
func (f *Folder) Sync() error {
	if err := f.kernel.Fsync(f.fd()); err != nil {
		return &fs.PathError{Op: "fsync folder", Path: f.path, Err: err}
	}
	return nil
}

func (f *Folder) openFile(name string, flags uint64) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	fd, err := f.kernel.Openat2(f.fd(), name, &unix.OpenHow{
		// O_NONBLOCK: a pipe in the file's place must not hang us.
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: resolveFile,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: f.join(name), Err: err}
	}
	return os.NewFile(uintptr(fd), f.join(name)), nil
}

func (f *Folder) join(name string) string { return filepath.Join(f.path, name) }

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName ||
		strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%w: %q is not the name of one file", ErrUnsafe, name)
	}
	return nil
}
