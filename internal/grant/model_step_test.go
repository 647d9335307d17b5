package grant_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// step lets one random thing happen and compares.
func (h *history) step() error {
	var err error
	switch n := h.rng.IntN(100); {
	case n < 22:
		h.issue(h.plane())
	case n < 29:
		h.end(h.plane())
	case n < 31:
		h.state(h.plane())
	case n < 45:
		err = h.heartbeat()
	case n < 60:
		err = h.deliver()
	case n < 62:
		h.trust()
	case n < 66:
		err = h.use()
	case n < 80:
		h.pass()
	case n < 88:
		err = h.tick()
	case n < 92:
		h.setClock()
	case n < 94:
		h.troublePlane()
	case n < 97:
		h.say("the agent is killed")
		err = h.restart()
	default:
		err = h.reboot()
	}
	if err != nil {
		return err
	}
	for range h.rng.IntN(4) {
		if err := h.deliver(); err != nil {
			return err
		}
	}
	return h.compare()
}

// pass lets time pass: a little, a lot, or to the moment at which something ends.
func (h *history) pass() {
	var by int64
	clock, at := h.read()
	_, boot, ok := h.ledger.Clone().Next(clock)
	lease := h.ledger.LeaseEnd(clock)
	edge := int64(h.rng.IntN(3)) - 1
	switch n := h.rng.IntN(10); {
	case n < 4 && ok:
		by = boot.Milliseconds() - at.boot + edge
	case n < 6 && lease > clock.Boot:
		by = lease.Milliseconds() - at.boot + edge
	case n < 8:
		by = h.rng.Int64N(40_000)
	case n < 9:
		by = h.rng.Int64N(3_600_000)
	default:
		by = h.rng.Int64N(30 * 3_600_000)
	}
	h.now += max(by, 0)
	h.say("%s pass", time.Duration(max(by, 0))*time.Millisecond)
}

// setClock steps the wall clock. An honest one never steps.
func (h *history) setClock() {
	const hour = 3_600_000
	switch {
	case h.clock == 0:
		return
	case h.clock == 1:
		h.offset = h.rng.Int64N(4*60_000) - 2*60_000
	default:
		steps := []int64{
			0, h.offset + 1000, h.offset - 1000, h.offset + hour, h.offset - hour, 10 * 365 * 24 * hour,
			-h.now, h.offset + 299_000, h.offset - 299_000, h.offset + 300_001,
		}
		h.offset = steps[h.rng.IntN(len(steps))]
	}
	h.say("the wall clock is %s off", time.Duration(h.offset)*time.Millisecond)
}

// troublePlane restores a control plane from a backup, or has its clock wrong.
func (h *history) troublePlane() {
	c := h.plane()
	if h.pick(2) {
		back := min(*c.sequence, h.rng.Uint64N(5))
		*c.sequence -= back
		h.say("a control plane falls back by %d", back)
		return
	}
	if h.clock == 2 {
		c.slow = []int64{0, 120_000, -120_000, 600_000, -3_600_000}[h.rng.IntN(5)]
		h.say("a control plane's clock is %d ms off", c.slow)
	}
}

func (h *history) reboot() error {
	off := h.rng.Int64N(90_000)
	if h.pick(3) {
		off = h.rng.Int64N(2 * 3_600_000)
	}
	h.watch.rebooted(h, off)
	h.now += off
	h.bootAt = h.now
	h.boots++
	h.now += h.rng.Int64N(20_000)
	if h.pick(4) {
		h.now += h.rng.Int64N(3_600_000) // the agent comes up late
	}
	h.say("a reboot, %d ms off", off)
	return h.restart()
}

// tick lets the ledger expire what is over, and sometimes is killed before that is on disk.
func (h *history) tick() error {
	clock, at := h.read()
	next := h.ledger.Clone()
	change := next.Tick(clock)
	facts := append(slices.Clip(h.facts), fact{kind: factTick, at: at})
	v := h.model(facts)
	h.say("tick: ended %d", len(change.Ended))
	if err := sameChange(change, v, true); err != nil {
		return fmt.Errorf("tick: %w", err)
	}
	h.ledger, h.facts = next, facts
	if err := h.watch.ended(h, change, nil); err != nil {
		return err
	}
	if len(change.Ended) > 0 || h.pick(2) {
		h.save()
	}
	return nil
}

