package stream_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// A removed host is served until it has accepted its last state and nothing is left there. Neither an
// older state's acknowledgement counts, nor a refusal.
func TestARemovedHostIsServedUntilNothingIsLeft(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	old := l.readState().state
	look(w.store, m.id, func(h *hostRow) any { h.removed, h.left = true, 0; return nil })
	w.hub.Changed(m.id)
	last := l.readState().state
	l.ack(old)
	l.say(&curfewv1.Ack{
		Epoch: last.GetEpoch(), Sequence: last.GetSequence(), Detail: "the disk is full",
		TrailCount: last.GetTrailCount(),
	})
	l.say(m.event(t, trail.KindProblem))
	for l.next().GetEventAck() == nil { // it is served
	}
	look(w.store, m.id, func(h *hostRow) any { h.left = 1; return nil })
	l.ack(last)
	l.say(m.event(t, trail.KindGrantEnded))
	for l.next().GetEventAck() == nil { // it is served still: something is left
	}
	look(w.store, m.id, func(h *hostRow) any { h.left = 0; return nil })
	l.say(m.event(t, trail.KindGrantPurged))
	if code, why := l.end(); code != codes.PermissionDenied || !strings.Contains(why, "removed by an admin") {
		t.Errorf("gone: %s, %q", code, why)
	}
	if !w.store.has(stream.KindHostParted) {
		t.Error("no record of the parting")
	}
	if code, why := w.dial(m).end(); code != codes.PermissionDenied || !strings.Contains(why, "not enrolled") {
		t.Errorf("after that: %s, %q", code, why)
	}
}
