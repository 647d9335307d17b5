package inject

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// group is the process that a thread belongs to; 0 when the thread is gone.
func group(tid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\nTgid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.Atoi(line)
	return n
}

// reader looks into a thread that waits.
type reader struct{ tid int }

// path reads a path; what cannot be read is shown as "?".
func (r reader) path(address uint64) string {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", r.tid))
	if err != nil {
		return "?"
	}
	defer mem.Close()
	text := make([]byte, 0, unix.PathMax)
	for len(text) < unix.PathMax {
		// Page by page: the next one may not be there.
		part := make([]byte, 4096-(address+uint64(len(text)))%4096)
		n, err := mem.ReadAt(part, int64(address)+int64(len(text)))
		if end := bytes.IndexByte(part[:n], 0); end >= 0 {
			return string(append(text, part[:end]...))
		}
		if err != nil {
			return "?"
		}
		text = append(text, part[:n]...)
	}
	return "?"
}

// flags reads the first field of a struct open_how.
func (r reader) flags(address uint64) uint64 {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", r.tid))
	if err != nil {
		return 0
	}
	defer mem.Close()
	var field [8]byte
	if _, err := mem.ReadAt(field[:], int64(address)); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(field[:])
}

// fd names what a descriptor is open on.
func (r reader) fd(fd uint64) string {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", r.tid, int32(fd)))
	if err != nil {
		return "?"
	}
	if strings.HasPrefix(target, "socket:") {
		return strings.TrimSpace("socket " + r.peer(fd))
	}
	return target
}

// peer is the path of a Unix socket's other end, or its own, as far as it has one.
func (r reader) peer(fd uint64) string {
	// The descriptor is looked at in the process: its main thread has all that the others have.
	pidfd, err := unix.PidfdOpen(group(r.tid), 0)
	if err != nil {
		return ""
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, int(int32(fd)), 0)
	if err != nil {
		return ""
	}
	defer unix.Close(dup)
	for _, ask := range []func(int) (unix.Sockaddr, error){unix.Getpeername, unix.Getsockname} {
		if address, err := ask(dup); err == nil {
			if a, ok := address.(*unix.SockaddrUnix); ok && strings.HasPrefix(a.Name, "/") {
				return a.Name
			}
		}
	}
	return ""
}

func (r reader) at(dir, address uint64) string {
	name := r.path(address)
	if path.IsAbs(name) || int32(dir) == unix.AT_FDCWD {
		return name
	}
	return path.Join(r.fd(dir), name)
}

const makes = unix.O_CREAT | unix.O_TRUNC

// read turns a notification into a call, and tells whether it is one that counts.
func (l life) read(n notification) (c Call, counts bool) {
	for _, k := range calls {
		if k.number == int(n.number) {
			c = Call{Life: l.number, PID: l.pid, Name: k.name, FD: -1}
			r := reader{tid: int(n.pid)}
			return c, r.fill(&c, k.about, n.arguments)
		}
	}
	return Call{}, false
}

func (r reader) fill(c *Call, what about, a [6]uint64) bool {
	switch what {
	case aboutFD:
		c.FD, c.Path, c.Size = int(int32(a[0])), r.fd(a[0]), a[2]
		return c.FD != 1 && c.FD != 2 && !strings.HasPrefix(c.Path, "pipe:") &&
			!strings.HasPrefix(c.Path, "anon_inode:")
	case aboutAt:
		c.Path = r.at(a[0], a[1])
	case aboutFrom:
		c.Path = r.at(a[0], a[1]) + " -> " + r.at(a[2], a[3])
	case aboutPath:
		c.Path = r.path(a[0])
	case aboutTo:
		c.Path = r.path(a[0]) + " -> " + r.path(a[1])
	case aboutOpenAt:
		c.Path = r.at(a[0], a[1])
		return a[2]&makes != 0
	case aboutHow:
		c.Path = r.at(a[0], a[1])
		return r.flags(a[2])&makes != 0
	case aboutOpen:
		c.Path = r.path(a[0])
		return a[1]&makes != 0
	case aboutPID:
		c.Path = fmt.Sprintf("process %d", int32(a[0]))
		return a[1] != 0
	case aboutPidfd:
		c.Path = "process"
		return a[1] != 0
	}
	return true
}
