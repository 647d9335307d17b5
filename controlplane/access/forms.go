package access

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// maxAhead is how far ahead a request may start, and how far ahead its last window may end.
const maxAhead = 180 * 24 * time.Hour

// Events and trail records of edits and emergencies.
const (
	EventEmergency = "request.emergency"
	EventReviewDue = "request.review_due"
	EventReviewed  = "request.reviewed"
	KindEdited     = "request.edited"
	KindReviewed   = "request.reviewed"
	// reviewEvery is how often approvers are told of an emergency that nobody has reviewed.
	reviewEvery = 24 * time.Hour
)

// resolved is an ask with its selector turned into hosts and its times checked.
func (s *Service) resolved(tx Tx, a request.Ask, now time.Time) (request.Ask, error) {
	if len(a.Selector) > 0 {
		if err := policy.CheckLabels(a.Selector); err != nil {
			return a, reason.Invalid("the selector: %v", err)
		}
		hosts, err := tx.LabelledHosts()
		if err != nil {
			return a, err
		}
		named := slices.Clone(a.Hosts)
		for _, h := range hosts {
			if h.Refused == "" && policy.Carries(h.Labels, a.Selector) && !slices.Contains(named, h.Name) {
				named = append(named, h.Name)
			}
		}
		switch n := len(named); {
		case n == 0:
			return a, reason.NotFound("no host has the labels %s", policy.LabelsText(a.Selector)).
				WithHint("curfew hosts shows the hosts with their labels")
		case n > grant.MaxHosts:
			return a, reason.Invalid("%d hosts have the labels %s; one request may name %d", n,
				policy.LabelsText(a.Selector), grant.MaxHosts).WithHint("add a label, or ask for some of them")
		}
		slices.Sort(named)
		a.Hosts = named
	}
	return a, checkTimes(a, now)
}

// checkTimes refuses times that nobody can have meant.
func checkTimes(a request.Ask, now time.Time) error {
	last := now.Add(maxAhead)
	switch {
	case len(a.Windows) > 0 && (!a.Start.IsZero() || a.Duration != 0):
		return reason.Invalid("a request has windows, or a start and a duration")
	case !a.Start.IsZero() && a.Start.Before(now.Add(-time.Minute)):
		return reason.Invalid("it would start at %s, which has passed", a.Start.UTC().Format(time.RFC3339))
	case a.Start.After(last):
		return reason.Invalid("it would start more than %d days ahead", int(maxAhead.Hours()/24))
	case a.Emergency && (len(a.Windows) > 0 || !a.Start.IsZero()):
		return reason.Invalid("an emergency begins now")
	}
	for i, w := range a.Windows {
		switch {
		case w.End.Sub(w.Start) < grant.MinDuration:
			return reason.Invalid("window %d is empty", i+1)
		case !w.End.After(now):
			return reason.Invalid("window %d has passed", i+1)
		case w.End.After(last):
			return reason.Invalid("window %d is more than %d days ahead", i+1, int(maxAhead.Hours()/24))
		case i > 0 && w.Start.Before(a.Windows[i-1].End):
			return reason.Invalid("window %d begins before the one before it ends", i+1)
		}
	}
	return nil
}

// lapses is until when an ask waits for approvers: as long as any, or until it would start, if that is
// later; windows wait no longer than their last end.
func (s *Service) lapses(a request.Ask, now time.Time) time.Time {
	at := now.Add(s.c.PendingTTL)
	if a.Start.After(at) {
		at = a.Start
	}
	if n := len(a.Windows); n > 0 {
		if a.Windows[0].Start.After(at) {
			at = a.Windows[0].Start
		}
		if last := a.Windows[n-1].End; at.After(last) {
			at = last
		}
	}
	return at
}

// Edit changes what waits, before anybody has granted it. It goes through policy as if it were new, and
// approvals of the old terms are void.
func (s *Service) Edit(
	ctx context.Context, p identity.Person, id string, seen uint32, change func(*request.Ask),
) (*request.Request, error) {
	var opened bool
	err := s.withTickets(ctx, p, func(tx Tx, tickets map[string]policy.TicketCheck) error {
		r, err := own(tx, p, id)
		if err != nil {
			return err
		}
		if r.State != request.Pending || r.Waiting() == nil {
			return reason.Conflict("request %s is %s; only what waits can be edited", id, r.State)
		}
		if r.Waiting().Number != seen {
			return reason.Conflict("request %s has changed since you looked at it", id).
				WithHint("curfew show %s", id)
		}
		ask := askOf(r, r.Waiting())
		change(&ask)
		ask.Requester, ask.Extends = p.Name, false
		now := s.now()
		if ask, err = s.resolved(tx, ask, now); err != nil {
			return err
		}
		d, err := s.decide(tx, p, ask, tickets, now)
		if err != nil {
			return err
		}
		rev, err := d.revision(policy.Draft{
			RequestID: id, Revision: seen + 1, Now: now, Lapses: s.lapses(ask, now),
		})
		if err != nil {
			return err
		}
		if err := r.Edit(seen, rev); err != nil {
			return moved(err)
		}
		r.Role, r.Hosts = ask.Role, hostsOf(ask, d.facts)
		r.RootEquivalent = d.facts.Role.RootEquivalent()
		if d.verdict.Emergency {
			r.Review = &request.Review{Reminded: now}
		}
		if err := tx.DropRequestHosts(id); err != nil {
			return err
		}
		opened, err = s.store(tx, r, KindEdited)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.issue(ctx, id, opened)
	return s.Get(ctx, p, id)
}

// Review records what an approver found of an emergency request.
func (s *Service) Review(
	ctx context.Context, p identity.Person, id string, justified bool, comment string,
) (*request.Request, error) {
	if err := grant.CheckReason(comment); err != nil {
		return nil, reason.Invalid("the comment: %v", err)
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
		if may, err := s.mayRevoke(tx, user, r); err != nil {
			return err
		} else if !may {
			return reason.Denied("request %s is reviewed by an approver of role %s", id, r.Role)
		}
		now := s.now()
		err = r.Reviewed(request.Review{
			By: p.Name, Justified: justified, Comment: comment, At: now,
		})
		if err != nil {
			return moved(err)
		}
		return s.put(tx, r, noteOn(r, KindReviewed, p.Name, now, map[string]string{
			"justified": fmt.Sprint(justified), "comment": grant.VisibleText(comment),
		}), Notice(r, s.c.Directory.Organisation(), EventReviewed, p.Name))
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, p, id)
}

// remind tells approvers, once a day, of emergencies that nobody has reviewed.
func (s *Service) remind(ctx context.Context) error {
	var due []string
	now := s.now()
	err := s.c.Store.View(ctx, func(tx Tx) (err error) {
		due, err = tx.ReviewsDue(now.Add(-reviewEvery))
		return err
	})
	if err != nil || len(due) == 0 {
		return err
	}
	return s.c.Store.Update(ctx, func(tx Tx) error {
		for _, id := range due {
			r, err := tx.Request(id)
			if err != nil {
				return err
			}
			if !r.ReviewDue() {
				continue
			}
			r.Review.Reminded = now
			m := Notice(r, s.c.Directory.Organisation(), EventReviewDue, "")
			m.ID = fmt.Sprintf("%s.%d", m.ID, now.Unix())
			if m.To, err = s.addresses(tx, r, m.Event); err != nil {
				return err
			}
			if err := tx.PutRequest(r); err != nil {
				return err
			}
			if err := tx.Notify(m); err != nil {
				return err
			}
		}
		return nil
	})
}
