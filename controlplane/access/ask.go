package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/curfew-access/curfew/controlplane/approval"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// maxChecks is how many ticket checks one ask can make necessary.
const maxChecks = 4

// TicketSystem asks the systems that know about tickets.
type TicketSystem interface {
	// Check asks the check of that name about an ask's ticket. An error means that it gave no answer.
	Check(ctx context.Context, name string, a request.Ask) (policy.TicketCheck, error)
}

// needsCheck rolls back a transaction in which a ticket turned out to need checking first: nobody
// waits for another system while the store is held.
type needsCheck struct {
	name string
	ask  request.Ask
}

// Error is never shown.
func (n *needsCheck) Error() string { return "ticket check " + n.name + " comes first" }

// withTickets runs f in a transaction, and again with the answer each time that a ticket check comes
// first.
func (s *Service) withTickets(
	ctx context.Context, p identity.Person, f func(Tx, map[string]policy.TicketCheck) error,
) error {
	tickets := make(map[string]policy.TicketCheck)
	for range maxChecks + 1 {
		err := s.c.Store.Update(ctx, func(tx Tx) error { return f(tx, tickets) })
		var first *needsCheck
		if !errors.As(err, &first) {
			return err
		}
		answer, err := policy.TicketCheck{}, errors.New("it is not configured")
		if s.c.Tickets != nil {
			answer, err = s.c.Tickets.Check(ctx, first.name, first.ask)
		}
		if err != nil {
			s.c.Log.Error("a ticket check failed", "check", first.name, "by", p.Name, "error", err)
			return reason.Conflict("ticket check %s cannot be asked right now, so nothing is opened",
				first.name).WithHint("try again; an admin finds the cause in the journal")
		}
		tickets[first.name] = answer
	}
	return reason.Conflict("the request needs more than %d ticket checks", maxChecks)
}

// decided is an accepted ask with its facts and verdict.
type decided struct {
	ask     request.Ask
	facts   policy.Facts
	verdict policy.Verdict
}

// decide puts a person's ask to the policy in force; what it refuses is an error.
func (s *Service) decide(
	tx Tx, p identity.Person, ask request.Ask, tickets map[string]policy.TicketCheck, now time.Time,
) (*decided, error) {
	facts, err := s.facts(tx, ask, now)
	if err != nil {
		return nil, err
	}
	facts.Requester.SignedIn, facts.Requester.Claims = p.Session.Created, p.Session.Claims
	facts.Tickets = tickets
	v := policy.Decide(ask, facts)
	if v.Check != "" {
		return nil, &needsCheck{name: v.Check, ask: ask}
	}
	if !v.Accepted() {
		return nil, refusal(v)
	}
	return &decided{ask: ask, facts: facts, verdict: v}, nil
}

// revision draws up the terms of what was decided.
func (d *decided) revision(draft policy.Draft) (rev request.Revision, err error) {
	terms, err := policy.Terms(d.ask, d.facts, d.verdict, draft)
	if err != nil {
		return rev, reason.Invalid("%v", err)
	}
	kept, err := policy.Keep(d.ask, d.facts)
	if err != nil {
		return rev, err
	}
	return request.Revision{
		Terms: terms, Duration: d.ask.Longest(), Reason: d.ask.Reason, Created: draft.Now,
		Lapses: draft.Lapses, Needs: d.verdict.Needs, Standing: d.verdict.Standing,
		Rule: d.verdict.Rule, PolicyHash: d.verdict.PolicyHash, Facts: kept,
	}, nil
}

// errDry rolls back what was only tried.
var errDry = errors.New("dry run")

