package world

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The register has a file for each world: its name is the world's prefix, its content the state
// folder, and the process that owns the world holds its lock. The kernel drops the lock with the
// process, however that ends, so a world whose lock is free is nobody's.

func registerPath(name string) string {
	return filepath.Join(CacheDir(), "worlds", name+".lock")
}

// register enters a world. The common lock keeps CleanStale from seeing an entry in the making.
func register(ctx context.Context, prefix, dir string) (*os.File, error) {
	if err := makeCacheDir(); err != nil {
		return nil, err
	}
	common, err := flock(ctx, registerPath(""))
	if err != nil {
		return nil, fmt.Errorf("waiting for the register of worlds: %w", err)
	}
	defer common.Close()
	entry, err := flock(ctx, registerPath(prefix))
	if err != nil {
		return nil, fmt.Errorf("registering a world: %w", err)
	}
	if _, err := entry.WriteString(dir); err != nil {
		entry.Close()
		return nil, fmt.Errorf("registering a world: %w", err)
	}
	return entry, nil
}

// forget takes a world out of the register.
func forget(prefix string) error { return os.Remove(registerPath(prefix)) }

// CleanStale removes the worlds whose owners are gone: after a test was killed, nothing else would.
// New calls it.
func CleanStale(ctx context.Context) error {
	if err := requirements(); err != nil {
		return err
	}
	if err := makeCacheDir(); err != nil {
		return err
	}
	common, err := flock(ctx, registerPath(""))
	if err != nil {
		return fmt.Errorf("waiting for the register of worlds: %w", err)
	}
	defer common.Close()
	entries, err := filepath.Glob(registerPath("*"))
	if err != nil {
		return err
	}
	var all error
	for _, path := range entries {
		prefix := strings.TrimSuffix(filepath.Base(path), ".lock")
		if prefix == "" {
			continue
		}
		if err := cleanOne(ctx, prefix, path); err != nil {
			all = errors.Join(all, fmt.Errorf("removing the stale world %s: %w", prefix, err))
		}
	}
	return all
}

func cleanOne(ctx context.Context, prefix, path string) error {
	entry, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // closed since we looked
	} else if err != nil {
		return err
	}
	defer entry.Close()
	if free, err := tryLock(entry); err != nil || !free {
		return err
	}
	dir, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // closed while we locked
	} else if err != nil {
		return err
	}
	if err := sweep(ctx, prefix, string(dir)); err != nil {
		return err
	}
	return forget(prefix)
}

// sweep ends what runs in a world and removes its cgroups and its folder. Its mounts and networks
// were in namespaces that end with its processes.
func sweep(ctx context.Context, prefix, dir string) error {
	mount, err := cgroupMount()
	if err != nil {
		return err
	}
	group := cgroup(filepath.Join(string(mount), prefix))
	if err := group.remove(ctx); err != nil {
		return fmt.Errorf("removing the world's cgroups: %w", err)
	}
	if dir == "" {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the world's folder: %w", err)
	}
	return nil
}
