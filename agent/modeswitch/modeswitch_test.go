package modeswitch

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newDir(t *testing.T) Dir {
	t.Helper()
	d := Dir{State: t.TempDir(), Run: filepath.Join(t.TempDir(), "run")}
	if err := os.Chmod(d.State, 0o700); err != nil {
		t.Fatal(err)
	}
	return d
}

// enforce-off marks the host before it touches the disk, so that it works where that takes no writes.
func TestOffNeedsNoDisk(t *testing.T) {
	d := newDir(t)
	d.State = filepath.Join(d.State, "gone")
	if err := d.Off(Enforce, "root", false, time.Now()); !errors.Is(err, ErrNotKept) {
		t.Errorf("without a store: %v", err)
	}
	if !d.Marked(MarkObserve) {
		t.Error("no mark")
	}
	if err := errors.Join(d.Unmark(MarkObserve), d.Unmark(MarkObserve)); err != nil || d.Marked(MarkObserve) {
		t.Errorf("taking it away: %v", err)
	}
}

func TestSwitchIsKept(t *testing.T) {
	d := newDir(t)
	if s, err := d.Read(); s != nil || err != nil {
		t.Errorf("nobody has thrown it: %v, %v", s, err)
	}
	now := time.UnixMilli(1790000000123)
	if err := d.Off(Enforce, "root", false, now); err != nil {
		t.Fatal(err)
	}
	want := Switch{Mode: Observe, Over: Enforce, SetMS: 1790000000123, By: "root"}
	if s, err := d.Read(); err != nil || *s != want {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{
		"", "{}", `{"mode":"enforced"}`, `{"mode":"observe","trial":{}}`, `{"mode":"observe","more":1}`,
	} {
		if err := os.WriteFile(filepath.Join(d.State, "mode.json"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := d.Read(); err == nil || !strings.Contains(err.Error(), "remove ") {
			t.Errorf("%q: %+v, %v", bad, s, err)
		}
	}
	if err := d.Off(Enforce, "root", false, now); err != nil {
		t.Errorf("over an unreadable one: %v", err)
	}
}

// Two who throw it take turns: what one decides by is still so when it is written.
func TestOneThrowsAtATime(t *testing.T) {
	d := newDir(t)
	done := make(chan error)
	err := d.Change(func(*Switch) (*Switch, error) {
		go func() { done <- d.Off(Enforce, "root", false, time.Now()) }()
		select {
		case err := <-done:
			t.Errorf("the other did not wait: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		return &Switch{Mode: Enforce, Over: Observe}, nil
	})
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	if s, err := d.Read(); err != nil || s.Mode != Observe {
		t.Errorf("the later word is lost: %+v, %v", s, err)
	}
}
