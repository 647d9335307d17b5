package trail

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// MaxProof bounds a consistency proof: more hashes than any tree of 2^63 records needs.
const MaxProof = 128

// ErrRewritten means that one head does not extend another: records were changed or removed.
var ErrRewritten = errors.New("the trail does not extend the one seen before")

// LeafHash is RFC 6962's hash of a record's bytes.
func LeafHash(leaf []byte) tlog.Hash { return tlog.RecordHash(leaf) }

// NewHashes returns the tree hashes to store, in order, when leaf becomes record number n (from 0).
// They go to the indexes tlog.StoredHashIndex(0, n) and on.
func NewHashes(n uint64, leaf []byte, r tlog.HashReader) ([]tlog.Hash, error) {
	hashes, err := tlog.StoredHashes(int64(n), leaf, r)
	if err != nil {
		return nil, fmt.Errorf("hashing trail record %d: %w", n, err)
	}
	return hashes, nil
}

// FirstHashIndex is the index of the first hash that NewHashes returns for record n.
func FirstHashIndex(n uint64) int64 { return tlog.StoredHashIndex(0, int64(n)) }

// Head is the root hash of the first count records; nil for none.
func Head(count uint64, r tlog.HashReader) ([]byte, error) {
	if count == 0 {
		return nil, nil
	}
	h, err := tlog.TreeHash(int64(count), r)
	if err != nil {
		return nil, fmt.Errorf("computing the trail's head at %d records: %w", count, err)
	}
	return h[:], nil
}

// Prove returns the proof that the head at `to` records extends the one at `from`. It is empty when
// from is 0 or equals to.
func Prove(from, to uint64, r tlog.HashReader) ([][]byte, error) {
	if from > to {
		return nil, fmt.Errorf("%w: from %d records to %d", ErrRewritten, from, to)
	}
	if from == 0 || from == to {
		return nil, nil
	}
	proof, err := tlog.ProveTree(int64(to), int64(from), r)
	if err != nil {
		return nil, fmt.Errorf("proving that the trail grew from %d to %d: %w", from, to, err)
	}
	out := make([][]byte, len(proof))
	for i := range proof {
		out[i] = proof[i][:]
	}
	return out, nil
}

// CheckExtends verifies that the head at toCount records extends the one at fromCount.
func CheckExtends(fromCount uint64, fromHead []byte, toCount uint64, toHead []byte,
	proof [][]byte,
) error {
	switch {
	case toCount < fromCount:
		return fmt.Errorf("%w: it shrank from %d to %d records", ErrRewritten, fromCount, toCount)
	case fromCount == 0:
		return nil
	case fromCount == toCount:
		if !bytes.Equal(fromHead, toHead) {
			return fmt.Errorf("%w: two heads at %d records", ErrRewritten, toCount)
		}
		return nil
	case len(proof) > MaxProof || len(fromHead) != tlog.HashSize || len(toHead) != tlog.HashSize:
		return fmt.Errorf("%w: proof or head of the wrong size", ErrRewritten)
	}
	hashes := make(tlog.TreeProof, len(proof))
	for i, h := range proof {
		if len(h) != tlog.HashSize {
			return fmt.Errorf("%w: proof with a hash of %d bytes", ErrRewritten, len(h))
		}
		hashes[i] = tlog.Hash(h)
	}
	err := tlog.CheckTree(hashes, int64(toCount), tlog.Hash(toHead), int64(fromCount),
		tlog.Hash(fromHead))
	if err != nil {
		return fmt.Errorf("%w: from %d to %d records: %w", ErrRewritten, fromCount, toCount, err)
	}
	return nil
}
