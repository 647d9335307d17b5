package gate

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Listen makes the gate socket at path: 0600, for root alone. A socket that an earlier agent left is
// replaced.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making the gate socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("making the gate socket: %w", err)
	}
	// Whoever slips in before is told by SO_PEERCRED, like anybody who got a descriptor.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("making the gate socket: %w", err), l.Close())
	}
	return l, nil
}

// Inherited is the gate socket on which systemd listens for this program (sd_listen_fds(3)), so that
// who asks while there is no agent waits for the next one; nil when the program was not started so.
// It takes the news out of the environment.
func Inherited() (*net.UnixListener, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	if count != "1" {
		return nil, fmt.Errorf("systemd passes %s sockets, want the gate's alone", count)
	}
	const first = 3
	f := os.NewFile(first, "gate.sock")
	defer f.Close() // FileListener has its own
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("taking the gate socket over from systemd: %w", err)
	}
	socket, ok := l.(*net.UnixListener)
	if !ok || socket.Addr().Network() != "unixpacket" {
		return nil, errors.Join(fmt.Errorf("systemd passes a socket of %s, want the gate's", l.Addr().Network()),
			l.Close())
	}
	return socket, nil
}

// Stands tells whether who connects to path comes to systemd, whose socket Inherited returned: the file
// may be gone, or another's socket in its place.
func Stands(path string) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return errors.Is(err, unix.EAGAIN) // so many wait already
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && cred.Uid == 0 && cred.Pid == 1
}
