package issue

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Accepted is a request that policy let through, as plain facts: what BuildTerms turns into the
// bytes that approvers sign.
type Accepted struct {
	Organisation, RequestID string
	// Revision counts from 1.
	Revision uint32
	// Requester is the user; Login and UID are theirs on the hosts.
	Requester, Login string
	UID              uint32
	// Hosts in any order, none twice.
	Hosts      []HostName
	Role       string
	AllowLogin bool
	Groups     []string
	SudoRules  []*curfewv1.SudoRule
	// SSHKeys are the user's, canonical: "type base64".
	SSHKeys []string
	// Duration is the whole window, for an extension too.
	Duration time.Duration
	Reason   string
	// Approvals of people of ApproverGroup are needed.
	Approvals     uint32
	ApproverGroup string
	// PolicyHash is the SHA-256 of the policy that decided.
	PolicyHash [32]byte
	// StartEarliest is now; StartLatest is the last moment at which a host may still confirm.
	StartEarliest, StartLatest time.Time
	// Follows are the terms that these extend; nil for a first revision.
	Follows []byte
}

// HostName is a host by id and by the name that people see.
type HostName struct {
	ID   grant.HostID
	Name string
}

// BuildTerms returns the exact bytes that approvers sign and hosts enforce. The hard end is the
// latest start plus the duration, which for an extension is the whole new one. The error says which
// field is out of bounds.
func BuildTerms(a Accepted) ([]byte, error) {
	hosts := make([]*curfewv1.HostRef, 0, len(a.Hosts))
	for _, h := range a.Hosts {
		hosts = append(hosts, &curfewv1.HostRef{Id: bytes.Clone(h.ID[:]), Name: h.Name})
	}
	slices.SortFunc(hosts, func(x, y *curfewv1.HostRef) int { return bytes.Compare(x.Id, y.Id) })
	groups := slices.Clone(a.Groups)
	slices.Sort(groups)
	t := &curfewv1.Terms{
		Version: grant.Version, Organisation: a.Organisation, RequestId: a.RequestID,
		Revision: a.Revision, Requester: a.Requester, Hosts: hosts, Role: a.Role, Login: a.Login,
		Uid: a.UID, AllowLogin: a.AllowLogin, Groups: groups, SudoRules: a.SudoRules,
		AuthorizedKeys:  slices.Clone(a.SSHKeys),
		StartMode:       curfewv1.StartMode_START_MODE_CONFIRMATION,
		StartEarliestMs: a.StartEarliest.UnixMilli(), StartLatestMs: a.StartLatest.UnixMilli(),
		DurationMs: a.Duration.Milliseconds(), HardEndMs: a.StartLatest.Add(a.Duration).UnixMilli(),
		ApprovalsNeeded: a.Approvals, ApproverGroup: a.ApproverGroup, PolicyHash: a.PolicyHash[:],
		ReasonHash: grant.ReasonHash(a.Reason), RootEquivalent: grant.RootEquivalent(a.SudoRules),
	}
	if len(a.Follows) > 0 {
		digest := grant.TermsDigest(a.Follows)
		t.Follows = digest[:]
	}
	raw, err := grant.MarshalTerms(t)
	if err != nil {
		return nil, fmt.Errorf("building the terms of request %s: %w", a.RequestID, err)
	}
	return raw, nil
}
