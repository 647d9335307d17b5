package stream_test

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/pace"
)

// freezableProxy forwards until it is frozen, then swallows: nothing passes and nothing is closed,
// as when a host loses power.
func freezableProxy(t *testing.T, to string) (address string, freeze func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var frozen atomic.Bool
	done := make(chan struct{})
	t.Cleanup(func() { close(done); listener.Close() })
	pump := func(from, to net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if frozen.Load() {
				continue
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			a, err := listener.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			go func() { <-done; a.Close(); b.Close() }()
			go pump(a, b)
			go pump(b, a)
		}
	}()
	return listener.Addr().String(), func() { frozen.Store(true) }
}

// F6, seen from the control plane. The keep-alive is shorter than in service, where it is 10 s and
// 8 s.
func TestAHalfOpenHostIsNoticed(t *testing.T) {
	w := newWorld(t, stream.Timing{Ping: time.Second, PingTimeout: time.Second})
	m := w.machine("web1")
	address, freeze := freezableProxy(t, w.address)
	w.address = address
	w.connect(m).untilState()
	freeze()
	start := pace.Start()
	eventually(t, "the host is seen to be gone", func() bool {
		h, _ := w.hub.Health(m.id)
		return !h.Connected
	})
	if d := start.Elapsed(); d > 5*time.Second {
		t.Errorf("noticed after %s", d)
	}
}
