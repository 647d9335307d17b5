package inject

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call that waits for a verdict.
type Call struct {
	// Life counts the starts of the program since Listen, from 1.
	Life int
	// PID is the process, as this machine sees it.
	PID int
	// Name is the call's, as in section 2 of the manual.
	Name string
	// Path is what it is about: a path as the program sees it, "a -> b" for two, "socket PATH" of
	// the end that has one, or a process.
	Path string
	// FD is a descriptor of the program's that the call works on, or -1.
	FD int
	// Size is how many bytes a write is about to write.
	Size uint64
}

func (c Call) String() string { return c.Name + " " + c.Path }

var random = regexp.MustCompile(`[0-9a-f]{8,}|[0-9]{3,}`)

// Key is the call without what differs from run to run.
func (c Call) Key() string { return c.Name + " " + random.ReplaceAllString(c.Path, "*") }

// Verdict is what becomes of a call. The zero value lets it pass.
type Verdict struct {
	kill  bool
	errno unix.Errno
}

// Kill ends the whole process by SIGKILL; the call is not made.
func Kill() Verdict { return Verdict{kill: true} }

// Fail makes the call return an error without being made.
func Fail(errno unix.Errno) Verdict { return Verdict{errno: errno} }

// Injector decides about the calls of the programs that were started to come to it.
type Injector struct {
	socket   *net.UnixListener
	decide   func(Call) Verdict
	starting func(life int)
	group    sync.WaitGroup
	closed   chan struct{}

	mu    sync.Mutex // held while one call is decided
	lives int
	err   error
}

// Listen makes the socket that launchers come to. Each call is given to decide, one at a time; when
// decide takes its time, so does the program. starting, unless it is nil, is called before each life
// and holds the program up as long as it takes.
func Listen(path string, decide func(Call) Verdict, starting func(life int)) (*Injector, error) {
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("injector: %w", err)
	}
	in := &Injector{
		socket: socket, decide: decide, starting: starting, closed: make(chan struct{}),
	}
	in.group.Go(in.accept)
	return in, nil
}

// Close lets go of everything and returns what went wrong on the way.
func (in *Injector) Close() error {
	close(in.closed)
	err := in.socket.Close()
	in.group.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	return errors.Join(err, in.err)
}

func (in *Injector) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.err = errors.Join(in.err, err)
}

func (in *Injector) done() bool {
	select {
	case <-in.closed:
		return true
	default:
		return false
	}
}

func (in *Injector) accept() {
	for {
		conn, err := in.socket.AcceptUnix()
		if err != nil {
			if !in.done() {
				in.fail(fmt.Errorf("injector: %w", err))
			}
			return
		}
		in.group.Go(func() {
			defer conn.Close()
			if err := in.serve(conn); err != nil && !in.done() {
				in.fail(fmt.Errorf("injector: %w", err))
			}
		})
	}
}

// life is one start of the program.
type life struct {
	in       *Injector
	number   int
	pid      int
	listener int
}

func (in *Injector) serve(conn *net.UnixConn) error {
	pid, fd, err := receive(conn)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	in.mu.Lock()
	in.lives++
	l := life{in: in, number: in.lives, pid: pid, listener: fd}
	in.mu.Unlock()
	if in.starting != nil {
		in.starting(l.number)
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return nil // the launcher was ended while it was held up
	}
	return l.run()
}

// receive takes the listener, and the process id that the kernel vouches for.
func receive(conn *net.UnixConn) (pid, fd int, err error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return 0, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return 0, 0, fmt.Errorf("a launcher without a listener: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, 0, fmt.Errorf("a launcher without a listener: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var errCred error
	err = raw.Control(func(s uintptr) {
		cred, errCred = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, errCred); err != nil {
		return 0, 0, err
	}
	return int(cred.Pid), fds[0], nil
}

// notification and response are seccomp_notif and seccomp_notif_resp of linux/seccomp.h.
type notification struct {
	id        uint64
	pid       uint32
	flags     uint32
	number    int32
	arch      uint32
	ip        uint64
	arguments [6]uint64
}

type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

const pollEvery = 100 * time.Millisecond

// run decides about calls until nobody is left who could make one.
func (l life) run() error {
	for !l.in.done() {
		ready := []unix.PollFd{{Fd: int32(l.listener), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, int(pollEvery/time.Millisecond))
		if errors.Is(err, unix.EINTR) || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for calls: %w", err)
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return nil // hung up: the last process with this filter is gone
		}
		if err := l.one(); err != nil {
			return err
		}
	}
	return nil
}

func (l life) one() error {
	var n notification
	err := ioctl(l.listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
		return nil // its thread was killed meanwhile
	}
	if err != nil {
		return fmt.Errorf("taking a call: %w", err)
	}
	v := l.judge(n)
	if v.kill {
		if err := unix.Kill(l.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing: %w", err)
		}
		return nil
	}
	r := response{id: n.id, errno: -int32(v.errno)}
	if v.errno == 0 {
		r.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	err = ioctl(l.listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("answering a call: %w", err)
	}
	return nil
}

func (l life) judge(n notification) Verdict {
	if group(int(n.pid)) != l.pid {
		return Verdict{} // a child's
	}
	c, counts := l.read(n)
	if !counts {
		return Verdict{}
	}
	l.in.mu.Lock()
	defer l.in.mu.Unlock()
	return l.in.decide(c)
}

func ioctl(fd int, request uint, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}

// Wait returns when the process is gone, reaped or not.
func Wait(pid int, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n == 1 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return os.ErrDeadlineExceeded
}
