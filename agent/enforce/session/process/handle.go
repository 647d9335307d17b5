package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Handle holds on to one process: its number cannot come to mean another one while it is open. Who
// asks at every login and every sudo is taken hold of, so only what all of them are asked is found out:
// the real uid of that moment. Name and Read tell the rest.
type Handle struct {
	PID     int
	RealUID uint32
	fd      int // a pidfd
}

// Open takes hold of a process. ErrGone when it does not exist or has ended.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, gone(pid, err)
	}
	return Adopt(fd, pid)
}

// Adopt makes a Handle of a pidfd, such as SO_PEERPIDFD gives, and of the pid that it stands for. It
// owns fd from then on, also when it fails.
func Adopt(fd, pid int) (*Handle, error) {
	h := &Handle{PID: pid, fd: fd}
	if err := h.identify(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// identify asks the kernel by the pidfd, and reads /proc where the kernel does not tell: before Linux 6.13.
func (h *Handle) identify() error {
	told, err := h.ask()
	if told || err != nil {
		return err
	}
	return h.look()
}

// ask is an error when the pidfd is of another process than it was said to be.
func (h *Handle) ask() (told bool, err error) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID | unix.PIDFD_INFO_CREDS}
	if unix.IoctlPidfdInfo(h.fd, &info) != nil || info.Mask&unix.PIDFD_INFO_CREDS == 0 {
		return false, nil
	}
	if int(info.Tgid) != h.PID {
		return false, fmt.Errorf("process %d: its pidfd is of process %d", h.PID, info.Tgid)
	}
	h.RealUID = info.Ruid
	return true, nil
}

func (h *Handle) look() error {
	text, err := readAt(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/status", h.PID))
	if err != nil {
		return gone(h.PID, err)
	}
	var p Process
	if err := p.parseStatus(text); err != nil {
		return fmt.Errorf("reading status of process %d: %w", h.PID, err)
	}
	h.RealUID = p.RealUID()
	return h.still()
}

// Name is what the process calls itself. ErrGone when it has ended.
func (h *Handle) Name() (string, error) {
	text, err := readAt(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/comm", h.PID))
	if err != nil {
		return "", gone(h.PID, err)
	}
	return strings.TrimSuffix(text, "\n"), h.still()
}

// still is ErrGone once the process has exited: what was read may be the next one's of its number. Until
// then nobody else can have the number.
func (h *Handle) still() error {
	if h.Ended() {
		return fmt.Errorf("process %d: %w", h.PID, ErrGone)
	}
	return nil
}

// Close lets go of the process.
func (h *Handle) Close() error { return unix.Close(h.fd) }

// Ended tells whether the process has exited. A pidfd is readable from then on.
func (h *Handle) Ended() bool { return readable(h.fd) }

func readable(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for range 16 {
		n, err := unix.Poll(poll, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err != nil || n > 0
	}
	return false
}

// Read returns the process as it is now. ErrGone when it has ended.
func (h *Handle) Read() (Process, error) {
	p, err := Read(h.PID)
	if err == nil {
		err = h.still()
	}
	return p, err
}

// Kill sends SIGKILL; nil also when the process has ended.
func (h *Handle) Kill() error {
	err := unix.PidfdSendSignal(h.fd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", h.PID, err)
	}
	return nil
}

// Wait returns nil once the process has exited, or the context's cause.
func (h *Handle) Wait(ctx context.Context) error {
	if polled, err := h.polled(); err == nil {
		defer func() { _ = polled.Close() }()
		stop := context.AfterFunc(ctx, func() { _ = polled.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		if conn, err := polled.SyscallConn(); err == nil {
			_ = conn.Read(func(fd uintptr) bool { return readable(int(fd)) })
		}
	}
	for !h.Ended() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(waitPoll):
		}
	}
	return nil
}

// polled is a second descriptor, in Go's poller. That waits only for files that say O_NONBLOCK; on
// kernels before 5.10 a pidfd cannot, and Wait looks now and then instead.
func (h *Handle) polled() (*os.File, error) {
	second, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.SetNonblock(second, true)
	return os.NewFile(uintptr(second), "pidfd"), nil
}

// waitPoll is how often Wait looks where the kernel cannot tell.
const waitPoll = 500 * time.Millisecond

// Kill sends SIGKILL to p itself: nil also when it is gone, whoever has its number now.
func Kill(p Process) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	now, err := Read(p.PID)
	if errors.Is(err, ErrGone) || err == nil && !now.Same(p) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	return nil
}
