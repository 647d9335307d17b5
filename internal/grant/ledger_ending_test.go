package grant_test

import "testing"

// What has ended is remembered until it is finished with, across a restart, and what was told is.
func TestEndingIsRememberedUntilFinished(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	change := h.state(h.State(h.clock.Wall, h.nonce()))
	if len(change.Ended) != 1 {
		t.Fatal(change.Ended)
	}
	restarted(t, h)
	if got := h.ledger.Ending(); len(got) != 1 || got[0] != change.Ended[0] || got[0].Told {
		t.Fatalf("after a restart: %v, want %v", got, change.Ended)
	}
	h.ledger.Clone().Told(id)
	if h.ledger.Ending()[0].Told {
		t.Error("a copy's word is the original's")
	}
	h.ledger.Told(id)
	restarted(t, h)
	if got := h.ledger.Ending(); len(got) != 1 || !got[0].Told {
		t.Errorf("told, after a restart: %v", got)
	}
	h.ledger.Finish("none00000000")
	if len(h.ledger.Ending()) != 1 {
		t.Error("another request's end finishes this one")
	}
	h.ledger.Clone().Finish(change.Ended[0].RequestID)
	if len(h.ledger.Ending()) != 1 {
		t.Error("a copy that is finished with finishes the original")
	}
	h.ledger.Finish(change.Ended[0].RequestID)
	restarted(t, h)
	if got := h.ledger.Ending(); len(got) != 0 {
		t.Errorf("finished: %v", got)
	}
	if _, ended := h.ledger.Ended(id); !ended {
		t.Error("the tombstone went with it")
	}
}
