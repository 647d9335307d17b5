package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Handle holds on to one process: its number cannot come to mean another one while it is open.
type Handle struct {
	Process
	file *os.File // a pidfd
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
	// Go's poller waits only for files that say O_NONBLOCK; on kernels before 5.10 a pidfd cannot,
	// and Wait looks now and then instead.
	_ = unix.SetNonblock(fd, true)
	h := &Handle{file: os.NewFile(uintptr(fd), "pidfd")}
	var err error
	if h.Process, err = Read(pid); err == nil && h.Ended() {
		// What was just read may be the next process of this number.
		err = fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close lets go of the process.
func (h *Handle) Close() error { return h.file.Close() }

// Ended tells whether the process has exited. A pidfd is readable from then on.
func (h *Handle) Ended() bool {
	ended := true
	conn, err := h.file.SyscallConn()
	if err != nil {
		return true
	}
	err = conn.Control(func(fd uintptr) { ended = readable(int(fd)) })
	return err != nil || ended
}

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

// Again reads the process anew. ErrGone when it has ended since.
func (h *Handle) Again() (Process, error) {
	p, err := Read(h.PID)
	if err == nil && (h.Ended() || !p.Same(h.Process)) {
		err = fmt.Errorf("process %d: %w", h.PID, ErrGone)
	}
	return p, err
}

// Wait returns nil once the process has exited, or the context's cause.
func (h *Handle) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if conn, err := h.file.SyscallConn(); err == nil {
		_ = conn.Read(func(fd uintptr) bool { return readable(int(fd)) })
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
