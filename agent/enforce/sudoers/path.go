package sudoers

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links on the way to a command.
const maxLinks = 40

// CheckCommand walks to a command by descriptors and refuses it when anybody but root could put
// something else in its place: each folder, link and the file itself must be root's and not writable
// by others. root is the folder that paths start from, "/" on a host.
func CheckCommand(root, command string) error {
	w := walk{owner: uint32(os.Geteuid())}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("checking %s: %w", command, err)
	}
	w.stack = []int{fd}
	defer w.close()
	if err := w.to(command); err != nil {
		return fmt.Errorf("checking %s: %w", command, err)
	}
	return nil
}

// walk holds a descriptor of each folder from the root to where it stands.
type walk struct {
	stack []int
	links int
	owner uint32
}

func (w *walk) close() {
	for _, fd := range w.stack {
		_ = unix.Close(fd) // O_PATH: nothing to lose
	}
}

func (w *walk) to(command string) error {
	todo := strings.Split(strings.TrimPrefix(command, "/"), "/")
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if n := len(w.stack); n > 1 {
				_ = unix.Close(w.stack[n-1]) // O_PATH
				w.stack = w.stack[:n-1]
			}
			continue
		}
		target, err := w.step(name, len(todo) == 0)
		if err != nil {
			return err
		}
		if target == "" {
			continue
		}
		if w.links++; w.links > maxLinks {
			return errors.New("too many symbolic links")
		}
		if path.IsAbs(target) {
			for _, fd := range w.stack[1:] {
				_ = unix.Close(fd) // O_PATH
			}
			w.stack = w.stack[:1]
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return nil
}

// step enters one component and returns the target when it is a link.
func (w *walk) step(name string, last bool) (string, error) {
	fd, err := unix.Openat2(w.stack[len(w.stack)-1], name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", errors.Join(fmt.Errorf("%s: %w", name, err), unix.Close(fd))
	}
	kind := st.Mode & unix.S_IFMT
	if err := w.trusted(name, st, kind); err != nil {
		return "", errors.Join(err, unix.Close(fd))
	}
	switch {
	case kind == unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil || n == 0 || n == len(buf) {
			return "", errors.Join(fmt.Errorf("%s: reading the link: %w", name, err), unix.Close(fd))
		}
		return string(buf[:n]), unix.Close(fd)
	case kind == unix.S_IFDIR && !last:
		w.stack = append(w.stack, fd)
		return "", nil
	case kind != unix.S_IFREG || st.Mode&0o111 == 0:
		return "", errors.Join(fmt.Errorf("%s is not a program", name), unix.Close(fd))
	case !last:
		return "", errors.Join(fmt.Errorf("%s is not a folder", name), unix.Close(fd))
	}
	return "", unix.Close(fd)
}

func (w *walk) trusted(name string, st unix.Stat_t, kind uint32) error {
	if st.Uid != w.owner {
		return fmt.Errorf("%s belongs to uid %d, who could replace it", name, st.Uid)
	}
	byGroup := st.Mode&0o020 != 0 && st.Gid != 0
	if kind != unix.S_IFLNK && (byGroup || st.Mode&0o002 != 0) {
		return fmt.Errorf("%s can be changed by others than root (mode %04o)", name, st.Mode&0o7777)
	}
	return nil
}
