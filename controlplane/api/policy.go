package api

import (
	"context"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// ApplyPolicy implements curfew.api.v1.Policy.
func (s *Server) ApplyPolicy(
	ctx context.Context, req *apiv1.ApplyPolicyRequest,
) (*apiv1.ApplyPolicyResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	if len(req.GetText()) > policy.MaxFile {
		return nil, reason.Limit("the policy has %d bytes; at most %d", len(req.GetText()), policy.MaxFile)
	}
	if len(req.GetFile()) > 256 {
		return nil, reason.Limit("the name of the file has %d bytes; at most 256", len(req.GetFile()))
	}
	v, err := s.c.Identity.ApplyPolicy(ctx, p.Name, identity.Apply{
		File: req.GetFile(), Text: req.GetText(), DryRun: req.GetDryRun(), Replaces: req.GetReplaces(),
	})
	if err != nil {
		return nil, err
	}
	return &apiv1.ApplyPolicyResponse{
		Version: policyOut(v), Warnings: v.Warnings, TrustWaits: v.TrustWaits,
	}, nil
}

// ClearPolicy implements curfew.api.v1.Policy.
func (s *Server) ClearPolicy(
	ctx context.Context, req *apiv1.ClearPolicyRequest,
) (*apiv1.ClearPolicyResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.c.Identity.ClearPolicy(ctx, p.Name, req.GetReplaces())
	if err != nil {
		return nil, err
	}
	return &apiv1.ClearPolicyResponse{
		Version: policyOut(v), Warnings: v.Warnings, TrustWaits: v.TrustWaits,
	}, nil
}

// GetPolicy implements curfew.api.v1.Policy.
func (s *Server) GetPolicy(
	ctx context.Context, req *apiv1.GetPolicyRequest,
) (*apiv1.GetPolicyResponse, error) {
	v, text, err := s.c.Identity.PolicyText(ctx, req.GetHash())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetPolicyResponse{Version: policyOut(v), Text: text}, nil
}

// ListPolicies implements curfew.api.v1.Policy.
func (s *Server) ListPolicies(
	ctx context.Context, _ *apiv1.ListPoliciesRequest,
) (*apiv1.ListPoliciesResponse, error) {
	versions, err := s.c.Identity.Policies(ctx)
	resp := &apiv1.ListPoliciesResponse{}
	for _, v := range versions {
		resp.Versions = append(resp.Versions, policyOut(v))
	}
	return resp, err
}

// ExplainRequest implements curfew.api.v1.Policy.
func (s *Server) ExplainRequest(
	ctx context.Context, req *apiv1.ExplainRequestRequest,
) (*apiv1.ExplainRequestResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	then, now, err := s.c.Access.Explain(ctx, p, req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.ExplainRequestResponse{
		Steps: then.Steps, Verdict: then.Verdict, StepsNow: now.Steps, VerdictNow: now.Verdict,
	}, nil
}

// ReplayPolicy implements curfew.api.v1.Policy.
func (s *Server) ReplayPolicy(
	ctx context.Context, req *apiv1.ReplayPolicyRequest,
) (*apiv1.ReplayPolicyResponse, error) {
	if len(req.GetText()) > policy.MaxFile {
		return nil, reason.Limit("the policy has %d bytes; at most %d", len(req.GetText()), policy.MaxFile)
	}
	n, differences, err := s.c.Access.Replay(ctx, req.GetText(), timeOf(req.GetSinceMs()))
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ReplayPolicyResponse{Replayed: uint32(n)}
	for _, d := range differences {
		resp.Differences = append(resp.Differences, &apiv1.ReplayDifference{
			RequestId: d.Request, Requester: d.Requester, Role: d.Role, Was: d.Was, WouldBe: d.WouldBe,
		})
	}
	return resp, nil
}

func policyOut(v identity.PolicyVersion) *apiv1.PolicyVersion {
	out := &apiv1.PolicyVersion{
		Number: v.Number, AppliedBy: v.AppliedBy, AppliedMs: msOf(v.Applied), Roles: v.Roles,
		Rules: v.Rules,
	}
	if v.File != "" {
		out.Hash = v.Hash[:]
	}
	return out
}
