package trail_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/internal/trail"
)

// tree is a stored trail.
type tree struct{ hashes []tlog.Hash }

func (s *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(s.hashes)) {
			return nil, fmt.Errorf("hash %d is not stored", x)
		}
		out[i] = s.hashes[x]
	}
	return out, nil
}

func grow(t testing.TB, leaves [][]byte) (*tree, [][]byte) {
	t.Helper()
	s := new(tree)
	heads := [][]byte{nil}
	for n, leaf := range leaves {
		if first := trail.FirstHashIndex(uint64(n)); first != int64(len(s.hashes)) {
			t.Fatalf("hashes of record %d begin at %d, %d are stored", n, first, len(s.hashes))
		}
		more, err := trail.NewHashes(uint64(n), leaf, s)
		if err != nil {
			t.Fatal(err)
		}
		s.hashes = append(s.hashes, more...)
		head, err := trail.Head(uint64(n+1), s)
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, head)
	}
	return s, heads
}

func leaves(n int) [][]byte {
	var out [][]byte
	for i := range n {
		out = append(out, fmt.Appendf(nil, "record %d", i))
	}
	return out
}

// root is RFC 6962's definition, as it stands there.
func root(leaves [][]byte) []byte {
	switch n := len(leaves); n {
	case 0:
		return nil
	case 1:
		h := sha256.Sum256(append([]byte{0}, leaves[0]...))
		return h[:]
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		h := sha256.Sum256(bytes.Join([][]byte{{1}, root(leaves[:k]), root(leaves[k:])}, nil))
		return h[:]
	}
}

func TestHeadsAreThoseOfRFC6962(t *testing.T) {
	all := leaves(130)
	_, heads := grow(t, all)
	for n := range heads {
		if !bytes.Equal(heads[n], root(all[:n])) {
			t.Fatalf("the head of %d records is not RFC 6962's", n)
		}
	}
	if h := trail.LeafHash(all[0]); !bytes.Equal(h[:], root(all[:1])) {
		t.Error("a leaf's hash is not RFC 6962's")
	}
}

// Every pair of sizes up to 70, and a few around powers of two.
func TestProofs(t *testing.T) {
	const n = 260
	s, heads := grow(t, leaves(n))
	_, forked := grow(t, append([][]byte{[]byte("another first")}, leaves(n)[1:]...))
	var sizes []uint64
	for i := range uint64(70) {
		sizes = append(sizes, i)
	}
	sizes = append(sizes, 127, 128, 129, 255, 256, 257, n)
	for _, from := range sizes {
		for _, to := range sizes {
			proof, err := trail.Prove(from, to, s)
			if from > to {
				if !errors.Is(err, trail.ErrRewritten) {
					t.Fatalf("a proof from %d to %d: %v", from, to, err)
				}
				err = trail.CheckExtends(from, heads[from], to, heads[to], nil)
				if !errors.Is(err, trail.ErrRewritten) {
					t.Fatalf("shrunk from %d to %d: %v", from, to, err)
				}
				continue
			}
			if err != nil || len(proof) > trail.MaxProof {
				t.Fatal(err)
			}
			if err := trail.CheckExtends(from, heads[from], to, heads[to], proof); err != nil {
				t.Fatalf("from %d to %d: %v", from, to, err)
			}
			if from == 0 {
				continue
			}
			for name, e := range map[string]error{
				"another old head": trail.CheckExtends(from, forked[from], to, heads[to], proof),
				"another new head": trail.CheckExtends(from, heads[from], to, forked[to], proof),
			} {
				if !errors.Is(e, trail.ErrRewritten) {
					t.Fatalf("from %d to %d with %s: %v", from, to, name, e)
				}
			}
			if from != to {
				wrongProofs(t, from, to, heads, proof)
			}
		}
	}
}

func wrongProofs(t *testing.T, from, to uint64, heads, proof [][]byte) {
	t.Helper()
	zero := make([]byte, 32)
	wrong := map[string][][]byte{
		"one hash more":   append(append([][]byte{}, proof...), zero),
		"a short hash":    append([][]byte{zero[:31]}, proof[1:]...),
		"none":            nil,
		"an endless one":  make([][]byte, trail.MaxProof+1),
		"its first twice": append([][]byte{proof[0]}, proof...),
	}
	for i := range proof {
		bad := append([][]byte{}, proof...)
		bad[i] = bytes.Clone(bad[i])
		bad[i][i%32] ^= 1
		wrong[fmt.Sprint("altered at ", i)] = bad
	}
	for name, p := range wrong {
		if err := trail.CheckExtends(from, heads[from], to, heads[to], p); !errors.Is(err, trail.ErrRewritten) {
			t.Fatalf("from %d to %d, proof with %s: %v", from, to, name, err)
		}
	}
	// Counts that no tree can have. That a count belongs to its head is what the state's signature
	// says; a proof does not bind it.
	err := trail.CheckExtends(from, heads[from], math.MaxUint64, heads[to], proof)
	if !errors.Is(err, trail.ErrRewritten) {
		t.Fatalf("proof from %d to %d passes for 2^64-1: %v", from, to, err)
	}
}

func TestHeadsOfTheWrongSize(t *testing.T) {
	s, heads := grow(t, leaves(8))
	proof, err := trail.Prove(3, 8, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{nil, heads[3][:31], append(bytes.Clone(heads[3]), 0)} {
		if err := trail.CheckExtends(3, bad, 8, heads[8], proof); !errors.Is(err, trail.ErrRewritten) {
			t.Error(err)
		}
		if err := trail.CheckExtends(3, heads[3], 8, bad, proof); !errors.Is(err, trail.ErrRewritten) {
			t.Error(err)
		}
	}
}

// Tampering with any leaf that a host has seen is detected by the next head, whatever follows.
func TestAnyAlteredLeafIsDetected(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		from := rapid.IntRange(1, 60).Draw(rt, "from")
		to := from + rapid.IntRange(0, 60).Draw(rt, "more")
		which := rapid.IntRange(0, from-1).Draw(rt, "leaf")
		_, seen := grow(t, leaves(from))
		altered := leaves(to)
		if rapid.Bool().Draw(rt, "removed") && from < to {
			altered = append(altered[:which], altered[which+1:]...)
			to--
		} else {
			altered[which] = append(altered[which], '!')
		}
		s, heads := grow(t, altered)
		proof, err := trail.Prove(uint64(from), uint64(to), s)
		if err != nil {
			rt.Fatal(err)
		}
		err = trail.CheckExtends(uint64(from), seen[from], uint64(to), heads[to], proof)
		if !errors.Is(err, trail.ErrRewritten) {
			rt.Fatalf("leaf %d of %d was altered: %v", which, from, err)
		}
	})
}

func TestReaderFailuresAreErrors(t *testing.T) {
	empty := new(tree)
	if _, err := trail.Head(5, empty); err == nil {
		t.Error("a head without hashes")
	}
	if _, err := trail.Prove(2, 5, empty); err == nil {
		t.Error("a proof without hashes")
	}
	if _, err := trail.NewHashes(5, []byte("x"), empty); err == nil {
		t.Error("new hashes without the old")
	}
}
