package grant_test

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// watch holds a history to what must never happen, on the true time axis and without the model.
type watch struct {
	sent      map[string]int64           // nonce → true time at which it was sent
	leaseTill int64                      // true time past which nothing may open, honest clocks
	buried    map[grant.ID]bool          // ended, on disk
	starts    map[grant.ID]int64         // start, on disk
	opened    map[grant.ID]*opening      // of windows that are or were open
	epoch     uint64                     // on disk
	sequence  uint64                     // on disk
	lag       int64                      // true time that reboots lost since the last save
	off       int64                      // true time without power
	causes    map[curfewv1.EndCause]bool // seen
	open      map[grant.ID]grant.Live    // started and not ended
	onDisk    map[grant.ID]grant.Live    // the same, on disk
}

// opening is when a window opened on the true axis.
type opening struct {
	at, off, lag, startError int64
	follows                  bool
}

func (w *watch) init() {
	w.sent, w.buried = make(map[string]int64), make(map[grant.ID]bool)
	w.starts, w.opened = make(map[grant.ID]int64), make(map[grant.ID]*opening)
	w.causes = make(map[curfewv1.EndCause]bool)
	w.open, w.onDisk = make(map[grant.ID]grant.Live), make(map[grant.ID]grant.Live)
}

func (w *watch) rebooted(h *history, off int64) {
	w.off += off
	w.lag += h.now - h.savedAt
}

func (w *watch) accepted(h *history, s *list, c grant.Change) {
	if sent, ok := w.sent[s.nonce]; ok && c.LeaseRenewed {
		w.leaseTill = max(w.leaseTill, sent+s.lease)
	}
	for _, l := range c.Started {
		w.open[l.ID] = l
		startError := l.Start.UnixMilli() - h.now
		w.opened[l.ID] = &opening{
			at: h.now, off: w.off, lag: w.lag, startError: max(startError, -startError),
			follows: len(l.Terms.GetFollows()) > 0,
		}
	}
}

// ended: without a state nothing ends but by its time, and a state ends nothing that it lists.
func (w *watch) ended(h *history, c grant.Change, s *list) error {
	for _, e := range c.Ended {
		w.causes[e.Cause] = true
		l, known := w.open[e.ID]
		delete(w.open, e.ID)
		if !known || h.clock != 0 {
			continue
		}
		over := h.now >= endOf(l)
		listed := s != nil && slices.ContainsFunc(s.live, func(p *paper) bool { return p.realID == e.ID })
		if !over && (s == nil || listed && e.Cause != curfewv1.EndCause_END_CAUSE_EXTENDED) {
			return fmt.Errorf("grant %s ended by silence: %s", e.ID.Short(), e.Cause)
		}
	}
	return nil
}

// began: the clock of a grant that waited for its first use runs.
func (w *watch) began(h *history, before grant.Live) {
	if !before.Unused {
		return
	}
	clock, _ := h.read()
	for _, l := range h.ledger.Clone().Live(clock) {
		if l.ID == before.ID {
			w.open[l.ID] = l
			startError := l.Start.UnixMilli() - h.now
			w.opened[l.ID] = &opening{
				at: h.now, off: w.off, lag: w.lag, startError: max(startError, -startError),
			}
		}
	}
}

func (w *watch) used(c grant.Change) {
	for _, e := range c.Ended {
		w.causes[e.Cause] = true
		delete(w.open, e.ID)
	}
}

// endOf is the end that the terms give, by the start that the host said.
func endOf(l grant.Live) int64 {
	if l.Unused {
		return l.Terms.GetStartLatestMs()
	}
	return min(l.Start.UnixMilli()+l.Terms.GetDurationMs(), l.Terms.GetHardEndMs())
}

// saved: from now on these facts are on disk and may not be taken back.
func (w *watch) saved(h *history) {
	w.epoch, w.sequence = h.ledger.Epoch(), h.ledger.Sequence()
	w.onDisk = maps.Clone(w.open)
	clock, _ := h.read()
	for _, l := range h.ledger.Clone().Live(clock) {
		if !l.Unused {
			w.starts[l.ID] = l.Start.UnixMilli()
		}
	}
	for _, p := range h.all {
		if _, ended := h.ledger.Ended(p.realID); ended {
			w.buried[p.realID] = true
		}
	}
}

func (w *watch) restarted() { w.open = maps.Clone(w.onDisk) }

