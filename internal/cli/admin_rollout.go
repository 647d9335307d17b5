package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type rolloutView struct {
	Name            string             `json:"name"`
	ID              string             `json:"id"`
	State           string             `json:"state"`
	Stages          []rolloutStageView `json:"stages"`
	Stage           uint32             `json:"stage"`
	StageSince      *string            `json:"stage_since_at"`
	Soak            int64              `json:"soak_ms"`
	MaxRefusals     uint32             `json:"max_refusals"`
	PauseOnRefusals bool               `json:"pause_on_refusals"`
	Refusals        uint64             `json:"refusals"`
	Reason          string             `json:"reason"`
	Next            string             `json:"next"`
	StartedBy       string             `json:"started_by"`
	StartedAt       *string            `json:"started_at"`
}

type rolloutStageView struct {
	Labels map[string]string `json:"labels"`
	Hosts  []rolloutHostView `json:"hosts"`
}

type rolloutHostView struct {
	Name        string  `json:"name"`
	State       string  `json:"state"`
	Since       *string `json:"since_at"`
	Mode        string  `json:"mode"`
	Connected   bool    `json:"connected"`
	Follows     bool    `json:"follows"`
	Refused     uint64  `json:"refused"`
	WouldRefuse uint64  `json:"would_refuse"`
	Detail      string  `json:"detail"`
}

const rolloutAbout = `A rollout has hosts enforce, one stage after the other. A host takes part when its own
agent.yaml says follow_rollouts: true. Each looks itself over as enforce-on does, then
enforces on trial for the soak time: without a word from the control plane it observes
again after 10 minutes. What has soaked goes on enforcing, and the next stage begins when
every host of this one that is here does so. More refusals than are borne roll it back;
a host that cannot enforce pauses it.`

const rolloutColumns = "Columns in a pipe: stage, host, state, since, mode, refused, would refuse, why."

var rolloutHelp = rolloutColumns + "\n" + jsonHelp(rolloutView{}) + " Of each host: " + jsonHelp(rolloutHostView{})

type rolloutOptions struct {
	stages      []string
	soak        string
	maxRefusals uint32
	pause       bool
}

func (a *app) adminRolloutCmd() *cobra.Command {
	var o rolloutOptions
	start := &cobra.Command{
		Use:   "start NAME --stage KEY=VALUE[,…]…",
		Short: "Have a fleet enforce, stage by stage",
		Long:  rolloutAbout + "\n\n" + rolloutHelp,
		Example: "  curfew admin rollout start winter --stage env=staging --stage env=prod,canary=yes \\\n" +
			"    --stage env=prod --soak 1d",
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.startRollout(ctx, c, args[0], o)
		}),
	}
	start.Flags().StringArrayVar(&o.stages, "stage", nil, "labels of a stage's hosts; in order, several times")
	start.Flags().StringVar(&o.soak, "soak", "1h", "how long each host enforces on trial: 10m, 1h, 1d")
	start.Flags().Uint32Var(&o.maxRefusals, "max-refusals", 3, "so many refusals in a stage are borne")
	start.Flags().BoolVar(&o.pause, "pause-on-refusals", false, "more than that pause it instead of rolling it back")
	show := &cobra.Command{
		Use: "show NAME", Short: "Show how far each host is, and what comes next",
		Long: rolloutAbout + "\n\n" + rolloutHelp,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(oneOf(rolloutNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			answer, err := call(ctx, c, c.rollouts.GetRollout, &apiv1.GetRolloutRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.showRollout(answer.GetRollout())
		}),
	}
	ls := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List rollouts, newest first",
		Long: "List rollouts.\n\nColumns in a pipe: name, state, stage, of how many, by, started, reason.\n" +
			"Prints a JSON array with --json. " + jsonHelp(rolloutView{}),
		Args: cobra.NoArgs, RunE: a.verb(a.listRollouts),
	}
	return parent("rollout", "Have a fleet enforce in stages", start, show, ls,
		a.steerRolloutCmd("pause", "Switch no further host; what is on trial goes on",
			apiv1.RolloutState_ROLLOUT_STATE_PAUSED),
		a.steerRolloutCmd("resume", "Go on, and try again what could not enforce",
			apiv1.RolloutState_ROLLOUT_STATE_RUNNING),
		a.steerRolloutCmd("rollback", "Have every host observe again that it has switched",
			apiv1.RolloutState_ROLLOUT_STATE_ROLLED_BACK),
		a.steerRolloutCmd("finish", "End it; hosts that enforce for good go on, the others observe",
			apiv1.RolloutState_ROLLOUT_STATE_FINISHED))
}

