// Package store keeps everything durable of the control plane in one SQLite file.
//
// It implements the interfaces that its consumers own (identity, access, issue, stream, enrol,
// notify) and holds no rule of its own. One writer at a time, WAL, synchronous=FULL: what a call
// returned without error survives a power cut. A change and its record on the trail are one
// transaction. A file that is damaged or newer than the program is refused at Open.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver registers itself

	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
)

// Config is what Open needs.
type Config struct {
	// Path of the database file.
	Path string
	// Create permits a file that does not exist.
	Create bool
	// Webhooks are the URLs that messages go to.
	Webhooks []string
	// OnCommit is told of every committed change, in order of commit; nil for nobody. It must not
	// block and must not call the store.
	OnCommit func(watch.Change)
	Now      func() time.Time
}

// Store is an open database. Safe for concurrent use.
type Store struct {
	path     string
	write    *sql.DB // one connection
	read     *sql.DB
	webhooks []string
	onCommit func(watch.Change)
	now      func() time.Time
	mu       sync.Mutex // held by the writer, until its change is announced
}

const readers = 4

// Open opens and checks the database and brings its schema up to date.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Now == nil || c.Path == "" {
		return nil, errors.New("store: path or clock is missing")
	}
	if err := checkFile(c); err != nil {
		return nil, err
	}
	s := &Store{path: c.Path, webhooks: c.Webhooks, onCommit: c.OnCommit, now: c.Now}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if s.write, err = sql.Open("sqlite", dsn(s.path, true)); err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	s.write.SetMaxOpenConns(1)
	if err := checkWhole(ctx, s.write, s.path); err != nil {
		return err
	}
	if err := migrate(ctx, s.write, s.path); err != nil {
		return err
	}
	if s.read, err = sql.Open("sqlite", dsn(s.path, false)); err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	return nil
}

func dsn(path string, write bool) string {
	q := url.Values{}
	for _, pragma := range []string{
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
		"trusted_schema(0)",
	} {
		q.Add("_pragma", pragma)
	}
	if write {
		q.Set("_txlock", "immediate")
	} else {
		q.Add("_pragma", "query_only(1)")
	}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

// checkFile demands that the file is there unless it may be created, and is nobody else's to read.
func checkFile(c Config) error {
	info, err := os.Stat(c.Path)
	switch {
	case errors.Is(err, os.ErrNotExist) && c.Create:
		f, err := os.OpenFile(c.Path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("creating the store: %w", err)
		}
		return f.Close()
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no store at %s; run curfew-controlplane init, or restore a backup",
			c.Path)
	case err != nil:
		return fmt.Errorf("opening the store: %w", err)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("the store %s has mode %04o: others can read it; chmod 0600 it",
			c.Path, info.Mode().Perm())
	case info.Size() == 0 && !c.Create:
		return damaged(c.Path, errors.New("the file is empty"))
	}
	return nil
}

// Close waits for the writer and closes the files.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
	}
	return err
}

// Tx is one transaction; it implements the Tx interfaces of identity and access.
type Tx struct {
	ctx    context.Context //nolint:containedctx // a Tx lives no longer than its call
	tx     *sql.Tx
	store  *Store
	change watch.Change
}

// Update runs f in the one writing transaction and announces the change when it is durable.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sqlTx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning a transaction: %w", err)
	}
	tx := &Tx{ctx: ctx, tx: sqlTx, store: s}
	if err := f(tx); err != nil {
		return errors.Join(err, ignoreDone(sqlTx.Rollback()))
	}
	if err := sqlTx.Commit(); err != nil {
		return fmt.Errorf("committing: %w", errors.Join(err, ignoreDone(sqlTx.Rollback())))
	}
	if s.onCommit != nil && !tx.change.Empty() {
		s.onCommit(tx.change)
	}
	return nil
}

// View runs f over one consistent snapshot.
func (s *Store) View(ctx context.Context, f func(*Tx) error) error {
	sqlTx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("beginning a read: %w", err)
	}
	err = f(&Tx{ctx: ctx, tx: sqlTx, store: s})
	return errors.Join(err, ignoreDone(sqlTx.Rollback()))
}

// ignoreDone drops the error of rolling back what a cancelled context rolled back before.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

func (t *Tx) exec(query string, args ...any) error {
	_, err := t.tx.ExecContext(t.ctx, query, args...)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// one runs a change that must touch exactly one row and returns whether it did.
func (t *Tx) one(query string, args ...any) (bool, error) {
	res, err := t.tx.ExecContext(t.ctx, query, args...)
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

func (t *Tx) row(query string, args ...any) *sql.Row {
	return t.tx.QueryRowContext(t.ctx, query, args...)
}

// list scans every row of a query.
func list[T any](t *Tx, scan func(func(...any) error) (T, error), query string, args ...any) (
	out []T, err error,
) {
	rows, err := t.tx.QueryContext(t.ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		item, err := scan(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		out = append(out, item)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return out, nil
}

func scanOne[T any](scan func(...any) error) (v T, err error) {
	err = scan(&v)
	return v, err
}

func (t *Tx) touchRequest(id string) { t.change.AddRequest(id) }

func (t *Tx) touchHost(id grant.HostID) { t.change.AddHost(id) }

// ms is a time at rest: Unix milliseconds, 0 for none.
func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMS(v int64) time.Time {
	if v == 0 {
		return time.Time{}
	}
	return time.UnixMilli(v)
}
