// Fuzz runs every fuzz target of the tree, one after the other, and keeps what is worth keeping: of
// what a fuzzer found, the inputs that reach code which no kept one reaches. Go's targets are found
// by their names; the C modules are fuzzed by libFuzzer under ASan and UBSan. `make test` replays
// what is kept.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A target is one fuzz function: in Go, or a C module's.
type target struct {
	dir, name string
	run       func(context.Context, target, time.Duration) error
	keep      func(context.Context, target) (int, error)
}

func main() {
	span := flag.Duration("time", 10*time.Minute, "how long each target is fuzzed; 0 only keeps")
	list := flag.Bool("list", false, "only list the targets")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: fuzz [-time D] [-list] [WORD]   (only targets whose name has WORD)")
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Arg(0), *span, *list); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, span time.Duration, list bool) error {
	all, err := targets()
	if err != nil {
		return err
	}
	var done, bad int
	for _, t := range all {
		if !strings.Contains(t.dir+" "+t.name, only) {
			continue
		}
		done++
		if list {
			fmt.Println(t.dir, t.name)
			continue
		}
		if err := t.fuzz(ctx, span); err != nil {
			bad++
			fmt.Printf("FOUND  %s %s: %v\n", t.dir, t.name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if done == 0 || bad > 0 {
		return fmt.Errorf("%d of %d targets found something", bad, done)
	}
	return nil
}

func (t target) fuzz(ctx context.Context, span time.Duration) error {
	if span > 0 {
		if err := t.run(ctx, t, span); err != nil {
			return err
		}
	}
	kept, err := t.keep(ctx, t)
	if err != nil {
		return fmt.Errorf("keeping what it found: %w", err)
	}
	fmt.Printf("kept   %s %s: %d new inputs\n", t.dir, t.name, kept)
	return nil
}

// modules are in C. Go's fuzzer drives them too and sees the Go side of the comparison alone, so what
// it finds there is kept by hand.
var modules = []string{"pam", "nss"}

func keepNone(context.Context, target) (int, error) { return 0, nil }

var declared = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)

func targets() (all []target, err error) {
	err = filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "testdata"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, keep := filepath.Dir(path), keepGo
		if slices.Contains(modules, dir) {
			keep = keepNone
		}
		for _, m := range declared.FindAllSubmatch(text, -1) {
			all = append(all, target{dir: dir, name: string(m[1]), run: runGo, keep: keep})
		}
		return nil
	})
	for _, module := range modules {
		all = append(all, target{dir: module, name: "libfuzzer", run: runC, keep: keepC})
	}
	return all, err
}

// command runs a program and shows the last line that says how many inputs were tried.
func command(ctx context.Context, t target, program string, args ...string) error {
	began := time.Now()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
	last := ""
	for _, line := range lines {
		if strings.Contains(line, "execs: ") || strings.HasPrefix(line, "Done ") {
			last = line
		}
	}
	fmt.Printf("fuzzed %s %s for %s: %s\n", t.dir, t.name, time.Since(began).Round(time.Second), last)
	return nil
}

func runGo(ctx context.Context, t target, span time.Duration) error {
	return command(ctx, t, "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$", "-fuzztime", span.String(),
		"-timeout", (span + 10*time.Minute).String(), "-parallel", "1", "./"+t.dir)
}

// found is where libFuzzer puts what it finds; it goes on from there the next time.
func (t target) found() string { return filepath.Join("bin", "fuzz", t.dir) }

func (t target) corpus() string { return filepath.Join(t.dir, "testdata", "corpus") }

func runC(ctx context.Context, t target, span time.Duration) error {
	if out, err := exec.CommandContext(ctx, "make", "-s", "-C", t.dir, "fuzz").CombinedOutput(); err != nil {
		return fmt.Errorf("make -C %s fuzz: %w\n%s", t.dir, err, out)
	}
	for _, dir := range []string{t.found(), t.corpus()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	args := []string{
		"-max_len=4200", "-rss_limit_mb=1024", fmt.Sprintf("-max_total_time=%d", int(span.Seconds())),
		"-artifact_prefix=" + t.found() + "-", t.found(), t.corpus(),
	}
	if dict := filepath.Join(t.dir, "test", "fuzz.dict"); exists(dict) {
		args = append(args, "-dict="+dict)
	}
	return command(ctx, t, "bin/"+t.dir+"_fuzz", args...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// keepC lets libFuzzer choose: as few inputs as reach every edge that is not reached yet.
func keepC(ctx context.Context, t target) (int, error) {
	before, err := os.ReadDir(t.corpus())
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "bin/"+t.dir+"_fuzz", "-set_cover_merge=1", "-use_counters=0",
		"-use_cmp=0", t.corpus(), t.found()).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out)
	}
	after, err := os.ReadDir(t.corpus())
	return len(after) - len(before), err
}
