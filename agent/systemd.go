package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	trimAfter = 2 * time.Second
	trimOver  = 1 << 20
)

// trim returns what the owner calls after each turn: it gives back what a burst took, once that is likely
// over. The runtime does so by itself, but over minutes; and who only waits collects nothing.
func (o *owner) trim(ctx context.Context) func() {
	const live, objects, free = 0, 1, 2
	heap := []metrics.Sample{
		live:    {Name: "/gc/heap/live:bytes"}, // after the last collection
		objects: {Name: "/memory/classes/heap/objects:bytes"},
		free:    {Name: "/memory/classes/heap/free:bytes"},
	}
	var soon atomic.Bool
	return func() {
		metrics.Read(heap)
		over := heap[objects].Value.Uint64()+heap[free].Value.Uint64() > heap[live].Value.Uint64()+trimOver
		if !over || soon.Swap(true) {
			return
		}
		o.spawn(func() {
			select {
			case <-ctx.Done():
			case <-time.After(trimAfter): // whoever waits for this turn's work needs the processor first
				debug.FreeOSMemory()
			}
			soon.Store(false)
		})
	}
}

// tell returns what the owner calls after each turn: it keeps systemctl status up to date.
func (e *Enforce) tell() func() {
	var status string
	return func() {
		if text := e.owner.status(); text != status {
			status = text
			e.notify("STATUS=" + text)
		}
	}
}

// watchdog is how often systemd wants to hear that this program lives, 0 for never.
func (e *Enforce) watchdog() time.Duration {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		e.cfg.Log.Warn("systemd's watchdog cannot be fed", "error", err)
	}
	return every
}

func (e *Enforce) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		e.cfg.Log.Warn("systemd cannot be told", "state", state, "error", err)
	}
}