// use lets somebody in under a grant, or has the session of one that was for a single use end.
func (h *history) use() error {
	clock, at := h.read()
	live := h.ledger.Clone().Live(clock)
	if len(live) == 0 {
		return nil
	}
	l := live[h.rng.IntN(len(live))]
	p := h.all[slices.IndexFunc(h.all, func(p *paper) bool { return p.realID == l.ID })]
	next := h.ledger.Clone()
	if l.Used && h.pick(2) {
		facts := append(slices.Clip(h.facts), fact{kind: factUsed, at: at, used: p})
		change := next.EndUsed(l.ID)
		h.say("the session of %s ends", p.name)
		if err := sameChange(change, h.model(facts), true); err != nil {
			return fmt.Errorf("the end of a session: %w", err)
		}
		h.ledger, h.facts = next, facts
		h.watch.used(change)
		h.save()
		return nil
	}
	err := next.Use(l.ID, clock)
	if err == nil {
		err = next.Start(l.ID, clock)
	}
	facts := append(slices.Clip(h.facts), fact{kind: factUse, at: at, used: p})
	h.say("somebody gets in by %s: %v", p.name, err)
	if v := h.model(facts); v.accepted != (err == nil) {
		return fmt.Errorf("use of %s: the model says %v, the ledger %v", p.name, v.accepted, err)
	}
	if err == nil {
		h.ledger, h.facts = next, facts
		h.watch.began(h, l)
		h.save()
	}
	return nil
}

// deliver hands over any one of the messages on their way.
func (h *history) deliver() error {
	if len(h.onWay) == 0 {
		return nil
	}
	i := 0
	if h.pick(5) {
		i = h.rng.IntN(len(h.onWay))
	}
	if i > 0 {
		h.met["overtaken"]++
	}
	m := h.onWay[i]
	h.onWay = slices.Delete(slices.Clone(h.onWay), i, i+1)
	clock, at := h.read()
	switch {
	case m.broken != nil:
		return h.deliverBroken(m, clock)
	case m.paper != nil:
		return h.deliverGrant(m.paper, clock, at)
	case m.list != nil:
		return h.deliverState(m.list, clock, at)
	}
	return h.deliverTrust(m.trust)
}

func (h *history) deliverBroken(m message, clock grant.Clock) error {
	var err error
	next := h.ledger.Clone()
	switch {
	case m.paper != nil:
		_, err = next.AcceptGrant(m.broken, clock, h.pool.world.Ceiling())
	case m.list != nil:
		_, err = next.AcceptState(&curfewv1.State{
			Envelope: m.broken, ProofFrom: m.list.msg.GetProofFrom(), Proof: m.list.msg.GetProof(),
		}, clock)
	default:
		err = next.AcceptTrust(m.broken)
	}
	if err == nil {
		return errors.New("an altered message was accepted")
	}
	return nil
}

func (h *history) deliverTrust(t *trustPaper) error {
	next := h.ledger.Clone()
	err := next.AcceptTrust(t.env)
	facts := append(slices.Clip(h.facts), fact{kind: factTrust, trust: t})
	if v := h.model(facts); v.accepted != (err == nil) {
		return fmt.Errorf("trust version %d: the model says %v, the ledger %v", t.version, v.accepted, err)
	}
	h.say("  trust version %d: %v", t.version, err)
	if err == nil {
		h.ledger, h.facts = next, facts
		h.save()
	}
	return nil
}

func (h *history) deliverGrant(p *paper, clock grant.Clock, at reading) error {
	next := h.ledger.Clone()
	_, err := next.AcceptGrant(p.env, clock, h.pool.world.Ceiling())
	facts := append(slices.Clip(h.facts), fact{kind: factGrant, at: at, paper: p})
	h.say("  grant %s: %v", p.name, err)
	if v := h.model(facts); v.accepted != (err == nil) {
		return fmt.Errorf("grant %s: the model says %v, the ledger %v", p.name, v.accepted, err)
	}
	h.ledger, h.facts = next, facts
	return nil
}

func (h *history) deliverState(s *list, clock grant.Clock, at reading) error {
	next := h.ledger.Clone()
	change, err := next.AcceptState(s.msg, clock)
	facts := append(slices.Clip(h.facts), fact{kind: factState, at: at, list: s})
	v := h.model(facts)
	h.say("  state (%d, %d): %v, started %d, ended %d", s.epoch, s.sequence, err, len(change.Started),
		len(change.Ended))
	if v.accepted != (err == nil) {
		return fmt.Errorf("state (%d, %d): the model says %v, the ledger %v", s.epoch, s.sequence,
			v.accepted, err)
	}
	if err != nil {
		return nil // the owner drops the clone
	}
	if err := sameChange(change, v, false); err != nil {
		return fmt.Errorf("state (%d, %d): %w", s.epoch, s.sequence, err)
	}
	if h.pick(25) {
		h.say("  and the agent is killed before it is kept")
		return h.restart()
	}
	h.ledger, h.facts = next, facts
	h.watch.accepted(h, s, change)
	err = h.watch.ended(h, change, s)
	h.save()
	return err
}

