package grant

import (
	"cmp"
	"errors"
	"slices"
	"time"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Live is a grant whose window is open.
type Live struct {
	ID          ID
	Terms       *curfewv1.Terms // read-only
	TermsDigest [32]byte
	// Start is when the window opened; of a grant that waits for its first use, when it could be used.
	Start, End time.Time
	// Unused: the clock starts with the first use (Ledger.Start); until then End is the latest start.
	Unused bool
	// Used: the one session of a single-use grant has begun (Ledger.Use).
	Used bool
	// BootDeadline is the end on the boot-time clock; the earlier of both counts.
	BootDeadline time.Duration
	// Local: a break-glass code opened it here. No host state lists it, and no lease bounds its use.
	Local bool
}

// EndedGrant is a grant whose window has closed for good.
type EndedGrant struct {
	ID        ID                `json:"id"`
	RequestID string            `json:"request_id"`
	Login     string            `json:"login"`
	Role      string            `json:"role"`
	Cause     curfewv1.EndCause `json:"cause"`
	By        string            `json:"by"`
	// Told: its end is on the trail (Ledger.Told).
	Told bool `json:"told,omitempty"`
}

// Change is what an accepted state or the passing of time did to the live set.
type Change struct {
	Started []Live
	Ended   []EndedGrant
	// Missing are listed but not held: never received, or refused (see Ledger.Refusal).
	Missing []ID
	// LeaseRenewed: the state answered one of this host's nonces.
	LeaseRenewed bool
	// Rollout is what a staged rollout wants, of a state that answered one; nil for nothing.
	Rollout *curfewv1.Rollout
}

// Tick lets time pass: windows that are over end. Call it at each deadline of Next, and every 30 s.
func (l *Ledger) Tick(now Clock) Change {
	l.observe(now)
	var change Change
	l.expire(&change, now)
	l.dropStale(now)
	return change
}

// Live returns the grants that are listed, or local, held and inside their window, sorted by id.
func (l *Ledger) Live(now Clock) []Live {
	l.observe(now)
	var live []Live
	for _, id := range l.liveIDs() {
		h, ok := l.held[id]
		if !ok || !h.open() {
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
		Start: time.UnixMilli(h.since()), End: time.UnixMilli(h.EndMS),
		Unused: h.StartMS == 0, Used: h.Used,
		BootDeadline: time.Duration(h.BootMS) * time.Millisecond, Local: h.local(),
	}
}

// Next returns the earliest coming end on each clock; ok is false when nothing is open. A wall clock
// that jumped decides nothing: the end on it is then where it will stand when the time has come, so
// that a date past the end, which ends nothing, does not wake whoever waits again and again.
func (l *Ledger) Next(now Clock) (wall time.Time, boot time.Duration, ok bool) {
	defer func() {
		if ok && l.jumped {
			wall = now.Wall.Add(wall.Sub(time.UnixMilli(l.derived(now))))
		}
	}()
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
		case !h.open():
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

// open persists the start of a window, once. An extension inherits the start of what it follows, and
// its use, and takes its place in the same step. A grant that starts with its first use only waits.
func (l *Ledger) open(h held, change *Change, now Clock) error {
	if err := l.mayStart(h.window, now); err != nil {
		return err
	}
	before, err := l.followed(h.terms, now)
	if err != nil {
		return err
	}
	switch {
	case before != (ID{}):
		h.StartMS, h.Used = l.held[before].StartMS, l.held[before].Used
	case h.terms.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE:
		h.OpenMS = l.effective(now)
	default:
		h.StartMS = l.effective(now)
	}
	l.held[h.ID] = l.timed(h, now)
	if before != (ID{}) {
		l.end(change, before, curfewv1.EndCause_END_CAUSE_EXTENDED, h.terms.GetRequester())
	}
	change.Started = append(change.Started, l.held[h.ID].live())
	return nil
}

// timed gives a window its deadlines on both clocks.
func (l *Ledger) timed(h held, now Clock) held {
	h.EndMS, h.BootID = h.end(), now.BootID
	h.BootMS = now.Boot.Milliseconds() + h.EndMS - l.effective(now)
	return h
}

// Refusals of a use.
var (
	ErrNotLive = errors.New("the grant is not live")
	ErrUsed    = errors.New("the grant was for one session, which has begun already")
)

// Start starts the clock of a live grant with its first use. One whose clock runs is left as it is.
// The owner makes the ledger durable before it lets the person in.
func (l *Ledger) Start(id ID, now Clock) error {
	l.observe(now)
	h, ok := l.held[id]
	if closed, _ := l.over(h, now); !ok || !h.open() || closed {
		return ErrNotLive
	}
	if h.StartMS == 0 {
		h.StartMS, h.OpenMS = l.effective(now), 0
		l.held[id] = l.timed(h, now)
	}
	return nil
}

// Use spends the one login session of a single-use grant; other grants are left as they are.
func (l *Ledger) Use(id ID, now Clock) error {
	l.observe(now)
	h, ok := l.held[id]
	switch closed, _ := l.over(h, now); {
	case !ok || !h.open() || closed:
		return ErrNotLive
	case h.Used:
		return ErrUsed
	}
	h.Used = h.terms.GetSingleUse()
	l.held[id] = h
	return nil
}

// EndUsed ends a single-use grant whose session is over.
func (l *Ledger) EndUsed(id ID) Change {
	var change Change
	if l.held[id].Used {
		l.end(&change, id, curfewv1.EndCause_END_CAUSE_USED, "")
	}
	return change
}

// EndAll ends every grant that is held, at the word of somebody on the host.
func (l *Ledger) EndAll(by string) Change {
	var change Change
	for _, id := range l.HeldIDs() {
		l.end(&change, id, curfewv1.EndCause_END_CAUSE_REVOKED, by)
	}
	return change
}

// endUnlisted ends what a newer state no longer lists. A grant that never started and is not named
// as ended stays held: its state may still be on the way. A local grant is never listed: a state ends
// it by naming it.
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
		if (!l.held[id].open() || l.held[id].local()) && !named {
			continue
		}
		l.end(change, id, causeOf(word), word.GetBy())
	}
}

// maxUnheld bounds the tombstones of grants that this host never held.
const maxUnheld = 2 * maxHeld

// buryUnheld remembers what ended before this host held it, so that whoever has a copy of the sealed
// grant cannot bring it later.
func (l *Ledger) buryUnheld(s *curfewv1.HostState) {
	latest := s.GetIssuedAtMs() + maxAhead.Milliseconds()
	for _, e := range s.GetEnded() {
		id := ID(e.GetGrantId())
		_, isHeld := l.held[id]
		_, buried := l.data.Tombstones[id]
		if isHeld || buried || e.GetHardEndMs() <= 0 || len(l.data.Tombstones) >= maxUnheld {
			continue
		}
		l.data.Tombstones[id] = tombstone{
			UntilMS: min(e.GetHardEndMs(), latest) + MaxClockSkew.Milliseconds(), Cause: causeOf(e),
		}
	}
}

// causeOf reads a state's word on why a grant ended. "Extended" is not a word that ends anything:
// only an extension that opened here does, and then the grant it follows is gone already.
func causeOf(word *curfewv1.Ended) curfewv1.EndCause {
	switch c := word.GetCause(); c {
	case curfewv1.EndCause_END_CAUSE_EXPIRED, curfewv1.EndCause_END_CAUSE_REVOKED,
		curfewv1.EndCause_END_CAUSE_DONE, curfewv1.EndCause_END_CAUSE_USED:
		return c
	default:
		return curfewv1.EndCause_END_CAUSE_WITHDRAWN
	}
}

func (l *Ledger) expire(change *Change, now Clock) {
	for _, id := range l.HeldIDs() {
		if !l.held[id].open() {
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
		UntilMS: h.window.hard + MaxClockSkew.Milliseconds(), Cause: cause,
	}
	over := EndedGrant{
		ID: id, RequestID: h.terms.GetRequestId(), Login: h.terms.GetLogin(),
		Role: h.terms.GetRole(), Cause: cause, By: by,
	}
	change.Ended = append(change.Ended, over)
	l.data.Ending = append(l.data.Ending, over)
}

// Ending returns the grants that have ended and are not finished with: a process that dies in the
// middle of a purge leaves its successor to record the end and to take away what is left.
func (l *Ledger) Ending() []EndedGrant { return slices.Clone(l.data.Ending) }

// Told notes that the end of a grant is on the trail.
func (l *Ledger) Told(id ID) {
	for i := range l.data.Ending {
		if l.data.Ending[i].ID == id {
			l.data.Ending[i].Told = true
		}
	}
}

// Finish notes that nothing is left of a request's ended grants.
func (l *Ledger) Finish(request string) {
	l.data.Ending = slices.DeleteFunc(l.data.Ending, func(e EndedGrant) bool {
		return e.RequestID == request
	})
	if len(l.data.Ending) == 0 {
		l.data.Ending = nil
	}
}
