package cli

import (
	"bytes"
	"context"
	"crypto/sha256"

	"github.com/curfew-access/curfew/controlplane/policy"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func (f *fake) version(i int) *apiv1.PolicyVersion {
	hash := sha256.Sum256(f.policies[i])
	return &apiv1.PolicyVersion{
		Number: uint64(i + 1), Hash: hash[:], AppliedBy: "dana", AppliedMs: 1_800_000_000_000, Roles: 1, Rules: 2,
	}
}

func (f *fake) ApplyPolicy(
	ctx context.Context, in *apiv1.ApplyPolicyRequest,
) (*apiv1.ApplyPolicyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	if _, err := policy.Parse(in.GetFile(), in.GetText()); err != nil {
		return nil, refuse(apiv1.Code_CODE_INVALID, "%v", err)
	}
	if n := len(f.policies); len(in.GetReplaces()) > 0 &&
		(n == 0 || !bytes.Equal(in.GetReplaces(), f.version(n-1).GetHash())) {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "another policy is in force")
	}
	if in.GetDryRun() {
		return &apiv1.ApplyPolicyResponse{Version: &apiv1.PolicyVersion{Roles: 1, Rules: 2}}, nil
	}
	f.policies = append(f.policies, in.GetText())
	return &apiv1.ApplyPolicyResponse{
		Version: f.version(len(f.policies) - 1), Warnings: []string{"there is no group dev yet"}, TrustWaits: true,
	}, nil
}

func (f *fake) ClearPolicy(
	ctx context.Context, in *apiv1.ClearPolicyRequest,
) (*apiv1.ClearPolicyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	if len(f.policies) == 0 {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "no policy file is in force: the directory's roles are")
	}
	if len(in.GetReplaces()) > 0 && !bytes.Equal(in.GetReplaces(), f.version(len(f.policies)-1).GetHash()) {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "another policy is in force")
	}
	f.policies = nil
	return &apiv1.ClearPolicyResponse{
		Version: &apiv1.PolicyVersion{Number: 9}, Warnings: []string{"the directory has no role"}, TrustWaits: true,
	}, nil
}

func (f *fake) GetPolicy(
	_ context.Context, in *apiv1.GetPolicyRequest,
) (*apiv1.GetPolicyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.policies) - 1; i >= 0; i-- {
		if v := f.version(i); len(in.GetHash()) == 0 || bytes.Equal(v.GetHash(), in.GetHash()) {
			return &apiv1.GetPolicyResponse{Version: v, Text: f.policies[i]}, nil
		}
	}
	if len(in.GetHash()) > 0 {
		return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "no such policy")
	}
	return &apiv1.GetPolicyResponse{Version: &apiv1.PolicyVersion{}}, nil
}

func (f *fake) ListPolicies(
	context.Context, *apiv1.ListPoliciesRequest,
) (*apiv1.ListPoliciesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &apiv1.ListPoliciesResponse{}
	for i := len(f.policies) - 1; i >= 0; i-- {
		answer.Versions = append(answer.Versions, f.version(i))
	}
	return answer, nil
}

func (f *fake) ExplainRequest(
	_ context.Context, in *apiv1.ExplainRequestRequest,
) (*apiv1.ExplainRequestResponse, error) {
	return &apiv1.ExplainRequestResponse{
		Steps:   []string{"test (line 9): no: host " + in.GetId() + "\x1b[2J", "prod (line 14): decides: deny"},
		Verdict: "needs 1 approval of group sre (rule prod, line 14)", VerdictNow: "denied",
	}, nil
}

func (f *fake) ReplayPolicy(
	_ context.Context, in *apiv1.ReplayPolicyRequest,
) (*apiv1.ReplayPolicyResponse, error) {
	return &apiv1.ReplayPolicyResponse{Replayed: 12, Differences: []*apiv1.ReplayDifference{{
		RequestId: "0123456789ab", Requester: "alice", Role: "ops", Was: "auto", WouldBe: "deny: no",
	}}}, nil
}
