package inject

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Launch becomes the program argv[0], with the filter on and its listener handed to the injector at
// socket. It returns only when that fails.
func Launch(socket string, argv []string) error {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("reaching the injector: %w", err)
	}
	// The filter holds for this thread, which execve keeps, and not for those that Go has beside: the
	// first trapped call here would wait for a listener that nobody has yet.
	runtime.LockOSThread()
	listener := make(chan int)
	ready := make(chan error)
	go func() { ready <- hand(conn, <-listener) }()
	fd, err := install()
	if err != nil {
		return fmt.Errorf("installing the filter: %w", err)
	}
	listener <- fd
	if err := <-ready; err != nil {
		return err
	}
	return fmt.Errorf("starting %s: %w", path, syscall.Exec(path, argv, os.Environ()))
}

// hand gives the listener away and waits until the injector says go.
func hand(conn *net.UnixConn, fd int) error {
	if _, _, err := conn.WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("handing the listener to the injector: %w", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the injector does not say go: %w", err)
	}
	return nil
}

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
)

func program() []unix.SockFilter {
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	ret := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	list := []unix.SockFilter{
		load(offArch), equal(auditArch, 1, 0), ret(seccompAllow), load(offNumber),
	}
	for i, c := range calls {
		list = append(list, equal(uint32(c.number), uint8(len(calls)-i), 0))
	}
	return append(list, ret(seccompAllow), ret(unix.SECCOMP_RET_USER_NOTIF))
}

const seccompAllow = unix.SECCOMP_RET_ALLOW

// install puts the filter on this thread and returns its listener.
func install() (int, error) {
	list := program()
	prog := unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}
	try := func() (int, error) {
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
			unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
			uintptr(unsafe.Pointer(&prog)))
		if errno != 0 {
			return -1, errno
		}
		return int(fd), nil
	}
	fd, err := try()
	if errors.Is(err, unix.EACCES) { // without CAP_SYS_ADMIN only for who can gain nothing any more
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return -1, err
		}
		return try()
	}
	return fd, err
}

// Build compiles the launcher into folder and returns its path. It is static: it runs on any host.
func Build(folder string) (string, error) {
	path := folder + "/curfew-inject"
	cmd := exec.Command("go", "build", "-o", path,
		"github.com/curfew-access/curfew/e2e/inject/launch")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the launcher: %w\n%s", err, out)
	}
	return path, nil
}
