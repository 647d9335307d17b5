// Package approval says who may approve and whether an approval holds.
//
// It checks the same signatures over the same bytes as hosts do, against the trust file in force, so
// that nothing is granted that a host would refuse. It stores nothing. Data comes from package
// access; what it accepts goes to the hosts inside the grant.
package approval

import (
	"slices"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// MayDecide says whether a person may approve or deny a revision: enabled, in the approver group, and
// not the one who asked.
func MayDecide(p identity.User, r *request.Request, rev *request.Revision) error {
	switch {
	case p.Disabled:
		return reason.Denied("user %s is disabled", p.Name)
	case p.Name == r.Requester:
		return reason.Denied("nobody decides on their own request").
			WithHint("ask somebody else of group %s", rev.Group)
	case !slices.Contains(p.Groups, rev.Group):
		return reason.Denied("request %s is decided by group %s, and %s is not in it",
			r.ID, rev.Group, p.Name)
	}
	return nil
}

// Verify checks one approval over the exact terms of a revision, as hosts will.
func Verify(t *grant.Trust, rev *request.Revision, approver string, sig []byte) error {
	terms, err := grant.ParseTerms(rev.Terms)
	if err != nil {
		return err
	}
	if t.Approver(approver) == nil {
		return reason.Conflict("%s is not an approver in the trust file in force (version %d)",
			approver, t.Version).
			WithHint("an admin completes a waiting one with: curfew-controlplane trust sign")
	}
	err = grant.VerifyApproval(t, terms, rev.Terms,
		&curfewv1.Approval{Approver: approver, Sshsig: sig})
	if err != nil {
		return reason.Denied("the approval does not hold: %v", err).
			WithHint("look at the request again and sign what it shows")
	}
	return nil
}

// Count marks the approvals of a revision that hold no longer as void and says how many distinct
// people's hold, and whether they make the quorum that hosts will demand.
func Count(t *grant.Trust, rev *request.Revision) (held int, enough bool, err error) {
	terms, err := grant.ParseTerms(rev.Terms)
	if err != nil {
		return 0, false, err
	}
	var valid []*curfewv1.Approval
	for i := range rev.Decisions {
		d := &rev.Decisions[i]
		if !d.Approved || d.Void {
			continue
		}
		a := &curfewv1.Approval{Approver: d.Approver, Sshsig: d.SSHSig}
		if grant.VerifyApproval(t, terms, rev.Terms, a) != nil {
			d.Void = true
			continue
		}
		valid = append(valid, a)
	}
	return len(valid), grant.CheckQuorum(t, terms, rev.Terms, valid) == nil, nil
}
