package store

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/e2e/inject/power"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	"github.com/curfew-access/curfew/internal/trail"
)

var (
	every = flag.Bool("every", false, "cut the power at every write, not at a sample of them")
	seed  = flag.Uint64("seed", 0, "seed of the sample; 0 draws one")
)

// failing is a kernel on a disk that loses its power right before the call that changes it for the
// nth time. Torn, a write gets the first half of its bytes safely down before that.
type failing struct {
	folder.Linux
	disk *power.Disk
	left int
	torn bool
	cut  bool
}

func (f *failing) step(half func()) error {
	if f.left--; f.left >= 0 || f.cut {
		return nil // without power the disk itself says EIO
	}
	if f.torn && half != nil {
		half()
	}
	f.cut = true
	return f.disk.Cut()
}

func (f *failing) Openat2(dirfd int, path string, how *unix.OpenHow) (int, error) {
	if how.Flags&unix.O_CREAT != 0 {
		if err := f.step(nil); err != nil {
			return -1, err
		}
	}
	return f.Linux.Openat2(dirfd, path, how)
}

func (f *failing) Mkdirat(dirfd int, name string, mode uint32) error {
	return errors.Join(f.step(nil), f.Linux.Mkdirat(dirfd, name, mode))
}

func (f *failing) Write(fd int, p []byte) (int, error) {
	err := f.step(func() {
		_, _ = f.Linux.Write(fd, p[:len(p)/2]) // looked at after the power is back
		_ = f.Linux.Fsync(fd)
	})
	if err != nil {
		return 0, err
	}
	return f.Linux.Write(fd, p)
}

func (f *failing) Fchmod(fd int, mode uint32) error {
	return errors.Join(f.step(nil), f.Linux.Fchmod(fd, mode))
}

func (f *failing) Ftruncate(fd int, size int64) error {
	return errors.Join(f.step(nil), f.Linux.Ftruncate(fd, size))
}

func (f *failing) Fallocate(fd int, size int64) error {
	return errors.Join(f.step(nil), f.Linux.Fallocate(fd, size))
}

func (f *failing) Fsync(fd int) error { return errors.Join(f.step(nil), f.Linux.Fsync(fd)) }

func (f *failing) Renameat(dirfd int, from, to string) error {
	return errors.Join(f.step(nil), f.Linux.Renameat(dirfd, from, to))
}

func (f *failing) Unlinkat(dirfd int, name string, flags int) error {
	if err := f.step(nil); err != nil {
		return err
	}
	return f.Linux.Unlinkat(dirfd, name, flags)
}

// promised is what a store has said yes to.
type promised struct {
	sequence uint64
	uids     map[string]uint32
	events   uint64
	host     bool
}

// day is what happens to a store: everything that it writes, in the order of a host's life. It goes
// on after failures, as the root half does.
func day(s *Store, p *promised) {
	w := granttest.NewWorld()
	clock := grant.Clock{Wall: granttest.Noon(), Boot: time.Hour, BootID: "boot"}
	ledger := w.Ledger()
	if s.SaveHost(Host{Name: "web1", Organisation: "example.org"}) == nil {
		p.host = true
	}
	for i := range 3 {
		next := ledger.Clone()
		if _, err := next.AcceptState(w.State(clock.Wall, nil), clock); err != nil {
			panic(err) // a fixture's
		}
		if s.SaveLedger(next) == nil {
			ledger, p.sequence = next, next.Sequence()
		}
		login, uid := fmt.Sprint("user", i), uint32(1900000001+i)
		if s.ReserveUID(login, uid) == nil {
			p.uids[login] = uid
		}
		for range 2 {
			if _, err := s.Events().Append(event(trail.KindGrantApplied, login)); err == nil {
				p.events++
			}
		}
		_ = s.Events().Acknowledged(p.events / 2) // that it is acknowledged is the control plane's to know
	}
}

// check demands that a store which lost its power opens, and holds what it promised.
func (p *promised) check(t *testing.T, where, dir string, key []byte) {
	t.Helper()
	s, err := Open(Config{Directory: dir})
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	defer closed(t, s)
	if have, err := s.Key(); err != nil || !bytes.Equal(have, key) {
		t.Fatalf("%s: the key: %v", where, err)
	}
	ledger, err := s.Ledger()
	if p.sequence > 0 && (err != nil || ledger.Sequence() < p.sequence) {
		t.Fatalf("%s: sequence %d was kept; now %v, %v", where, p.sequence, ledger, err)
	}
	if err != nil && !errors.Is(err, ErrNotJoined) {
		t.Fatalf("%s: the ledger: %v", where, err)
	}
	if _, err := s.Host(); p.host && err != nil {
		t.Fatalf("%s: the host's name: %v", where, err)
	}
	for login, uid := range p.uids {
		if s.UIDs()[login] != uid {
			t.Fatalf("%s: %s had %d; the table says %v", where, login, uid, s.UIDs())
		}
	}
	if n := s.Events().Chain().Count; n < p.events {
		t.Fatalf("%s: %d events were kept; now %d", where, p.events, n)
	}
	if _, err := s.Events().Append(event(trail.KindGrantEnded, "next")); err != nil {
		t.Fatalf("%s: the log does not go on: %v", where, err)
	}
}

// changes counts how often a day changes the disk.
func changes(t *testing.T) int {
	t.Helper()
	const many = 1 << 20
	kernel := &failing{left: many}
	dir := newDir(t)
	closed(t, open(t, dir)) // makes the folder of events
	s, err := Open(Config{Directory: dir, Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, s)
	day(s, &promised{uids: make(map[string]uint32)})
	return many - kernel.left
}

// F2: the power goes at each write of the store, with what was not synced truly lost and with writes
// torn in half: it opens again, and holds everything that it has said yes to.
func TestPowerLostAtEveryWrite(t *testing.T) {
	disk := power.NewDisk(t, 16<<20)
	live := func(n int, torn bool) (cut bool) {
		where := fmt.Sprintf("power lost before change %d (torn: %v)", n, torn)
		dir := filepath.Join(disk.Path, fmt.Sprintf("store-%d-%v", n, torn))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		key, err := s.NewKey(bytes.NewReader(granttest.NewWorld().HostKey.Seed()))
		if err != nil {
			t.Fatal(err)
		}
		closed(t, s)
		power.Run(t, "sync", "--file-system", disk.Path)
		kernel := &failing{disk: disk, left: n, torn: torn}
		p := promised{uids: make(map[string]uint32)}
		if s, err := Open(Config{Directory: dir, Kernel: kernel}); err == nil {
			day(s, &p)
			closed(t, s)
		}
		if !kernel.cut {
			return false
		}
		disk.Restore()
		p.check(t, where, dir, key)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		return true
	}
	points := changes(t)
	order := make([]int, points)
	for i := range order {
		order[i] = i
	}
	if !*every {
		drawn := *seed
		if drawn == 0 {
			drawn = rand.Uint64()
		}
		t.Logf("a sample drawn by -seed %d", drawn)
		order = rand.New(rand.NewPCG(drawn, 0)).Perm(points)[:12]
	}
	t.Logf("power lost at %d of %d changes of the disk, each with writes lost and torn", len(order), points)
	for _, n := range order {
		for _, torn := range []bool{false, true} {
			if !live(n, torn) {
				t.Errorf("the power was not lost at change %d", n)
			}
		}
	}
}
