package enforce

import (
	"testing"
	"time"
)

// A round that changes nothing renders nothing; what it says is the caller's to change.
func TestUnchangedStateIsRenderedOnce(t *testing.T) {
	h := newHost(t)
	one, two := live(1, "alice", withRule(restart)), live(2, "alice")
	h.apply(state(one, two))
	dropin := func() *byte { return &h.r.tree[1].Files[one.ID.String()].Data[0] }
	before := dropin()
	for range 2 {
		results, err := h.r.Apply(state(one, two))
		if err != nil || len(results) != 2 || !results[0].Applied() || !results[1].Applied() {
			t.Fatalf("%v, %v", results, err)
		}
		clear(results)
	}
	if dropin() != before {
		t.Error("rendered again with nothing changed")
	}
	two.End = two.End.Add(time.Hour)
	h.apply(state(one, two))
	if dropin() == before {
		t.Error("the tree of an earlier state stays")
	}
}
