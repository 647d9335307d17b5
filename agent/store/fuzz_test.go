package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/curfew-access/curfew/internal/trail"
)

// Whatever stands in the files of the event log: it is refused, or opens, goes on and opens again
// with everything that was added.
func FuzzEvents(f *testing.F) {
	seed := func(edit func([]byte) []byte) {
		record, err := encodeRecord([]byte("\x08\x01"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(edit(record), []byte(`{"version":1,"acked":{"count":0,"head":null},"lost":{}}`))
	}
	seed(func(b []byte) []byte { return b })
	seed(func(b []byte) []byte { return append(b, b...) })
	seed(func(b []byte) []byte { return b[:len(b)-1] })
	seed(func(b []byte) []byte { b[9] ^= 1; return append(b, 0, 0, 0) })
	f.Add([]byte{}, []byte(`{"version":1,"acked":{"count":7,"head":"AAAA"},"lost":{"x":1}}`))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1}, []byte("{"))
	f.Fuzz(func(t *testing.T, segment, chain []byte) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, eventsDir), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{segmentName(1): segment, chainFile: chain} {
			if err := os.WriteFile(filepath.Join(dir, eventsDir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Open(Config{Directory: dir})
		if err != nil {
			return
		}
		before := s.Events().Chain().Count
		if _, err := s.Events().Append(event(trail.KindGrantEnded, "alice")); err != nil {
			t.Fatalf("nothing can be added after %d events: %v", before, err)
		}
		closed(t, s)
		s = open(t, dir)
		if got := s.Events().Chain().Count; got != before+1 {
			t.Errorf("%d events, then one more makes %d", before, got)
		}
		closed(t, s)
	})
}
