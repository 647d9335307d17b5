// Package modeswitch keeps what root on a host has said of enforcing, beside the word of agent.yaml: the
// switch that `curfew-agent enforce-on` and `enforce-off` throw, and the marks in /run/curfew by which
// the PAM module itself observes or ends a trial. PROTOCOL.md, sections 5 and 8.
//
// Both the root half and a command of root's throw the switch, since enforce-off must work without the
// root half; a lock keeps one from undoing the other. The package decides nothing about who may.
package modeswitch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/folder"
)

// The modes, as agent.yaml writes them.
const (
	Observe = "observe"
	Enforce = "enforce"
)

// The marks: files of root's in /run/curfew, which a reboot takes away.
const (
	// MarkObserve has the PAM module deny nobody, whatever the gate table says.
	MarkObserve = "observe"
	// MarkTrial must be there for a trial to enforce.
	MarkTrial = "trial"
)

const (
	file     = "mode.json"
	lockFile = "mode.lock"
	maxFile  = 4 << 10
	lockWait = 2 * time.Second
)

// Switch is what was said last. It holds for as long as agent.yaml says Over: whoever edits that line
// has the newer word.
type Switch struct {
	Mode  string `json:"mode"`
	Over  string `json:"over"`
	SetMS int64  `json:"set_ms"`
	By    string `json:"by"`
	Trial *Trial `json:"trial,omitempty"`
	// Rollout is set where a staged rollout threw it, and not root.
	Rollout *Rollout `json:"rollout,omitempty"`
	// Follow: root said observe, and leaves the host to rollouts from then on.
	Follow bool `json:"follow,omitempty"`
}

// Rollout is what came of a staged rollout's newest attempt.
type Rollout struct {
	ID      string `json:"id"`
	Attempt uint32 `json:"attempt"`
	Phase   Phase  `json:"phase"`
	Words   string `json:"words,omitempty"`
}

// Phase is how far an attempt has got.
type Phase string

// The phases; with the first three the host enforces.
const (
	Begun    Phase = "begun"  // on trial, and its own services are being tried
	Passed   Phase = "passed" // on trial
	Kept     Phase = "kept"
	Refused  Phase = "refused"
	Lapsed   Phase = "lapsed"
	Returned Phase = "returned"
)

func (p Phase) enforces() bool { return p == Begun || p == Passed || p == Kept }

// Trial bounds a switch to enforce that nobody has confirmed: it ends when either clock has come so far.
type Trial struct {
	WallMS int64 `json:"wall_ms"`
	BootMS int64 `json:"boot_ms"`
	// NewestSession and NewestStart are the highest audit session and the latest start of a process, in
	// clock ticks since boot, that there were when the trial began: a login with higher ones is a new one.
	NewestSession uint32 `json:"newest_session"`
	NewestStart   uint64 `json:"newest_start"`
}

// Over tells whether a trial is over, by clocks that are given.
func (t *Trial) Over(wall time.Time, boot time.Duration) bool {
	return wall.UnixMilli() >= t.WallMS || boot.Milliseconds() >= t.BootMS
}

func (s *Switch) check() error {
	switch {
	case s.Mode != Observe && s.Mode != Enforce:
		return fmt.Errorf("mode %q", s.Mode)
	case s.Trial != nil && s.Mode != Enforce:
		return errors.New("a trial of observing")
	case s.Follow && s.Mode != Observe:
		return errors.New("left to rollouts, and enforcing")
	case s.Rollout != nil && s.Rollout.Phase.enforces() != (s.Mode == Enforce):
		return fmt.Errorf("mode %q of a rollout that is %s", s.Mode, s.Rollout.Phase)
	}
	return nil
}

// Dir is where switch and marks are. It keeps nothing open: the folders may come and go.
type Dir struct {
	State string // /var/lib/curfew
	Run   string // /run/curfew
}

