package enforce

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRepairsUnderSwaps exchanges the folders and files that open access for links, pipes and
// folders of somebody's, as fast as it can, while they are put right over and over. Nothing behind
// a link is ever written or removed, no repair hangs, and the last one makes everything as desired.
func TestRepairsUnderSwaps(t *testing.T) {
	link := func(to string) func(string, string) error {
		return func(outside, at string) error { return os.Symlink(outside+to, at) }
	}
	pipe := func(_, at string) error { return mkfifo(at) }
	// An attacker who goes through a link of his own would write behind it himself: files and folders
	// are swapped apart.
	for name, swaps := range map[string]map[string]func(outside, at string) error{
		"files": {
			dropinPath(1):              link("/secret"),
			SudoersDir + "/zz":         link(""),
			KeysDir + "/erin":          pipe,
			RunDir + "/" + Snapshot:    func(_, at string) error { return os.MkdirAll(at+"/x", 0o755) },
			StateDir + "/" + GateTable: func(_, at string) error { return os.Symlink("/dev/zero", at) },
		},
		"folders": {SudoersDir: link("/in"), KeysDir: pipe},
	} {
		t.Run(name, func(t *testing.T) { repairUnder(t, swaps) })
	}
}

func repairUnder(t *testing.T, swaps map[string]func(outside, at string) error) {
	h := newHost(t)
	h.apply(state(live(1, "alice", withRule(restart)), live(2, "erin")))
	want := h.tree()
	outside, aside := filepath.Join(h.root, "outside"), filepath.Join(h.root, "aside")
	if err := errors.Join(os.MkdirAll(outside+"/in", 0o755), os.Mkdir(aside, 0o755),
		os.WriteFile(outside+"/secret", []byte("untouched"), 0o600),
		os.WriteFile(outside+"/in/secret", []byte("untouched"), 0o600)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var attackers sync.WaitGroup
	for name, put := range swaps {
		attackers.Go(func() {
			mine, at := filepath.Join(aside, filepath.Base(name)), h.path(name)
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				_ = os.RemoveAll(mine) // what was swapped out the last time
				if put(outside, mine) != nil {
					continue
				}
				if unix.Renameat2(unix.AT_FDCWD, mine, unix.AT_FDCWD, at, unix.RENAME_EXCHANGE) != nil {
					_ = os.Rename(mine, at)
				}
			}
		})
	}
	repaired := 0
	for began := time.Now(); time.Since(began) < 2*time.Second ||
		repaired < 20 && time.Since(began) < 20*time.Second; {
		done := make(chan struct{})
		go func() { defer close(done); h.r.Repair() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the repair hangs")
		}
		repaired += len(h.takeDrift())
	}
	close(stop)
	attackers.Wait()
	h.r.Repair()
	if repaired < 20 {
		t.Errorf("%d repairs: the test tried nothing", repaired)
	}
	if got := h.tree(); got != want {
		t.Errorf("in the end:\n%s\nwant\n%s", got, want)
	}
	for _, f := range []string{"/secret", "/in/secret"} {
		if data, err := os.ReadFile(outside + f); err != nil || string(data) != "untouched" {
			t.Errorf("%s was followed: %q, %v", f, data, err)
		}
	}
	for dir, n := range map[string]int{outside: 2, outside + "/in": 1} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != n {
			t.Errorf("something was written into %s: %v, %v", dir, entries, err)
		}
	}
}
