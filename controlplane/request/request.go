package request

import (
	"fmt"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Ask is what a person types: access to hosts in a role, for a duration, with a reason. Its JSON is kept
// with each revision, so that old decisions can be explained.
type Ask struct {
	Requester string        `json:"requester"`
	Role      string        `json:"role"`
	Hosts     []string      `json:"hosts"` // names
	Duration  time.Duration `json:"duration_ns,omitempty"`
	Reason    string        `json:"reason"`
	// Start is when it may begin; zero: at once.
	Start time.Time `json:"start,omitzero"`
	// Selector are labels of hosts that are meant beside those named; Hosts holds them once resolved.
	Selector map[string]string `json:"selector,omitempty"`
	// Windows are used instead of Start and Duration.
	Windows   []Span `json:"windows,omitempty"`
	SingleUse bool   `json:"single_use,omitempty"`
	Emergency bool   `json:"emergency,omitempty"`
	// Ticket of another system; empty for none.
	Ticket string `json:"ticket,omitempty"`
	// Extends says that this prolongs what was granted; Duration is the whole new one.
	Extends bool `json:"extends,omitempty"`
}

// Span is one of several windows.
type Span struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// Longest is how long the longest window lasts.
func (a *Ask) Longest() time.Duration {
	d := a.Duration
	for _, w := range a.Windows {
		d = max(d, w.End.Sub(w.Start))
	}
	return d
}

// Starts are the moments at which a window would open; of an ask for at once, now.
func (a *Ask) Starts(now time.Time) []time.Time {
	if len(a.Windows) == 0 {
		if a.Start.After(now) {
			return []time.Time{a.Start}
		}
		return []time.Time{now}
	}
	out := make([]time.Time, 0, len(a.Windows))
	for _, w := range a.Windows {
		out = append(out, w.Start)
	}
	return out
}

// Host is one host of a request: the id counts, the name is for people.
type Host struct {
	ID   grant.HostID
	Name string
}

// Outcome is what became of one revision.
type Outcome uint8

// The outcomes. Values are stored: never renumber.
const (
	Open        Outcome = 1 // waits for decisions
	OutGranted  Outcome = 2
	OutDenied   Outcome = 3
	OutWithdraw Outcome = 4
	OutLapsed   Outcome = 5
	OutVoid     Outcome = 6 // the request ended before the extension was decided
	OutApproved Outcome = 7 // decided; the grants are not sealed yet
	OutEdited   Outcome = 8 // the requester changed it before it was decided
)

// Decision is one approver's word over one revision.
type Decision struct {
	Approver string
	Approved bool
	Reason   string // of a denial
	At       time.Time
	Revision uint32
	SSHSig   []byte // of an approval
	// Counts are the groups of the revision's needs for which the approver counted, "manager"
	// included. It is for words: whether approvals suffice is worked out from the trust file.
	Counts []string
	// Void is set when the approval stopped counting: the approver left the group, or lost the key.
	Void bool
}

// Revision is one version of a request's terms. Number 1 is the request itself; later ones are edits
// while nothing was granted, and extensions from then on.
type Revision struct {
	Number   uint32
	Terms    []byte // the exact bytes that approvers sign
	Duration time.Duration
	Reason   string
	Created  time.Time
	Lapses   time.Time
	// Needs are the approvals that the terms need; none when Standing opens them.
	Needs []grant.Need
	// Standing is the standing rule that opened it without approvals; empty for none.
	Standing string
	// Rule is the policy's rule that decided, with its line; PolicyHash the policy.
	Rule       string
	PolicyHash []byte
	// Facts are what the decision rested on, as package policy keeps them.
	Facts     []byte
	Outcome   Outcome
	Decisions []Decision
}

// Request is a person's request with its revisions, oldest first; there is at least one.
type Request struct {
	ID             string
	Requester      string
	Role           string
	Hosts          []Host
	State          State
	RootEquivalent bool
	Revisions      []Revision
	// InForce is the number of the revision whose grants are live; 0 before the first.
	InForce uint32
	// Cause, EndedBy and EndedAt are set when the request ends.
	Cause   curfewv1.EndCause
	EndedBy string
	EndedAt time.Time
	// Changed is the time of the newest change.
	Changed time.Time
	// Review is what became of an emergency request afterwards; nil when there is nothing to review.
	Review *Review
}

// Review is somebody's look at an emergency request after the fact. It is due while By is empty.
type Review struct {
	By        string
	Justified bool
	Comment   string
	At        time.Time
	// Reminded is when approvers were last told that it is due.
	Reminded time.Time
}

// ReviewDue says whether an emergency request waits for its review.
func (r *Request) ReviewDue() bool { return r.Review != nil && r.Review.By == "" }

// Reviewed records what somebody found of an emergency request. Nobody reviews their own, and what was
// said stays.
func (r *Request) Reviewed(v Review) error {
	switch {
	case r.Review == nil:
		return fmt.Errorf("%w: it was no emergency, so there is nothing to review", ErrState)
	case !r.ReviewDue():
		return fmt.Errorf("%w: %s has reviewed it", ErrTwice, r.Review.By)
	case v.By == r.Requester:
		return fmt.Errorf("%w: nobody reviews their own request", ErrState)
	}
	v.Reminded = r.Review.Reminded
	r.Review, r.Changed = &v, v.At
	return nil
}

// Extends says whether a revision prolongs what was granted before, and is not an edit.
func (r *Request) Extends(rev *Revision) bool {
	for i := range r.Revisions {
		if r.Revisions[i].Outcome == OutGranted && r.Revisions[i].Number < rev.Number {
			return true
		}
	}
	return false
}

// New is a pending request with its first revision.
func New(id, requester, role string, hosts []Host, root bool, first Revision) *Request {
	first.Number, first.Outcome = 1, Open
	return &Request{
		ID: id, Requester: requester, Role: role, Hosts: hosts, State: Pending,
		RootEquivalent: root, Revisions: []Revision{first}, Changed: first.Created,
	}
}

// Newest is the revision that a reader sees.
func (r *Request) Newest() *Revision { return &r.Revisions[len(r.Revisions)-1] }

// Waiting is the revision that waits for decisions, or nil.
func (r *Request) Waiting() *Revision {
	if rev := r.Newest(); rev.Outcome == Open && (r.State == Pending || r.State == Granted) {
		return rev
	}
	return nil
}

// Extending says whether an extension of a granted request waits for decisions or for its grants.
func (r *Request) Extending() bool {
	out := r.Newest().Outcome
	return r.State == Granted && (out == Open || out == OutApproved)
}

// Unissued is the revision that is approved and has no grants yet, or nil.
func (r *Request) Unissued() *Revision {
	rev := r.Newest()
	if rev.Outcome == OutApproved && (r.State == Approved || r.State == Granted) {
		return rev
	}
	return nil
}

// Live is the revision whose grants are in force, or nil.
func (r *Request) Live() *Revision {
	for i := range r.Revisions {
		if r.Revisions[i].Number == r.InForce {
			return &r.Revisions[i]
		}
	}
	return nil
}

// Created is when the person asked.
func (r *Request) Created() time.Time { return r.Revisions[0].Created }

// CheckDecision says whether a decision over a revision can be taken now: the request waits, the
// revision is the newest, and the person has not decided on it yet.
func (r *Request) CheckDecision(revision uint32, approver string) error {
	rev := r.Waiting()
	if rev == nil {
		_, err := Next(r.State, r.Extending(), EventApprove)
		if err == nil {
			err = ErrState
		}
		return err
	}
	if rev.Number != revision {
		return fmt.Errorf("%w: revision %d waits, not %d", ErrStale, rev.Number, revision)
	}
	for _, d := range rev.Decisions {
		if d.Approver == approver {
			return fmt.Errorf("%w: %s has decided on this request before", ErrTwice, approver)
		}
	}
	return nil
}

// Vote adds one approval. It moves no state: whether enough people approved is for Approve's caller.
func (r *Request) Vote(d Decision) error {
	if err := r.CheckDecision(d.Revision, d.Approver); err != nil {
		return err
	}
	rev := r.Waiting()
	rev.Decisions = append(rev.Decisions, d)
	r.Changed = d.At
	return nil
}

// Approve says that the approvals of the waiting revision suffice. An extension leaves the request
// granted.
func (r *Request) Approve(at time.Time) error {
	return r.close(EventApprove, OutApproved, at)
}

// Grant says that the sealed grants of the approved revision are in force.
func (r *Request) Grant(at time.Time) error {
	rev := r.Unissued()
	if rev == nil {
		return fmt.Errorf("%w: it is %s and no approved revision waits for grants", ErrState, r.State)
	}
	if r.State == Approved {
		if err := r.move(EventGrant, at); err != nil {
			return err
		}
	}
	rev.Outcome, r.InForce, r.Changed = OutGranted, rev.Number, at
	return nil
}

// Deny records one approver's denial, which ends the revision.
func (r *Request) Deny(d Decision) error {
	if err := r.CheckDecision(d.Revision, d.Approver); err != nil {
		return err
	}
	rev := r.Waiting()
	if err := r.move(EventDeny, d.At); err != nil {
		return err
	}
	rev.Decisions = append(rev.Decisions, d)
	rev.Outcome = OutDenied
	return nil
}

// Withdraw is the requester's change of mind while nothing is decided.
func (r *Request) Withdraw(at time.Time) error {
	return r.close(EventWithdraw, OutWithdraw, at)
}

// Lapse is what becomes of a revision that nobody decided in time.
func (r *Request) Lapse(at time.Time) error { return r.close(EventLapse, OutLapsed, at) }

// Edit replaces the waiting revision of a request of which nothing is granted yet. Decisions on the
// old one are void: they were made over other terms.
func (r *Request) Edit(seen uint32, rev Revision) error {
	old := r.Waiting()
	switch {
	case old == nil || r.State != Pending:
		return fmt.Errorf("%w: it is %s; only what waits can be edited", ErrState, r.State)
	case old.Number != seen:
		return fmt.Errorf("%w: revision %d waits, not %d", ErrStale, old.Number, seen)
	}
	old.Outcome = OutEdited
	for i := range old.Decisions {
		old.Decisions[i].Void = true
	}
	rev.Number, rev.Outcome, rev.Decisions = old.Number+1, Open, nil
	r.Revisions = append(r.Revisions, rev)
	r.Changed = rev.Created
	return nil
}

// Extend adds a revision with new terms to a granted request.
func (r *Request) Extend(rev Revision) error {
	if err := r.move(EventExtend, rev.Created); err != nil {
		return err
	}
	rev.Number, rev.Outcome, rev.Decisions = r.Newest().Number+1, Open, nil
	r.Revisions = append(r.Revisions, rev)
	return nil
}

// End closes a granted request for good; an extension that still waits is void.
func (r *Request) End(cause curfewv1.EndCause, by string, at time.Time) error {
	rev := r.Waiting()
	if rev == nil {
		rev = r.Unissued()
	}
	if err := r.move(EventEnd, at); err != nil {
		return err
	}
	if rev != nil {
		rev.Outcome = OutVoid
	}
	r.Cause, r.EndedBy, r.EndedAt = cause, by, at
	return nil
}

func (r *Request) close(e Event, out Outcome, at time.Time) error {
	rev := r.Waiting()
	if rev == nil && e == EventLapse {
		rev = r.Unissued() // its grants could not be sealed in time
	}
	if rev == nil && r.Extending() {
		return fmt.Errorf("%w: its extension is approved, so it cannot %s", ErrState, passive(e))
	}
	if err := r.move(e, at); err != nil {
		return err
	}
	rev.Outcome = out
	return nil
}

// GrantEnd is what the end of one grant tells its request.
type GrantEnd struct {
	Cause curfewv1.EndCause
	By    string
}

// Settle ends a granted request whose grants are all over; last is the newest end among them. It
// reports whether it did.
func (r *Request) Settle(live int, last GrantEnd, at time.Time) (bool, error) {
	if r.State != Granted || live > 0 {
		return false, nil
	}
	return true, r.End(last.Cause, last.By, at)
}

func (r *Request) move(e Event, at time.Time) error {
	next, err := Next(r.State, r.Extending(), e)
	if err != nil {
		return err
	}
	r.State, r.Changed = next, at
	return nil
}
