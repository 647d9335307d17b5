package grant

import (
	"cmp"
	"slices"
	"time"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Live is a grant whose window is open.
type Live struct {
	ID          ID
	Terms       *curfewv1.Terms // read-only
	TermsDigest [32]byte
	Start, End  time.Time
	// BootDeadline is the end on the boot-time clock; the earlier of both counts.
	BootDeadline time.Duration
}

// EndedGrant is a grant whose window has closed for good.
type EndedGrant struct {
	ID        ID
	RequestID string
	Login     string
	Role      string
	Cause     curfewv1.EndCause
	By        string
}

// Change is what an accepted state or the passing of time did to the live set.
type Change struct {
	Started []Live
	Ended   []EndedGrant
	// Missing are listed but not held: never received, or refused (see Ledger.Refusal).
	Missing []ID
	// LeaseRenewed: the state answered one of this host's nonces.
	LeaseRenewed bool
}

// Tick lets time pass: windows that are over end. Call it at each deadline of Next, and every 30 s.
func (l *Ledger) Tick(now Clock) Change {
	l.observe(now)
	var change Change
	l.expire(&change, now)
	l.dropStale(now)
	return change
}

// Live returns the grants that are listed, held and inside their window, sorted by id.
func (l *Ledger) Live(now Clock) []Live {
	l.observe(now)
	var live []Live
	for _, id := range l.data.Listed {
		h, ok := l.held[id]
		if !ok || h.StartMS == 0 {
			continue
		}
		if closed, _ := l.over(h, now); !closed {
			live = append(live, h.live())
		}
	}
	return live
}

func (h held) live() Live {
	return Live{
		ID: h.ID, Terms: h.terms, TermsDigest: h.digest,
		Start: time.UnixMilli(h.StartMS), End: time.UnixMilli(h.EndMS),
		BootDeadline: time.Duration(h.BootMS) * time.Millisecond,
	}
}

// Next returns the earliest coming end on each clock; ok is false when nothing is open.
func (l *Ledger) Next(now Clock) (wall time.Time, boot time.Duration, ok bool) {
	for _, g := range l.Live(now) {
		if !ok || g.End.Before(wall) {
			wall = g.End
		}
		if !ok || g.BootDeadline < boot {
			boot = g.BootDeadline
		}
		ok = true
	}
	return wall, boot, ok
}

// LeaseEnd returns until when on the boot-time clock new access may open; 0 without a lease of this
// boot.
func (l *Ledger) LeaseEnd(now Clock) time.Duration {
	if l.data.Lease.BootID != now.BootID {
		return 0
	}
	return time.Duration(l.data.Lease.BootMS) * time.Millisecond
}

func (l *Ledger) openListed(change *Change, now Clock) {
	for _, id := range l.byRevision(l.data.Listed) {
		h, ok := l.held[id]
		switch {
		case !ok:
			if t, ended := l.data.Tombstones[id]; ended {
				if t.Cause == curfewv1.EndCause_END_CAUSE_EXTENDED {
					continue // listed beside its extension until that is acknowledged
				}
				l.refuse(id, ErrTombstoned)
			}
			change.Missing = append(change.Missing, id)
		case h.StartMS == 0:
			if err := l.open(h, change, now); err != nil {
				l.refuse(id, err)
				delete(l.held, id)
				change.Missing = append(change.Missing, id)
			}
		}
	}
}

// byRevision sorts ids so that what an extension follows is opened before the extension.
func (l *Ledger) byRevision(ids []ID) []ID {
	return slices.SortedStableFunc(slices.Values(ids), func(a, b ID) int {
		return cmp.Compare(l.held[a].terms.GetRevision(), l.held[b].terms.GetRevision())
	})
}

// open persists the start of a window, once. An extension inherits the start of what it follows and
// takes its place in the same step.
func (l *Ledger) open(h held, change *Change, now Clock) error {
	if err := l.mayStart(h.terms, now); err != nil {
		return err
	}
	before, err := l.followed(h.terms, now)
	if err != nil {
		return err
	}
	h.StartMS = l.effective(now)
	if before != (ID{}) {
		h.StartMS = l.held[before].StartMS
	}
	h.EndMS = endOf(h.StartMS, h.terms)
	h.BootID = now.BootID
	h.BootMS = now.Boot.Milliseconds() + h.EndMS - l.effective(now)
	l.held[h.ID] = h
	if before != (ID{}) {
		l.end(change, before, curfewv1.EndCause_END_CAUSE_EXTENDED, h.terms.GetRequester())
	}
	change.Started = append(change.Started, h.live())
	return nil
}

func endOf(startMS int64, terms *curfewv1.Terms) int64 {
	return min(startMS+terms.GetDurationMs(), terms.GetHardEndMs())
}

// endUnlisted ends what a newer state no longer lists. A grant that never started and is not named
// as ended stays held: its state may still be on the way.
func (l *Ledger) endUnlisted(change *Change, s *curfewv1.HostState) {
	said := make(map[ID]*curfewv1.Ended, len(s.GetEnded()))
	for _, e := range s.GetEnded() {
		said[ID(e.GetGrantId())] = e
	}
	for _, id := range l.HeldIDs() {
		if slices.Contains(l.data.Listed, id) {
			continue
		}
		word, named := said[id]
		if l.held[id].StartMS == 0 && !named {
			continue
		}
		l.end(change, id, causeOf(word), word.GetBy())
	}
}

// causeOf reads a state's word on why a grant ended. "Extended" is not a word that ends anything:
// only an extension that opened here does, and then the grant it follows is gone already.
func causeOf(word *curfewv1.Ended) curfewv1.EndCause {
	switch c := word.GetCause(); c {
	case curfewv1.EndCause_END_CAUSE_EXPIRED, curfewv1.EndCause_END_CAUSE_REVOKED,
		curfewv1.EndCause_END_CAUSE_DONE:
		return c
	default:
		return curfewv1.EndCause_END_CAUSE_WITHDRAWN
	}
}

func (l *Ledger) expire(change *Change, now Clock) {
	for _, id := range l.HeldIDs() {
		if l.held[id].StartMS == 0 {
			continue
		}
		if _, certain := l.over(l.held[id], now); certain {
			l.end(change, id, curfewv1.EndCause_END_CAUSE_EXPIRED, "")
		}
	}
}

// end closes a window for good: no later state revives it while its terms could still be valid.
func (l *Ledger) end(change *Change, id ID, cause curfewv1.EndCause, by string) {
	h := l.held[id]
	delete(l.held, id)
	l.data.Tombstones[id] = tombstone{
		UntilMS: h.terms.GetHardEndMs() + MaxClockSkew.Milliseconds(), Cause: cause,
	}
	change.Ended = append(change.Ended, EndedGrant{
		ID: id, RequestID: h.terms.GetRequestId(), Login: h.terms.GetLogin(),
		Role: h.terms.GetRole(), Cause: cause, By: by,
	})
}
