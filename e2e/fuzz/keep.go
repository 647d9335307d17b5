package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// most bounds the inputs that are kept of one Go target.
const most = 16

// An input is a file of Go's fuzzer, and the blocks of code that it reaches.
type input struct {
	name   string
	text   []byte
	blocks map[string]bool
}

// keepGo chooses, greedily, from what Go's fuzzer has in its cache. The C half behind a Go target is
// not seen by this, and has a fuzzer of its own.
func keepGo(ctx context.Context, t target) (int, error) {
	corpus := filepath.Join(t.dir, "testdata", "fuzz", t.name)
	had, err := readInputs(corpus)
	if err != nil {
		return 0, err
	}
	pkg, err := output(ctx, "go", "list", "-f", "{{.ImportPath}}", "./"+t.dir)
	if err != nil {
		return 0, err
	}
	cache, err := output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return 0, err
	}
	found, err := readInputs(filepath.Join(cache, "fuzz", pkg, t.name))
	if err != nil || len(found) == 0 {
		return 0, err
	}
	work, err := os.MkdirTemp("", "curfew-fuzz-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "test")
	if _, err := output(ctx, "go", "test", "-c", "-cover", "-coverpkg", "./...", "-o", program,
		"./"+t.dir); err != nil {
		return 0, err
	}
	reached, err := covered(ctx, t, program, "seed#", input{})
	if err != nil {
		return 0, err
	}
	for _, in := range had {
		blocks, err := covered(ctx, t, program, in.name, in)
		if err != nil {
			return 0, err
		}
		for b := range blocks {
			reached[b] = true
		}
	}
	for i := range found {
		if found[i].blocks, err = covered(ctx, t, program, found[i].name, found[i]); err != nil {
			return 0, err
		}
	}
	kept := choose(found, reached, most-len(had))
	for _, in := range kept {
		if err := os.MkdirAll(corpus, 0o755); err != nil {
			return 0, err
		}
		if err := os.WriteFile(filepath.Join(corpus, in.name), in.text, 0o644); err != nil {
			return 0, err
		}
	}
	return len(kept), nil
}

// choose takes the input that adds most, the shorter of two, until nothing adds anything.
func choose(found []input, reached map[string]bool, room int) (kept []input) {
	slices.SortFunc(found, func(a, b input) int { return cmp.Compare(len(a.text), len(b.text)) })
	for len(kept) < room {
		best, adds := -1, 0
		for i, in := range found {
			n := 0
			for b := range in.blocks {
				if !reached[b] {
					n++
				}
			}
			if n > adds {
				best, adds = i, n
			}
		}
		if best < 0 {
			break
		}
		for b := range found[best].blocks {
			reached[b] = true
		}
		kept = append(kept, found[best])
	}
	return kept
}

// covered runs the target over one input, or over its seeds, in a folder of its own, from which docs are
// where they are for the target's package.
func covered(ctx context.Context, t target, program, name string, in input) (map[string]bool, error) {
	tree, err := os.MkdirTemp("", "curfew-fuzz-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tree)
	docs, err := filepath.Abs("docs")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(tree, t.dir)
	if err := errors.Join(os.Symlink(docs, filepath.Join(tree, "docs")), os.MkdirAll(dir, 0o755)); err != nil {
		return nil, err
	}
	if in.text != nil {
		corpus := filepath.Join(dir, "testdata", "fuzz", t.name)
		if err := os.MkdirAll(corpus, 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(corpus, in.name), in.text, 0o644); err != nil {
			return nil, err
		}
	}
	profile := filepath.Join(dir, "profile")
	cmd := exec.CommandContext(ctx, program, "-test.run", "^"+t.name+"$/^"+name,
		"-test.coverprofile", profile)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s fails on %s: %w\n%s", t.name, name, err, out)
	}
	text, err := os.ReadFile(profile)
	if err != nil {
		return nil, err
	}
	blocks := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		// file:from,to statements count
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[2] != "0" {
			blocks[fields[0]] = true
		}
	}
	return blocks, nil
}

func readInputs(dir string) (all []input, err error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, input{name: e.Name(), text: text})
	}
	return all, err
}

func output(ctx context.Context, program string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}
