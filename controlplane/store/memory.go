package store

import (
	"context"
	"fmt"
	"regexp"
	"strings"
)

// A memory is what the writer keeps of one transaction for the next: the directory, which every change
// reads and few write, and where the trail ends. It is the writer's alone. What is in it was committed;
// whatever may have changed since empties it: a statement of ours that writes the directory, also when
// it was rolled back, and any commit of another connection or process, which SQLite tells.
type memory struct {
	version   int64 // of the data, as SQLite counts the others' commits
	directory map[string]any
	records   uint64 // of the trail, when counted
	counted   bool
	edge      edge // what the next records build on, by position; what is missing is read
}

// maxRemembered bounds what is kept of the directory, in answers.
const maxRemembered = 4096

// directory matches the tables whose rows are remembered, and those whose rows take theirs with them.
var directory = regexp.MustCompile(`\b(users|user_keys|groups|group_members|trust|policies)\b`)

// begin empties the memory if somebody else has committed; the transaction has begun.
func (m *memory) begin(version int64) {
	if version != m.version {
		*m = memory{version: version}
	}
	if m.directory == nil || len(m.directory) >= maxRemembered {
		m.directory = make(map[string]any)
	}
}

// remembered is what read returns, read once for as long as it stays true. What it returns is shared:
// the caller copies what others may change. Views, and transactions that have written the directory,
// always read.
func remembered[T any](t *Tx, key string, read func() (T, error)) (T, error) {
	if t.ledger == nil || t.store.writer.did.directory {
		return read()
	}
	known := t.store.memory.directory
	if v, ok := known[key].(T); ok {
		return v, nil
	}
	v, err := read()
	if err == nil {
		known[key] = v
	}
	return v, err
}

// kind is what a statement may do.
type kind struct{ writes, directory bool }

// kindOf looks at the text alone: what is not plainly a read is a write.
func kindOf(query string) kind {
	if strings.HasPrefix(query, "SELECT ") || strings.HasPrefix(query, "PRAGMA data_version") {
		return kind{}
	}
	return kind{writes: true, directory: directory.MatchString(query)}
}

// dataVersion is SQLite's count of what others committed.
func (s *Store) dataVersion() (v int64, err error) {
	err = s.writer.QueryRowContext(context.Background(), "PRAGMA data_version").Scan(&v)
	if err != nil {
		return 0, fmt.Errorf("beginning a transaction: %w", err)
	}
	return v, nil
}
