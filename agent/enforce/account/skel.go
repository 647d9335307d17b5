package account

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Bounds of a skeleton: a mistaken skel (a whole home, a loop of bind mounts) must not fill the
// disk or hold up a login.
const (
	maxEntries = 1000
	maxBytes   = 16 << 20
	maxDepth   = 8
)

// errTooLarge says which bound a skeleton broke.
var errTooLarge = fmt.Errorf("more than %d entries, %d bytes or %d levels of folders: "+
	"make the skeleton smaller", maxEntries, maxBytes, maxDepth)

// copier copies a skeleton for one person. entries and bytes count down over the whole copy.
type copier struct {
	uid, gid int
	entries  int
	bytes    int64
}

// folder copies everything in from into to; both are descriptors of folders.
func (c *copier) folder(from, to, depth int) error {
	if depth >= maxDepth {
		return errTooLarge
	}
	names, err := readNames(from, c.entries)
	if err != nil {
		return err
	}
	for _, name := range names {
		if c.entries--; c.entries < 0 {
			return errTooLarge
		}
		if err := c.entry(from, to, name, depth); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// entry copies one name. It looks through an O_PATH descriptor first: opening a device can do
// something, and opening a FIFO can wait for somebody.
func (c *copier) entry(from, to int, name string, depth int) error {
	var st, again unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	flags := uint64(unix.O_RDONLY)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return c.link(from, to, name)
	case unix.S_IFREG:
		// A second name of a file elsewhere: whoever made it may have meant /etc/shadow.
		if st.Nlink != 1 {
			return nil
		}
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	default:
		return nil
	}
	src, err := openBeneath(from, name, flags)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if err := unix.Fstat(src, &again); err != nil {
		return err
	}
	if again.Dev != st.Dev || again.Ino != st.Ino || again.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		return errors.New("it was replaced while it was copied; try again")
	}
	// No setuid, setgid or sticky bit, and nothing that others could write to.
	mode := again.Mode & 0o755
	if flags&unix.O_DIRECTORY == 0 {
		return c.file(src, to, name, mode)
	}
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	dst, err := openBeneath(to, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := c.folder(src, dst, depth+1); err != nil {
		return err
	}
	return c.handOver(dst, mode)
}

func (c *copier) file(src, to int, name string, mode uint32) error {
	dst, err := openBeneath(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Read(src, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return c.handOver(dst, mode)
		}
		if c.bytes -= int64(n); c.bytes < 0 {
			return errTooLarge
		}
		for out := buf[:n]; len(out) > 0; {
			n, err := unix.Write(dst, out)
			if err != nil && err != unix.EINTR {
				return err
			}
			out = out[max(n, 0):]
		}
	}
}

// link copies a symbolic link as a link: where it points is the person's business, with the
// person's rights.
func (c *copier) link(from, to int, name string) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(from, name, target)
	if err != nil {
		return err
	}
	if n == len(target) {
		return unix.ENAMETOOLONG
	}
	if err := unix.Symlinkat(string(target[:n]), to, name); err != nil {
		return err
	}
	return unix.Fchownat(to, name, c.uid, c.gid, unix.AT_SYMLINK_NOFOLLOW)
}

// handOver finishes what only root could reach until now.
func (c *copier) handOver(fd int, mode uint32) error {
	if err := unix.Fchown(fd, c.uid, c.gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	return unix.Fsync(fd)
}

// readNames lists a folder by its descriptor, at most limit names, which it leaves open.
func readNames(dir, limit int) ([]string, error) {
	// A descriptor of its own, since os.File closes and moves the one it is given.
	fd, err := openBeneath(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "folder")
	defer f.Close()
	names, err := f.Readdirnames(limit + 1)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(names) > limit {
		return nil, errTooLarge
	}
	return names, nil
}

// removeTree removes a folder that only root could fill. It follows no link, and goes no deeper
// than anything that fill makes.
func removeTree(dir int, name string, depth int) error {
	fd, err := openBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd, maxEntries)
	if err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	for _, child := range names {
		err := unix.Unlinkat(fd, child, 0)
		if err == unix.EISDIR && depth > 0 {
			err = removeTree(fd, child, depth-1)
		}
		if err != nil {
			return fmt.Errorf("removing %s/%s: %w", name, child, err)
		}
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("removing %s: %w", name, err)
	}
	return nil
}
