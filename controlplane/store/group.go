package store

import (
	"context"
	"errors"
	"fmt"
)

// maxGroup is how many changes one commit makes durable at most.
const maxGroup = 64

// A job is one change that waits for the writer. Changes that wait together are committed together:
// each is all or nothing, and one sync makes all of them durable.
type job struct {
	ctx context.Context //nolint:containedctx // a job lives no longer than its call
	f   func(*Tx) error
	// What became of it; set before done is closed.
	tx       *Tx
	err      error
	panicked any
	done     chan struct{}
}

// enqueue puts a job behind those that wait.
func (s *Store) enqueue(j *job) {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	s.queue = append(s.queue, j)
}

// next takes the jobs of the next commit, oldest first.
func (s *Store) next() []*job {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	n := min(len(s.queue), maxGroup)
	group := s.queue[:n:n]
	s.queue = s.queue[n:]
	if len(s.queue) == 0 {
		s.queue = nil
	}
	return group
}

var (
	// errBroken means that SQLite gave the whole transaction up while one of its jobs ran.
	errBroken = errors.New("the transaction was given up")
	// errSpoiled means that a job failed after it had written: the others' work went with its own.
	errSpoiled = errors.New("a change failed half way")
)

// commit carries a group out. Nearly all that fails has written nothing, so savepoints, which copy every
// page that changes, are for a group in which one had. When SQLite gives the transaction up before its
// commit, nothing of it is there, and each job is tried alone. The caller is the writer.
func (s *Store) commit(group []*job) {
	err := s.together(group, false)
	if errors.Is(err, errSpoiled) {
		err = s.together(group, true)
	}
	if errors.Is(err, errBroken) && len(group) > 1 {
		for _, j := range group {
			if j.err != nil && !errors.Is(j.err, errBroken) {
				close(j.done) // refused by itself, before the transaction broke
				continue
			}
			s.commit([]*job{j})
		}
		return
	}
	for _, j := range group {
		if j.err == nil {
			j.err = err
		}
		if j.err == nil {
			s.announce(j.tx)
		}
		close(j.done)
	}
}

func (s *Store) announce(tx *Tx) {
	for _, r := range tx.records {
		s.onRecord(r)
	}
	if !tx.change.Empty() {
		s.onCommit(tx.change)
	}
}

// together runs a group in one transaction, each job behind a savepoint if they are to be told apart. An
// error is of all that have none of their own.
func (s *Store) together(group []*job, apart bool) (err error) {
	ctx := context.Background() // no caller's end may take the others' transaction with it
	if _, err := s.writer.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	s.writer.did = kind{}
	defer func() {
		if err != nil || s.writer.did.directory {
			s.memory = memory{}
		}
	}()
	version, err := s.dataVersion()
	if err != nil {
		s.rollback(ctx)
		return err
	}
	s.memory.begin(version)
	l := &ledger{first: s.memory.records, counted: s.memory.counted, edge: s.memory.edge}
	wrote := false
	for _, j := range group {
		if err := s.alone(j, l, len(group) > 1, apart); err != nil {
			s.rollback(ctx)
			return err
		}
		wrote = wrote || j.err == nil
	}
	if !wrote {
		s.rollback(ctx)
		return nil
	}
	err = l.write(ctx, s.writer)
	if err == nil {
		_, err = s.writer.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		s.rollback(ctx)
		return fmt.Errorf("committing: %w", err)
	}
	s.memory.records, s.memory.counted = l.count(), l.counted
	if len(l.leaves) > 0 {
		s.memory.edge = l.next()
	}
	return nil
}

// alone runs one job of a group. What it returns is about the transaction; what the job itself says is
// the job's.
func (s *Store) alone(j *job, l *ledger, shared, apart bool) error {
	ctx := context.WithoutCancel(j.ctx)
	j.panicked = nil
	if j.err = j.ctx.Err(); j.err != nil {
		return nil // it hung up while it waited
	}
	if apart {
		if _, err := s.writer.ExecContext(ctx, "SAVEPOINT job"); err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
	}
	s.writer.did.writes = false
	j.tx = &Tx{ctx: ctx, tx: s.writer, store: s, ledger: l, stored: make(map[string]*stored)}
	before := l.mark()
	j.run()
	if j.err != nil {
		l.back(before)
	}
	switch {
	case !shared:
		return nil // alone in its transaction: it goes with it
	case !apart && j.err != nil && s.writer.did.writes:
		return errSpoiled
	case !apart:
		return nil
	}
	if j.err != nil {
		if _, err := s.writer.ExecContext(ctx, "ROLLBACK TO job"); err != nil {
			return fmt.Errorf("%w: %w", errBroken, errors.Join(j.err, err))
		}
	}
	if _, err := s.writer.ExecContext(ctx, "RELEASE job"); err != nil {
		return fmt.Errorf("%w: %w", errBroken, errors.Join(j.err, err))
	}
	return nil
}

// errPanicked stands for a panic, which goes on in the goroutine whose call it was.
var errPanicked = errors.New("the change panicked")

func (j *job) run() {
	defer func() {
		if p := recover(); p != nil {
			j.panicked, j.err = p, errPanicked
		}
	}()
	j.err = j.f(j.tx)
}

// rollback ends a transaction that may be gone already: then there is nothing to roll back.
func (s *Store) rollback(ctx context.Context) {
	_, _ = s.writer.ExecContext(ctx, "ROLLBACK")
}
