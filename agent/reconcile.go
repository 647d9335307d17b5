package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
		return o.condemned[l.ID] || ceiling.PermitsLive(l) != nil
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
	s := enforce.State{Live: o.enforced(), Rules: o.settings.rules()}
	s.Mode, s.Trial = o.mode()
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
	// Nothing new opens for what has ended from here on, so its processes die while files follow.
	o.sessions.Retire(slices.Collect(maps.Keys(o.ending)))
	o.kill(ctx)
	results, err := o.recon.Apply(s)
	o.problem("enforce", err)
	if results != nil {
		o.results = results
	}
	if o.recon.Stale() {
		o.spawnSmall(ctx, func() {
			err := o.recon.Forget(ctx)
			o.post(ctx, func(context.Context) { o.problem("name service cache", err) })
		})
	}
	o.publishGate()
	if len(o.carried) > 0 && len(o.enforced()) < len(s.Live) {
		o.reconcile(ctx) // an extension stands now; what it replaced goes
		return
	}
	pending := o.recon.Pending(o.results)
	if pending {
		o.check(ctx, s) // first, since somebody waits for it and it needs nothing of what follows
	}
	o.publishSessions(ctx)
	o.setTimer()
	o.say(ctx)
	o.kill(ctx)
	if !pending {
		o.acknowledge()
	}
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
		People: principals, MayOpen: o.mayOpen(), Roles: o.roles(),
		MayOpenLocal: o.mayOpenLocal(), Live: make([]grant.Live, 0, len(o.results)),
	}
	t.Mode, t.Trial = o.mode()
	once := make(map[grant.ID]bool)
	for _, r := range o.results {
		if r.Applied() {
			t.Live = append(t.Live, r.Live)
		}
		if r.Applied() && (r.Live.Unused || r.Live.Terms.GetSingleUse()) {
			once[r.Live.ID] = true
		}
	}
	o.once.Store(&once)
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
			Login: r.Subject.Login, UID: r.Subject.UID, Class: r.Subject.Class,
			Role: r.Live.Terms.GetRole(), Start: r.Live.Start, End: r.Live.End,
			BootDeadline: r.Live.BootDeadline, Local: r.Live.Local,
			RootEquivalent: r.Live.Terms.GetRootEquivalent(), GIDs: o.gidsOf(r.Live),
		})
	}
	o.sessions.Publish(live)
	o.arm(ctx, live)
	o.warnLease(live)
	if o.leaseOver && o.settings.LeaseAction == LeaseTerminate {
		o.terminate(ctx, live)
	}
}

// armed is what PID 1's timer of a request was set for: when, and whether the whole login goes then.
type armed struct {
	end   time.Time
	whole bool
}

// arm sets PID 1's timer of each request that has a new end: it ends the request when this process
// is dead. The last request of a login to end takes everything of the login's with it, which is
// decided anew whenever the login's other requests change.
func (o *owner) arm(ctx context.Context, live []session.Live) {
	now := o.cfg.Clock()
	have := make(map[string]bool, len(live))
	var jobs []func()
	for _, l := range live {
		have[l.RequestID] = true
		target := o.targetOf(l)
		target.Whole = lastOfLogin(l, live)
		want := armed{l.End, target.Whole}
		if was, ok := o.armed[l.RequestID]; ok && was.end.Equal(want.end) && was.whole == want.whole {
			continue
		}
		o.armed[l.RequestID] = want
		jobs = append(jobs, func() {
			err := o.sessions.Arm(ctx, target, l.End, l.BootDeadline-now.Boot)
			o.post(ctx, func(context.Context) {
				if _, live := o.armed[l.RequestID]; !live {
					return // it ended meanwhile: disarmStale sees to what was armed
				}
				o.problem(backstopOf+l.RequestID, err)
				if err != nil {
					delete(o.armed, l.RequestID) // tried again by the next round
				}
			})
		})
	}
	o.spawnSmall(ctx, jobs...)
	maps.DeleteFunc(o.armed, func(id string, _ armed) bool { return !have[id] })
	for about := range o.problems {
		if id, ok := strings.CutPrefix(about, backstopOf); ok && !have[id] {
			o.problem(about, nil)
		}
	}
}

