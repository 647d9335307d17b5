package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/gate"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// live are the grants that are open now and under the ceiling in force, which may have been lowered
// since they were accepted, without those that are condemned.
func (o *owner) live() []grant.Live {
	ceiling := o.settings.ceiling()
	return slices.DeleteFunc(o.ledger.Live(o.cfg.Clock()), func(l grant.Live) bool {
		return o.condemned[l.ID] || ceiling.Permits(l.Terms) != nil
	})
}

// enforced are the live grants, and those that are carried until their extension stands.
func (o *owner) enforced() []grant.Live {
	list := o.live()
	now := o.cfg.Clock()
	for id, old := range o.carried {
		waits := slices.ContainsFunc(list, func(l grant.Live) bool {
			return l.Terms.GetRequestId() == old.Terms.GetRequestId() && o.unsettled(l.ID)
		})
		if !waits || !now.Wall.Before(old.End) || now.Boot >= old.BootDeadline {
			delete(o.carried, id)
			continue
		}
		list = append(list, old)
	}
	slices.SortFunc(list, func(a, b grant.Live) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}

// unsettled tells whether a live grant was neither applied nor failed yet.
func (o *owner) unsettled(id grant.ID) bool {
	i := slices.IndexFunc(o.results, func(r enforce.Result) bool { return r.Live.ID == id })
	return i < 0 || o.results[i].Status == curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED
}

func (o *owner) state() enforce.State {
	s := enforce.State{Live: o.enforced(), Mode: o.settings.mode(), Rules: o.settings.rules()}
	for _, e := range o.ending {
		if e.target.Class == account.ClassAccount {
			s.Ending = append(s.Ending, enforce.Ending{Login: e.target.Login, UID: e.target.UID})
		}
	}
	slices.SortFunc(s.Ending, func(a, b enforce.Ending) int { return cmp.Compare(a.Login, b.Login) })
	return s
}

// reconcile makes the host equal to the ledger, in the order that closes before it opens: the gate
// forgets what has ended, files follow, then the gate learns what is new. Grants that still need the
// host's checks are checked beside, and come back here.
func (o *owner) reconcile(ctx context.Context) {
	s := o.state()
	still := make(map[grant.ID]bool, len(s.Live))
	for _, l := range s.Live {
		still[l.ID] = true
	}
	o.results = slices.DeleteFunc(o.results, func(r enforce.Result) bool { return !still[r.Live.ID] })
	o.publishGate()
	results, err := o.recon.Apply(s)
	o.problem("enforce", err)
	if results != nil {
		o.results = results
	}
	o.publishGate()
	if len(o.carried) > 0 && len(o.enforced()) < len(s.Live) {
		o.reconcile(ctx) // an extension stands now; what it replaced goes
		return
	}
	o.publishSessions(ctx)
	o.setTimer()
	o.say()
	o.kill(ctx)
	if o.recon.Pending(o.results) {
		o.check(ctx, s)
		return
	}
	o.acknowledge()
}

// check runs the host's checks beside the owner. One runs at a time; what comes meanwhile is checked
// by the one that follows.
func (o *owner) check(ctx context.Context, s enforce.State) {
	if o.checking {
		return
	}
	o.checking = true
	results := slices.Clone(o.results)
	o.spawn(func() {
		o.recon.Admit(ctx, s)
		o.recon.Verify(ctx, results)
		o.post(ctx, func(ctx context.Context) {
			o.checking = false
			o.reconcile(ctx)
		})
	})
}

// publishGate gives the gate its next table.
func (o *owner) publishGate() {
	principals, _ := o.settings.rules().Principals(o.recon.Local(), o.store.UIDs())
	t := &gate.Table{
		Mode: o.settings.mode(), People: principals, MayOpen: o.mayOpen(), Roles: o.roles(),
	}
	for _, r := range o.results {
		if r.Applied() {
			t.Live = append(t.Live, r.Live)
		}
	}
	o.gate.Publish(t)
}

// roles are those that the trust file knows a quorum for: no other can be granted here.
func (o *owner) roles() []string {
	var names []string
	for _, q := range o.ledger.Trust().Quorums {
		names = append(names, q.Role)
	}
	slices.Sort(names)
	return names
}

// mayOpen says why nothing new may open, or nil.
func (o *owner) mayOpen() error {
	err := o.ledger.MayOpen(o.cfg.Clock())
	// A host that never had a state has no lease to lose.
	if errors.Is(err, grant.ErrLease) && !o.leaseOver && o.ledger.Sequence() > 0 {
		o.leaseOver = true
		o.rec.note(trail.KindLeaseExpired, nil)
		o.log.Warn("nothing new opens: the control plane is silent for too long")
	}
	if o.refused != "" {
		err = cmp.Or(err, errors.New("the control plane refuses this host: "+o.refused))
	}
	return cmp.Or(err, o.rec.full())
}

func (o *owner) publishSessions(ctx context.Context) {
	var live []session.Live
	for _, r := range o.results {
		if _, replaced := o.carried[r.Live.ID]; replaced || r.Subject.Login == "" {
			continue // its extension stands for the request; or it never got that far
		}
		live = append(live, session.Live{
			GrantID: r.Live.ID, RequestID: r.Live.Terms.GetRequestId(),
			Login: r.Subject.Login, UID: r.Subject.UID, Class: r.Subject.Class, Role: r.Live.Terms.GetRole(), Start: r.Live.Start, End: r.Live.End,
			BootDeadline: r.Live.BootDeadline,
		})
	}
	o.sessions.Publish(live)
	o.arm(ctx, live)
	if o.leaseOver && o.settings.LeaseAction == LeaseTerminate {
		o.terminate(ctx, live)
	}
}

// arm sets PID 1's timer of each request that has a new end: it ends the request when this process
// is dead.
func (o *owner) arm(ctx context.Context, live []session.Live) {
	now := o.cfg.Clock()
	have := make(map[string]bool)
	for _, l := range live {
		have[l.RequestID] = true
		if o.armed[l.RequestID].Equal(l.End) {
			continue
		}
		o.armed[l.RequestID] = l.End
		target := o.targetOf(l)
		o.spawnSmall(ctx, func() {
			err := o.sessions.Arm(ctx, target, l.End, l.BootDeadline-now.Boot)
			o.post(ctx, func(context.Context) {
				o.problem("backstop of request "+l.RequestID, err)
				if err != nil {
					delete(o.armed, l.RequestID) // tried again by the next round
				}
			})
		})
	}
	maps.DeleteFunc(o.armed, func(id string, _ time.Time) bool { return !have[id] })
}

func (o *owner) targetOf(l session.Live) session.Target {
	whole := true
	for _, r := range o.results {
		other := r.Live.Terms.GetRequestId() != l.RequestID
		whole = whole && !(other && r.Subject.Login == l.Login)
	}
	return session.Target{
		RequestID: l.RequestID, Login: l.Login, UID: l.UID, Class: l.Class, Whole: whole,
	}
}

// setTimer wakes the owner at the earliest end, and when the lease runs out.
func (o *owner) setTimer() {
	now := o.cfg.Clock()
	wall, boot, ok := o.ledger.Next(now)
	lease := o.ledger.LeaseEnd(now)
	if lease > now.Boot && (!ok || lease < boot) {
		boot = lease
		if !ok {
			wall = now.Wall.Add(lease - now.Boot)
		}
		ok = true
	}
	o.timer.Set(wall, boot, ok)
}

// say records each new word about a live grant, once.
func (o *owner) say() {
	seen := make(map[grant.ID]bool, len(o.results))
	for _, r := range o.results {
		seen[r.Live.ID] = true
		if r.Status == curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED {
			continue
		}
		word := fmt.Sprint(r.Status, r.Detail)
		if o.said[r.Live.ID] == word {
			continue
		}
		o.said[r.Live.ID] = word
		terms := r.Live.Terms
		kind := trail.KindGrantApplied
		if !r.Applied() {
			kind = trail.KindGrantFailed
			o.log.Error("a grant cannot be enforced", "grant", r.Live.ID,
				"request", terms.GetRequestId(), "error", r.Detail)
		} else {
			o.log.Info("a grant is enforced", "grant", r.Live.ID, "request", terms.GetRequestId(),
				"login", terms.GetLogin(), "class", r.Subject.Class, "until", r.Live.End)
		}
		o.rec.note(kind, func(e *curfewv1.Event) {
			e.GrantId, e.RequestId, e.Login = r.Live.ID[:], terms.GetRequestId(), terms.GetLogin()
			e.Details = detail("role", terms.GetRole(), "error", r.Detail,
				"until", r.Live.End.UTC().Format(time.RFC3339))
		})
	}
	maps.DeleteFunc(o.said, func(id grant.ID, _ string) bool { return !seen[id] })
}

// acknowledge answers the newest state, after it was applied.
func (o *owner) acknowledge() {
	if o.ack == nil {
		return
	}
	ack := &curfewv1.Ack{
		Epoch: o.ack.epoch, Sequence: o.ack.sequence, Accepted: true,
		TrailCount: o.ledger.TrailCount(),
	}
	for _, r := range o.results {
		if _, replaced := o.carried[r.Live.ID]; replaced {
			continue
		}
		ack.Grants = append(ack.Grants, &curfewv1.GrantResult{
			GrantId: r.Live.ID[:], Status: r.Status, Detail: clip(r.Detail),
			StartMs: r.Live.Start.UnixMilli(), EndMs: r.Live.End.UnixMilli(),
		})
	}
	for _, id := range o.ack.missing {
		result := &curfewv1.GrantResult{
			GrantId: id[:], Status: curfewv1.GrantStatus_GRANT_STATUS_MISSING,
		}
		if why := o.ledger.Refusal(id); why != "" {
			result.Status = curfewv1.GrantStatus_GRANT_STATUS_REJECTED
			result.Detail = clip(why)
		}
		ack.Grants = append(ack.Grants, result)
	}
	o.ack = nil
	o.up.send(&curfewv1.HostMessage{Body: &curfewv1.HostMessage_Ack{Ack: ack}})
}

func clip(s string) string {
	s = grant.VisibleText(s)
	return s[:min(len(s), trail.MaxDetail)]
}

// allProblems is what is wrong on this host, in words.
func (o *owner) allProblems() []string {
	list := slices.Concat(slices.Sorted(maps.Values(o.problems)), o.recon.Problems(),
		o.sessions.Problems())
	if err := o.mayOpen(); err != nil {
		list = append(list, err.Error())
	}
	slices.Sort(list)
	list = slices.Compact(list)
	for i := range list {
		list[i] = clip(list[i])
	}
	return list[:min(len(list), maxProblems)]
}

const maxProblems = 32
