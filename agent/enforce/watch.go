package enforce

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long a burst of file events is gathered before one repair.
const settle = 10 * time.Millisecond

// rewatch is how long files go unwatched before the watch is tried again.
const rewatch = 30 * time.Second

// Run puts files right as soon as somebody changes them, until ctx ends. A watch cannot always be
// had: the kernel's limit of them is one for root in all containers of a machine. Nobody's access
// hangs on it, so that is a problem to be told and no reason to stop: Apply, called every 30 s, covers
// the host meanwhile.
func (r *Reconciler) Run(ctx context.Context) error {
	for {
		err := r.follow(ctx)
		if err == nil {
			return nil
		}
		r.cfg.Log.Error("files of Curfew's are not watched; they are checked every 30 s", "error", err)
		r.setUnwatched(err.Error())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rewatch):
		}
	}
}

func (r *Reconciler) setUnwatched(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unwatched = why
}

// follow watches until ctx ends, and returns nil then.
func (r *Reconciler) follow(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching Curfew's files: %w", err)
	}
	defer func() { _ = w.Close() }() // nothing to lose
	r.setUnwatched("")
	r.watch(w)
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("watching Curfew's files: the watch ended")
			}
			if !r.concerns(e.Name) {
				continue
			}
			gather(ctx, w)
			r.Repair()
			r.watch(w)
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("watching Curfew's files: the watch ended")
			}
			// An overflow means that events were missed: look at everything.
			r.cfg.Log.Warn("watching Curfew's files", "error", err)
			r.Repair()
			r.watch(w)
		}
	}
}

// gather takes in what else happens within the settling time, so that one burst is one repair.
func gather(ctx context.Context, w *fsnotify.Watcher) {
	timer := time.NewTimer(settle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case _, ok := <-w.Events:
			if !ok {
				return
			}
		}
	}
}

// watch adds the folders that are not watched: one that was removed and made again is another one.
func (r *Reconciler) watch(w *fsnotify.Watcher) {
	watched := w.WatchList()
	for _, dir := range []string{RunDir, SudoersDir, KeysDir, StateDir} {
		name := filepath.Join(r.cfg.Root, dir)
		if slices.Contains(watched, name) {
			continue
		}
		if err := w.Add(name); err != nil {
			r.cfg.Log.Warn("cannot watch a folder of Curfew's; it is checked every 30 s", "path", name,
				"error", err)
			continue
		}
		// What happened before the watch began is not told.
		r.Repair()
	}
}

// concerns tells whether a path is one that Sync decides about.
func (r *Reconciler) concerns(name string) bool {
	rel, err := filepath.Rel(r.cfg.Root, name)
	if err != nil {
		return true
	}
	switch rel {
	case RunDir, SudoersDir, KeysDir, path.Join(RunDir, Snapshot), path.Join(StateDir, GateTable):
		return true
	}
	dir := path.Dir(rel)
	return dir == SudoersDir || dir == KeysDir
}
