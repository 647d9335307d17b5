package store

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/trail"
)

func TestKeyIsDrawnOnce(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	if _, err := s.Key(); !errors.Is(err, ErrNotJoined) {
		t.Errorf("no key: %v", err)
	}
	first, err := s.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.NewKey(rand.Reader)
	if err != nil || !first.Equal(second) {
		t.Errorf("the key was replaced (%v)", err)
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, keyFile), []byte("AAAA"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NewKey(rand.Reader); !errors.Is(err, ErrCorrupt) {
		t.Errorf("broken key: %v", err)
	}
	closed(t, s)
}

func TestLooseFilesAreRefused(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	if _, err := s.NewKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, keyFile), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Key(); !errors.Is(err, folder.ErrUnsafe) {
		t.Errorf("a key that others may write: %v", err)
	}
	closed(t, s)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Directory: dir}); !errors.Is(err, folder.ErrUnsafe) {
		t.Errorf("a folder that others may write: %v", err)
	}
}

func TestUIDsAreNeverReused(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	reserve := func(login string, uid uint32, want error) {
		t.Helper()
		if err := s.ReserveUID(login, uid); !errors.Is(err, want) {
			t.Errorf("reserving %d for %s: %v, want %v", uid, login, err, want)
		}
	}
	reserve("alice", 1900000001, nil)
	reserve("alice", 1900000001, nil)
	reserve("alice", 1900000002, ErrUID)
	reserve("bob", 1900000001, ErrUID)
	reserve("../x", 1900000003, ErrUID)
	closed(t, s)
	s = open(t, dir)
	reserve("bob", 1900000001, ErrUID)
	reserve("bob", 1900000002, nil)
	want := map[string]uint32{"alice": 1900000001, "bob": 1900000002}
	if got := s.UIDs(); !maps.Equal(got, want) {
		t.Errorf("table %v, want %v", got, want)
	}
	closed(t, s)
	double := `{"version":1,"uids":{"alice":1900000001,"bob":1900000001}}`
	for _, bad := range []string{double, "{", `{"version":2,"uids":{}}`, `{"version":1,"uids":{},"x":1}`, ""} {
		if err := os.WriteFile(filepath.Join(dir, uidsFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Directory: dir}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("table %q: %v", bad, err)
		}
	}
}

// A table after a crash at any step holds what it held, or that and the one new tie; and the process
// that crashed never said yes to a tie that is gone.
func TestReserveSurvivesACrashAtEveryStep(t *testing.T) {
	for steps := 0; ; steps++ {
		dir := newDir(t)
		s := open(t, dir)
		if err := s.ReserveUID("alice", 1900000001); err != nil {
			t.Fatal(err)
		}
		closed(t, s)
		s, err := Open(Config{Directory: dir, Kernel: &dying{left: steps}})
		if err != nil {
			t.Fatal(err)
		}
		said := s.ReserveUID("bob", 1900000002)
		closed(t, s)
		s = open(t, dir)
		uids := s.UIDs()
		closed(t, s)
		if uids["alice"] != 1900000001 || len(uids) > 2 {
			t.Fatalf("crash after %d steps: %v", steps, uids)
		}
		if said == nil && uids["bob"] != 1900000002 {
			t.Fatalf("crash after %d steps: bob was told yes, the table says %v", steps, uids)
		}
		if said == nil {
			if steps < 4 {
				t.Fatalf("only %d steps: the test sees no crash", steps)
			}
			return
		}
	}
}

