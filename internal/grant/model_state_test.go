package grant_test

import (
	"slices"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// forkAt is how many records the two trails of the histories share.
const forkAt = 6

// newer tells whether a state must be accepted.
func (v *view) newer(s *list, at reading) bool {
	if !slices.Contains(v.trust.issuers, s.issuer) || s.host != v.host || s.epoch != v.trust.epoch {
		return false
	}
	if s.epoch < v.epoch || s.epoch == v.epoch && s.sequence <= v.sequence {
		return false
	}
	clock := at.wall
	if should := v.anchorWall + at.boot - v.anchorBoot; v.jumped && should > clock {
		clock = should
	}
	if s.issued > clock+modelSkew {
		return false
	}
	return s.epoch > v.epoch || v.extends(s)
}

// extends tells whether the state's trail continues the one that the host has seen.
func (v *view) extends(s *list) bool {
	same := v.trail <= forkAt || v.tree == s.tree
	switch {
	case v.trail == 0:
		return true
	case s.trail < v.trail:
		return false
	case s.trail == v.trail:
		return same
	}
	return same && s.proofFrom == v.trail && s.proofWhole
}

func (v *view) takeState(s *list, at reading) bool {
	if !v.newer(s, at) {
		return false
	}
	v.epoch, v.sequence, v.trail, v.tree, v.listed = s.epoch, s.sequence, s.trail, s.tree, s.live
	v.renew(s, at)
	v.expire(at)
	v.openAll(at)
	v.closeUnlisted(s)
	for _, p := range s.buried {
		if v.find(p.id) == nil && v.grave(p.id) == nil {
			v.graves = append(v.graves, grave{p, causeFrom(s.ended[p.id])})
		}
	}
	v.expire(at)
	return true
}

// renew takes the lease and the signed time of a state that answers one of the newest nonces.
func (v *view) renew(s *list, at reading) {
	for _, n := range v.nonces {
		if s.nonce == "" || n.nonce != s.nonce {
			continue
		}
		v.renewed = true
		v.anchor(s.issued, s.issued+at.boot-n.boot, at)
		end := n.boot + s.lease
		left := v.leaseBoot - at.boot
		if v.leaseBootID == at.bootID && end < v.leaseBoot && left <= s.lease {
			return // a newer nonce was answered already
		}
		v.leaseBootID, v.leaseBoot = at.bootID, end
		v.leaseWall = v.now + end - at.boot
	}
}

// anchor ties the wall clock to a signed time, which proves that now is in [from, to].
func (v *view) anchor(from, to int64, at reading) {
	should := v.anchorWall + at.boot - v.anchorBoot
	wall := at.wall
	if wall < from-modelSkew || wall > to+modelSkew {
		wall = should
		if wall < from {
			wall = from
		}
		if wall > to {
			wall = to
		}
	}
	v.anchorBoot, v.anchorWall, v.signedAnchor = at.boot, wall, true
	v.high = max(v.high, from)
	v.look(at)
	for i := range v.held {
		w := &v.held[i]
		if left := w.end - v.now; w.open && at.boot+left < w.deadline {
			w.deadline = at.boot + left
		}
	}
}

// openAll opens what is listed and held, parents before children.
func (v *view) openAll(at reading) {
	order := slices.Clone(v.listed)
	revision := func(p *paper) uint32 {
		if v.find(p.id) == nil {
			return 0
		}
		return p.revision
	}
	slices.SortStableFunc(order, func(a, b *paper) int { return int(revision(a)) - int(revision(b)) })
	for _, p := range order {
		w := v.find(p.id)
		if w == nil {
			if g := v.grave(p.id); g != nil && g.cause == curfewv1.EndCause_END_CAUSE_EXTENDED {
				continue
			}
			v.missing = append(v.missing, p.id)
			continue
		}
		if !w.open && !v.open(w, at) {
			v.missing = append(v.missing, p.id)
			v.drop(p.id)
		}
	}
}

func (v *view) open(w *window, at reading) bool {
	p := w.paper
	if !v.mayStart(p) {
		return false
	}
	start := v.now
	if p.follows != "" {
		before := v.followed(p, at)
		if before == nil {
			return false
		}
		start, w.used = before.start, before.used
	}
	w.open, w.start, w.end = true, start, min(start+p.duration, p.hard)
	if w.waiting = p.firstUse && p.follows == ""; w.waiting {
		w.end = p.latest
	}
	w.deadline = at.boot + w.end - v.now
	v.started = append(v.started, p.id)
	if p.follows != "" {
		before := v.followedOpen(p)
		v.bury(before.paper, curfewv1.EndCause_END_CAUSE_EXTENDED)
	}
	return true
}

func (v *view) followedOpen(p *paper) *window {
	for i := range v.held {
		if v.held[i].open && v.held[i].paper.digest == p.follows {
			return &v.held[i]
		}
	}
	return nil
}

func (v *view) closeUnlisted(s *list) {
	for _, w := range v.sortedHeld() {
		if slices.Contains(v.listed, w.paper) {
			continue
		}
		cause, said := s.ended[w.paper.id]
		if !w.open && !said {
			continue
		}
		v.bury(w.paper, causeFrom(cause))
	}
}

// causeFrom is what a host makes of a state's word.
func causeFrom(said curfewv1.EndCause) curfewv1.EndCause {
	switch said {
	case curfewv1.EndCause_END_CAUSE_EXPIRED, curfewv1.EndCause_END_CAUSE_REVOKED,
		curfewv1.EndCause_END_CAUSE_DONE, curfewv1.EndCause_END_CAUSE_USED:
		return said
	default:
		return curfewv1.EndCause_END_CAUSE_WITHDRAWN
	}
}

// use lets somebody in: the clock of what waited for that starts, and a single use is spent.
func (v *view) use(p *paper, at reading) bool {
	w := v.find(p.id)
	if w == nil || !w.open || v.closed(*w, at) || w.used {
		return false
	}
	if w.waiting {
		w.waiting, w.start, w.end = false, v.now, min(v.now+p.duration, p.hard)
		w.deadline = at.boot + w.end - v.now
	}
	w.used = p.single
	return true
}

func (v *view) expire(at reading) {
	for _, w := range v.sortedHeld() {
		if w.open && v.sure(w, at) {
			v.bury(w.paper, curfewv1.EndCause_END_CAUSE_EXPIRED)
		}
	}
}

// forget drops what can no longer matter, but only by a time that is certain.
func (v *view) forget() {
	if !v.signedAnchor {
		return
	}
	v.held = slices.DeleteFunc(v.held, func(w window) bool {
		return !w.open && v.now > w.paper.latest
	})
	v.graves = slices.DeleteFunc(v.graves, func(g grave) bool {
		return v.high > g.paper.hard+modelSkew
	})
}

func (v *view) sortedHeld() []window {
	held := slices.Clone(v.held)
	slices.SortFunc(held, func(a, b window) int { return compare(a.paper, b.paper) })
	return held
}

func compare(a, b *paper) int { return slices.Compare(a.realID[:], b.realID[:]) }

func (v *view) drop(id string) {
	v.held = slices.DeleteFunc(v.held, func(w window) bool { return w.paper.id == id })
}

func (v *view) bury(p *paper, cause curfewv1.EndCause) {
	v.drop(p.id)
	v.graves = append(v.graves, grave{p, cause})
	v.ended = append(v.ended, ending{p.id, cause})
}

// live are the windows that are open: listed, held, started and not over.
func (v *view) live(at reading) []window {
	var out []window
	for _, w := range v.sortedHeld() {
		if w.open && slices.Contains(v.listed, w.paper) && !v.closed(w, at) {
			out = append(out, w)
		}
	}
	return out
}

// mayOpen says "", "clock" or "lease".
func (v *view) mayOpen(at reading) string {
	leased := v.now < v.leaseWall
	if v.leaseBootID == at.bootID {
		leased = at.boot < v.leaseBoot
	}
	switch {
	case v.jumped:
		return "clock"
	case !leased:
		return "lease"
	}
	return ""
}
