// Mutate proves that tests can fail. It reads the MUTATIONS.md files, applies each one-line break to
// a copy of the tree, runs the test that the entry names and demands that it fails with the text
// that the entry promises. An entry whose break no longer applies is a failure too.
//
// An entry reads:
//
//	### what is broken
//	file: path/from/the/root.go
//	old: `exact fragment of one line`
//	new: `its replacement`
//	run: go test -run 'TestX' ./path
//	fails: `text of the failing line`
//
// or stands as one row of a table: | `file` | `old` | `new` | `go test …` | `text` |
//
// Where two sources cover one thing, file2, old2 and new2 break the second; the file may be the same.
// Several lines of fails are all demanded.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// A mutation is one entry. Its fields are the keys of the file.
type mutation struct {
	name, source               string
	file, old, new, run, fails string
	file2, old2, new2          string
}

func main() {
	list := flag.Bool("list", false, "only list the mutations")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: mutate [-list] [WORD]   (only mutations whose name or file has WORD)")
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Arg(0), *list); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, list bool) error {
	all, err := readAll(".")
	if err != nil {
		return err
	}
	var bad, done int
	for _, m := range all {
		if !strings.Contains(m.name+" "+m.file+" "+m.source, only) {
			continue
		}
		done++
		if list {
			fmt.Printf("%s: %s\n", m.source, m.name)
			continue
		}
		began := time.Now()
		if err := m.try(ctx); err != nil {
			bad++
			fmt.Printf("SURVIVED  %s (%s): %v\n", m.name, m.source, err)
			continue
		}
		fmt.Printf("killed    %s (%.1f s)\n", m.name, time.Since(began).Seconds())
	}
	fmt.Printf("%d mutations, %d survived\n", done, bad)
	if bad > 0 || done == 0 {
		return fmt.Errorf("%d of %d mutations were not noticed", bad, done)
	}
	return ctx.Err()
}

func readAll(root string) (all []mutation, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.Name() != "MUTATIONS.md" {
			return nil
		}
		read, err := parse(path)
		all = append(all, read...)
		return err
	})
	return all, err
}

func parse(path string) ([]mutation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []mutation
	for n, line := range strings.Split(string(text), "\n") {
		if name, ok := strings.CutPrefix(line, "### "); ok {
			all = append(all, mutation{name: name, source: path})
			continue
		}
		if row, ok := tableRow(line); ok {
			row.source = path
			all = append(all, row)
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok || len(all) == 0 {
			continue
		}
		m := &all[len(all)-1]
		field, known := map[string]*string{
			"file": &m.file, "old": &m.old, "new": &m.new, "run": &m.run, "fails": &m.fails,
			"file2": &m.file2, "old2": &m.old2, "new2": &m.new2,
		}[key]
		if !known {
			continue
		}
		value = strings.TrimSuffix(strings.TrimPrefix(value, "`"), "`")
		if *field != "" && key == "fails" {
			value = *field + "\n" + value
		} else if *field != "" {
			return nil, fmt.Errorf("%s:%d: %s stands twice", path, n+1, key)
		}
		*field = value
	}
	for _, m := range all {
		if m.file == "" || m.old == "" || m.run == "" || m.fails == "" {
			return nil, fmt.Errorf("%s: mutation %q wants file, old, new, run and fails", path, m.name)
		}
		if (m.file2 == "") != (m.old2 == "") {
			return nil, fmt.Errorf("%s: mutation %q wants file2 and old2 or neither", path, m.name)
		}
	}
	return all, nil
}

// tableRow reads an entry that is a row of a Markdown table; a bar within a cell is written \|.
func tableRow(line string) (mutation, bool) {
	line, ok := strings.CutPrefix(line, "| `")
	if !ok {
		return mutation{}, false
	}
	line, ok = strings.CutSuffix(line, "` |")
	cells := strings.Split(line, "` | `")
	if !ok || len(cells) != 5 {
		return mutation{}, false
	}
	for i := range cells {
		cells[i] = strings.ReplaceAll(cells[i], `\|`, "|")
	}
	return mutation{
		name: cells[0] + ": " + cells[1], file: cells[0], old: cells[1], new: cells[2],
		run: cells[3], fails: cells[4],
	}, true
}

// try applies the mutation to a copy of the tree and runs its test there.
func (m mutation) try(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "curfew-mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if out, err := exec.CommandContext(ctx, "cp", "-a", ".", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copying the tree: %w: %s", err, out)
	}
	if err := breakFile(dir, m.file, m.old, m.new); err != nil {
		return err
	}
	if m.file2 != "" {
		if err := breakFile(dir, m.file2, m.old2, m.new2); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", m.run)
	cmd.Dir = dir
	// Without paths in it, what is not broken need not be compiled again for each copy of the tree.
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false -trimpath -vet=off")
	out, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	switch {
	case err == nil:
		return errors.New("the test passes with the code broken")
	case !errors.As(err, &failed) || ctx.Err() != nil:
		return fmt.Errorf("running %s: %w", m.run, err)
	}
	for text := range strings.SplitSeq(m.fails, "\n") {
		if !bytes.Contains(out, []byte(text)) {
			return fmt.Errorf("it fails without saying %q:\n%s", text, tail(out))
		}
	}
	return nil
}

// breakFile replaces the one place of a file that has the old text.
func breakFile(dir, file, old, broken string) error {
	text, err := readOnce(dir, file, old)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), bytes.Replace(text, []byte(old), []byte(broken), 1), 0o644)
}

// readOnce reads a file that must have the text in one place.
func readOnce(dir, file, once string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	if n := bytes.Count(text, []byte(once)); n != 1 {
		return nil, fmt.Errorf("the text to break stands %d times in %s", n, file)
	}
	return text, nil
}

// tail shows the lines where tests complained, and the end.
func tail(b []byte) []byte {
	var said []byte
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte("_test.go:")) && len(said) < 2000 {
			said = append(said, line...)
		}
	}
	return append(said, b[max(0, len(b)-1000):]...)
}
