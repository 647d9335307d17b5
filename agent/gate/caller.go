package gate

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
)

// errHungUp: nobody waits for an answer.
var errHungUp = errors.New("the caller hung up")

// callerOf takes hold of the process that connected. SO_PEERPIDFD (Linux 6.5) names it for good;
// before that, its pid may already be another's, so the connection must still be open afterwards:
// the kernel closes it with its owner, unless a child holds a copy.
func callerOf(conn *net.UnixConn) (*process.Handle, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("looking at the caller: %w", err)
	}
	var handle *process.Handle
	var failed error
	err = raw.Control(func(fd uintptr) { handle, failed = peer(int(fd)) })
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("looking at the caller: %w", err)
	}
	return handle, nil
}

func peer(fd int) (*process.Handle, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, err
	}
	if cred.Uid != 0 {
		return nil, fmt.Errorf("process %d connected as uid %d", cred.Pid, cred.Uid)
	}
	if cred.Pid <= 0 {
		return nil, errors.New("the caller is in another pid namespace")
	}
	var handle *process.Handle
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		handle, err = process.Adopt(pidfd, int(cred.Pid))
	} else {
		handle, err = process.Open(int(cred.Pid))
	}
	if err != nil {
		return nil, err
	}
	if hungUp(fd) {
		return nil, errors.Join(errHungUp, handle.Close())
	}
	return handle, nil
}
