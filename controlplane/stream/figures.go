package stream

import (
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// maxPushes bounds what is remembered of states that a host leaves unanswered.
const maxPushes = 64

// push is a state that carries a change.
type push struct {
	sequence uint64
	since    time.Time // the change
}

// carries notes that a state was sealed for a change; nil is none.
func (c *conn) carries(sequence uint64, moved *time.Time) {
	if moved != nil && len(c.pushes) < maxPushes {
		c.pushes = append(c.pushes, push{sequence: sequence, since: *moved})
	}
}

// answered measures what an answer ends. A state that was refused is made good by a later one.
func (c *conn) answered(a Ack) {
	c.hub.acked(a.Accepted)
	for a.Accepted && len(c.pushes) > 0 && c.pushes[0].sequence <= a.Sequence {
		c.hub.pushed(time.Since(c.pushes[0].since))
		c.pushes = c.pushes[1:]
	}
}

// Last returns whether a host is connected and what was last seen of it since the Hub started; false
// when nothing was.
func (h *Hub) Last(id grant.HostID) (connected bool, seen Seen, ok bool) {
	s := h.known(id)
	if s == nil {
		return false, Seen{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.health.Connected, seenOf(s.health), !s.health.Since.IsZero()
}

// Kinds are the kinds of records that hosts cause: their own events, and what the Hub notices of them.
func Kinds() []string {
	return append(slices.Sorted(maps.Keys(knownKinds)), KindHostRefused, KindHostClone, KindHostForged,
		KindHostEventsLost, KindHostCodes, KindHostOther)
}