// Create asks for access. What a standing rule opens is granted at once; the rest waits for approvals.
// With dry, nothing is stored: the request says what it would need.
func (s *Service) Create(
	ctx context.Context, p identity.Person, ask request.Ask, dry bool,
) (r *request.Request, err error) {
	ask.Requester = p.Name
	opened := false
	err = s.withTickets(ctx, p, func(tx Tx, tickets map[string]policy.TicketCheck) error {
		now := s.now()
		ask, err := s.resolved(tx, ask, now)
		if err != nil {
			return err
		}
		d, err := s.decide(tx, p, ask, tickets, now)
		if err != nil {
			return err
		}
		if err := s.underQuota(tx, p.Name); err != nil {
			return err
		}
		id, err := s.newID(tx)
		if err != nil {
			return err
		}
		rev, err := d.revision(policy.Draft{
			RequestID: id, Revision: 1, Now: now, Lapses: s.lapses(ask, now),
		})
		if err != nil {
			return err
		}
		r = request.New(id, p.Name, ask.Role, hostsOf(ask, d.facts), d.facts.Role.RootEquivalent(), rev)
		if d.verdict.Emergency {
			r.Review = &request.Review{Reminded: now}
		}
		if dry {
			return errDry
		}
		opened, err = s.store(tx, r, KindRequested)
		return err
	})
	if errors.Is(err, errDry) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	s.c.Log.Info("requested", "request", r.ID, "by", p.Name, "role", ask.Role,
		"standing", r.Newest().Standing)
	if !opened {
		return r, nil
	}
	s.told(r.ID, s.c.Issuer.IssueOf(context.WithoutCancel(ctx), r))
	if r.State != request.Granted { // it failed, or the sweep was faster
		return s.Get(ctx, p, r.ID)
	}
	return r, nil
}

// store writes a new revision with its record and its notice. What a standing rule opens is approved
// in the same transaction; the caller then issues it.
func (s *Service) store(tx Tx, r *request.Request, kind string) (opened bool, err error) {
	rev := r.Newest()
	asked := s.asked(r, kind)
	if rev.Standing == "" {
		return false, s.put(tx, r, asked, Notice(r, s.c.Directory.Organisation(), "request.pending", ""))
	}
	if err := tx.Append(asked); err != nil {
		return false, err
	}
	if err := r.Approve(rev.Created); err != nil {
		return false, moved(err)
	}
	event := "request.approved"
	if r.ReviewDue() {
		event = EventEmergency // those who were not asked hear of it
	}
	return true, s.put(tx, r, noteOn(r, KindApproved, Actor, rev.Created, map[string]string{
		"revision": fmt.Sprint(rev.Number), "standing_rule": rev.Standing,
		"emergency": fmt.Sprint(r.ReviewDue()),
	}), Notice(r, s.c.Directory.Organisation(), event, ""))
}

// issue seals the grants of what was approved. The approval stands whatever happens here, also when
// the caller hangs up; the sweep tries again.
func (s *Service) issue(ctx context.Context, id string, approved bool) {
	if !approved {
		return
	}
	_, err := s.c.Issuer.Issue(context.WithoutCancel(ctx), id)
	s.told(id, err)
}

func (s *Service) told(id string, err error) {
	if err != nil {
		s.c.Log.Error("an approved request has no grants yet; trying again", "request", id,
			"error", err)
	}
}

// facts reads everything that policy needs to know of an ask that is made now.
func (s *Service) facts(tx Tx, ask request.Ask, now time.Time) (policy.Facts, error) {
	f := policy.Facts{Now: now, Hosts: make(map[string]policy.Host), Disabled: make(map[string]bool)}
	var err error
	if f.Trust, err = s.c.Directory.TrustOf(tx); err != nil {
		return f, err
	}
	if f.Policy, err = s.c.Directory.Policy(tx); err != nil {
		return f, err
	}
	disabled, err := tx.DisabledUsers()
	if err != nil {
		return f, err
	}
	for _, name := range disabled {
		f.Disabled[name] = true
	}
	if err := readRequester(tx, ask, &f); err != nil {
		return f, err
	}
	if err := readRole(tx, ask, &f); err != nil {
		return f, err
	}
	for _, name := range ask.Hosts[:min(len(ask.Hosts), grant.MaxHosts+1)] {
		h, err := tx.LabelledHost(name)
		if errors.Is(err, identity.ErrNone) {
			continue
		}
		if err != nil {
			return f, err
		}
		f.Hosts[name] = h
	}
	return f, nil
}

