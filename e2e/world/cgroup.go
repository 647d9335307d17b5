package world

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cgroup is the absolute path of a cgroup2 folder, as the machine's own mount shows it.
type cgroup string

// cgroupMount finds where the machine has mounted cgroup2: /sys/fs/cgroup, or a folder below it
// where version 1 is still in charge.
func cgroupMount() (cgroup, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("looking for a cgroup2 mount: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(info))
	for lines.Scan() {
		left, right, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(left)
		if strings.HasPrefix(right, "cgroup2 ") && len(fields) > 4 {
			return cgroup(fields[4]), nil
		}
	}
	return "", errors.New("no cgroup2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
}

// child makes the cgroup below c, with its parents, and returns it.
func (c cgroup) child(name string) (cgroup, error) {
	sub := cgroup(filepath.Join(string(c), name))
	if err := os.MkdirAll(string(sub), 0o755); err != nil {
		return "", fmt.Errorf("making a cgroup: %w", err)
	}
	return sub, nil
}

// kill ends every process below c and waits until they are gone. A cgroup which does not exist has
// no processes.
func (c cgroup) kill(ctx context.Context) error {
	if _, err := os.Stat(string(c)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := os.WriteFile(filepath.Join(string(c), "cgroup.kill"), []byte("1"), 0)
	if err != nil {
		return fmt.Errorf("killing cgroup: %w", err)
	}
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		events, err := os.ReadFile(filepath.Join(string(c), "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errGone) {
			return true, nil
		}
		return bytes.Contains(events, []byte("populated 0")), err
	})
}

// freeze stops every process below c, or lets it go on, and waits until that has happened.
func (c cgroup) freeze(ctx context.Context, stop bool) error {
	word := map[bool]string{false: "0", true: "1"}[stop]
	err := os.WriteFile(filepath.Join(string(c), "cgroup.freeze"), []byte(word), 0)
	if err != nil {
		return fmt.Errorf("freezing cgroup: %w", err)
	}
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		events, err := os.ReadFile(filepath.Join(string(c), "cgroup.events"))
		return bytes.Contains(events, []byte("frozen "+word)), err
	})
}

// remove ends every process below c and takes the cgroups away. Once it has returned, nothing can
// be started there any more.
func (c cgroup) remove(ctx context.Context) error {
	return poll(ctx, 5*time.Millisecond, func() (bool, error) {
		// In a loop, since a process may be started meanwhile; and since one counts as gone slightly
		// before its cgroup may be removed.
		if err := c.kill(ctx); err != nil {
			return false, err
		}
		return c.prune(), nil
	})
}

// prune removes c and what is below it, deepest first, as far as it is empty, and says whether
// nothing is left.
func (c cgroup) prune() bool {
	var folders []string
	filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			folders = append(folders, path)
		}
		return nil // what vanished meanwhile is what we want
	})
	for i := len(folders) - 1; i >= 0; i-- {
		os.Remove(folders[i])
	}
	_, err := os.Stat(string(c))
	return errors.Is(err, fs.ErrNotExist)
}

// errGone is what reading a file of a removed cgroup says.
const errGone = syscall.ENODEV

// poll asks until the answer is yes, an error comes, or ctx ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
