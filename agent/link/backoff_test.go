package link

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// F5: a host that was cut off is back within 5 s of its network: it pauses for 2 s at most while
// nobody answers at all, and longer only where somebody does.
func TestUnreachedIsTriedSoon(t *testing.T) {
	l := &Link{timing: Timing{}.withDefaults()}
	var unreached, reached time.Duration
	for n := range 1000 {
		l.reached.Store(false)
		unreached = max(unreached, l.backoff(n))
		l.reached.Store(true)
		reached = max(reached, l.backoff(n))
	}
	if unreached > 2*time.Second+time.Millisecond {
		t.Errorf("unreached, it pauses for %s", unreached)
	}
	if reached < 10*time.Second || reached > 15*time.Second+time.Millisecond {
		t.Errorf("reached, it pauses for %s at most", reached)
	}
}

// A try whose packets are lost is given up before the kernel's own repetitions get slow.
func TestLostPacketsEndATry(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	server := fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port)
	const each = 300 * time.Millisecond
	for range 8 { // a full queue of connections that nobody accepts drops what else comes
		began := time.Now()
		c, err := dialTCP(context.Background(), server, each)
		if err == nil {
			defer c.Close()
			continue
		}
		if took := time.Since(began); took < each || took > each+2*time.Second {
			t.Errorf("given up after %s, want %s", took, each)
		}
		return
	}
	t.Error("every try was answered")
}
