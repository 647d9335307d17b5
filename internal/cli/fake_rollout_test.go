package cli

import (
	"context"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// fakeRollouts are what was started, with hosts that are in as many states.
type fakeRollouts struct {
	apiv1.UnimplementedRolloutsServer
	f   *fake
	all []*apiv1.Rollout
}

func (r *fakeRollouts) StartRollout(
	_ context.Context, in *apiv1.StartRolloutRequest,
) (*apiv1.StartRolloutResponse, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	out := &apiv1.Rollout{
		Id: "rollout00001", Name: in.GetName(), State: apiv1.RolloutState_ROLLOUT_STATE_RUNNING,
		Stages: in.GetStages(), SoakMs: in.GetSoakMs(), MaxRefusals: in.GetMaxRefusals(),
		PauseOnRefusals: in.GetPauseOnRefusals(), StartedBy: "dana", StartedMs: 1_800_000_000_000,
		StageSinceMs: 1_800_000_000_000, Next: "1 hosts look themselves over",
	}
	out.GetStages()[0].Hosts = []*apiv1.RolloutHost{
		{
			Name: "web1", State: apiv1.RolloutHostState_ROLLOUT_HOST_STATE_TRIAL, Connected: true, Follows: true,
			Mode: "enforce, on trial", Refused: 2, WouldRefuse: 1, SinceMs: 1_800_000_000_000,
		},
		{
			Name: "web2", State: apiv1.RolloutHostState_ROLLOUT_HOST_STATE_REFUSED, Connected: true, Follows: true,
			Mode: "observe", Detail: "PAM, account of sshd: \x1b[2J", SinceMs: 1_800_000_000_000,
		},
		{Name: "web3", State: apiv1.RolloutHostState_ROLLOUT_HOST_STATE_WAITING},
		{Name: "web4", State: apiv1.RolloutHostState_ROLLOUT_HOST_STATE_WAITING, Connected: true, Mode: "observe"},
	}
	r.all = append(r.all, out)
	return &apiv1.StartRolloutResponse{Rollout: out}, nil
}

func (r *fakeRollouts) named(name string) (*apiv1.Rollout, error) {
	for _, one := range r.all {
		if one.GetName() == name {
			return one, nil
		}
	}
	return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "there is no rollout %s", name)
}

func (r *fakeRollouts) GetRollout(
	_ context.Context, in *apiv1.GetRolloutRequest,
) (*apiv1.GetRolloutResponse, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	one, err := r.named(in.GetName())
	return &apiv1.GetRolloutResponse{Rollout: one}, err
}

func (r *fakeRollouts) ListRollouts(
	context.Context, *apiv1.ListRolloutsRequest,
) (*apiv1.ListRolloutsResponse, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return &apiv1.ListRolloutsResponse{Rollouts: r.all}, nil
}

func (r *fakeRollouts) SteerRollout(
	_ context.Context, in *apiv1.SteerRolloutRequest,
) (*apiv1.SteerRolloutResponse, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	one, err := r.named(in.GetName())
	if err == nil {
		one.State, one.Reason = in.GetTo(), in.GetReason()
	}
	return &apiv1.SteerRolloutResponse{Rollout: one}, err
}