// backstopOf begins what a problem with a request's timer is about.
const backstopOf = "backstop of request "

// disarmStale takes away the timers of requests that are over. Each end does so itself, but a PID 1
// that is too busy to answer may set a timer late or keep one; it would end the person's next request.
func (o *owner) disarmStale(ctx context.Context) {
	o.spawnSmall(ctx, func() {
		set, err := o.sessions.Backstops(ctx)
		if err != nil {
			o.log.Warn("looking for PID 1's timers", "error", err)
			return
		}
		o.post(ctx, func(ctx context.Context) {
			stale := slices.DeleteFunc(set, func(id string) bool {
				_, live := o.armed[id]
				return live || o.ending[id] != nil || slices.ContainsFunc(o.live(), func(l grant.Live) bool {
					return l.Terms.GetRequestId() == id
				})
			})
			if len(stale) == 0 {
				return
			}
			o.spawnSmall(ctx, func() {
				if err := o.sessions.Disarm(ctx, stale...); err != nil {
					o.log.Warn("PID 1's timers of ended requests stay", "requests", stale, "error", err)
				}
			})
		})
	})
}

// lastOfLogin tells whether a request ends after all others of its login.
func lastOfLogin(l session.Live, live []session.Live) bool {
	return !slices.ContainsFunc(live, func(other session.Live) bool {
		later := cmp.Or(other.End.Compare(l.End), cmp.Compare(other.RequestID, l.RequestID))
		return other.Login == l.Login && later > 0
	})
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
	if half := lease - o.leaseFor/2; half > now.Boot && !o.leaseWarned {
		lease = half
	}
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
func (o *owner) say(ctx context.Context) {
	seen := make(map[grant.ID]bool, len(o.results))
	var notes []*curfewv1.Event
	for _, r := range o.results {
		seen[r.Live.ID] = true
		if r.Status == curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED {
			continue
		}
		word := fmt.Sprint(r.Status, r.Detail, r.Live.Unused)
		if o.said[r.Live.ID] == word {
			continue
		}
		o.said[r.Live.ID] = word
		terms := r.Live.Terms
		o.stands(r)
		kind := trail.KindGrantApplied
		if !r.Applied() {
			kind = trail.KindGrantFailed
		} else {
			if r.Live.Terms.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE && !r.Live.Unused {
				kind = trail.KindGrantStarted
			}
			o.watchFor(ctx, r)
		}
		notes = append(notes, own(kind, func(e *curfewv1.Event) {
			e.GrantId, e.RequestId, e.Login = r.Live.ID[:], terms.GetRequestId(), terms.GetLogin()
			e.Details = detail("role", terms.GetRole(), "error", r.Detail,
				"until", r.Live.End.UTC().Format(time.RFC3339))
			if terms.GetRootEquivalent() {
				e.Details["root_equivalent"] = "true"
			}
		}))
	}
	o.rec.noteAll(notes)
	maps.DeleteFunc(o.said, func(id grant.ID, _ string) bool { return !seen[id] })
	maps.DeleteFunc(o.listed, func(id grant.ID, _ time.Duration) bool { return !seen[id] })
}

// reportAgain has the newest state answered once more, with what has changed since.
func (o *owner) reportAgain() {
	if o.ack == nil && o.ledger.Sequence() > 0 {
		o.ack = &pendingAck{epoch: o.ledger.Epoch(), sequence: o.ledger.Sequence()}
	}
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
		if _, replaced := o.carried[r.Live.ID]; replaced || r.Live.Local {
			continue // the control plane hears of a local grant by its events
		}
		result := &curfewv1.GrantResult{
			GrantId: r.Live.ID[:], Status: r.Status, Detail: clip(r.Detail),
			EndMs: r.Live.End.UnixMilli(),
		}
		if !r.Live.Unused {
			result.StartMs = r.Live.Start.UnixMilli()
		}
		ack.Grants = append(ack.Grants, result)
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
	return grant.Clip(grant.VisibleText(s), trail.MaxDetail)
}

// allProblems is what is wrong on this host, in words.
func (o *owner) allProblems() []string {
	list := slices.Concat(slices.Sorted(maps.Values(o.problems)), o.recon.Problems(),
		o.sessions.Problems(), o.codesProblems())
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
