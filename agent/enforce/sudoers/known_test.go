package sudoers

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A program that was found honest is not tried again until its file changes, in its place too, and
// then at once: F10 swaps visudo under a running agent.
func TestChangedProgramIsTriedAnew(t *testing.T) {
	dir := t.TempDir()
	visudo, count := filepath.Join(dir, "visudo"), filepath.Join(dir, "count")
	// Like visudo, it refuses text with a "(" that nobody closes; unlike it, it counts.
	honest := "#!/bin/sh\ntext=$(cat)\ncase $text in *'(not'*) echo >>" + count + "; exit 1;; esac\n"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(visudo, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	trials := func() int {
		t.Helper()
		text, err := os.ReadFile(count)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.Count(string(text), "\n")
	}
	c := Checker{Visudo: visudo, Timeout: 20 * time.Second, Known: new(Known)}
	ask := func() error { return c.Syntax(t.Context(), []byte("alice ALL=(root) /bin/true\n")) }
	write(honest)
	for range 2 { // just written: its times do not yet tell it from what may be written next
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if n := trials(); n != 2 {
		t.Errorf("a fresh program was tried %d times, not each time", n)
	}
	time.Sleep(settled + 100*time.Millisecond)
	for range 3 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	if n := trials(); n != 3 {
		t.Errorf("a program that nobody changed was tried %d times, not once", n-2)
	}
	write("#!/bin/sh\nexit 0 # " + strings.Repeat(".", len(honest)-len("#!/bin/sh\nexit 0 # \n")) + "\n")
	if err := ask(); !errors.Is(err, ErrTool) {
		t.Errorf("a visudo that lies since just now: %v", err)
	}
	if err := os.Remove(visudo); err != nil {
		t.Fatal(err)
	}
	if err := ask(); !errors.Is(err, ErrTool) {
		t.Errorf("a visudo that is gone: %v", err)
	}
}
