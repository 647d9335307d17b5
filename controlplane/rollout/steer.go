package rollout

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
)

// Start begins a rollout. At most one is open at a time.
func (s *Service) Start(ctx context.Context, by string, p Plan) (out *View, err error) {
	if err := check(p); err != nil {
		return nil, err
	}
	p.StartedBy, p.Started = by, s.now()
	if p.ID, err = grant.NewRequestID(s.c.Rand); err != nil {
		return nil, err
	}
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		if err := mayStart(tx, p.Name); err != nil {
			return err
		}
		r := Rollout{Plan: p, Progress: Progress{State: Running, StageSince: p.Started}}
		if err := tx.AddRollout(r); err != nil {
			return err
		}
		v, err := s.read(tx, p.Name)
		if err != nil {
			return err
		}
		for i, labels := range p.Stages {
			if !slices.ContainsFunc(v.Members, func(m *Member) bool { return m.Stage == i }) {
				return reason.NotFound("no host is of stage %d (%s)", i+1, policy.LabelsText(labels)).
					WithHint("curfew hosts shows the hosts with their labels; a host is of the first stage that fits")
			}
		}
		v.news = append(v.news, News{Kind: KindStarted, Text: describe(p)})
		out = &v.View
		return s.write(tx, v, by)
	})
	return out, err
}

func mayStart(tx Tx, name string) error {
	all, err := tx.Rollouts()
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.State.Open() {
			return reason.Conflict("rollout %s is %s; one at a time", r.Name, r.State).
				WithHint("curfew admin rollout show %s", r.Name)
		}
		if r.Name == name {
			return reason.Conflict("there was a rollout %s already", name).WithHint("choose another name")
		}
	}
	return nil
}

func check(p Plan) error {
	if err := grant.CheckRoleName(p.Name); err != nil { // the same form
		return reason.Invalid("the name of the rollout: %v", err)
	}
	if len(p.Stages) < 1 || len(p.Stages) > MaxStages {
		return reason.Invalid("%d stages; 1 to %d", len(p.Stages), MaxStages).
			WithHint("--stage env=staging --stage env=prod")
	}
	for i, labels := range p.Stages {
		if len(labels) == 0 {
			return reason.Invalid("stage %d has no labels", i+1)
		}
		if err := policy.CheckLabels(labels); err != nil {
			return reason.Invalid("stage %d: %v", i+1, err)
		}
	}
	switch {
	case p.Soak < MinSoak || p.Soak > MaxSoak:
		return reason.Invalid("a soak of %s; %s to %s", p.Soak, MinSoak, MaxSoak)
	case p.MaxRefusals < 0 || p.MaxRefusals > MaxRefusal:
		return reason.Invalid("%d refusals; 0 to %d", p.MaxRefusals, MaxRefusal)
	}
	return nil
}

func describe(p Plan) string {
	stages := make([]string, 0, len(p.Stages))
	for _, labels := range p.Stages {
		stages = append(stages, policy.LabelsText(labels))
	}
	then := "roll back"
	if p.PauseOnRefusals {
		then = "pause"
	}
	return fmt.Sprintf("stages %s; soak %s; %s after more than %d refusals", strings.Join(stages, "; "), p.Soak,
		then, p.MaxRefusals)
}

// Steer pauses, resumes (Running), rolls back or finishes a rollout.
func (s *Service) Steer(ctx context.Context, by, name string, to State, why string) (out *View, err error) {
	if why != "" {
		if err := grant.CheckReason(why); err != nil {
			return nil, reason.Invalid("%v", err)
		}
	}
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		v, err := s.read(tx, name)
		if err != nil {
			return err
		}
		st := &step{now: s.now(), r: &v.Rollout, members: v.Members}
		if err := st.steer(to, cmp.Or(why, "by "+by)); err != nil {
			return err
		}
		v.news, out = st.news, &v.View
		return s.write(tx, v, by)
	})
	return out, err
}

func (s *step) steer(to State, why string) error {
	switch at := s.r.State; {
	case to == Paused && at == Running:
		s.pause(why)
	case to == Running && at == Paused:
		s.resume()
	case to == RolledBack && at != RolledBack:
		s.rollBack(why)
	case to == Finished && at.Open():
		s.finish(why)
	default:
		return reason.Conflict("rollout %s is %s", s.r.Name, at).
			WithHint("curfew admin rollout show %s", s.r.Name)
	}
	return nil
}

// Show returns a rollout with its hosts.
func (s *Service) Show(ctx context.Context, name string) (out *View, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		v, err := s.read(tx, name)
		if err == nil {
			out = &v.View
		}
		return err
	})
	return out, err
}

// List returns all rollouts, newest first.
func (s *Service) List(ctx context.Context) (out []Rollout, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		out, err = tx.Rollouts()
		return err
	})
	return out, err
}

// Next is what a rollout waits for, in words.
func (v *View) Next(now time.Time) string {
	if !v.State.Open() {
		n := v.count(func(m *Member) bool { return m.State == Returning })
		if n > 0 {
			return fmt.Sprintf("%d hosts are still to observe again, when they are heard", n)
		}
		return ""
	}
	if v.State == Paused {
		return "nobody is switched until it is resumed; what is on trial goes on while the control plane is heard"
	}
	stage := func(m *Member) bool { return m.Stage <= v.Stage }
	if n := v.count(func(m *Member) bool { return stage(m) && m.State == Checking }); n > 0 {
		return fmt.Sprintf("%d hosts look themselves over", n)
	}
	var last time.Time
	for _, m := range v.Members {
		if m.State == Trial && m.Said.Connected {
			if end := m.Since.Add(v.Soak); end.After(last) {
				last = end
			}
		}
	}
	away := v.count(func(m *Member) bool { return stage(m) && !m.Said.Connected && !m.State.settled() })
	switch {
	case last.After(now):
		return fmt.Sprintf("the last host of stage %d is on trial until %s", v.Stage+1,
			last.UTC().Format(time.RFC3339))
	case !last.IsZero():
		return "hosts that have soaked are told to go on enforcing"
	case !slices.ContainsFunc(v.Members, func(m *Member) bool {
		return m.Stage == v.Stage && (m.State.settled() || m.Said.Follows())
	}):
		return fmt.Sprintf("no host of stage %d is here and follows rollouts", v.Stage+1)
	case away > 0:
		return fmt.Sprintf("%d hosts are away, and are switched when they are here", away)
	}
	return ""
}

func (v *View) count(is func(*Member) bool) (n int) {
	for _, m := range v.Members {
		if is(m) {
			n++
		}
	}
	return n
}
