package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/internal/trail"
)

// Append puts a record on the trail, in this transaction.
func (t *Tx) Append(r trail.Record) error {
	if t.ledger == nil {
		return errors.New("store: a view puts nothing on the trail")
	}
	count, err := t.trailCount()
	if err != nil {
		return err
	}
	if r.Actor == "" {
		return fmt.Errorf("trail record of kind %s names no actor", r.Kind)
	}
	r.Number = count
	leaf, err := r.Leaf()
	if err != nil {
		return err
	}
	hashes, err := trail.NewHashes(count, leaf, tlog.HashReaderFunc(t.readHashes))
	if err != nil {
		return err
	}
	t.ledger.add(leaf, hashes, r.RequestID, r.Actor)
	t.change.Records = true
	t.records = append(t.records, r)
	return nil
}

func (t *Tx) trailCount() (uint64, error) {
	if t.ledger != nil && t.ledger.counted {
		return t.ledger.count(), nil
	}
	var n sql.NullInt64
	if err := t.row("SELECT max(number) + 1 FROM trail").Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the trail: %w", err)
	}
	count := uint64(n.Int64)
	if t.ledger != nil {
		t.ledger.first, t.ledger.counted = count, true
	}
	return count, nil
}

// TrailHead is how many records there are and the root hash over them.
func (t *Tx) TrailHead() (uint64, []byte, error) {
	count, err := t.trailCount()
	if err != nil {
		return 0, nil, err
	}
	head, err := trail.Head(count, tlog.HashReaderFunc(t.readHashes))
	return count, head, err
}

func (t *Tx) readHashes(positions []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(positions))
	for i, p := range positions {
		if h, ok := t.ledger.hash(p); ok {
			out[i] = h
			continue
		}
		var b []byte
		err := t.row("SELECT hash FROM trail_hashes WHERE position = ?", p).Scan(&b)
		if err != nil {
			return nil, fmt.Errorf("reading trail hash %d: %w", p, err)
		}
		if len(b) != tlog.HashSize {
			return nil, fmt.Errorf("trail hash %d has %d bytes", p, len(b))
		}
		out[i] = tlog.Hash(b)
	}
	return out, nil
}

// TrailHashes reads stored tree hashes; see issue.Store.
func (s *Store) TrailHashes(ctx context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(positions []int64) (out []tlog.Hash, err error) {
		err = s.View(ctx, func(t *Tx) error {
			out, err = t.readHashes(positions)
			return err
		})
		return out, err
	})
}

// AppendRecord puts one record on the trail; see stream.Store.
func (s *Store) AppendRecord(ctx context.Context, r trail.Record) error {
	return s.Update(ctx, func(t *Tx) error { return t.Append(r) })
}

// Records reads the trail; see access.Tx.
func (t *Tx) Records(from uint64, requestID, about string, limit int) ([]access.Record, error) {
	if t.ledger != nil && len(t.ledger.leaves) > 0 {
		return nil, errUnwritten
	}
	where, args := []string{"number >= ?"}, []any{from}
	if requestID != "" {
		where, args = append(where, "request = ?"), append(args, requestID)
	}
	if about != "" {
		where = append(where,
			"(actor = ? OR request <> '' AND request IN (SELECT id FROM requests WHERE requester = ?))")
		args = append(args, about, about)
	}
	args = append(args, limit)
	return list(t, func(scan func(...any) error) (r access.Record, err error) {
		err = scan(&r.Number, &r.Leaf)
		return r, err
	}, "SELECT number, leaf FROM trail WHERE "+strings.Join(where, " AND ")+
		" ORDER BY number LIMIT ?", args...)
}

func noRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }
