package access

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Extend asks for more time: a new revision with the whole new duration. The grants in force are
// untouched until it is approved.
func (s *Service) Extend(
	ctx context.Context, p identity.Person, id string, more time.Duration, why string,
) (*request.Request, error) {
	if more < grant.MinDuration || more > grant.MaxDuration {
		return nil, reason.Invalid("an extension is by %s to %s, not by %s", grant.MinDuration,
			grant.MaxDuration, more)
	}
	opened := false
	err := s.withTickets(ctx, p, func(tx Tx, tickets map[string]policy.TicketCheck) error {
		r, err := own(tx, p, id)
		if err != nil {
			return err
		}
		live := r.Live()
		if _, err := request.Next(r.State, r.Extending(), request.EventExtend); err != nil {
			return moved(err)
		}
		if live != nil && len(askOf(r, live).Windows) > 0 {
			return reason.Conflict("request %s has windows, which end when they end", id).
				WithHint("ask anew: curfew request --again %s", id)
		}
		ends, started, err := liveUntil(tx, id)
		if err != nil {
			return err
		}
		now := s.now()
		if !now.Before(ends) {
			return reason.Conflict("the grant of request %s is over", id).WithHint("ask anew")
		}
		if !started {
			return reason.Conflict("no host has confirmed request %s yet, so its time has not begun", id).
				WithHint("curfew show %s", id)
		}
		ask := askOf(r, live)
		ask.Duration, ask.Reason, ask.Extends = live.Duration+more, why, true
		d, err := s.decide(tx, p, ask, tickets, now)
		if err != nil {
			return err
		}
		if err := s.underQuota(tx, p.Name); err != nil {
			return err
		}
		rev, err := d.revision(policy.Draft{
			RequestID: id, Revision: r.Newest().Number + 1, Now: now,
			Lapses: minTime(now.Add(s.c.PendingTTL), ends), Follows: live.Terms,
		})
		if err != nil {
			return err
		}
		if err := r.Extend(rev); err != nil {
			return moved(err)
		}
		opened, err = s.store(tx, r, KindExtension)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.issue(ctx, id, opened)
	return s.Get(ctx, p, id)
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// liveUntil is the latest end of a request's live grants: the end that a host confirmed, else the
// hard end; and whether any host has confirmed a start.
func liveUntil(tx Tx, id string) (until time.Time, started bool, err error) {
	grants, err := tx.Grants(id)
	for _, g := range grants {
		if !g.Live {
			continue
		}
		end := g.End
		if end.IsZero() {
			end = g.HardEnd
		}
		if end.After(until) {
			until = end
		}
		started = started || !g.Start.IsZero()
	}
	return until, started, err
}

// Done is the holder handing back early.
func (s *Service) Done(ctx context.Context, p identity.Person, id string) (*request.Request, error) {
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		r, err := own(tx, p, id)
		if err != nil {
			return err
		}
		return s.endAll(tx, r, curfewv1.EndCause_END_CAUSE_DONE, p.Name, "")
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, p, id)
}

// Revoke ends a granted request now. An admin may, or an approver of its group.
func (s *Service) Revoke(
	ctx context.Context, p identity.Person, id, why string,
) (*request.Request, error) {
	if why != "" {
		if err := grant.CheckReason(why); err != nil {
			return nil, reason.Invalid("%v", err)
		}
	}
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		r, err := find(tx, p, id)
		if err != nil {
			return err
		}
		user, err := tx.User(p.Name)
		if err != nil {
			return err
		}
		may, err := s.mayRevoke(tx, user, r)
		if err != nil {
			return err
		}
		if !may {
			return reason.Denied("request %s is revoked by an admin or by an approver of its role", id)
		}
		return s.endAll(tx, r, curfewv1.EndCause_END_CAUSE_REVOKED, p.Name, why)
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, p, id)
}

// endAll ends every live grant of a request and the request.
func (s *Service) endAll(tx Tx, r *request.Request, cause curfewv1.EndCause, by, why string) error {
	now := s.now()
	if err := r.End(cause, by, now); err != nil {
		return moved(err)
	}
	grants, err := tx.Grants(r.ID)
	if err != nil {
		return err
	}
	for _, g := range grants {
		if !g.Live {
			continue
		}
		if err := tx.EndGrant(g.ID, cause, by, now); err != nil {
			return err
		}
	}
	return s.put(tx, r, EndedRecord(r, why, now),
		Notice(r, s.c.Directory.Organisation(), "request.ended", by))
}

// Settle ends a granted request when no grant of it is live any more; last is the end that was just
// noted.
func Settle(tx Tx, requestID string, last request.GrantEnd, at time.Time) error {
	r, err := tx.Request(requestID)
	if err != nil {
		return err
	}
	grants, err := tx.Grants(requestID)
	if err != nil {
		return err
	}
	live := 0
	for _, g := range grants {
		if g.Live {
			live++
		}
	}
	ended, err := r.Settle(live, last, at)
	if err != nil || !ended {
		return err
	}
	return errors.Join(tx.PutRequest(r), tx.Append(EndedRecord(r, "", at)))
}

// Sweep does what time demands: revisions that nobody decided lapse, grants whose end is past leave
// the live set, approved requests without grants get them.
func (s *Service) Sweep(ctx context.Context) error {
	return errors.Join(s.sweepLapsed(ctx), s.sweepDue(ctx), s.sweepUnissued(ctx), s.release(ctx), s.remind(ctx))
}

// release opens the way for grants that were approved ahead of their start.
func (s *Service) release(ctx context.Context) error {
	var due bool
	err := s.c.Store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.Unreleased(s.now())
		return err
	})
	if err != nil || !due {
		return err
	}
	return s.c.Store.Update(ctx, func(tx Tx) error { return tx.Release(s.now()) })
}

