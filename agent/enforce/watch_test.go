package enforce

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Without a watch to be had the root half goes on: it checks the files now and then, and says so.
func TestNoWatchIsToBeHad(t *testing.T) {
	h := newHost(t)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	// inotify_init fails the same way when the kernel's limit of instances is reached.
	none := unix.Rlimit{Cur: 3, Max: before.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.r.Run(ctx) }()
	var told bool
	for until := time.Now().Add(10 * time.Second); !told && time.Now().Before(until); {
		told = strings.Contains(strings.Join(h.r.Problems(), "\n"), "too many open files")
		time.Sleep(time.Millisecond)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	default:
	}
	if !told {
		t.Errorf("the problems are %q", h.r.Problems())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
