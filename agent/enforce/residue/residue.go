// Package residue finds what a grant left behind on the host, and takes back what is Curfew's.
//
// Two things are left when the processes of a grant are dead. Setuid and setgid copies of programs
// that the account owns: they would hand the old uid or a granted gid to whoever runs them next, so
// their bits are cleared. And, where the grant could become root, whatever root has made: that is
// compared with the state at the grant's start and reported, never undone, since no program can tell
// what was the task from what was the trap.
//
// Both need to read, and the first to change, any local file system, at leisure and for minutes. The
// root half may not and should not: it keeps a Record per request in a folder (Store) and has PID 1
// start curfew-residue.service, a process with other rights, low priority and an end (Work), which
// writes an Outcome beside the record. The package decides nothing about grants and ends no process.
package residue

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

// Dir is the folder of records, below the agent's own.
const Dir = "residue"

// Limits on the files of the folder.
const (
	maxRecord  = 64 << 10
	maxOutcome = 1 << 20
	maxBase    = 64 << 20
	version    = 1
)

// Record is what has to be looked after for one request. The root half writes it when the grant is
// applied, so that an agent that is restarted in mid-grant, or is dead at its end, loses nothing.
type Record struct {
	Version int    `json:"version"`
	Request string `json:"request"`
	Grant   string `json:"grant"`
	Login   string `json:"login"`
	UID     uint32 `json:"uid"`
	// Account: the login is a Curfew account, so that its uid is nobody's after the grant.
	Account bool `json:"account"`
	// RootEquivalent: what root left is compared with the start.
	RootEquivalent bool     `json:"root_equivalent"`
	Role           string   `json:"role"`
	GIDs           []uint32 `json:"gids,omitempty"`
	// SinceMS is the grant's start, Unix milliseconds.
	SinceMS int64 `json:"since_ms"`
	// Ended: the grant's processes are dead, and the hunt is due.
	Ended bool `json:"ended"`
	// Whole: no other grant of the login is live, so that nothing of the uid may act any more.
	Whole bool `json:"whole"`
}

// Hunts tells whether files of the account have to be looked for.
func (r Record) Hunts() bool { return r.Account && (r.Whole || len(r.GIDs) > 0) }

// Since is the grant's start.
func (r Record) Since() time.Time { return time.UnixMilli(r.SinceMS) }

func (r Record) check() error {
	if r.Version != version {
		return fmt.Errorf("version %d, this program reads %d", r.Version, version)
	}
	if r.Account && r.UID < firstPerson {
		return fmt.Errorf("uid %d is no Curfew account's", r.UID)
	}
	return grant.CheckRequestID(r.Request)
}

// firstPerson is the lowest uid that can be a person's.
const firstPerson = 1000

// Outcome is what a look brought.
type Outcome struct {
	Request string `json:"request"`
	// Through: every local file system was looked at to its end, and nothing of the account's is left.
	Through bool `json:"through"`
	// Cleared are files whose bits were cleared, ClearedMore how many are not listed.
	Cleared     []string `json:"cleared,omitempty"`
	ClearedMore int      `json:"cleared_more,omitempty"`
	// Problems are why it is not through, or where nothing could be seen.
	Problems []string `json:"problems,omitempty"`
	// Report is what root left; nil for a grant that could not become root.
	Report *Report `json:"report,omitempty"`
	Files  uint64  `json:"files"`
	TookMS int64   `json:"took_ms"`
}

// Store is the folder of records. One goroutine of the root half and one worker use it at a time;
// they write different files.
type Store struct{ dir *folder.Folder }

// OpenStore opens the folder below the agent's own, and makes it where it is missing.
func OpenStore(parent string, kernel folder.Kernel) (*Store, error) {
	above, err := folder.Open(parent, kernel)
	if err != nil {
		return nil, fmt.Errorf("opening the residue records: %w", err)
	}
	dir, err := above.Sub(Dir, 0o700)
	if err = errors.Join(err, above.Close()); err != nil {
		return nil, fmt.Errorf("opening the residue records: %w", err)
	}
	return &Store{dir: dir}, nil
}

// Close lets go of the folder.
func (s *Store) Close() error { return s.dir.Close() }

// Names of files, by request.
const (
	recordSuffix  = ".record.json"
	baseSuffix    = ".base.json"
	outcomeSuffix = ".outcome.json"
	cursorFile    = "cursor.json"
)

// Put makes a record durable. An outcome of an earlier look does not count for it.
func (s *Store) Put(r Record) error {
	r.Version = version
	if err := r.check(); err != nil {
		return fmt.Errorf("keeping a residue record: %w", err)
	}
	if err := s.dir.Remove(r.Request + outcomeSuffix); err != nil {
		return err
	}
	return s.write(r.Request+recordSuffix, r)
}

// Records returns all records, by request. What cannot be read is named and left alone.
func (s *Store) Records() (list []Record, problems []error) {
	names, err := s.dir.List()
	if err != nil {
		return nil, []error{err}
	}
	for _, name := range names {
		request, ok := strings.CutSuffix(name, recordSuffix)
		if !ok {
			continue
		}
		var r Record
		err := s.read(name, maxRecord, &r)
		if err == nil {
			err = r.check()
		}
		if err == nil && r.Request != request {
			err = fmt.Errorf("it is request %s's", r.Request)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("residue record %s/%s: %w", s.dir.Path(), name, err))
			continue
		}
		list = append(list, r)
	}
	return list, problems
}

// Outcome returns what the worker found for a request; fs.ErrNotExist before it is done.
func (s *Store) Outcome(request string) (o Outcome, err error) {
	err = s.read(request+outcomeSuffix, maxOutcome, &o)
	if err == nil && o.Request != request {
		err = fmt.Errorf("the outcome is request %s's", o.Request)
	}
	return o, err
}

// stands tells whether a record is still what it was: another window of its request may have begun, or
// ended, while the disks were looked over.
func (s *Store) stands(r Record) (bool, error) {
	var now Record
	err := s.read(r.Request+recordSuffix, maxRecord, &now)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && reflect.DeepEqual(now, r), err
}

// Drop forgets a request.
func (s *Store) Drop(request string) error {
	var errs []error
	for _, suffix := range []string{recordSuffix, baseSuffix, outcomeSuffix} {
		errs = append(errs, s.dir.Remove(request+suffix))
	}
	return errors.Join(errs...)
}

// HasBase tells whether the state at a request's start was taken.
func (s *Store) HasBase(request string) bool {
	names, err := s.dir.List()
	return err == nil && slices.Contains(names, request+baseSuffix)
}

func (s *Store) base(request string) (b *Inventory, err error) {
	b = new(Inventory)
	err = s.read(request+baseSuffix, maxBase, b)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func (s *Store) write(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = s.dir.Write(name, folder.File{Data: data, Mode: 0o600})
	}
	if err != nil {
		return fmt.Errorf("keeping %s: %w", name, err)
	}
	return nil
}

func (s *Store) read(name string, limit int64, v any) error {
	data, err := s.dir.Read(name, limit)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
