package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// listen makes a stream socket that appears under its name with its mode and group already set.
func listen(path string, mode os.FileMode, gid int) (*net.UnixListener, error) {
	beside := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(beside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: beside, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // the name that it knows is gone after the rename
	err = os.Lchown(beside, os.Geteuid(), gid)
	if err == nil {
		err = os.Chmod(beside, mode)
	}
	if err == nil {
		err = os.Rename(beside, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", path, err), l.Close())
	}
	return l, nil
}

// peerUID asks the kernel who is at the other end. It never guesses: an error is a refusal.
func peerUID(c *net.UnixConn) (uint32, error) {
	cred, err := peer(c)
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// peer is peerUID with the process, which may be gone by now.
func peer(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var errCred error
	err = raw.Control(func(fd uintptr) {
		cred, errCred = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, errCred); err != nil {
		return nil, fmt.Errorf("asking who is connected: %w", err)
	}
	return cred, nil
}
