package folder

import (
	"golang.org/x/sys/unix"
)

// Kernel is the lowest edge: the calls that change the disk. Linux is the real one; a test that wants
// a crash between two calls, a full disk or an I/O error puts its own in between.
type Kernel interface {
	Openat2(dirfd int, path string, how *unix.OpenHow) (int, error)
	Mkdirat(dirfd int, name string, mode uint32) error
	Write(fd int, p []byte) (int, error)
	Fchown(fd, uid, gid int) error
	Fchmod(fd int, mode uint32) error
	Ftruncate(fd int, size int64) error
	Fallocate(fd int, size int64) error
	Fsync(fd int) error
	Renameat(dirfd int, from, to string) error
	Unlinkat(dirfd int, name string, flags int) error
}

// Linux calls the kernel.
type Linux struct{}

// Openat2 is openat2(2), repeated while it is interrupted.
func (Linux) Openat2(dirfd int, path string, how *unix.OpenHow) (fd int, err error) {
	for range maxRetries {
		fd, err = unix.Openat2(dirfd, path, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
	return fd, err
}

// Mkdirat is mkdirat(2).
func (Linux) Mkdirat(dirfd int, name string, mode uint32) error {
	return unix.Mkdirat(dirfd, name, mode)
}

// Write is write(2).
func (Linux) Write(fd int, p []byte) (int, error) { return unix.Write(fd, p) }

// Fchown is fchown(2).
func (Linux) Fchown(fd, uid, gid int) error { return unix.Fchown(fd, uid, gid) }

// Fchmod is fchmod(2).
func (Linux) Fchmod(fd int, mode uint32) error { return unix.Fchmod(fd, mode) }

// Ftruncate is ftruncate(2).
func (Linux) Ftruncate(fd int, size int64) error { return unix.Ftruncate(fd, size) }

// Fallocate is fallocate(2) for the first size bytes.
func (Linux) Fallocate(fd int, size int64) error { return unix.Fallocate(fd, 0, 0, size) }

// Fsync is fsync(2).
func (Linux) Fsync(fd int) error { return unix.Fsync(fd) }

// Renameat is renameat(2) within one folder.
func (Linux) Renameat(dirfd int, from, to string) error {
	return unix.Renameat(dirfd, from, dirfd, to)
}

// Unlinkat is unlinkat(2).
func (Linux) Unlinkat(dirfd int, name string, flags int) error {
	return unix.Unlinkat(dirfd, name, flags)
}
