package soak

import (
	"sync"
	"time"
)

// What the promises allow. A later instant than these is a finding.
const (
	purgeLimit    = 2 * time.Second  // after an end, while the agent runs
	convergeLimit = 5 * time.Second  // after the agent is back
	backstopLimit = 30 * time.Second // after an end, agent or not
	// healLimit is what a host may need to hear of a revocation after its network is back: the
	// longest pause between two dials of the link half, 15 s, the hello, and the 2 s.
	healLimit = 25 * time.Second
)

// A kind of disturbance decides what it excuses.
type kind int

const (
	agentDown kind = iota // the root half is dead or stopped
	hostDown              // the whole host is
	cut                   // no word from the control plane reaches the host
	linkDown              // the link half was killed: as a cut, and nobody's login suffers
)

// A disturbance is something the soak did to a host. Its end is zero while it lasts.
type disturbance struct {
	kind     kind
	from, to time.Time
}

// A window is one request's access of a login to a host.
type window struct {
	request string
	// end is where the grant ends by itself, as far as it is known; zero is unknown and open.
	end time.Time
	// closed is when the control plane confirmed that it is over: done, revoked, withdrawn.
	closed time.Time
}

type place struct{ host, login string }

// truth is what may be where, until when.
type truth struct {
	mu      sync.Mutex
	windows map[place][]*window
	trouble map[string][]disturbance // by host
	stalls  []stall
	// lent is the longest extra time that a stalled machine made the soak grant.
	lent time.Duration
}

func newTruth() *truth {
	return &truth{windows: make(map[place][]*window), trouble: make(map[string][]disturbance)}
}

// open lets a request's access exist from now on.
func (t *truth) open(at place, request string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.windows[at] = append(t.windows[at], &window{request: request})
}

// until notes where a request's grant ends. An extension moves it.
func (t *truth) until(at place, request string, end time.Time) {
	t.change(at, request, func(w *window) { w.end = end })
}

// close notes that the control plane has ended a request.
func (t *truth) close(at place, request string, when time.Time) {
	t.change(at, request, func(w *window) {
		if w.closed.IsZero() {
			w.closed = when
		}
	})
}

func (t *truth) change(at place, request string, f func(*window)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.windows[at] {
		if w.request == request {
			f(w)
		}
	}
}

// disturb notes a disturbance of hosts; what it returns ends it.
func (t *truth) disturb(k kind, hosts ...string) (over func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := time.Now()
	for _, h := range hosts {
		t.trouble[h] = append(t.trouble[h], disturbance{kind: k, from: from})
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, h := range hosts {
			for i := range t.trouble[h] {
				if d := &t.trouble[h][i]; d.kind == k && d.from.Equal(from) {
					d.to = time.Now()
				}
			}
		}
	}
}

// calm tells whether none of the kinds disturbed a host in a span of time, or shortly before it.
func (t *truth) calm(host string, from, to time.Time, kinds ...kind) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range t.trouble[host] {
		for _, k := range kinds {
			if d.kind == k && d.from.Before(to) &&
				(d.to.IsZero() || d.to.Add(recovery(k)).After(from)) {
				return false
			}
		}
	}
	return true
}

// recovery is how long after its end a disturbance still excuses a login that fails.
func recovery(k kind) time.Duration {
	if k == cut || k == linkDown {
		return healLimit
	}
	return convergeLimit
}

// deadline is the last instant at which anything of a login's may be on a host. The zero time: it
// never might. open: nobody knows an end yet.
func (t *truth) deadline(at place) (last time.Time, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range t.windows[at] {
		d, unknown := t.limit(at.host, w)
		if unknown {
			return time.Time{}, true
		}
		if d.After(last) {
			last = d
		}
	}
	return last, false
}

func (t *truth) limit(host string, w *window) (d time.Time, unknown bool) {
	natural, early := time.Time{}, time.Time{}
	if !w.end.IsZero() {
		natural = t.extend(host, w.end, agentDown, hostDown)
	}
	if !w.closed.IsZero() {
		early = t.extend(host, w.closed, agentDown, hostDown, cut, linkDown)
	}
	switch {
	case natural.IsZero() && early.IsZero():
		return d, true
	case natural.IsZero():
		return early, early.IsZero()
	case early.IsZero() || natural.Before(early):
		return natural, false
	}
	return early, false
}

// extend is the promise's limit after an end, moved by the disturbances that overlap it. The zero
// time: one of them still lasts.
func (t *truth) extend(host string, end time.Time, kinds ...kind) time.Time {
	limit := end.Add(purgeLimit)
	network := false
	for moved := true; moved; {
		moved = false
		for _, d := range t.trouble[host] {
			if !has(kinds, d.kind) || d.from.After(limit) {
				continue
			}
			network = network || d.kind == cut || d.kind == linkDown
			if d.to.IsZero() {
				if network {
					return time.Time{}
				}
				return t.lend(end, end.Add(backstopLimit))
			}
			if d.to.Add(recovery(d.kind)).Before(end) {
				continue
			}
			if to := d.to.Add(recovery(d.kind)); to.After(limit) {
				limit, moved = to, true
			}
		}
	}
	if bound := end.Add(backstopLimit); !network && limit.After(bound) && !t.wasDown(host, end, limit) {
		limit = bound
	}
	return t.lend(end, limit)
}

// wasDown tells whether a host was off in a span: PID 1 cannot help then.
func (t *truth) wasDown(host string, from, to time.Time) bool {
	for _, d := range t.trouble[host] {
		if d.kind == hostDown && d.from.Before(to) && (d.to.IsZero() || d.to.After(from)) {
			return true
		}
	}
	return false
}

func has(kinds []kind, k kind) bool {
	for _, have := range kinds {
		if have == k {
			return true
		}
	}
	return false
}

// A stall is how much longer than usual the machine took for a trifle that ended at an instant.
type stall struct {
	at   time.Time
	late time.Duration
}

// stretch is how often in a row a purge can be kept waiting by a machine that stalls: the owner, the
// killer, the processes that die, PID 1.
const stretch = 4

func (t *truth) stalled(at time.Time, late time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stalls = append(t.stalls, stall{at, late})
}

// lend adds to a limit what the machine was seen to lose between an end and the limit.
func (t *truth) lend(end, limit time.Time) time.Time {
	worst := t.worstOf(end.Add(-time.Second), limit.Add(time.Second))
	t.lent = max(t.lent, stretch*worst)
	return limit.Add(stretch * worst)
}

// worst is the longest that the machine stood still in a span.
func (t *truth) worst(from, to time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.worstOf(from, to)
}

func (t *truth) worstOf(from, to time.Time) (worst time.Duration) {
	for i := len(t.stalls) - 1; i >= 0 && t.stalls[i].at.After(from); i-- {
		if t.stalls[i].at.Before(to) {
			worst = max(worst, t.stalls[i].late)
		}
	}
	return worst
}
