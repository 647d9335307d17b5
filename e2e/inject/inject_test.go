package inject

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	switch os.Getenv("INJECT_TEST") {
	case "launch":
		fmt.Fprintln(os.Stderr, Launch(os.Args[1], os.Args[2:]))
		os.Exit(1)
	case "work":
		if err := work(os.Args[1]); err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work is the program under test: several threads replace a file each, in steps, and a child writes.
func work(dir string) error {
	var group sync.WaitGroup
	errs := make([]error, 3)
	for i := range errs {
		group.Go(func() {
			name := filepath.Join(dir, string(rune('a'+i)))
			errs[i] = replace(name)
		})
	}
	group.Wait()
	child := exec.Command("/bin/sh", "-c", `echo x >"$0"`, filepath.Join(dir, "child"))
	return errors.Join(append(errs, child.Run())...)
}

func replace(name string) error {
	f, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(name); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// play runs the program once under an injector and returns its folder, output and error.
func play(t *testing.T, decide func(Call) Verdict) (dir, said string, failed error) {
	t.Helper()
	base := t.TempDir()
	dir = filepath.Join(base, "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(base, "s")
	in, err := Listen(socket, decide, nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", socket, "/usr/bin/env", "INJECT_TEST=work", self(t), dir)
	cmd.Env = append(os.Environ(), "INJECT_TEST=launch")
	out, err := cmd.CombinedOutput()
	if err := in.Close(); err != nil {
		t.Errorf("the injector: %v", err)
	}
	return dir, string(out), err
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func ours(c Call) bool { return strings.Contains(c.Path, "/d/") }

func keys(points []Point) []string {
	var list []string
	for _, p := range points {
		// The folder is another one each time.
		name := p.Key[strings.LastIndex(p.Key, "/d/")+3:]
		list = append(list, fmt.Sprintf("%s %s %d", strings.Fields(p.Key)[0], name, p.N))
	}
	slices.Sort(list)
	return list
}

// Every changing call of every thread is seen, a child's is not, and two runs name the same points.
func TestEveryCallIsNumbered(t *testing.T) {
	var first []string
	for range 3 {
		script := &Script{Only: ours}
		script.Begin(nil)
		dir, said, err := play(t, script.Decide)
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		if got := names(t, dir); got != "a b c child" {
			t.Fatalf("it left %s", got)
		}
		got := keys(script.End())
		if len(got) != 3*4 {
			t.Errorf("%d calls: %q", len(got), got)
		}
		if first == nil {
			first = got
		}
		if !slices.Equal(got, first) {
			t.Errorf("another run names\n%q\nnot\n%q", got, first)
		}
	}
}

// Killed at each point, what was done is exactly what came before it.
func TestKilledBeforeTheCall(t *testing.T) {
	for _, step := range []struct {
		name string
		left string // of b's two names
		size int64
	}{
		{"openat", "", 0},
		{"write", "b.new", 0},
		{"fsync", "b.new", 1},
		{"renameat", "b.new", 1},
	} {
		dir, said, err := play(t, func(c Call) Verdict {
			if c.Name == step.name && strings.Contains(c.Path, "/d/b.new") {
				return Kill()
			}
			return Verdict{}
		})
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != -1 {
			t.Fatalf("%s: the program ended with %v: %s", step.name, err, said)
		}
		left := names(t, dir)
		if strings.Contains(left, "child") || strings.Contains(left, "b.new") != (step.left != "") ||
			slices.Contains(strings.Fields(left), "b") {
			t.Errorf("killed before %s: %s", step.name, left)
		}
		if info, err := os.Stat(dir + "/b.new"); step.left != "" && (err != nil || min(info.Size(), 1) != step.size) {
			t.Errorf("killed before %s: %v, %v", step.name, info, err)
		}
	}
}

// A call that is made to fail returns the error and changes nothing.
func TestFailedCall(t *testing.T) {
	dir, said, err := play(t, func(c Call) Verdict {
		if c.Name == "fsync" && strings.HasSuffix(c.Path, "/d/c.new") {
			return Fail(unix.EIO)
		}
		return Verdict{}
	})
	if err == nil || !strings.Contains(said, "c.new: input/output error") {
		t.Errorf("%v: %s", err, said)
	}
	if got := names(t, dir); got != "a b c.new child" {
		t.Errorf("it left %s", got)
	}
}

// A script acts at its target once, and tells whether it came by.
func TestScriptActsAtItsTarget(t *testing.T) {
	s := new(Script)
	s.Begin(&Point{Key: "fsync /run/*", N: 2})
	calls := []Call{
		{Name: "fsync", Path: "/run/0123456789abcdef"},
		{Name: "write", Path: "/run/1234"},
		{Name: "fsync", Path: "/run/fedcba9876543210"},
		{Name: "fsync", Path: "/run/1234"},
	}
	for i, c := range calls {
		if acted := s.Decide(c) != (Verdict{}); acted != (i == 2) {
			t.Errorf("call %d: acted %v", i, acted)
		}
	}
	if !s.Hit() || len(s.End()) != 3 {
		t.Errorf("hit %v, %v", s.Hit(), s.End())
	}
	s.Begin(&Point{Key: "fsync /none", N: 1})
	s.Decide(calls[0])
	if s.Hit() {
		t.Error("a target that never came by counts as reached")
	}
}

// A life that is over is followed by the next, which waits until it may start.
func TestLives(t *testing.T) {
	base := t.TempDir()
	var lives []int
	in, err := Listen(filepath.Join(base, "s"), func(Call) Verdict { return Verdict{} },
		func(n int) { lives = append(lives, n) })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cmd := exec.Command("/proc/self/exe", filepath.Join(base, "s"), "/bin/sh", "-c",
			`echo x >"$0"`, filepath.Join(base, "f"))
		cmd.Env = append(os.Environ(), "INJECT_TEST=launch")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := Wait(cmd.Process.Pid, time.Second); err != nil {
			t.Error(err)
		}
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(lives, []int{1, 2}) {
		t.Errorf("lives %v", lives)
	}
}
