package residue

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

// Who owns a file and which group it has decides; everything else stays as it is.
func TestOnlyBitsOfTheGrantAreCleared(t *testing.T) {
	h := newHost(t)
	for _, f := range []struct {
		name     string
		uid, gid int
		mode     uint32
		want     uint32
	}{
		{"tmp/own", kim, kim, 0o6755, 0o755},
		{"home/kim/deep/er/own", kim, 0, 0o4711, 0o711},
		{"srv/nox", kim, kim, 0o4644, 0o644},
		{"tmp/sticky", kim, kim, 0o7755, 0o1755},
		{"tmp/group", kim, web, 0o2755, 0o755},
		{"tmp/borrowed", carol, web, 0o2755, 0o755},
		{"tmp/borrowed too", lee, web, 0o2755, 0o755},
		{"tmp/both", carol, web, 0o6755, 0o4755}, // carol's own uid is hers
		{"srv/member", lou, web, 0o2755, 0o2755},
		{"usr/bin/hosts own", 0, web, 0o2755, 0o2755},
		{"usr/bin/daemon", 33, web, 0o2755, 0o2755},
		{"usr/bin/su", 0, 0, 0o4755, 0o4755},
		{"tmp/carols", carol, carol, 0o6755, 0o6755},
		{"tmp/plain", kim, kim, 0o755, 0o755},
	} {
		h.program(f.name, f.uid, f.gid, f.mode)
		t.Cleanup(func() {
			if got := h.mode(f.name); got != f.want {
				t.Errorf("%s of %d:%d had mode %o, has %o; want %o", f.name, f.uid, f.gid, f.mode, got, f.want)
			}
		})
	}
	h.ok(os.Mkdir(h.path("srv/shared"), 0o755))
	h.ok(os.Chown(h.path("srv/shared"), kim, web))
	h.ok(unix.Chmod(h.path("srv/shared"), 0o2775))
	r := ended(h.now)
	r.GIDs = []uint32{web}
	h.ok(h.job.Store.Put(r))
	o := h.work(request)
	if !o.Through || len(o.Cleared) != 8 || o.ClearedMore != 0 || o.Report != nil {
		t.Errorf("%+v", o)
	}
	if got := h.mode("srv/shared"); got != 0o2775 {
		t.Errorf("a folder lost its group: %o", got)
	}
}

// While another grant of the account is live only the gids that are over go, and who holds a gid by a
// grant of his own keeps his copies until that ends.
func TestWhatIsStillGrantedStays(t *testing.T) {
	h := newHost(t)
	h.program("tmp/uid", kim, kim, 0o4755)
	h.program("tmp/gid", kim, web, 0o2755)
	h.program("tmp/lees", lee, web, 0o2755)
	r := ended(h.now)
	r.Whole, r.GIDs = false, []uint32{web}
	h.ok(h.job.Store.Put(r))
	h.ok(h.job.Store.Put(Record{
		Request: second, Login: "lee", UID: lee, Account: true, GIDs: []uint32{web},
	}))
	if o := h.work(request); !o.Through {
		t.Errorf("%+v", o)
	}
	got := []uint32{h.mode("tmp/uid"), h.mode("tmp/gid"), h.mode("tmp/lees")}
	if !slices.Equal(got, []uint32{0o4755, 0o755, 0o2755}) {
		t.Errorf("modes %o", got)
	}
}