func (a *app) steerRolloutCmd(verb, short string, to apiv1.RolloutState) *cobra.Command {
	var why string
	cmd := &cobra.Command{
		Use: verb + " NAME", Short: short,
		Long: short + ".\n\n" + rolloutHelp,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(oneOf(rolloutNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			answer, err := call(ctx, c, c.rollouts.SteerRollout,
				&apiv1.SteerRolloutRequest{Name: args[0], To: to, Reason: why})
			if err != nil {
				return err
			}
			return a.showRollout(answer.GetRollout())
		}),
	}
	cmd.Flags().StringVarP(&why, "reason", "r", "", "why, for the trail")
	return cmd
}

func (a *app) startRollout(ctx context.Context, c *client, name string, o rolloutOptions) error {
	if len(o.stages) == 0 {
		return usage("a rollout needs stages: --stage env=staging --stage env=prod")
	}
	soak, err := parseDuration(o.soak)
	if err != nil {
		return usage("--soak: %w", err)
	}
	in := &apiv1.StartRolloutRequest{
		Name: name, SoakMs: soak.Milliseconds(), MaxRefusals: o.maxRefusals, PauseOnRefusals: o.pause,
	}
	for _, stage := range o.stages {
		set, err := parseLabels(strings.Split(stage, ","))
		if err != nil {
			return err
		}
		in.Stages = append(in.Stages, &apiv1.RolloutStage{Labels: set})
	}
	answer, err := call(ctx, c, c.rollouts.StartRollout, in)
	if err != nil {
		return err
	}
	if err := a.showRollout(answer.GetRollout()); err != nil {
		return err
	}
	a.Hint("curfew admin rollout show %s; back at any time: curfew admin rollout rollback %s", name, name)
	return nil
}

func rolloutState(s apiv1.RolloutState) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(s.String(), "ROLLOUT_STATE_"), "_", " "))
}

// rolloutHostState is how far it has got with a host; one that does not follow never gets further.
func rolloutHostState(h *apiv1.RolloutHost) string {
	switch h.GetState() {
	case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_WAITING:
		switch {
		case !h.GetConnected():
			return "away"
		case !h.GetFollows():
			return "does not follow"
		}
		return "waiting"
	case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_TRIAL:
		return "on trial"
	case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_KEPT:
		return "enforces"
	case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_OWN:
		return "enforces by itself"
	case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_REFUSED:
		return "cannot enforce"
	}
	return strings.ToLower(strings.TrimPrefix(h.GetState().String(), "ROLLOUT_HOST_STATE_"))
}

func viewRollout(r *apiv1.Rollout) rolloutView {
	v := rolloutView{
		Name: r.GetName(), ID: r.GetId(), State: rolloutState(r.GetState()), Stages: []rolloutStageView{},
		Stage: r.GetStage() + 1, StageSince: moment(r.GetStageSinceMs()), Soak: r.GetSoakMs(),
		MaxRefusals: r.GetMaxRefusals(), PauseOnRefusals: r.GetPauseOnRefusals(), Refusals: r.GetRefusals(),
		Reason: r.GetReason(), Next: r.GetNext(), StartedBy: r.GetStartedBy(), StartedAt: moment(r.GetStartedMs()),
	}
	for _, stage := range r.GetStages() {
		s := rolloutStageView{Labels: labels(stage.GetLabels()), Hosts: []rolloutHostView{}}
		for _, h := range stage.GetHosts() {
			s.Hosts = append(s.Hosts, rolloutHostView{
				Name: h.GetName(), State: rolloutHostState(h), Since: moment(h.GetSinceMs()), Mode: h.GetMode(),
				Connected: h.GetConnected(), Follows: h.GetFollows(), Refused: h.GetRefused(),
				WouldRefuse: h.GetWouldRefuse(), Detail: h.GetDetail(),
			})
		}
		v.Stages = append(v.Stages, s)
	}
	return v
}