func (h *history) model(facts []fact) *view {
	return recompute(h.pool.world.Host.String(), h.pool.trust[0], facts)
}

func sameChange(c grant.Change, v *view, tick bool) error {
	var started, missing []string
	for _, l := range c.Started {
		started = append(started, l.ID.String())
	}
	for _, id := range c.Missing {
		missing = append(missing, id.String())
	}
	ended, want := make(map[string]curfewv1.EndCause), make(map[string]curfewv1.EndCause)
	for _, e := range c.Ended {
		ended[e.ID.String()] = e.Cause
	}
	for _, e := range v.ended {
		want[e.id] = e.cause
	}
	switch {
	case !maps.Equal(ended, want) || len(c.Ended) != len(v.ended):
		return fmt.Errorf("ended %v, the model says %v", ended, want)
	case !slices.Equal(started, v.started):
		return fmt.Errorf("started %v, the model says %v", started, v.started)
	case !slices.Equal(missing, v.missing):
		return fmt.Errorf("missing %v, the model says %v", missing, v.missing)
	case !tick && c.LeaseRenewed != v.renewed:
		return fmt.Errorf("lease renewed %v, the model says %v", c.LeaseRenewed, v.renewed)
	}
	return nil
}

// compare looks at everything that the ledger tells.
func (h *history) compare() error {
	clock, at := h.read()
	h.facts = append(h.facts, fact{kind: factLook, at: at})
	v := h.model(h.facts)
	live, want := h.ledger.Live(clock), v.live(at)
	if err := sameLive(live, want); err != nil {
		return err
	}
	may := mayText(h.ledger.MayOpen(clock))
	if may != v.mayOpen(at) {
		return fmt.Errorf("may open: %q, the model says %q", may, v.mayOpen(at))
	}
	if h.ledger.Epoch() != v.epoch || h.ledger.Sequence() != v.sequence {
		return fmt.Errorf("at (%d, %d), the model says (%d, %d)", h.ledger.Epoch(), h.ledger.Sequence(),
			v.epoch, v.sequence)
	}
	if int(h.ledger.TrailCount()) != v.trail || h.ledger.TrustVersion() != v.trust.version {
		return errors.New("the trail's count or the trust's version differs from the model's")
	}
	for _, p := range h.all {
		cause, ended := h.ledger.Ended(p.realID)
		g := v.grave(p.id)
		if ended != (g != nil) || ended && g.cause != cause {
			return fmt.Errorf("%s is tombstoned: %v %s, the model says %v", p.name, ended, cause, g)
		}
	}
	var held []string
	for _, w := range v.sortedHeld() {
		held = append(held, w.paper.id)
	}
	var ids []string
	for _, id := range h.ledger.HeldIDs() {
		ids = append(ids, id.String())
	}
	if !slices.Equal(held, ids) {
		return fmt.Errorf("holds %v, the model says %v", ids, held)
	}
	return h.watch.check(h, live, may == "")
}

func mayText(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, grant.ErrClock):
		return "clock"
	case errors.Is(err, grant.ErrLease):
		return "lease"
	}
	return err.Error()
}

func sameLive(live []grant.Live, want []window) error {
	for i := range max(len(live), len(want)) {
		if i >= len(live) {
			return fmt.Errorf("%s is not live, the model says it is", want[i].paper.name)
		}
		l := live[i]
		if i >= len(want) || l.ID != want[i].paper.realID {
			return fmt.Errorf("grant %s of %s is live, the model says it is not", l.ID.Short(),
				l.Terms.GetRequestId())
		}
		w := want[i]
		if l.Start.UnixMilli() != w.start || l.End.UnixMilli() != w.end || l.Unused != w.waiting ||
			l.Used != w.used ||
			l.BootDeadline.Milliseconds() != w.deadline {
			return fmt.Errorf("%s is open %d to %d, boot %d; the model says %d to %d, boot %d",
				w.paper.name, l.Start.UnixMilli(), l.End.UnixMilli(), l.BootDeadline.Milliseconds(),
				w.start, w.end, w.deadline)
		}
	}
	return nil
}