func readRequester(tx Tx, ask request.Ask, f *policy.Facts) error {
	u, err := tx.User(ask.Requester)
	if errors.Is(err, identity.ErrNone) {
		return nil // policy says so
	}
	f.Requester = policy.Person{
		Name: u.Name, UID: u.UID, Disabled: u.Disabled, Groups: u.Groups, SSHKeys: u.SSHKeys,
		Manager: u.Manager, Workload: u.Kind == identity.KindWorkload,
	}
	return err
}

func readRole(tx Tx, ask request.Ask, f *policy.Facts) error {
	if f.Policy == nil {
		role, err := tx.Role(ask.Role)
		if errors.Is(err, identity.ErrNone) {
			return nil
		}
		f.Role = &role
		return err
	}
	f.Role = f.Policy.Role(ask.Role)
	if !f.Policy.CountsRow() {
		return nil
	}
	past, err := tx.Outcomes(ask.Requester, ask.Role, f.Now, policy.MaxInARow)
	for _, out := range past {
		if out == request.OutDenied {
			break
		}
		f.InARow++
	}
	return err
}

// factsOf are the facts of a revision that waits: people, hosts and policy as they are now, the moment
// and what was checked as they were when it was asked for.
func (s *Service) factsOf(tx Tx, r *request.Request, rev *request.Revision) (policy.Facts, error) {
	f, err := s.facts(tx, askOf(r, rev), rev.Created)
	if err != nil {
		return f, err
	}
	f.Asked = true
	if kept, ok := policy.Kept(rev.Facts); ok {
		f.Requester.Claims, f.Requester.SignedIn = kept.Facts.Requester.Claims, kept.Facts.Requester.SignedIn
		f.Tickets = kept.Facts.Tickets
	}
	return f, nil
}

// askOf is what a revision asked for.
func askOf(r *request.Request, rev *request.Revision) request.Ask {
	if kept, ok := policy.Kept(rev.Facts); ok {
		return kept.Ask
	}
	return request.Ask{ // of a request that is older than policy files
		Requester: r.Requester, Role: r.Role, Hosts: hostNames(r), Duration: rev.Duration,
		Reason: rev.Reason,
	}
}

// mayRevoke says whether somebody may end a request: an admin, whoever could approve it, and an
// approver of its role, which is the only way to one that nobody had to approve.
func (s *Service) mayRevoke(tx Tx, user identity.User, r *request.Request) (bool, error) {
	if user.Disabled || user.Auditor || user.Kind == identity.KindWorkload {
		return false, nil
	}
	requester, err := tx.User(r.Requester)
	if err != nil {
		return false, err
	}
	if user.Admin || len(approval.Counts(user, r.Newest(), requester.Manager)) > 0 {
		return true, nil
	}
	inForce, err := s.c.Directory.Policy(tx)
	if err != nil || inForce == nil {
		return false, err
	}
	return slices.ContainsFunc(inForce.ApproversOf(r.Role), func(g string) bool {
		return slices.Contains(user.Groups, g) || g == grant.GroupManager && requester.Manager == user.Name
	}), nil
}

func hostsOf(a request.Ask, f policy.Facts) []request.Host {
	out := make([]request.Host, 0, len(a.Hosts))
	for _, name := range a.Hosts {
		out = append(out, request.Host{ID: f.Hosts[name].ID, Name: name})
	}
	return out
}

func refusal(v policy.Verdict) error {
	var e *reason.Error
	switch v.Fault {
	case policy.BadAsk:
		e = reason.Invalid("%s", v.Text)
	case policy.Unknown:
		e = reason.NotFound("%s", v.Text)
	case policy.NotYet:
		e = reason.Conflict("%s", v.Text)
	default:
		e = reason.Denied("%s", v.Text)
	}
	e.Hint = v.Hint
	return e
}
