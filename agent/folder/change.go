package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Append adds data to the end of name, made with mode when missing, and fsyncs it. When it fails, the
// file is cut back to the length it had.
func (f *Folder) Append(name string, data []byte, mode fs.FileMode) error {
	if err := checkName(name); err != nil {
		return err
	}
	fd, err := f.kernel.Openat2(f.fd(), name, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NOFOLLOW |
			unix.O_NONBLOCK,
		Mode:    uint64(mode.Perm()),
		Resolve: resolveFile,
	})
	if err != nil {
		return fmt.Errorf("appending to %s: %w", f.join(name), err)
	}
	err = f.appendTo(fd, data)
	if err != nil {
		err = fmt.Errorf("appending to %s: %w", f.join(name), err)
	}
	return errors.Join(err, unix.Close(fd))
}

func (f *Folder) appendTo(fd int, data []byte) error {
	st, err := ownFile(fd)
	if err != nil {
		return err
	}
	err = f.writeAll(fd, data)
	if err == nil {
		err = f.kernel.Fsync(fd)
	}
	if err != nil {
		return errors.Join(err, f.kernel.Ftruncate(fd, st.Size))
	}
	if st.Size == 0 {
		return f.Sync()
	}
	return nil
}

// ownFile refuses what is no regular file of this process.
func ownFile(fd int) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return st, fmt.Errorf("%w: not a regular file of this process", ErrUnsafe)
	}
	return st, nil
}

// Truncate cuts name to size bytes and fsyncs it.
func (f *Folder) Truncate(name string, size int64) error {
	file, err := f.openFile(name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = ownFile(int(file.Fd()))
	if err == nil {
		err = f.kernel.Ftruncate(int(file.Fd()), size)
	}
	if err == nil {
		err = f.kernel.Fsync(int(file.Fd()))
	}
	if err != nil {
		err = fmt.Errorf("truncating %s: %w", f.join(name), err)
	}
	return errors.Join(err, file.Close())
}

// Remove deletes name whatever it is: file, link, pipe, socket, or a directory with all below it. A
// missing name is no error. It follows nothing and stays on one file system.
func (f *Folder) Remove(name string) error { return f.remove(name, 0) }

func (f *Folder) remove(name string, depth int) error {
	if err := checkName(name); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("removing %s: nested deeper than %d", f.join(name), maxDepth)
	}
	err := f.kernel.Unlinkat(f.fd(), name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return fmt.Errorf("removing %s: %w", f.join(name), err)
	}
	if err := f.empty(name, depth); err != nil {
		return err
	}
	if err := f.kernel.Unlinkat(f.fd(), name, unix.AT_REMOVEDIR); err != nil &&
		!errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("removing %s: %w", f.join(name), err)
	}
	return nil
}

func (f *Folder) empty(name string, depth int) error {
	fd, err := f.kernel.Openat2(f.fd(), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: resolve | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return fmt.Errorf("removing %s: %w", f.join(name), err)
	}
	sub := &Folder{file: os.NewFile(uintptr(fd), f.join(name)), path: f.join(name), kernel: f.kernel}
	defer func() { _ = sub.Close() }() // about to be removed
	names, err := sub.List()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := sub.remove(n, depth+1); err != nil {
			return err
		}
	}
	return nil
}