func (a *app) showRollout(r *apiv1.Rollout) error {
	if a.json {
		return a.JSON(viewRollout(r))
	}
	state := rolloutState(r.GetState())
	if r.GetReason() != "" {
		state += ": " + r.GetReason()
	}
	a.Talk("rollout %s is %s", r.GetName(), grant.VisibleText(state))
	a.Talk("stage %d of %d since %s; %s, %d borne", r.GetStage()+1, len(r.GetStages()),
		a.when(r.GetStageSinceMs()).text, count(int(r.GetRefusals()), "refusal"), r.GetMaxRefusals())
	var rows [][]cell
	for i, stage := range r.GetStages() {
		for _, h := range stage.GetHosts() {
			state := text(rolloutHostState(h))
			switch h.GetState() {
			case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_KEPT, apiv1.RolloutHostState_ROLLOUT_HOST_STATE_OWN:
				state.style = green
			case apiv1.RolloutHostState_ROLLOUT_HOST_STATE_REFUSED, apiv1.RolloutHostState_ROLLOUT_HOST_STATE_OVERRULED:
				state.style = red
			}
			rows = append(rows, []cell{
				text(fmt.Sprintf("%d %s", i+1, labelText(stage.GetLabels()))), text(h.GetName()), state,
				a.when(h.GetSinceMs()), text(cmp.Or(h.GetMode(), "unknown")), text(fmt.Sprint(h.GetRefused())),
				text(fmt.Sprint(h.GetWouldRefuse())), text(h.GetDetail()),
			})
		}
	}
	a.Table([]string{"STAGE", "HOST", "STATE", "SINCE", "MODE", "REFUSED", "WOULD REFUSE", "WHY"}, rows)
	if r.GetNext() != "" {
		a.Talk("next: %s", grant.VisibleText(r.GetNext()))
	}
	return nil
}

func (a *app) listRollouts(ctx context.Context, c *client, _ []string) error {
	answer, err := call(ctx, c, c.rollouts.ListRollouts, &apiv1.ListRolloutsRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetRollouts(), viewRollout))
	}
	if len(answer.GetRollouts()) == 0 {
		a.Talk("There was no rollout yet.")
		a.Hint("curfew admin rollout start NAME --stage KEY=VALUE …")
		return nil
	}
	rows := make([][]cell, 0, len(answer.GetRollouts()))
	for _, r := range answer.GetRollouts() {
		rows = append(rows, []cell{
			text(r.GetName()), text(rolloutState(r.GetState())), text(fmt.Sprint(r.GetStage() + 1)),
			text(fmt.Sprint(len(r.GetStages()))), text(r.GetStartedBy()), a.when(r.GetStartedMs()),
			text(r.GetReason()),
		})
	}
	a.Table([]string{"ROLLOUT", "STATE", "STAGE", "OF", "BY", "STARTED", "WHY"}, rows)
	return nil
}

func rolloutNames(ctx context.Context, c *client, _ []string) ([]string, error) {
	answer, err := call(ctx, c, c.rollouts.ListRollouts, &apiv1.ListRolloutsRequest{})
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range answer.GetRollouts() {
		if grant.CheckRoleName(r.GetName()) == nil {
			out = append(out, described(r.GetName(), rolloutState(r.GetState())))
		}
	}
	return out, nil
}
