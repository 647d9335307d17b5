package api

import (
	"context"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/rollout"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

var rolloutStates = map[rollout.State]apiv1.RolloutState{
	rollout.Running:    apiv1.RolloutState_ROLLOUT_STATE_RUNNING,
	rollout.Paused:     apiv1.RolloutState_ROLLOUT_STATE_PAUSED,
	rollout.RolledBack: apiv1.RolloutState_ROLLOUT_STATE_ROLLED_BACK,
	rollout.Finished:   apiv1.RolloutState_ROLLOUT_STATE_FINISHED,
}

var rolloutHostStates = map[rollout.HostState]apiv1.RolloutHostState{
	rollout.Waiting:   apiv1.RolloutHostState_ROLLOUT_HOST_STATE_WAITING,
	rollout.Checking:  apiv1.RolloutHostState_ROLLOUT_HOST_STATE_CHECKING,
	rollout.Trial:     apiv1.RolloutHostState_ROLLOUT_HOST_STATE_TRIAL,
	rollout.Kept:      apiv1.RolloutHostState_ROLLOUT_HOST_STATE_KEPT,
	rollout.Own:       apiv1.RolloutHostState_ROLLOUT_HOST_STATE_OWN,
	rollout.Refused:   apiv1.RolloutHostState_ROLLOUT_HOST_STATE_REFUSED,
	rollout.Overruled: apiv1.RolloutHostState_ROLLOUT_HOST_STATE_OVERRULED,
	rollout.Returning: apiv1.RolloutHostState_ROLLOUT_HOST_STATE_RETURNING,
	rollout.Returned:  apiv1.RolloutHostState_ROLLOUT_HOST_STATE_RETURNED,
}

// StartRollout implements curfew.api.v1.Rollouts.
func (s *Server) StartRollout(
	ctx context.Context, req *apiv1.StartRolloutRequest,
) (*apiv1.StartRolloutResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	plan := rollout.Plan{
		Name: req.GetName(), Soak: durationOf(req.GetSoakMs()), MaxRefusals: int(req.GetMaxRefusals()),
		PauseOnRefusals: req.GetPauseOnRefusals(),
	}
	for _, stage := range req.GetStages() {
		plan.Stages = append(plan.Stages, stage.GetLabels())
	}
	v, err := s.c.Rollouts.Start(ctx, p.Name, plan)
	if err != nil {
		return nil, err
	}
	return &apiv1.StartRolloutResponse{Rollout: s.rolloutView(v)}, nil
}

// GetRollout implements curfew.api.v1.Rollouts.
func (s *Server) GetRollout(
	ctx context.Context, req *apiv1.GetRolloutRequest,
) (*apiv1.GetRolloutResponse, error) {
	v, err := s.c.Rollouts.Show(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetRolloutResponse{Rollout: s.rolloutView(v)}, nil
}

// ListRollouts implements curfew.api.v1.Rollouts.
func (s *Server) ListRollouts(
	ctx context.Context, _ *apiv1.ListRolloutsRequest,
) (*apiv1.ListRolloutsResponse, error) {
	all, err := s.c.Rollouts.List(ctx)
	resp := &apiv1.ListRolloutsResponse{}
	for _, r := range all {
		resp.Rollouts = append(resp.Rollouts, rolloutOut(r))
	}
	return resp, err
}

// SteerRollout implements curfew.api.v1.Rollouts.
func (s *Server) SteerRollout(
	ctx context.Context, req *apiv1.SteerRolloutRequest,
) (*apiv1.SteerRolloutResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	for to, state := range rolloutStates {
		if state == req.GetTo() {
			v, err := s.c.Rollouts.Steer(ctx, p.Name, req.GetName(), to, req.GetReason())
			if err != nil {
				return nil, err
			}
			return &apiv1.SteerRolloutResponse{Rollout: s.rolloutView(v)}, nil
		}
	}
	return nil, reason.Invalid("a rollout can be paused, resumed, rolled back or finished")
}

func rolloutOut(r rollout.Rollout) *apiv1.Rollout {
	out := &apiv1.Rollout{
		Id: r.ID, Name: r.Name, State: rolloutStates[r.State], Stage: uint32(r.Stage),
		SoakMs: r.Soak.Milliseconds(), MaxRefusals: uint32(r.MaxRefusals), PauseOnRefusals: r.PauseOnRefusals,
		Refusals: uint64(r.Refusals), Reason: r.Reason, StartedBy: r.StartedBy, StartedMs: msOf(r.Started),
		StageSinceMs: msOf(r.StageSince),
	}
	for _, labels := range r.Stages {
		out.Stages = append(out.Stages, &apiv1.RolloutStage{Labels: labels})
	}
	return out
}

func (s *Server) rolloutView(v *rollout.View) *apiv1.Rollout {
	out := rolloutOut(v.Rollout)
	out.Next = v.Next(s.c.Now())
	for _, m := range v.Members {
		stage := out.GetStages()[m.Stage]
		stage.Hosts = append(stage.Hosts, &apiv1.RolloutHost{
			Name: m.Name, State: rolloutHostStates[m.State], SinceMs: msOf(m.Since), Refused: uint64(m.Refused),
			WouldRefuse: uint64(m.WouldRefuse), Detail: m.Detail, Connected: m.Said.Connected, Mode: m.Said.Mode,
			Follows: m.Said.Follows(),
		})
	}
	return out
}
