package agent

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A systemd hears what a program tells it.
type systemd struct {
	t    *testing.T
	said chan string
}

func newSystemd(t *testing.T, watchdog time.Duration) systemd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	// As systemd does, it takes everything at once: a program that nobody listens to would wait in its write.
	said, over := make(chan string, 1<<16), make(chan struct{})
	go func() {
		defer close(over)
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			said <- string(buf[:n])
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-over })
	t.Setenv("NOTIFY_SOCKET", path)
	if watchdog > 0 {
		t.Setenv("WATCHDOG_USEC", fmt.Sprint(watchdog.Microseconds()))
	}
	return systemd{t: t, said: said}
}

// hears tells whether a line that begins so comes within a time.
func (s systemd) hears(prefix string, within time.Duration) bool {
	s.t.Helper()
	late := time.After(within)
	for {
		select {
		case line := <-s.said:
			if strings.HasPrefix(line, prefix) {
				return true
			}
		case <-late:
			return false
		}
	}
}

// inExpiry tells whether this is the goroutine that waits for ends.
func inExpiry() bool {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "expiry.(*Timer).loop") {
			return true
		}
		if !more {
			return false
		}
	}
}

// Systemd's watchdog starves when what ends access hangs, though all else goes on: the loop that waits
// for deadlines, or the one that changes the ledger.
func TestWatchdogStarvesWhenEndsAreNotNoticed(t *testing.T) {
	const every = 400 * time.Millisecond
	for name, hang := range map[string]func(*machine, <-chan struct{}){
		"the expiry loop": func(m *machine, over <-chan struct{}) {
			wait := func() {
				if inExpiry() {
					<-over
				}
			}
			m.reading.Store(&wait)
		},
		"the owner": func(m *machine, over <-chan struct{}) {
			m.half.owner.post(m.t.Context(), func(context.Context) { <-over })
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSystemd(t, every)
			m := newMachine(t)
			m.start()
			if !s.hears("READY=1", 20*time.Second) {
				t.Fatal("not ready")
			}
			for range 5 {
				if !s.hears("WATCHDOG=1", 20*time.Second) {
					t.Fatal("the watchdog is not fed by a root half that is well")
				}
			}
			over := make(chan struct{})
			hang(m, over)
			for range 3 { // what was on its way
				if !s.hears("WATCHDOG=1", every) {
					break
				}
			}
			if s.hears("WATCHDOG=1", 5*every) {
				t.Error("the watchdog is fed")
			}
			close(over)
			if !s.hears("WATCHDOG=1", 20*time.Second) {
				t.Error("it is not fed when all goes on")
			}
		})
	}
}
