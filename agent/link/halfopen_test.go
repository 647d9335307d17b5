package link_test

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/link"
)

// proxy stands between link and control plane; frozen, it forwards nothing and closes nothing.
type proxy struct {
	listener net.Listener
	frozen   atomic.Bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener}
	done := make(chan struct{})
	t.Cleanup(func() { close(done); listener.Close() })
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
			go p.pump(a, b)
			go p.pump(b, a)
		}
	}()
	return p
}

func (p *proxy) pump(from, to net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			if !p.frozen.Load() {
				to.Close()
			}
			return
		}
		if p.frozen.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			from.Close()
			return
		}
	}
}

// F6: a connection that is half open is noticed within 20 s.
func TestHalfOpenIsNoticed(t *testing.T) {
	t.Parallel()
	c, r := newControl(t), newRootHalf(t)
	p := newProxy(t, c.address)
	c.run(c.joined(), r, func(config *link.Config) { config.Server = p.listener.Addr().String() })
	root := r.accept()
	c.accept()
	p.frozen.Store(true)
	start := time.Now()
	if err := root.SetReadDeadline(start.Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("the root half hears nothing of it: %v", err)
	}
	d := time.Since(start)
	t.Logf("noticed after %s", d)
	if d > 20*time.Second {
		t.Errorf("noticed after %s", d)
	}
	p.frozen.Store(false)
	r.accept()
	c.accept()
}
