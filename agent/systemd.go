package agent

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

const (
	trimEvery = 30 * time.Second
	trimOver  = 2 << 20
)

// trim gives back what a burst took. The runtime does so by itself, but over minutes.
func trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if m.HeapIdle-m.HeapReleased > trimOver || m.HeapInuse-m.HeapAlloc > trimOver {
			debug.FreeOSMemory()
		}
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
