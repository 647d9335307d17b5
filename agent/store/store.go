// Package store keeps what the root half must not forget: its key, the ledger of everything that the
// host has accepted, which uid was ever given to whom, and the events that the control plane has not
// yet acknowledged.
//
// Everything lies in one folder, /var/lib/curfew, that only root may enter. A file is replaced whole
// and durably (agent/folder), so a crash leaves the state before or the state after. What cannot be
// read back exactly is refused with what to do, never half-read: access stays closed until somebody
// has looked. The package decides nothing about grants (internal/grant does), and only the agent's
// wiring imports it.
package store

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

// Names in the folder.
const (
	keyFile    = "root.key"
	ledgerFile = "ledger.json"
	uidsFile   = "uids.json"
	eventsDir  = "events"

	maxLedger = 64 << 20
	maxKey    = 4 << 10

	reserveStep = 64 << 10
)

// ErrNotJoined means that this host has no key or no ledger yet.
var ErrNotJoined = errors.New("this host has not joined a control plane; run curfew-agent join")

// ErrCorrupt means that a file of the store is not what was written.
var ErrCorrupt = errors.New("the agent's store is corrupt")

// Config says where the store is.
type Config struct {
	// Directory exists, 0700 and the caller's own.
	Directory string
	// Kernel is what changes the disk; nil takes the real one.
	Kernel folder.Kernel
	// MaxEvents bounds the unacknowledged events on disk, in bytes; 0 takes 16 MiB.
	MaxEvents int64
	// WithoutEvents leaves the event log alone: only one process may have it open.
	WithoutEvents bool
}

// Store is the open folder. One goroutine uses it at a time.
type Store struct {
	dir    *folder.Folder
	uids   map[string]uint32
	owners map[uint32]string
	events *Events
}

// Open opens the store and reads everything but the ledger.
func Open(cfg Config) (*Store, error) {
	dir, err := folder.Open(cfg.Directory, cfg.Kernel)
	if err != nil {
		return nil, fmt.Errorf("opening the agent's store: %w", err)
	}
	s := &Store{dir: dir}
	if err := s.load(cfg); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return s, nil
}

func (s *Store) load(cfg Config) error {
	if err := s.loadUIDs(); err != nil {
		return err
	}
	if cfg.WithoutEvents {
		return nil
	}
	sub, err := s.dir.Sub(eventsDir, 0o700)
	if err != nil {
		return fmt.Errorf("opening the events: %w", err)
	}
	s.events, err = openEvents(sub, cfg.MaxEvents)
	if err != nil {
		return errors.Join(err, sub.Close())
	}
	return nil
}

// Close releases the folder.
func (s *Store) Close() error {
	if s.events == nil {
		return s.dir.Close()
	}
	return errors.Join(s.events.dir.Close(), s.dir.Close())
}

// Events returns the log of this host's events; nil when the store was opened without.
func (s *Store) Events() *Events { return s.events }

// Key returns the root half's private key.
func (s *Store) Key() (ed25519.PrivateKey, error) {
	data, err := s.dir.Read(keyFile, maxKey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotJoined
	}
	if err != nil {
		return nil, fmt.Errorf("reading the host's key: %w", err)
	}
	seed, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSuffix(string(data), "\n"))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, s.corrupt(keyFile, "it is not an Ed25519 seed in base64")
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// NewKey draws the root half's key and keeps it. A key that is there is never replaced: it is who
// this host is.
func (s *Store) NewKey(random io.Reader) (ed25519.PrivateKey, error) {
	if key, err := s.Key(); err == nil || !errors.Is(err, ErrNotJoined) {
		return key, err
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return nil, fmt.Errorf("drawing the host's key: %w", err)
	}
	text := base64.StdEncoding.EncodeToString(seed) + "\n"
	if err := s.dir.Write(keyFile, folder.File{Data: []byte(text), Mode: 0o600}); err != nil {
		return nil, fmt.Errorf("keeping the host's key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// DropKey removes the key of a host that did not join after all, so that the next attempt draws
// another. It refuses once there is a ledger.
func (s *Store) DropKey() error {
	if _, err := s.Ledger(); !errors.Is(err, ErrNotJoined) {
		return fmt.Errorf("dropping the host's key: the host has joined: %w", err)
	}
	return s.dir.Remove(keyFile)
}

// Ledger reads the ledger. ErrNotJoined means that there is none; ErrCorrupt that it cannot be used.
func (s *Store) Ledger() (*grant.Ledger, error) {
	data, err := s.dir.Read(ledgerFile, maxLedger)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotJoined
	}
	if err != nil {
		return nil, fmt.Errorf("reading the ledger: %w", err)
	}
	l := new(grant.Ledger)
	if err := json.Unmarshal(data, l); err != nil {
		return nil, s.corrupt(ledgerFile, err.Error())
	}
	return l, nil
}

// SaveLedger makes the ledger durable. Only after it returned nil may anything be applied.
func (s *Store) SaveLedger(l *grant.Ledger) error {
	data, err := l.MarshalJSON() // which json.Marshal would read and copy once more
	if err != nil {
		return fmt.Errorf("keeping the ledger: %w", err)
	}
	if len(data) > maxLedger {
		return fmt.Errorf("keeping the ledger: %d bytes; at most %d", len(data), maxLedger)
	}
	file := folder.File{Data: data, Mode: 0o600}
	// What could not be ended durably on a disk that is full by then must not begin.
	if err := s.dir.Reserve(roundUp(int64(len(data)))); err != nil && !s.dir.Shrinks(ledgerFile, file) {
		return fmt.Errorf("keeping the ledger: %w", err)
	}
	if err := s.dir.Write(ledgerFile, file); err != nil {
		return fmt.Errorf("keeping the ledger: %w", err)
	}
	return nil
}

// roundUp keeps the size of the reserve from changing with every grant.
func roundUp(n int64) int64 { return (n/reserveStep + 1) * reserveStep }

func (s *Store) corrupt(name, why string) error {
	return corrupt(s.dir.Path()+"/"+name, why)
}

func corrupt(path, why string) error {
	return fmt.Errorf("%w: %s: %s. Access stays closed. Restore the file, or move %s away, have an "+
		"admin remove this host, and join anew", ErrCorrupt, path, why, path)
}
