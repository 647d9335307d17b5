package folder

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reserve is the file that keeps room for taking access away. Taking away writes too: the file
// without the entry goes beside the one with it before it replaces it, and on a full disk there would
// be no room for that.
const reserve = ".reserve"

// Reserve keeps room on the disk for replacing a file of up to size bytes by one that is not larger.
// It does nothing when as much is kept already. Write uses the room up when it must; call Reserve
// again after each time that something was written.
func (f *Folder) Reserve(size int64) error {
	fd, err := f.openReserve()
	if err != nil {
		return fmt.Errorf("keeping room in %s: %w", f.path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Size < size {
		err = f.kernel.Fallocate(fd, size)
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("keeping %d bytes in %s aside: %w", size, f.path, err)
	}
	return nil
}

func (f *Folder) openReserve() (int, error) {
	how := unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Mode:  0o600, Resolve: resolve,
	}
	fd, err := f.kernel.Openat2(f.fd(), reserve, &how)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		if err := f.Remove(reserve); err != nil {
			return -1, err
		}
		fd, err = f.kernel.Openat2(f.fd(), reserve, &how)
	}
	return fd, err
}

// Shrinks tells whether want is not larger than the file that stands in its place.
func (f *Folder) Shrinks(name string, want File) bool {
	file, err := f.openFile(name, unix.O_RDONLY)
	if err != nil {
		return false
	}
	st, err := statRegular(file, f.join(name))
	return errors.Join(err, file.Close()) == nil && st.Size >= int64(len(want.Data)) &&
		int(st.Uid) == os.Geteuid()
}
