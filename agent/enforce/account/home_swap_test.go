package account

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// exchange swaps two paths for each other as fast as it can until stop is closed.
func exchange(t *testing.T, a, b string, stop <-chan struct{}, done *sync.WaitGroup) {
	done.Add(1)
	go func() {
		defer done.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			if err != nil && err != unix.ENOENT {
				t.Errorf("swapping: %v", err)
				return
			}
		}
	}()
}

// TestMakeHomeUnderSwaps changes files of the skel for links to a secret, for a FIFO, and its
// folder for a link to another, all while homes are made from it.
func TestMakeHomeUnderSwaps(t *testing.T) {
	root, skel, aside := rootFolder(t), rootFolder(t), rootFolder(t)
	write(t, aside+"/secret", "root's secret", 0o600)
	for _, err := range []error{
		os.Mkdir(skel+"/dir", 0o755),
		os.Mkdir(aside+"/other", 0o755),
		os.Symlink(aside+"/other", aside+"/dir-link"),
		os.Symlink(aside+"/secret", aside+"/link"),
		unix.Mkfifo(aside+"/fifo", 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	write(t, aside+"/other/taken", "root's secret", 0o600)
	write(t, skel+"/dir/inner", "fine", 0o644)
	write(t, skel+"/a", "fine", 0o644)
	write(t, skel+"/b", "fine", 0o644)

	stop := make(chan struct{})
	var swappers sync.WaitGroup
	exchange(t, skel+"/a", aside+"/link", stop, &swappers)
	exchange(t, skel+"/b", aside+"/fifo", stop, &swappers)
	exchange(t, skel+"/dir", aside+"/dir-link", stop, &swappers)
	made := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		err := MakeHome(root, "alice", testUID, testGID, skel)
		if err == nil {
			made++
		}
		if got := list(t, root); strings.Contains(got, `"root's secret"`) {
			t.Fatalf("a link was followed:\n%s", got)
		} else if err != nil && got != list(t, rootFolder(t)) {
			t.Fatalf("after %v something is left:\n%s", err, got)
		}
		if err := os.RemoveAll(root + "/alice"); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	swappers.Wait()
	if made == 0 {
		t.Error("not one home was made: the test tried nothing")
	}
	if got := list(t, aside+"/secret"); !bytes.HasPrefix([]byte(got), []byte("100600 0:0")) {
		t.Errorf("the secret changed hands: %s", got)
	}
}

// TestMakeHomeUnderASwappedHome puts links to somebody's folder where the home and the temporary
// folder are to be, between any two of MakeHome's system calls.
func TestMakeHomeUnderASwappedHome(t *testing.T) {
	root, aside, skel := rootFolder(t), rootFolder(t), rootFolder(t)
	victim := aside + "/victim"
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, skel+"/.profile", "x", 0o644)
	before := list(t, victim)

	stop := make(chan struct{})
	var swappers sync.WaitGroup
	exchange(t, root+"/.curfew-new-alice", aside+"/link", stop, &swappers)
	made := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		for _, path := range []string{root + "/alice", root + "/.curfew-new-alice", aside + "/link"} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
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