// fill writes n events and returns the log's bytes.
func fill(t *testing.T, dir string, n int) []byte {
	t.Helper()
	s := open(t, dir)
	for i := range n {
		if _, err := s.Events().Append(event(trail.KindGrantApplied, fmt.Sprint("u", i))); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, s)
	data, err := os.ReadFile(filepath.Join(dir, eventsDir, segmentName(1)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTornTailIsHealedAtEveryByte(t *testing.T) {
	dir := newDir(t)
	data := fill(t, dir, 4)
	path := filepath.Join(dir, eventsDir, segmentName(1))
	for cut := range len(data) + 1 {
		for _, padding := range []int{0, 5, 4096} { // a file system may leave zeros
			torn := append(bytes.Clone(data[:cut]), make([]byte, padding)...)
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, dir)
			kept := s.Events().Chain().Count
			if want := wholeRecords(data, cut); kept != want {
				t.Fatalf("cut at %d: %d events, want %d", cut, kept, want)
			}
			if _, err := s.Events().Append(event(trail.KindGrantEnded, "next")); err != nil {
				t.Fatal(err)
			}
			closed(t, s)
			s = open(t, dir)
			if got := s.Events().Chain().Count; got != kept+1 {
				t.Fatalf("cut at %d: %d events after one more, want %d", cut, got, kept+1)
			}
			closed(t, s)
		}
	}
}

func wholeRecords(data []byte, cut int) (n uint64) {
	for at := 0; at < len(data); n++ {
		_, size, err := nextRecord(data[at:])
		if err != nil || at+size > cut {
			break
		}
		at += size
	}
	return n
}

func TestDamageIsRefusedNeverHalfRead(t *testing.T) {
	dir := newDir(t)
	data := fill(t, dir, 4)
	path := filepath.Join(dir, eventsDir, segmentName(1))
	last := 0 // where the last record begins; damage there looks like a torn end
	for at := 0; at < len(data); {
		_, size, err := nextRecord(data[at:])
		if err != nil {
			t.Fatal(err)
		}
		last = at
		at += size
	}
	for at := range data {
		damaged := bytes.Clone(data)
		damaged[at] ^= 0x40
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Directory: dir})
		if at < last {
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "Restore the file") {
				t.Fatalf("byte %d damaged: %v", at, err)
			}
			continue
		}
		if err == nil {
			if n := s.Events().Chain().Count; n != 3 {
				t.Fatalf("byte %d of the last record damaged: %d events", at, n)
			}
			closed(t, s)
		}
	}
}

// Events are told apart by where they stand, so a segment under another's name is no segment.
func TestSegmentUnderAWrongNameIsRefused(t *testing.T) {
	dir := newDir(t)
	fill(t, dir, 2000)
	names, err := filepath.Glob(filepath.Join(dir, eventsDir, "*"+segmentSuffix))
	if err != nil || len(names) < 2 {
		t.Fatalf("%d segments: %v", len(names), err)
	}
	slices.Sort(names)
	newest := names[len(names)-1]
	wrong := filepath.Join(filepath.Dir(newest), segmentName(1999))
	if err := os.Rename(newest, wrong); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Directory: dir}); !errors.Is(err, ErrCorrupt) ||
		!strings.Contains(err.Error(), "stands in it") {
		t.Errorf("a segment under a wrong name: %v", err)
	}
}

func TestAcknowledgedEventsGoAndTheChainStays(t *testing.T) {
	dir := newDir(t)
	s := open(t, dir)
	big := strings.Repeat("x", trail.MaxDetail)
	var head trail.Chain
	for range 1100 { // more than one segment
		e := event(trail.KindGrantApplied, "alice")
		e.Details = map[string]string{"a": big}
		if err := head.Append(proto.CloneOf(e)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Events().Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Events().Chain(); got.Count != 1100 || !bytes.Equal(got.Head, head.Head) {
		t.Fatalf("chain %d", got.Count)
	}
	if got, err := s.Events().After(1050, 10); err != nil || len(got) != 10 || got[0].GetNumber() != 1051 {
		t.Errorf("after 1050: %d events from %d", len(got), got[0].GetNumber())
	}
	if err := s.Events().Acknowledged(1101); err == nil {
		t.Error("events that never were are acknowledged")
	}
	for _, n := range []uint64{1030, 5, 1030} {
		if err := s.Events().Acknowledged(n); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, s)
	left, _ := filepath.Glob(filepath.Join(dir, eventsDir, "*.log"))
	if len(left) == 0 || len(left) > 2 { // a hundred of these fill one
		t.Errorf("segments left: %v", left)
	}
	s = open(t, dir)
	if got := s.Events().Chain(); got.Count != 1100 || !bytes.Equal(got.Head, head.Head) {
		t.Errorf("chain after opening again: %d", got.Count)
	}
	if err := s.Events().Acknowledged(1100); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	s = open(t, dir)
	if _, err := s.Events().Append(event(trail.KindGrantEnded, "alice")); err != nil {
		t.Fatal(err)
	}
	got, err := s.Events().After(1100, 10)
	if err != nil || len(got) != 1 || got[0].GetNumber() != 1101 || !bytes.Equal(got[0].GetPrevious(), head.Head) {
		t.Errorf("the chain does not go on: %v", got)
	}
	closed(t, s)
}

// syncing counts what waits for the disk.
type syncing struct {
	folder.Linux
	syncs int
}

func (k *syncing) Fsync(fd int) error {
	k.syncs++
	return k.Linux.Fsync(fd)
}

// Somebody waits for the event at each sudo: while the control plane keeps up it costs one fsync, and
// its acknowledgement none.
func TestEventCostsOneSync(t *testing.T) {
	dir, kernel := newDir(t), new(syncing)
	s, err := Open(Config{Directory: dir, Kernel: kernel})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, s)
	for n := range uint64(20) {
		if _, err := s.Events().Append(event(trail.KindGrantApplied, "alice")); err != nil {
			t.Fatal(err)
		}
		if err := s.Events().Acknowledged(n + 1); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			kernel.syncs = 0 // the file is new: its folder is synced, too
		}
	}
	if kernel.syncs != 19 {
		t.Errorf("19 events and their acknowledgements took %d syncs", kernel.syncs)
	}
}

