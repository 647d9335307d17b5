package folder

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Born returns what tells a file that is never written anew from a copy of it: its inode, and when that
// was born in Unix nanoseconds, 0 where the file system does not say.
func (f *Folder) Born(name string) (inode uint64, born int64, err error) {
	var st unix.Statx_t
	err = unix.Statx(f.fd(), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil {
		return 0, 0, fmt.Errorf("looking at %s: %w", f.join(name), err)
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return st.Ino, born, nil
}