// Attack A8: links, hard links, pipes and devices under names that the walk comes by, swapped while it
// walks. It changes the file that it looked at, or none.
func TestHuntFollowsNothing(t *testing.T) {
	h := newHost(t)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	h.ok(os.WriteFile(victim, nil, 0o644))
	h.ok(os.Chown(victim, kim, kim))
	h.ok(unix.Chmod(victim, 0o4755))
	h.ok(os.Symlink(victim, h.path("tmp/link")))
	h.ok(os.Symlink(outside, h.path("tmp/folder")))
	h.ok(os.Symlink("loop", h.path("tmp/loop")))
	h.ok(unix.Mkfifo(h.path("tmp/pipe"), 0o666))
	h.ok(os.Chown(h.path("tmp/pipe"), kim, kim))
	h.ok(unix.Chmod(h.path("tmp/pipe"), 0o4666))
	h.program("tmp/a", kim, kim, 0o4755)
	h.ok(os.Link(h.path("tmp/a"), h.path("srv/b")))
	// A folder that turns into a link to elsewhere and back, all the time.
	ctx, cancel := context.WithCancel(t.Context())
	var swapping sync.WaitGroup
	h.ok(os.Mkdir(h.path("tmp/dir"), 0o755))
	h.ok(os.Symlink(outside, h.path("tmp/away")))
	swapping.Go(func() {
		for ctx.Err() == nil {
			_ = unix.Renameat2(unix.AT_FDCWD, h.path("tmp/dir"), unix.AT_FDCWD, h.path("tmp/away"),
				unix.RENAME_EXCHANGE)
		}
	})
	for range 8 {
		h.ok(h.job.Store.Put(ended(h.now)))
		h.work(request)
	}
	cancel()
	swapping.Wait()
	var st unix.Stat_t
	h.ok(unix.Stat(victim, &st))
	if st.Mode&0o7777 != 0o4755 {
		t.Errorf("a file outside was changed: %o", st.Mode&0o7777)
	}
	if h.mode("tmp/a") != 0o755 || h.mode("srv/b") != 0o755 || h.mode("tmp/pipe") != 0o4666 {
		t.Errorf("modes %o %o %o", h.mode("tmp/a"), h.mode("srv/b"), h.mode("tmp/pipe"))
	}
}