func (w *watch) check(h *history, live []grant.Live, mayOpen bool) error {
	if e, s := h.ledger.Epoch(), h.ledger.Sequence(); e < w.epoch || e == w.epoch && s < w.sequence {
		return fmt.Errorf("the sequence fell from (%d, %d) to (%d, %d)", w.epoch, w.sequence, e, s)
	}
	if mayOpen && h.clock == 0 && h.now >= w.leaseTill {
		return fmt.Errorf("new access may open %d ms after the lease", h.now-w.leaseTill)
	}
	for id, l := range w.open {
		isLive := slices.ContainsFunc(live, func(o grant.Live) bool { return o.ID == id })
		if h.clock == 0 && h.now < endOf(l) && !isLive {
			return fmt.Errorf("grant %s is not live, %d ms before its end, and nobody ended it", id.Short(),
				endOf(l)-h.now)
		}
	}
	for _, l := range live {
		if w.buried[l.ID] {
			return fmt.Errorf("grant %s of %s is live after its end", l.ID.Short(), l.Terms.GetRequestId())
		}
		if start, known := w.starts[l.ID]; known && start != l.Start.UnixMilli() {
			return fmt.Errorf("the start of grant %s moved from %d to %d", l.ID.Short(), start,
				l.Start.UnixMilli())
		}
		if err := w.inTime(h, l); err != nil {
			return err
		}
	}
	return nil
}

// inTime: an honest clock leaves no slack at all, a wrong one no more than the skew; what a reboot
// lost before it was saved, and time without power under a forged clock, cannot be known.
func (w *watch) inTime(h *history, l grant.Live) error {
	hard, duration := l.Terms.GetHardEndMs(), l.Terms.GetDurationMs()
	if l.Unused {
		hard, duration = l.Terms.GetStartLatestMs(), l.Terms.GetStartLatestMs()-l.Start.UnixMilli()
	}
	if h.clock == 0 {
		if h.now >= hard || h.now >= l.Start.UnixMilli()+duration {
			return fmt.Errorf("grant %s is live past its end, by an honest clock", l.ID.Short())
		}
		return nil
	}
	o := w.opened[l.ID]
	if o == nil {
		return fmt.Errorf("grant %s is live and was never seen to open", l.ID.Short())
	}
	slack := int64(modelSkew) + w.lag - o.lag
	if h.clock == 2 {
		slack += w.off - o.off
	}
	if o.follows {
		slack += o.startError
	}
	if ran := h.now - o.at; ran > duration+slack {
		return fmt.Errorf("grant %s of %d ms has been live for %d ms", l.ID.Short(), duration, ran)
	}
	if h.clock == 1 && h.now > hard+2*modelSkew+w.lag-o.lag {
		return fmt.Errorf("grant %s is live %d ms past its hard end", l.ID.Short(), h.now-hard)
	}
	return nil
}

// life runs one history of 8 to 25 steps, and returns it with how many of them it took.
func life(seed uint64, say func(string, ...any)) (int, *history, error) {
	h := newHistory(seed, say)
	n := 8 + h.rng.IntN(18)
	for i := range n {
		if err := h.step(); err != nil {
			return i, h, fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return n, h, nil
}

func envUint(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%s: %v", name, text, err)
	}
	return n
}

// TestHistories holds the ledger against the model over random histories of lost, doubled,
// reordered, cut and altered messages, two control planes, crashes, reboots and forged clocks
// (attack A3, faults F2, F4, F5 and F7). CURFEW_HISTORIES says how many; CURFEW_SEED replays one,
// step by step.
func TestHistories(t *testing.T) {
	if seed := envUint(t, "CURFEW_SEED", 0); seed != 0 {
		t.Run("replay", func(t *testing.T) {
			if _, _, err := life(seed, t.Logf); err != nil {
				t.Fatalf("history %d: %v", seed, err)
			}
		})
		return
	}
	count := envUint(t, "CURFEW_HISTORIES", 100_000)
	var next, steps atomic.Uint64
	var failed atomic.Bool
	var mu sync.Mutex
	seen, met := make(map[curfewv1.EndCause]int), make(map[string]int)
	thePool()
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := next.Add(1); seed <= count && !failed.Load(); seed = next.Add(1) {
				n, h, err := life(seed, func(string, ...any) {})
				steps.Add(uint64(n))
				mu.Lock()
				for c := range h.watch.causes {
					seen[c]++
				}
				for what, times := range h.met {
					met[what] += times
				}
				mu.Unlock()
				if err != nil && !failed.Swap(true) {
					t.Errorf("history %d: %v\nreplay: CURFEW_SEED=%d go test -v -run TestHistories/replay "+
						"./internal/grant", seed, err, seed)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d histories, %d steps; histories with each end: %v; messages: %v", count, steps.Load(), seen,
		met)
	for _, what := range mishaps {
		if met[what] == 0 && count >= 1000 && !failed.Load() {
			t.Errorf("no message was %s: the histories no longer try what they should", what)
		}
	}
	for _, c := range []curfewv1.EndCause{1, 2, 3, 4, 5, 6} {
		if seen[c] == 0 && count >= 1000 && !failed.Load() {
			t.Errorf("no history saw %s: they no longer try what they should", c)
		}
	}
}
