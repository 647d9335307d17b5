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

// MayDecide says whether a person may approve or deny a revision: enabled, in a group that it needs or
// the requester's manager where it needs that one, and not the one who asked.
func MayDecide(p identity.User, r *request.Request, rev *request.Revision, manager string) error {
	switch {
	case p.Disabled:
		return reason.Denied("user %s is disabled", p.Name)
	case p.Auditor || p.Kind == identity.KindWorkload:
		return reason.Denied("%s decides nothing: it is an auditor or a workload", p.Name)
	case p.Name == r.Requester:
		return reason.Denied("nobody decides on their own request").
			WithHint("ask somebody else: it needs %s", grant.NeedsText(rev.Needs))
	case len(Counts(p, rev, manager)) == 0:
		return reason.Denied("request %s needs %s, and %s is not among them", r.ID,
			grant.NeedsText(rev.Needs), p.Name)
	}
	return nil
}

// Counts are the groups of a revision's needs for which a person counts; manager is the requester's.
func Counts(p identity.User, rev *request.Revision, manager string) []string {
	var groups []string
	for _, n := range rev.Needs {
		if n.Group == grant.GroupManager && p.Name == manager || slices.Contains(p.Groups, n.Group) {
			groups = append(groups, n.Group)
		}
	}
	return groups
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
	hosts, err := grant.HostsOf(terms)
	if err != nil {
		return 0, false, err
	}
	return len(valid), grant.CheckQuorum(t, terms, rev.Terms, hosts, valid) == nil, nil
}
