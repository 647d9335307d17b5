package agent

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// recorder puts events on the host's chain. It has a lock of its own, so that a login which must be
// on the trail before it is allowed never waits for the owner of the ledger.
type recorder struct {
	clock func() grant.Clock
	log   hclog.Logger

	mu     sync.Mutex // guards what follows
	events *store.Events
	// added is closed and replaced when an event was added.
	added chan struct{}
}

func newRecorder(events *store.Events, clock func() grant.Clock, log hclog.Logger) *recorder {
	return &recorder{clock: clock, log: log, events: events, added: make(chan struct{})}
}

// Record makes an event durable. It fills in time and boot. An error means that what it is about must
// not happen.
func (r *recorder) Record(ctx context.Context, e *curfewv1.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := r.keep(e)
	if err == nil {
		tell(r.log, e)
	}
	return err
}

func (r *recorder) keep(e *curfewv1.Event) error {
	now := r.clock()
	e.TimeMs, e.BootId = now.Wall.UnixMilli(), now.BootID
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sayLost(now)
	kept, err := r.events.Append(e)
	if err != nil {
		r.log.Error("an event could not be kept", "kind", e.GetKind(), "request", e.GetRequestId(),
			"error", err)
		return err
	}
	if kept != nil {
		close(r.added)
		r.added = make(chan struct{})
	}
	return nil
}

// tell puts an event into the journal too, where it can be found by its grant.
func tell(log hclog.Logger, e *curfewv1.Event) {
	journal.Event(log, e.GetKind(), e.GetDetails(), "grant", hex.EncodeToString(e.GetGrantId()),
		"request", e.GetRequestId(), "login", e.GetLogin())
}

// sayLost puts on the chain what was left out, as soon as there is room again.
func (r *recorder) sayLost(now grant.Clock) {
	lost := r.events.TakeLost()
	if len(lost) == 0 {
		return
	}
	details := make(map[string]string)
	for _, kind := range slices.Sorted(maps.Keys(lost)) {
		if len(details) < trail.MaxDetails {
			details[kind] = fmt.Sprint(lost[kind])
		}
	}
	_, err := r.events.Append(&curfewv1.Event{
		Kind: trail.KindEventsLost, TimeMs: now.Wall.UnixMilli(), BootId: now.BootID, Details: details,
	})
	if err != nil {
		r.log.Error("that events were left out could not be kept", "error", err)
	}
}

// note records an event of the agent's own and tells whether it is durable. There is nobody to refuse;
// the log says what was lost.
func (r *recorder) note(kind string, edit func(*curfewv1.Event)) bool {
	return r.noteAll([]*curfewv1.Event{own(kind, edit)})
}

// own makes an event of the agent's own.
func own(kind string, edit func(*curfewv1.Event)) *curfewv1.Event {
	e := &curfewv1.Event{Kind: kind}
	if edit != nil {
		edit(e)
	}
	for k, v := range e.GetDetails() {
		e.Details[k] = grant.Clip(grant.VisibleText(v), trail.MaxDetail)
	}
	return e
}

// noteAll is note for many events of one moment. They reach the disk together: a host may hold two
// thousand grants that all end now, and nothing is purged before their ends are recorded.
func (r *recorder) noteAll(list []*curfewv1.Event) bool {
	if len(list) == 0 {
		return true
	}
	now := r.clock()
	for _, e := range list {
		e.TimeMs, e.BootId = now.Wall.UnixMilli(), now.BootID
		tell(r.log, e) // also what the chain has no room for
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sayLost(now)
	kept, err := r.events.AppendAll(list)
	if err != nil {
		r.log.Error("events could not be kept", "of", len(list), "error", err)
	}
	if kept > 0 {
		close(r.added)
		r.added = make(chan struct{})
	}
	return err == nil
}

// after returns events above n, at most limit, and a channel that closes when there are more.
func (r *recorder) after(n uint64, limit int) ([]*curfewv1.Event, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	events, err := r.events.After(n, limit)
	return events, r.added, err
}

func (r *recorder) acknowledged(n uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events.Acknowledged(n)
}

func (r *recorder) chain() trail.Chain {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events.Chain()
}

// unsent is how many events the control plane has not acknowledged.
func (r *recorder) unsent() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events.Unsent()
}

// full returns why nothing new may open when its events could not be kept.
func (r *recorder) full() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.events.Full() {
		return store.ErrFull
	}
	return nil
}

func detail(pairs ...string) map[string]string {
	m := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			m[pairs[i]] = pairs[i+1]
		}
	}
	return m
}