// Read returns the switch; nil means that nobody has thrown it.
func (d Dir) Read() (s *Switch, err error) {
	dir, err := folder.Open(d.State, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the switch: %w", err)
	}
	defer func() { _ = dir.Close() }() // only read
	data, err := dir.Read(file, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		s = new(Switch)
		if err = dec.Decode(s); err == nil {
			err = s.check()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the switch: %w; remove %s, and say anew enforce-on or enforce-off",
			err, filepath.Join(d.State, file))
	}
	return s, nil
}

// Forget removes a switch that was thrown over another word than agent.yaml says now.
func (d Dir) Forget(said string) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if s, err := d.Read(); err != nil || s == nil || s.Over == said {
		return err
	}
	dir, err := folder.Open(d.State, nil)
	if err == nil {
		err = errors.Join(dir.Remove(file), dir.Sync(), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("forgetting the switch: %w", err)
	}
	return nil
}

// Change replaces the switch, durably, by what f makes of it; nil leaves it alone. An unreadable switch
// is nil to f.
func (d Dir) Change(f func(*Switch) (*Switch, error)) error {
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	old, _ := d.Read() // what f makes is right after an error too
	next, err := f(old)
	if err != nil || next == nil {
		return err
	}
	if err := next.check(); err != nil {
		return fmt.Errorf("throwing the switch: %w", err)
	}
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("throwing the switch: %w", err)
	}
	dir, err := folder.Open(d.State, nil)
	if err != nil {
		return fmt.Errorf("throwing the switch: %w", err)
	}
	err = dir.Write(file, folder.File{Data: data, Mode: 0o600})
	if err = errors.Join(err, dir.Close()); err != nil {
		return fmt.Errorf("throwing the switch: %w", err)
	}
	return nil
}

func (d Dir) lock() (unlock func(), err error) {
	name := filepath.Join(d.State, lockFile)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("throwing the switch: %w", err)
	}
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { _ = f.Close() }, nil // which unlocks
		}
		if time.Since(begun) > lockWait {
			return nil, errors.Join(fmt.Errorf("throwing the switch: somebody else holds %s: %w", name, err),
				f.Close())
		}
	}
}

// Mark makes a mark, and the folder where there is none: a host whose agent is gone may have lost it.
func (d Dir) Mark(name string) error {
	if err := os.Mkdir(d.Run, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("marking the host %s: %w", name, err)
	}
	dir, err := folder.Open(d.Run, nil)
	if err != nil {
		return fmt.Errorf("marking the host %s: %w", name, err)
	}
	err = dir.Write(name, folder.File{Mode: 0o600})
	if err = errors.Join(err, dir.Close()); err != nil {
		return fmt.Errorf("marking the host %s: %w", name, err)
	}
	return nil
}

// Unmark takes a mark away.
func (d Dir) Unmark(name string) error {
	dir, err := folder.Open(d.Run, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(dir.Remove(name), dir.Close())
	}
	if err != nil {
		return fmt.Errorf("taking the mark %s away: %w", name, err)
	}
	return nil
}

// Marked tells whether there is such a mark of root's, as the PAM module sees it.
func (d Dir) Marked(name string) bool {
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(d.Run, name), &st)
	return err == nil && int(st.Uid) == os.Geteuid()
}

// Off throws the switch to observe over what agent.yaml says, and leaves the host to rollouts if follow.
// The mark comes first: from then on nobody is denied, though the disk take no writes and the root half be
// dead. The error is of what did not last.
func (d Dir) Off(over, by string, follow bool, now time.Time) error {
	if err := d.Mark(MarkObserve); err != nil {
		return err
	}
	err := d.Change(func(*Switch) (*Switch, error) {
		return &Switch{Mode: Observe, Over: over, SetMS: now.UnixMilli(), By: by, Follow: follow}, nil
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotKept, err)
	}
	return nil
}

// ErrNotKept means that the host observes, but only until it boots.
var ErrNotKept = errors.New("observing until the next boot only")
