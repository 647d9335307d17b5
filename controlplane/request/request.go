package request

import (
	"fmt"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Ask is what a person types: access to hosts in a role, for a duration, with a reason.
type Ask struct {
	Requester string
	Role      string
	Hosts     []string // names
	Duration  time.Duration
	Reason    string
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
)

// Decision is one approver's word over one revision.
type Decision struct {
	Approver string
	Approved bool
	Reason   string // of a denial
	At       time.Time
	Revision uint32
	SSHSig   []byte // of an approval
	// Void is set when the approval stopped counting: the approver left the group, or lost the key.
	Void bool
}

// Revision is one version of a request's terms. Number 1 is the request itself, later ones are
// extensions.
type Revision struct {
	Number    uint32
	Terms     []byte // the exact bytes that approvers sign
	Duration  time.Duration
	Reason    string
	Created   time.Time
	Lapses    time.Time
	Needed    uint32 // approvals
	Group     string // whose
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
