package world

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Dial connects the test itself to a TCP port in the world, "name:port", from the switch's address.
func (w *World) Dial(ctx context.Context, address string) (net.Conn, error) {
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	addr, known := w.names[name]
	w.mu.Unlock()
	if !known {
		if addr, err = netip.ParseAddr(name); err != nil {
			return nil, fmt.Errorf("dialling %s: no such host in this world", address)
		}
	}
	var conn net.Conn
	var dialer net.Dialer
	err = inNetwork(w.stage.ns("net"), func() (err error) {
		// An address and not a name: the socket is made by this very thread.
		conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(addr.String(), port))
		return err
	})
	return conn, err
}

// Listen opens a TCP port of the test itself in the world, at an address that the switch takes besides
// its own: so a cloud's metadata service stands at its well-known one.
func (w *World) Listen(ctx context.Context, at netip.AddrPort) (l net.Listener, err error) {
	prefix := netip.PrefixFrom(at.Addr(), at.Addr().BitLen())
	if err := w.stage.sh(ctx, `ip addr add "$1" dev switch`, prefix.String()); err != nil {
		return nil, err
	}
	err = inNetwork(w.stage.ns("net"), func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, "tcp", at.String())
		return err
	})
	return l, err
}

// inNetwork calls f on a thread inside the network namespace at path. A thread that cannot come
// back stays locked, so that the runtime ends it with its goroutine.
func inNetwork(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		there, err := os.Open(path)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer there.Close()
		here, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer here.Close()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("entering the world's network: %w", err)
			return
		}
		err = f()
		if unix.Setns(int(here.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
