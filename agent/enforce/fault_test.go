package enforce

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/folder"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }

// faulty is a kernel that lets n changing calls pass; from then on every one that match chooses
// fails with err.
type faulty struct {
	folder.Linux
	left  int
	err   error
	match func(name string) bool
}

func (f *faulty) step(name string) error {
	if f.match != nil && !f.match(name) {
		return nil
	}
	if f.left > 0 {
		f.left--
		return nil
	}
	return f.err
}

func (f *faulty) Openat2(dirfd int, path string, how *unix.OpenHow) (int, error) {
	if how.Flags&unix.O_CREAT != 0 {
		if err := f.step(path); err != nil {
			return -1, err
		}
	}
	return f.Linux.Openat2(dirfd, path, how)
}

func (f *faulty) Write(fd int, p []byte) (int, error) {
	if err := f.step("write"); err != nil {
		return 0, err
	}
	return f.Linux.Write(fd, p)
}

func (f *faulty) Fsync(fd int) error {
	if err := f.step("fsync"); err != nil {
		return err
	}
	return f.Linux.Fsync(fd)
}

func (f *faulty) Fchmod(fd int, mode uint32) error {
	if err := f.step("fchmod"); err != nil {
		return err
	}
	return f.Linux.Fchmod(fd, mode)
}

func (f *faulty) Renameat(dirfd int, from, to string) error {
	if err := f.step("rename"); err != nil {
		return err
	}
	return f.Linux.Renameat(dirfd, from, to)
}

func (f *faulty) Unlinkat(dirfd int, name string, flags int) error {
	if err := f.step("unlink"); err != nil {
		return err
	}
	return f.Linux.Unlinkat(dirfd, name, flags)
}

// visible checks that each file sudo would read is whole and one of the allowed texts.
func (h *host) visible(allowed map[string]bool) {
	h.t.Helper()
	entries, err := os.ReadDir(h.path(SudoersDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.ContainsAny(e.Name(), ".~") {
			continue // sudo skips these
		}
		text, err := os.ReadFile(filepath.Join(h.path(SudoersDir), e.Name()))
		if err != nil {
			h.t.Fatal(err)
		}
		if !allowed[string(text)] {
			h.t.Fatalf("sudo would read %s:\n%s", e.Name(), text)
		}
	}
}

// F1: killed at any call of an apply and of a purge, the host shows whole files of live grants only,
// and an agent that starts again makes it equal to the live set.
func TestKilledAtEveryStep(t *testing.T) {
	one, two := live(1, "alice", withRule(restart)), live(2, "carol", withRule(restart))
	text1, err := sudoers.Render(DropinOf(one))
	if err != nil {
		t.Fatal(err)
	}
	text2, err := sudoers.Render(DropinOf(two))
	if err != nil {
		t.Fatal(err)
	}
	both := map[string]bool{string(text1): true, string(text2): true}
	reference := newHost(t)
	reference.apply(state(one, two))
	reference.apply(state(two))
	reference.apply(state(two, one))
	died := errors.New("killed")
	finished := false
	for steps := 0; !finished; steps++ {
		h := newHost(t)
		h.apply(state(one))
		kernel := &faulty{left: steps, err: died}
		h.r = h.reconciler(kernel)
		two := state(two) // one goes, two comes
		_, _ = h.r.Apply(two)
		h.r.Admit(context.Background(), two)
		_, _ = h.r.Apply(two)
		finished = kernel.left > 0
		h.visible(both)
		h.r = h.reconciler(nil)
		h.apply(two)
		h.visible(map[string]bool{string(text2): true})
		if got := h.tree(); strings.Contains(got, ".new") || strings.Contains(got, grantHex(1)) {
			t.Fatalf("after %d steps and a restart:\n%s", steps, got)
		}
		if steps > 1000 {
			t.Fatal("the apply never ends")
		}
	}
}

func grantHex(n byte) string { return filepath.Base(dropinPath(n)) }

// F3: on a full disk the new grant is reported failed and leaves nothing; the old one stays, and a
// purge still works.
func TestFullDisk(t *testing.T) {
	h := newHost(t)
	one := live(1, "alice", withRule(restart))
	h.apply(state(one))
	kernel := &faulty{left: 1 << 30, err: unix.ENOSPC, match: func(name string) bool {
		return name == "write" || strings.HasPrefix(name, ".")
	}}
	h.r = h.reconciler(kernel)
	if r := h.apply(state(one))[1]; !r.Applied() {
		t.Fatal(r.Detail)
	}
	before := h.tree()
	kernel.left = 0
	results := h.apply(state(one, live(2, "carol", withRule(restart))))
	if r := results[2]; r.Applied() || !strings.Contains(r.Detail, "no space left") {
		t.Errorf("the new one: %v %q", r.Status, r.Detail)
	}
	if r := results[1]; !r.Applied() {
		t.Errorf("the old one: %q", r.Detail)
	}
	if got := h.tree(); got != before {
		t.Errorf("got\n%s\nwant\n%s", got, before)
	}
	if p := h.r.Problems(); len(p) == 0 && results[2].Detail == "" {
		t.Error("nobody is told")
	}
	if _, err := h.r.Apply(state()); err != nil {
		t.Fatal(err)
	}
	if h.exists(dropinPath(1)) || h.exists(KeysDir+"/alice") {
		t.Error("the purge did not happen on a full disk")
	}
}
