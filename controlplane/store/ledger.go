package store

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/internal/trail"
)

// A ledger is what the changes of one transaction put on the trail. It is written just before the
// commit, all of it by a few statements, since a change makes two records or three and sixteen changes
// may share a commit. Until then the transaction reads its own records here.
type ledger struct {
	first   uint64 // how many records there were before, once counted
	counted bool
	leaves  []leaf
	hashes  []tlog.Hash // theirs, in the order of their positions
	edge    edge        // of the records before; read only
}

type leaf struct {
	text           []byte
	request, actor string
}

// An edge holds the hashes of the trail, by position, that its next records build on. What was
// committed never changes, so that it is right for as long as the store is open, and what is missing is
// read.
type edge map[int64]tlog.Hash

func (l *ledger) count() uint64 { return l.first + uint64(len(l.leaves)) }

// hash finds what is here of the trail's hashes.
func (l *ledger) hash(position int64) (tlog.Hash, bool) {
	if l == nil {
		return tlog.Hash{}, false
	}
	if l.counted {
		i := position - trail.FirstHashIndex(l.first)
		if i >= 0 && i < int64(len(l.hashes)) {
			return l.hashes[i], true
		}
	}
	h, ok := l.edge[position]
	return h, ok
}

func (l *ledger) add(text []byte, hashes []tlog.Hash, request, actor string) {
	l.leaves = append(l.leaves, leaf{text: text, request: request, actor: actor})
	l.hashes = append(l.hashes, hashes...)
}

// A mark is where a ledger stood.
type mark struct{ leaves, hashes int }

func (l *ledger) mark() mark { return mark{len(l.leaves), len(l.hashes)} }

// back drops what was added since.
func (l *ledger) back(m mark) { l.leaves, l.hashes = l.leaves[:m.leaves], l.hashes[:m.hashes] }

// next is the edge once this ledger is committed: the complete subtrees that the next record may close.
func (l *ledger) next() edge {
	n, out := l.count(), make(edge)
	for rest := n; rest != 0; rest &= rest - 1 {
		level := bits.TrailingZeros64(rest)
		position := tlog.StoredHashIndex(level, int64(n>>level)-1)
		if h, ok := l.hash(position); ok {
			out[position] = h
		}
	}
	return out
}

// write puts it all into the store.
func (l *ledger) write(ctx context.Context, w runner) error {
	if len(l.leaves) == 0 {
		return nil
	}
	err := inRows(ctx, w, "trail (number, leaf, request, actor)", 4, len(l.leaves),
		func(args []any, i int) []any {
			row := l.leaves[i]
			return append(args, l.first+uint64(i), row.text, row.request, row.actor)
		})
	if err != nil {
		return err
	}
	first := trail.FirstHashIndex(l.first)
	return inRows(ctx, w, "trail_hashes (position, hash)", 2, len(l.hashes),
		func(args []any, i int) []any { return append(args, first+int64(i), l.hashes[i][:]) })
}

// maxRows is how many rows one statement inserts at most: each number is a statement that stays
// prepared.
const maxRows = 16

// inRows inserts n rows by as few statements. What fails takes the transaction with it, so that SQLite
// need not keep what a statement of several rows changed.
func inRows(ctx context.Context, w runner, into string, columns, n int,
	row func(args []any, i int) []any,
) error {
	one := "(?" + strings.Repeat(", ?", columns-1) + ")"
	for at := 0; at < n; {
		size := min(n-at, maxRows)
		args := make([]any, 0, size*columns)
		for i := range size {
			args = row(args, at+i)
		}
		_, err := w.ExecContext(ctx,
			"INSERT OR FAIL INTO "+into+" VALUES "+one+strings.Repeat(", "+one, size-1), args...)
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		at += size
	}
	return nil
}

// errUnwritten answers who would read records in a transaction that made some: they are not there yet.
var errUnwritten = errors.New("the trail is read before what this transaction put on it is written")
