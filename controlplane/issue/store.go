package issue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Refusals of a Store that this package tells apart.
var (
	// ErrNotApproved means that the request's newest revision does not wait for its grants:
	// still pending, edited since, denied, ended.
	ErrNotApproved = errors.New("request is not approved")
	// ErrIssued means that the grants of this revision exist already.
	ErrIssued = errors.New("grants are issued already")
	// ErrTooManyLive means that a host would hold more than grant.MaxLive grants.
	ErrTooManyLive = errors.New("host has too many live grants")
	// ErrNoHost means that no served host has this id.
	ErrNoHost = errors.New("unknown host")
)

// Approved is a request's newest revision, ready to be granted.
type Approved struct {
	RequestID string
	Revision  uint32
	// Terms are the exact bytes that the approvers signed.
	Terms     []byte
	Approvals []*curfewv1.Approval
	// Follows are the terms of the revision that this one extends; nil for a first revision.
	Follows []byte
	// Issued is true when the grants of this revision exist already.
	Issued bool
}

// Of is what waits for its grants in a request, or has them already. ErrNotApproved for any other.
func Of(r *request.Request) (Approved, error) {
	rev := r.Unissued()
	issued := rev == nil && r.State == request.Granted && r.Waiting() == nil
	if issued {
		rev = r.Live()
	}
	if rev == nil {
		return Approved{}, fmt.Errorf("request %s is %s: %w", r.ID, r.State, ErrNotApproved)
	}
	a := Approved{RequestID: r.ID, Revision: rev.Number, Terms: rev.Terms, Issued: issued}
	for _, d := range rev.Decisions {
		if d.Approved && !d.Void {
			a.Approvals = append(a.Approvals, &curfewv1.Approval{Approver: d.Approver, Sshsig: d.SSHSig})
		}
	}
	if live := r.Live(); live != nil && live.Number != rev.Number {
		a.Follows = live.Terms
	}
	return a, nil
}

// SealedGrant is one host's grant at rest.
type SealedGrant struct {
	ID        grant.ID
	Host      grant.HostID
	RequestID string
	Revision  uint32
	Envelope  []byte
	HardEnd   time.Time
	// Window is which of the terms' windows it is for, from 1; 0 when they have one only.
	Window uint32
	// Release is when it may first start: states list it from then on.
	Release time.Time
	// Extends is the grant of the same request and host that this one replaces; zero for none.
	Extends grant.ID
}

// Ended is a grant that left the live set.
type Ended struct {
	ID    grant.ID
	Cause curfewv1.EndCause
	// By is who ended it; empty for an expiry.
	By string
	// HardEnd is until when its terms could open it.
	HardEnd time.Time
}

// StateFacts is what a host state says, read in the transaction that allocated its sequence.
type StateFacts struct {
	// Epoch is the newest trust version's.
	Epoch, Sequence uint64
	// TrustVersion is that version.
	TrustVersion uint64
	// Live are the host's grants that are issued and released, not ended and not past their end: the
	// end the host confirmed, else the hard end. In any order.
	Live []grant.ID
	// Ended are the newest of those that ended, at most as many as asked for. In any order.
	Ended []Ended
	// TrailCount is the number of trail records.
	TrailCount uint64
	// Rollout is what a staged rollout wants of the host; nil for nothing.
	Rollout *curfewv1.Rollout
	// Last: the host was removed. Nothing is live, and no state follows that lists anything.
	Last bool
}

// Store persists what the Issuer makes. Implementations are safe for concurrent use, by several
// control planes too.
type Store interface {
	// ApprovedRequest returns the newest revision of a request; ErrNotApproved unless that revision
	// is approved or granted.
	ApprovedRequest(ctx context.Context, requestID string) (Approved, error)

	// PutGrants does, in ONE transaction, if and only if the request's newest revision is still
	// this one and approved (ErrNotApproved; ErrIssued when its grants exist): insert the grants,
	// move the request to granted at the record's time, append the record. What a grant extends is NOT ended here: both
	// are live until the host says that it swapped them (its grant.ended event,
	// END_CAUSE_EXTENDED), so that a host which refuses the extension keeps the window that it
	// had. Revoking or handing back a request ends all of its grants. ErrTooManyLive when a host
	// would exceed grant.MaxLive.
	PutGrants(ctx context.Context, requestID string, revision uint32, grants []SealedGrant,
		record trail.Record) error

	// NextState allocates the host's next sequence, durably, and reads the facts in the same
	// transaction, after the allocation: whoever holds the greater sequence has read later. The
	// sequence is never returned twice, whatever crashes. ErrNoHost.
	NextState(
		ctx context.Context, host grant.HostID, now time.Time, maxEnded int,
	) (StateFacts, error)

	// TrailHashes reads the trail's stored tree hashes, at least those of the TrailCount that the
	// newest NextState returned.
	TrailHashes(ctx context.Context) tlog.HashReader
}