// Whatever the crash, the log opens again, holds every event that Append said yes to, and its chain
// goes on.
func TestEventsSurviveACrashAtEveryStep(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "curfew-store-")
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		var sure, acked uint64
		for range rapid.IntRange(1, 4).Draw(rt, "lives") {
			s := open(rt, dir)
			if got := s.Events().Chain().Count; got < sure {
				rt.Fatalf("%d events, %d were durable", got, sure)
			}
			sure = s.Events().Chain().Count
			closed(rt, s)
			s, err := Open(Config{Directory: dir, Kernel: &dying{left: rapid.IntRange(0, 12).Draw(rt, "steps")}})
			if err != nil {
				continue
			}
			for range rapid.IntRange(1, 5).Draw(rt, "events") {
				if rapid.IntRange(0, 3).Draw(rt, "ack") == 0 && sure > acked {
					if err := s.Events().Acknowledged(sure); err != nil {
						break
					}
					acked = sure
					continue
				}
				if _, err := s.Events().Append(event(trail.KindGrantEnded, "alice")); err != nil {
					break
				}
				sure++
			}
			closed(rt, s)
		}
		s := open(rt, dir)
		if got := s.Events().Chain().Count; got < sure {
			rt.Fatalf("%d events, %d were durable", got, sure)
		}
		closed(rt, s)
	})
}

// Noise cannot crowd out what grants do, and what is left out is said.
func TestFullLogKeepsWhatMattersAndCountsTheRest(t *testing.T) {
	s, err := Open(Config{Directory: newDir(t), MaxEvents: 8 * maxRecord})
	if err != nil {
		t.Fatal(err)
	}
	big := map[string]string{}
	for i := range 16 {
		big[fmt.Sprint(i)] = strings.Repeat("x", trail.MaxDetail)
	}
	noise := func() (kept bool) {
		t.Helper()
		e := event(trail.KindLoginDenied, "mallory")
		e.Details = big
		got, err := s.Events().Append(e)
		if err != nil {
			t.Fatal(err)
		}
		return got != nil
	}
	left := 0
	for range 40 {
		if !noise() {
			left++
		}
	}
	if left == 0 || s.Events().Full() {
		t.Fatalf("%d of 40 noisy events left out; full: %v", left, s.Events().Full())
	}
	if lost := s.Events().TakeLost(); lost != nil {
		t.Errorf("loss is said while there is no room: %v", lost)
	}
	count := s.Events().Chain().Count
	important := 0
	for range 40 {
		e := event(trail.KindGrantApplied, "alice")
		e.Details = big
		if _, err = s.Events().Append(e); err != nil {
			break
		}
		important++
	}
	if important < 5 || !errors.Is(err, ErrFull) || !s.Events().Full() {
		t.Fatalf("%d important events fit, then %v", important, err)
	}
	if err := s.Events().Acknowledged(count + uint64(important)); err != nil {
		t.Fatal(err)
	}
	if lost := s.Events().TakeLost(); lost[trail.KindLoginDenied] != uint64(left) {
		t.Errorf("lost %v, want %d refused logins", lost, left)
	}
	if !noise() {
		t.Error("nothing fits after the acknowledgement")
	}
	closed(t, s)
}
