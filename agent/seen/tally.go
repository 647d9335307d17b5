package seen

import (
	"cmp"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// Limits on what is counted, and how often the same is told.
const (
	tellEvery = time.Hour
	maxKeys   = 2048
	maxTold   = 256 // in one go
	maxText   = 512
)

// Count is how often the same was used.
type Count struct {
	Login, Service, As, Command string
	Times                       int
	First, Last                 time.Time
}

type key struct{ login, service, as, command string }

// Tally counts uses, so that a host tells of each at once when it is the first, and of more of the same
// once an hour: a cron job's sudo is no flood on the trail.
type Tally struct {
	waiting map[key]*Count
	told    map[key]time.Time
	// Lost are uses that were not counted, for want of room.
	Lost int
}

// NewTally returns an empty one.
func NewTally() *Tally {
	return &Tally{waiting: make(map[key]*Count), told: make(map[key]time.Time)}
}

// Add counts uses.
func (t *Tally) Add(list []Use) {
	for _, u := range list {
		k := key{clip(u.Login), clip(u.Service), clip(u.As), clip(u.Command)}
		c := t.waiting[k]
		if c == nil {
			if len(t.waiting) >= maxKeys {
				t.Lost++
				continue
			}
			c = &Count{Login: k.login, Service: k.service, As: k.as, Command: k.command, First: u.At}
			t.waiting[k] = c
		}
		c.Times++
		c.Last = u.At
	}
}

func clip(s string) string { return grant.Clip(s, maxText) }

// Take returns what is to be told now, in an order of its own; all takes also what could wait.
func (t *Tally) Take(now time.Time, all bool) []Count {
	for k, at := range t.told {
		if now.Sub(at).Abs() >= tellEvery {
			delete(t.told, k)
		}
	}
	var list []Count
	for k, c := range t.waiting {
		if _, lately := t.told[k]; lately && !all {
			continue
		}
		list = append(list, *c)
	}
	slices.SortFunc(list, func(a, b Count) int {
		return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.Login, b.Login), cmp.Compare(a.Command, b.Command))
	})
	list = list[:min(len(list), maxTold)]
	for _, c := range list {
		k := key{c.Login, c.Service, c.As, c.Command}
		delete(t.waiting, k)
		t.told[k] = now
	}
	return list
}

// Waits tells whether something is counted that was not told.
func (t *Tally) Waits() bool { return len(t.waiting) > 0 }