func (s *Service) sweepLapsed(ctx context.Context) error {
	var ids []string
	err := s.c.Store.View(ctx, func(tx Tx) (err error) {
		ids, err = tx.Lapsed(s.now())
		return err
	})
	for _, id := range ids {
		err = errors.Join(err, s.lapse(ctx, id, false))
	}
	return err
}

// lapse ends the waiting revision of a request whose time is over; with unissued, the approved one.
func (s *Service) lapse(ctx context.Context, id string, unissued bool) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		r, err := tx.Request(id)
		if err != nil {
			return err
		}
		now := s.now()
		if rev := r.Waiting(); !unissued && (rev == nil || now.Before(rev.Lapses)) {
			return nil
		}
		if err := r.Lapse(now); err != nil {
			return fmt.Errorf("request %s: %w", id, err)
		}
		return s.put(tx, r, noteOn(r, KindLapsed, Actor, now, map[string]string{
			"revision": fmt.Sprint(r.Newest().Number),
		}), Notice(r, s.c.Directory.Organisation(), "request.lapsed", ""))
	})
}

func (s *Service) sweepDue(ctx context.Context) error {
	now := s.now()
	var due []Grant
	err := s.c.Store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.GrantsDue(now.Add(-expiryGrace))
		return err
	})
	for _, g := range due {
		err = errors.Join(err, s.c.Store.Update(ctx, func(tx Tx) error {
			cause := curfewv1.EndCause_END_CAUSE_EXPIRED
			if err := tx.EndGrant(g.ID, cause, "", now); err != nil {
				return err
			}
			return Settle(tx, g.RequestID, request.GrantEnd{Cause: cause}, now)
		}))
	}
	return err
}

// sweepUnissued seals what a crash left approved. What can never be sealed lapses, after the last
// moment at which a host would take it.
func (s *Service) sweepUnissued(ctx context.Context) error {
	var ids []string
	err := s.c.Store.View(ctx, func(tx Tx) (err error) {
		ids, err = tx.Unissued()
		return err
	})
	for _, id := range ids {
		if _, issueErr := s.c.Issuer.Issue(ctx, id); issueErr != nil {
			s.c.Log.Error("an approved request has no grants", "request", id, "error", issueErr)
			err = errors.Join(err, s.giveUp(ctx, id))
		}
	}
	return err
}

func (s *Service) giveUp(ctx context.Context, id string) error {
	late := false
	err := s.c.Store.View(ctx, func(tx Tx) error {
		r, err := tx.Request(id)
		if err != nil {
			return err
		}
		if rev := r.Unissued(); rev != nil {
			terms, err := grant.ParseTerms(rev.Terms)
			if err != nil {
				return err
			}
			late = s.now().UnixMilli() > terms.GetStartLatestMs()
		}
		return nil
	})
	if err == nil && late {
		err = s.lapse(ctx, id, true)
	}
	return err
}

// Run sweeps every second until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.c.Log.Error("the sweep failed; it runs again in a second", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
