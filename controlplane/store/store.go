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

	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Config is what Open needs.
type Config struct {
	// Path of the database file.
	Path string
	// Create permits a file that does not exist.
	Create bool
	// Webhooks are the URLs that messages go to.
	Webhooks []string
	// Mail is whether messages go out by mail too.
	Mail bool
	// OnCommit is told of every committed change, in order of commit; nil for nobody. It must not
	// block and must not call the store.
	OnCommit func(watch.Change)
	// OnRecord is told of every committed record of the trail, in order, under the same terms.
	OnRecord func(trail.Record)
	// Took is told how long whoever asked for a transaction waited for it, and whether the store failed
	// it; it must not block.
	Took func(write bool, took time.Duration, failed bool)
	Now  func() time.Time
}

// Store is an open database. Safe for concurrent use.
type Store struct {
	path     string
	write    *sql.DB
	read     *sql.DB
	writer   *prepared      // the one connection that changes anything
	idle     chan *prepared // connections that read, of which there are reading
	reading  int
	webhooks []string
	mail     bool
	onCommit func(watch.Change)
	onRecord func(trail.Record)
	took     func(write bool, took time.Duration, failed bool)
	now      func() time.Time
	turn     chan struct{} // holds one while somebody is the writer, until the changes are announced
	memory   memory        // the writer's
	queueMu  sync.Mutex    // guards queue
	queue    []*job        // changes that wait for the writer
	closed   bool          // the writer's; closing is closed with it
	closing  chan struct{}
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
	s := &Store{
		path: c.Path, webhooks: c.Webhooks, mail: c.Mail, onCommit: c.OnCommit, onRecord: c.OnRecord,
		took: c.Took, now: c.Now, closing: make(chan struct{}), turn: make(chan struct{}, 1),
	}
	if s.onCommit == nil {
		s.onCommit = func(watch.Change) {}
	}
	if s.onRecord == nil {
		s.onRecord = func(trail.Record) {}
	}
	if s.took == nil {
		s.took = func(bool, time.Duration, bool) {}
	}
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
	// The writer keeps its connection; the other one is for snapshots.
	s.write.SetMaxOpenConns(2)
	if s.writer, err = prepare(ctx, s.write); err != nil {
		return err
	}
	s.idle = make(chan *prepared, readers)
	for range readers {
		r, err := prepare(ctx, s.read)
		if err != nil {
			return err
		}
		s.idle <- r
		s.reading++
	}
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
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.closing)
	err := s.writer.close()
	for range s.reading {
		r := <-s.idle // each reader comes back: the last connection's end folds the log into the file
		err = errors.Join(err, r.close())
	}
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
	tx     runner
	store  *Store
	change watch.Change
	// records are what it puts on the trail, by way of the ledger; a view has none.
	records []trail.Record
	ledger  *ledger
	// stored is what requests look like in the store, of those that it read or wrote; nil in a view.
	stored map[string]*stored
}

// Update runs f in a writing transaction and announces the change when it is durable. Changes that
// come while another is made durable share the next sync. f may be called again when what it wrote was
// rolled back for the sake of another.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	j, began := &job{ctx: ctx, f: f, done: make(chan struct{})}, time.Now()
	s.enqueue(j)
	s.lead(j)
	s.took(true, time.Since(began), failed(j.err))
	if j.panicked != nil {
		panic(j.panicked)
	}
	return j.err
}

// lead becomes the writer and carries out what waits, unless somebody did so before: whose change is
// durable goes on at once, also while the next ones are written.
func (s *Store) lead(j *job) {
	select {
	case <-j.done:
		return
	case s.turn <- struct{}{}:
	}
	defer func() { <-s.turn }()
	for {
		select {
		case <-j.done:
			return
		default:
			s.commit(s.next())
		}
	}
}

var errClosed = errors.New("the store is closed")

// View runs f over one consistent snapshot.
func (s *Store) View(ctx context.Context, f func(*Tx) error) (err error) {
	began := time.Now()
	defer func() { s.took(false, time.Since(began), failed(err)) }()
	var r *prepared
	select {
	case r = <-s.idle:
		defer func() { s.idle <- r }()
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return errClosed
	}
	select {
	case <-s.closing: // a closed store still has idle connections, for nobody
		return errClosed
	default:
	}
	if _, err := r.ExecContext(ctx, "BEGIN"); err != nil {
		return fmt.Errorf("beginning a read: %w", err)
	}
	defer func() { _, _ = r.ExecContext(context.WithoutCancel(ctx), "ROLLBACK") }()
	return f(&Tx{ctx: ctx, tx: r, store: s})
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
