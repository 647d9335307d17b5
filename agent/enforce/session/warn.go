package session

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	firstWarning  = 10 * time.Minute
	secondWarning = 2 * time.Minute
	// warnPoll bounds how late a warning comes when a clock was set or the machine slept.
	warnPoll = 5 * time.Second
	// farewellPause lets sshd carry the last line to the person before it dies.
	farewellPause = 100 * time.Millisecond
)

// warnings returns how long before its end a grant's two warnings come: 10 and 2 minutes, or a third
// and a tenth of the grant when that is less.
func warnings(l Live) (first, second time.Duration) {
	whole := l.End.Sub(l.Start)
	return min(firstWarning, whole/3), min(secondWarning, whole/10)
}

// warner tells people that their access ends soon, or later than they were told.
type warner struct {
	host  string
	clock func() grant.Clock
	tell  func(request, text string)
	news  chan struct{}

	mu    sync.Mutex // guards what follows
	live  map[string]Live
	heard map[string]heard
}

// heard is what the people of a request were told.
type heard struct {
	end    time.Time
	stages int // warnings given, or due before anybody could be told
}

func newWarner(host string, clock func() grant.Clock, tell func(request, text string)) *warner {
	return &warner{
		host: host, clock: clock, tell: tell, news: make(chan struct{}, 1),
		heard: make(map[string]heard),
	}
}

// publish takes what is live, by request, which nobody changes any more.
func (w *warner) publish(live map[string]Live) {
	w.mu.Lock()
	w.live = live
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// run tells what is to be told until ctx ends.
func (w *warner) run(ctx context.Context) error {
	for {
		lines, next := w.step(w.clock())
		for _, l := range lines {
			w.tell(l.request, l.text)
		}
		timer := time.NewTimer(min(next, warnPoll))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-w.news:
			timer.Stop()
		}
	}
}

type line struct{ request, text string }

// step returns what is to be told now, and when to look again. A warning whose time had passed when
// the grant was first seen, after a restart or for a grant shorter than that, is not given late.
func (w *warner) step(now grant.Clock) (lines []line, next time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next = warnPoll
	for request := range w.heard {
		if _, ok := w.live[request]; !ok {
			delete(w.heard, request)
		}
	}
	for request, l := range w.live {
		left := min(l.End.Sub(now.Wall), l.BootDeadline-now.Boot)
		first, second := warnings(l)
		due := 0
		for _, before := range []time.Duration{first, second} {
			if left <= before {
				due++
			} else {
				next = min(next, left-before)
			}
		}
		before, known := w.heard[request]
		w.heard[request] = heard{end: l.End, stages: due}
		switch {
		case !known || left <= 0:
		case !before.end.Equal(l.End):
			lines = append(lines, line{request, w.moved(l, left)})
		case due > before.stages:
			lines = append(lines, line{request, w.ending(l, left)})
		default:
			// Never warn twice: a clock that was set back must not repeat it.
			w.heard[request] = before
		}
	}
	return lines, next
}

func (w *warner) ending(l Live, left time.Duration) string {
	if l.Local {
		return fmt.Sprintf("Curfew: access as %s on %s ends at %s.", l.Role, w.host, Until(l.End, left))
	}
	return fmt.Sprintf("Curfew: access as %s on %s ends at %s. To keep it: curfew extend %s --for 30m",
		l.Role, w.host, Until(l.End, left), l.RequestID)
}

func (w *warner) moved(l Live, left time.Duration) string {
	return fmt.Sprintf("Curfew: access as %s on %s now ends at %s", l.Role, w.host, Until(l.End, left))
}

// Until says a moment for people: "14:05 UTC (in 59m)", with the date when it is not within a day.
func Until(end time.Time, left time.Duration) string {
	layout := "15:04 MST"
	if left >= 24*time.Hour {
		layout = "2006-01-02 15:04 MST"
	}
	if left < 2*time.Minute {
		layout = "15:04:05 MST"
	}
	return fmt.Sprintf("%s (in %s)", end.UTC().Format(layout), short(left))
}

func short(d time.Duration) string {
	if d < 2*time.Minute {
		return fmt.Sprintf("%ds", max(d.Round(time.Second), 0)/time.Second)
	}
	minutes := d.Round(time.Minute) / time.Minute
	switch {
	case minutes < 60:
		return fmt.Sprintf("%dm", minutes)
	case minutes%60 == 0:
		return fmt.Sprintf("%dh", minutes/60)
	}
	return fmt.Sprintf("%dh%02dm", minutes/60, minutes%60)
}

// Tell writes one line on the terminals of a request's sessions, without ever waiting for one.
func (m *Manager) Tell(request, text string) {
	k, err := m.killSet([]Target{{RequestID: request}})
	if err != nil {
		m.cfg.Log.Warn("looking for terminals", "request", request, "error", err)
	}
	m.say(k, func(Target) string { return text })
}

// say writes a line, unless it is empty, on the terminals of each target in the set.
func (m *Manager) say(k *killSet, text func(Target) string) {
	all, err := process.All()
	if err != nil {
		m.cfg.Log.Warn("looking for terminals", "error", err)
	}
	at := make(map[int][]process.Process)
	for p, i := range m.members(k, all) {
		at[i] = append(at[i], p)
	}
	for i, processes := range at {
		t := k.targets[i]
		line := text(t)
		if line == "" {
			continue
		}
		for _, device := range terminals(processes) {
			if err := writeTerminal(device, line); err != nil {
				m.cfg.Log.Debug("telling a terminal", "request", t.RequestID, "error", err)
				continue
			}
			m.mu.Lock()
			m.told[t.RequestID] = time.Now()
			m.mu.Unlock()
		}
	}
}

// farewell tells the people of the targets why their sessions end, where the target says why. Then
// it leaves sshd a moment to carry that, or what was told right before: their access is closed
// already, what follows is the end of what runs.
func (m *Manager) farewell(ctx context.Context, k *killSet) {
	m.say(k, m.goodbye)
	var last time.Time
	m.mu.Lock()
	for _, t := range k.targets {
		if at := m.told[t.RequestID]; at.After(last) {
			last = at
		}
		delete(m.told, t.RequestID)
	}
	m.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(farewellPause - min(time.Since(last), farewellPause)):
	}
}

func (m *Manager) goodbye(t Target) string {
	if t.Goodbye != "" {
		return t.Goodbye
	}
	if t.Cause == curfewv1.EndCause_END_CAUSE_UNSPECIFIED {
		return ""
	}
	text := fmt.Sprintf("Curfew: access on %s has ended (%s", m.cfg.Host, causeText(t.Cause))
	if t.By != "" {
		text += " by " + t.By
	}
	return text + ")"
}
