package api

import (
	"context"
	"slices"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var states = map[request.State]apiv1.RequestState{
	request.Pending:   apiv1.RequestState_REQUEST_STATE_PENDING,
	request.Approved:  apiv1.RequestState_REQUEST_STATE_APPROVED,
	request.Denied:    apiv1.RequestState_REQUEST_STATE_DENIED,
	request.Withdrawn: apiv1.RequestState_REQUEST_STATE_WITHDRAWN,
	request.Lapsed:    apiv1.RequestState_REQUEST_STATE_LAPSED,
	request.Granted:   apiv1.RequestState_REQUEST_STATE_GRANTED,
	request.Ended:     apiv1.RequestState_REQUEST_STATE_ENDED,
}

// request is a request with its grants and, while it is granted, the sessions that run under it. The
// terms are the newest revision's: what an approver would sign.
func (s *Server) request(ctx context.Context, r *request.Request) (*apiv1.Request, error) {
	rev := r.Newest()
	shown := rev
	if live := r.Live(); live != nil {
		shown = live
	}
	out := &apiv1.Request{
		Id: r.ID, Requester: r.Requester, Role: r.Role, DurationMs: shown.Duration.Milliseconds(),
		Reason: r.Revisions[0].Reason, State: states[r.State], CreatedMs: msOf(r.Created()),
		LapsesMs: msOf(rev.Lapses), Terms: rev.Terms, Revision: rev.Number,
		Verdict: access.Verdict(r), EndCause: r.Cause, EndedBy: r.EndedBy,
		ExtensionPending: r.Extending(), RootEquivalent: r.RootEquivalent,
	}
	if r.Extending() {
		out.Reason = rev.Reason
	}
	decidedBy(out, rev)
	ids := make([]grant.HostID, 0, len(r.Hosts))
	for _, h := range r.Hosts {
		out.Hosts = append(out.Hosts, h.Name)
		ids = append(ids, h.ID)
	}
	for _, v := range r.Revisions {
		for _, d := range v.Decisions {
			out.Decisions = append(out.Decisions, &apiv1.Decision{
				Approver: d.Approver, Approved: d.Approved && !d.Void, Reason: d.Reason,
				AtMs: msOf(d.At), Revision: d.Revision,
			})
		}
	}
	if v := r.Review; v != nil {
		out.ReviewDue = r.ReviewDue()
		if !out.GetReviewDue() {
			out.Review = &apiv1.Review{
				Reviewer: v.By, Justified: v.Justified, Comment: v.Comment, AtMs: msOf(v.At),
			}
		}
	}
	if r.InForce == 0 {
		return out, nil
	}
	grants, err := s.c.Access.Grants(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		out.Grants = append(out.Grants, grantOut(g))
	}
	if r.State == request.Granted {
		for _, session := range s.c.Hub.Sessions(r.ID, ids...) {
			out.Sessions = append(out.Sessions, session.Session)
		}
	}
	return out, nil
}

// decidedBy says what the policy demanded of a revision, and by which rule.
func decidedBy(out *apiv1.Request, rev *request.Revision) {
	out.Rule, out.PolicyHash, out.StandingRule = rev.Rule, rev.PolicyHash, rev.Standing
	for _, n := range rev.Needs {
		out.Needs = append(out.Needs, &curfewv1.Need{Group: n.Group, Approvals: n.Approvals})
	}
	terms, err := grant.ParseTerms(rev.Terms)
	if err != nil {
		return // the terms are shown as they are
	}
	out.Emergency, out.SingleUse, out.Windows = terms.GetEmergency(), terms.GetSingleUse(), terms.GetWindows()
	out.FirstUse = terms.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE
	out.StartEarliestMs = terms.GetStartEarliestMs()
}

func grantOut(g access.Grant) *apiv1.HostGrant {
	ended := g.HostEnded
	never := g.Confirmed.IsZero() || g.Status == curfewv1.GrantStatus_GRANT_STATUS_REJECTED
	if ended.IsZero() && !g.Live && never {
		ended = g.EndedAt // the host never opened it, so it tells of no end
	}
	return &apiv1.HostGrant{
		GrantId: g.ID[:], HostId: g.Host[:], HostName: g.HostName, Status: g.Status, Detail: g.Detail,
		ConfirmedMs: msOf(g.Confirmed), StartMs: msOf(g.Start), EndMs: msOf(g.End),
		EndedMs: msOf(ended), EndCause: g.Cause, EndedBy: g.EndedBy, Revision: g.Revision,
	}
}

func (s *Server) host(h access.Host) *apiv1.Host {
	out := &apiv1.Host{
		Id: h.ID[:], Name: h.Name, Address: h.Address, Labels: h.Labels, SshHostKeys: h.SSHHostKeys,
		LastSeenMs: msOf(h.LastSeen), Mode: h.Mode, AgentVersion: h.AgentVersion, Refused: h.Refused,
		Epoch: h.Epoch, Sequence: h.Sequence, CertificateExpiresMs: msOf(h.CertificateEnds),
		LiveGrants: h.LiveGrants,
	}
	health, known := s.c.Hub.Health(h.ID)
	if !known {
		out.Problems = h.Alarms(0)
		return out
	}
	out.Connected, out.Problems = health.Connected, append(h.Alarms(health.Codes.Open), health.Problems...)
	if health.LastSeen.After(h.LastSeen) {
		out.LastSeenMs = msOf(health.LastSeen)
	}
	if health.Mode != "" {
		out.Mode = health.Mode
	}
	if health.AgentVersion != "" {
		out.AgentVersion = health.AgentVersion
	}
	return out
}

func userOut(u identity.User) *apiv1.User {
	return &apiv1.User{
		Name: u.Name, Uid: u.UID, Admin: u.Admin, Disabled: u.Disabled, SshKeys: u.SSHKeys,
		Groups: u.Groups, Email: &u.Email, Manager: &u.Manager, Auditor: u.Auditor,
		VerifyRequired: &u.VerifyRequired,
		Kind:           string(u.Kind), Source: string(u.Source), DisabledBy: string(u.DisabledBy),
	}
}

func groupOut(g identity.Group) *apiv1.Group {
	return &apiv1.Group{Name: g.Name, Members: g.Members, Source: string(g.Source)}
}

func roleOut(r *policy.Role) *apiv1.Role {
	return &apiv1.Role{
		Name: r.Name, Description: r.Description, AllowLogin: r.AllowLogin, SudoRules: r.Rules(),
		Groups: r.Groups, MaxDurationMs: r.MaxDuration.Milliseconds(), ApproverGroup: r.ApproverGroup,
		Approvals: r.Approvals, RequesterGroups: r.RequesterGroups, HostLabels: r.HostLabels,
		RootEquivalent: r.RootEquivalent(),
	}
}

func roleIn(r *apiv1.Role) policy.Role {
	out := policy.Role{
		Name: r.GetName(), Description: r.GetDescription(), AllowLogin: r.GetAllowLogin(),
		Groups: slices.Clone(r.GetGroups()), MaxDuration: durationOf(r.GetMaxDurationMs()),
		ApproverGroup: r.GetApproverGroup(), Approvals: r.GetApprovals(),
		RequesterGroups: slices.Clone(r.GetRequesterGroups()), HostLabels: r.GetHostLabels(),
	}
	for _, rule := range r.GetSudoRules() {
		out.SudoRules = append(out.SudoRules, policy.SudoRule{
			RunAs: rule.GetRunAs(), All: rule.GetAll(), Command: rule.GetCommand(), Args: rule.GetArgs(),
			AnyArgs: rule.GetAnyArgs(), Contained: rule.GetContained(),
		})
	}
	return out
}

// recheckEvery is how often a long call looks whether its session still stands.
const recheckEvery = 15 * time.Second
