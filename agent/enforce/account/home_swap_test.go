package account

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// exchange swaps pairs of paths for each other as fast as it can until stop is closed.
func exchange(t *testing.T, stop <-chan struct{}, done *sync.WaitGroup, pairs ...[2]string) {
	done.Add(1)
	go func() {
		defer done.Done()
		for {
			for _, p := range pairs {
				err := unix.Renameat2(unix.AT_FDCWD, p[0], unix.AT_FDCWD, p[1], unix.RENAME_EXCHANGE)
				if err != nil && err != unix.ENOENT {
					t.Errorf("swapping: %v", err)
					return
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
}

// inMemory is a rootFolder where syncing costs nothing, so that more homes meet more swaps.
func inMemory(t *testing.T) string {
	t.Helper()
	rootFolder(t)
	dir, err := os.MkdirTemp("/dev/shm", "curfew-home-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestMakeHomeUnderSwaps changes files of the skel for links to a secret and for FIFOs, and its
// folders for links to another, all while homes are made from it.
func TestMakeHomeUnderSwaps(t *testing.T) {
	root, skel := inMemory(t), inMemory(t)
	aside := skel + ".aside" // renames need one file system
	if err := os.Mkdir(aside, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(aside) })
	const secret = "root's secret"
	write(t, aside+"/secret", secret, 0o600)
	if err := os.Mkdir(aside+"/other", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, aside+"/other/taken", secret, 0o600)
	var pairs [][2]string
	for i := range 20 {
		n := fmt.Sprint("/", i)
		for _, err := range []error{
			os.Symlink(aside+"/secret", aside+n+"link"),
			unix.Mkfifo(aside+n+"fifo", 0o644),
			os.Symlink(aside+"/other", aside+n+"dir"),
			os.Mkdir(skel+n+"dir", 0o755),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		write(t, skel+n+"link", "fine", 0o644)
		write(t, skel+n+"fifo", "fine", 0o644)
		write(t, skel+n+"dir/inner", "fine", 0o644)
		for _, kind := range []string{"link", "fifo", "dir"} {
			pairs = append(pairs, [2]string{skel + n + kind, aside + n + kind})
		}
	}

	empty := list(t, root)
	stop := make(chan struct{})
	var swappers sync.WaitGroup
	exchange(t, stop, &swappers, pairs...)
	made, failed := 0, 0
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if made >= 50 && failed >= 50 {
			break
		}
		err := MakeHome(root, "alice", testUID, testGID, skel)
		if err == nil {
			made++
		} else {
			failed++
		}
		if got := list(t, root); strings.Contains(got, secret+`"`) {
			t.Fatalf("a link was followed:\n%s", got)
		} else if err != nil && got != empty {
			t.Fatalf("after %v something is left:\n%s", err, got)
		}
		if err := os.RemoveAll(root + "/alice"); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	swappers.Wait()
	if made == 0 || failed == 0 {
		t.Errorf("%d homes made, %d failed: the test tried nothing", made, failed)
	}
	if got := list(t, aside+"/secret"); !strings.HasPrefix(got, "100600 0:0") {
		t.Errorf("the secret changed hands: %s", got)
	}
}

// TestMakeHomeUnderASwappedHome puts links to somebody's folder where the home and the temporary
// folder are to be, between any two of MakeHome's system calls.
func TestMakeHomeUnderASwappedHome(t *testing.T) {
	root, skel := inMemory(t), inMemory(t)
	aside := root + ".aside" // renames need one file system
	if err := os.Mkdir(aside, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(aside) })
	victim := aside + "/victim"
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, skel+"/.profile", "x", 0o644)
	before := list(t, victim)

	stop := make(chan struct{})
	var swappers sync.WaitGroup
	exchange(t, stop, &swappers, [2]string{root + "/.curfew-new-alice", aside + "/link"})
	made := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		for _, path := range []string{root + "/alice", root + "/.curfew-new-alice", aside + "/link"} {
			removeSwapped(t, path)
		}
		if err := os.Symlink(victim, aside+"/link"); err != nil {
			t.Fatal(err)
		}
		if MakeHome(root, "alice", testUID, testGID, skel) == nil {
			made++
		}
		if diff := cmp.Diff(before, list(t, victim)); diff != "" {
			t.Fatalf("the link was followed:\n%s", diff)
		}
	}
	close(stop)
	swappers.Wait()
	if made == 0 {
		t.Error("not one home was made: the test tried nothing")
	}
}

// removeSwapped removes what somebody else keeps exchanging for a link: a removal may meet either in
// the middle of the other.
func removeSwapped(t *testing.T, path string) {
	t.Helper()
	var err error
	for range 100 {
		if err = os.RemoveAll(path); err == nil {
			return
		}
	}
	t.Fatal(err)
}