// Nested deeper than any path is long.
func TestHuntGoesDeep(t *testing.T) {
	h := newHost(t)
	fd, err := unix.Open(h.path("tmp"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	h.ok(err)
	name := strings.Repeat("d", 100)
	const depth = 300 // 30,000 bytes; PATH_MAX is 4,096
	for range depth {
		h.ok(unix.Mkdirat(fd, name, 0o755))
		below, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		h.ok(errors.Join(err, unix.Close(fd)))
		fd = below
	}
	file, err := unix.Openat(fd, "sh", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o755)
	h.ok(err)
	h.ok(errors.Join(unix.Fchown(file, kim, kim), unix.Fchmod(file, 0o4755)))
	h.ok(h.job.Store.Put(ended(h.now)))
	o := h.work(request)
	var st unix.Stat_t
	h.ok(errors.Join(unix.Fstat(file, &st), unix.Close(file), unix.Close(fd)))
	if !o.Through || st.Mode&0o7777 != 0o755 || len(o.Cleared) != 1 || len(o.Cleared[0]) > maxPath+8 {
		t.Errorf("%+v, mode %o", o, st.Mode&0o7777)
	}
}

// What cannot be cleared is residue, by name.
func TestWhatCannotBeClearedIsTold(t *testing.T) {
	h := newHost(t)
	path := h.program("tmp/held", kim, kim, 0o4755)
	setImmutable(t, path, true)
	h.ok(h.job.Store.Put(ended(h.now)))
	o := h.work(request)
	if o.Through || len(o.Problems) == 0 || !strings.Contains(o.Problems[0], "/tmp/held") {
		t.Errorf("%+v", o)
	}
	setImmutable(t, path, false)
	h.ok(h.job.Store.Put(ended(h.now)))
	if o := h.work(request); !o.Through || h.mode("tmp/held") != 0o755 {
		t.Errorf("%+v", o)
	}
}

func setImmutable(t *testing.T, path string, on bool) {
	t.Helper()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	flags := 0
	if on {
		flags = immutable
		t.Cleanup(func() { setImmutable(t, path, false) })
	}
	if err := unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		if _, gone := os.Stat(path); gone == nil {
			t.Fatalf("chattr: %v", err)
		}
	}
}

// A walk that was cut short goes on where it stood, and still demands a pass that met nothing.
func TestWalkIsTakenUp(t *testing.T) {
	h := newHost(t)
	for i := range 40 {
		for j := range 5 {
			h.program(fmt.Sprintf("srv/%02d/%d/sh", i, j), kim, kim, 0o4755)
		}
	}
	h.ok(h.job.Store.Put(ended(h.now)))
	records, _ := h.job.Store.Records()
	s, err := h.job.newSweep(records, records)
	h.ok(err)
	visited := make(map[string]int)
	walkFrom := func(from string, most int) (last string) {
		w := &walk{visit: func(f found) { visited[f.path()]++ }}
		w.pass = func(at string) error {
			if last = at; most == 0 {
				return context.DeadlineExceeded
			}
			most--
			return nil
		}
		if err := w.tree(t.Context(), h.root, 0, from); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		return last
	}
	cut := walkFrom("", 100)
	if cut == "" || !strings.HasPrefix(cut, "srv/") {
		t.Fatalf("cut at %q", cut)
	}
	first := len(visited)
	walkFrom(cut, 1<<30)
	whole := make(map[string]int)
	visited, whole = whole, visited
	walkFrom("", 1<<30)
	if len(visited) != len(whole) || first >= len(whole) {
		t.Errorf("in two halves %d files, of which %d first; at once %d", len(whole), first, len(visited))
	}
	for p, n := range whole {
		if n > 1 && filepath.Dir(p) != filepath.Join(h.root, cut) && !inside(cut, strings.TrimPrefix(filepath.Dir(p), h.root+"/")) {
			t.Errorf("%s was visited %d times", p, n)
		}
	}
	// The same through the worker: its cursor, what it cleared and marked survive.
	s.at.Mount, s.at.Below, s.at.Clean = h.root, "srv/20/0", false
	s.hunt.note(request, "/earlier")
	h.ok(s.save())
	o := h.work(request)
	if !o.Through || o.Cleared[0] != "/earlier" || h.mode("srv/39/4/sh") != 0o755 || h.mode("srv/00/0/sh") != 0o755 {
		t.Errorf("%+v", o)
	}
	if _, err := os.Stat(h.path("var/lib/curfew/residue/" + cursorFile)); err == nil {
		t.Error("the cursor of a walk that is through is kept")
	}
}

// Somebody makes copies as fast as they are cleared: only a pass that meets none is the end.
func TestOnlyACleanPassIsTheEnd(t *testing.T) {
	h := newHost(t)
	path := h.program("tmp/again", kim, kim, 0o4755)
	h.ok(h.job.Store.Put(ended(h.now)))
	records, _ := h.job.Store.Records()
	s, err := h.job.newSweep(records, records)
	h.ok(err)
	for range maxPasses {
		h.ok(unix.Chmod(path, 0o4755))
		h.ok(s.pass(t.Context()))
		if s.clean || s.outcome(records[0]).Through {
			t.Fatal("a pass that met a copy counts as clean")
		}
	}
	h.ok(s.pass(t.Context()))
	if o := s.outcome(records[0]); !s.clean || !o.Through || h.mode("tmp/again") != 0o755 {
		t.Errorf("%+v", o)
	}
}

// A look counts for the window that it began with. When another of the request opened or ended meanwhile,
// that one is looked after anew, and while it is open there is no outcome.
func TestALookCountsForTheWindowItBeganWith(t *testing.T) {
	h := newHost(t)
	r := ended(h.now)
	h.ok(h.job.Store.Put(r))
	clock, next := h.job.Clock, r
	next.Grant, next.Ended = "22", false
	var looks int
	h.job.Clock = func() grant.Clock {
		if looks++; looks == 1 {
			h.ok(h.job.Store.Put(next))
		}
		return clock()
	}
	h.ok(h.job.Work(t.Context()))
	if o, err := h.job.Store.Outcome(request); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a window that is open has the outcome %+v, %v", o, err)
	}
	next.Ended = true
	h.ok(h.job.Store.Put(next))
	if o := h.work(request); !o.Through {
		t.Errorf("%+v", o)
	}
}
