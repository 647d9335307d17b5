package trail_test

import (
	"bytes"
	"testing"

	"github.com/curfew-access/curfew/internal/trail"
)

// A record that parses has one form, on one line.
func FuzzParseRecord(f *testing.F) {
	for _, r := range []*trail.Record{
		{Number: 1, TimeMS: 2, Kind: "request.created", Actor: "alice"},
		{Details: map[string]string{"reason": "a\n{}<>&\u2028"}, HostEvent: []byte{1, 2}, Host: "web1"},
	} {
		leaf, err := r.Leaf()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(leaf)
	}
	f.Fuzz(func(t *testing.T, leaf []byte) {
		r, err := trail.ParseRecord(leaf)
		if err != nil {
			return
		}
		again, err := r.Leaf()
		if err != nil || !bytes.Equal(again, leaf) {
			t.Errorf("read and written again it differs: %v", err)
		}
		if bytes.ContainsAny(leaf, "\n\r\x00\x1b") {
			t.Errorf("raw control bytes in %q", leaf)
		}
	})
}

// No proof makes the host believe that another trail extends the one it has seen.
func FuzzCheckExtends(f *testing.F) {
	s, heads := grow(f, leaves(20))
	_, other := grow(f, append([][]byte{[]byte("another first")}, leaves(20)[1:]...))
	for _, from := range []uint64{1, 4, 7, 19} {
		proof, err := trail.Prove(from, 20, s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(from, bytes.Join(proof, nil))
	}
	f.Fuzz(func(t *testing.T, from uint64, flat []byte) {
		from = from%19 + 1
		var proof [][]byte
		for len(flat) > 0 {
			n := min(32, len(flat))
			proof, flat = append(proof, flat[:n]), flat[n:]
		}
		if err := trail.CheckExtends(from, other[from], 20, heads[20], proof); err == nil {
			t.Errorf("a forged proof from %d is believed", from)
		}
	})
}
