package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/modeswitch"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	// rolloutUnit looks the host over and tries its module: a command's work, as for enforce-on.
	rolloutUnit = "curfew-rollout.service"
	// rolloutTrial is how long a rollout's trial goes on without a word from the control plane.
	rolloutTrial = 10 * time.Minute
	// lookOverTime is more than that unit may take.
	lookOverTime = 3 * time.Minute
	maxWords     = 512
)

// rollout is what staged rollouts want of this host (PROTOCOL.md, section 11).
type rollout struct {
	// wish is the newest; nil before the first.
	wish *curfewv1.Rollout
	// looking is the attempt that the host is looked over for, since when on the boot-time clock.
	looking attempt
	since   time.Duration
}

type attempt struct {
	id     string
	number uint32
}

func attemptOf(w *curfewv1.Rollout) attempt { return attempt{w.GetId(), w.GetAttempt()} }

func (a attempt) by() string { return "rollout " + a.id }

// RolloutStep is what the command that looks the host over has to say.
type RolloutStep struct {
	ID      string `json:"id"`
	Attempt uint32 `json:"attempt"`
	// Did is begin, passed or failed; Words are why it failed.
	Did   string `json:"did"`
	Words string `json:"words,omitempty"`
}

// came is what became of a rollout's attempt; nil for a switch that no rollout threw.
func came(r *modeswitch.Rollout, phase modeswitch.Phase, why string) *modeswitch.Rollout {
	if r == nil {
		return nil
	}
	return &modeswitch.Rollout{
		ID: r.ID, Attempt: r.Attempt, Phase: phase, Words: grant.Clip(grant.VisibleText(why), maxWords),
	}
}

// ours is the switch that is in force, when this rollout threw it.
func (o *owner) ours(id string) *modeswitch.Switch {
	if held := o.holds(); held != nil && held.Rollout != nil && held.Rollout.ID == id {
		return held
	}
	return nil
}

// overruled is what root on this host has said against any rollout; empty where it may switch the host.
func (o *owner) overruled() string {
	held := o.holds()
	switch {
	case held != nil && held.Mode == modeswitch.Observe && held.Rollout == nil && !held.Follow:
		return "root on this host said observe; curfew-agent enforce-off --follow leaves it to rollouts again"
	case o.marked:
		return "root on this host said observe: /run/curfew/observe is there"
	}
	return ""
}

// wished takes in what a fresh state wants; nil changes nothing.
func (o *owner) wished(ctx context.Context, w *curfewv1.Rollout) {
	if w == nil || !o.settings.FollowRollouts {
		return
	}
	o.rollout.wish = w
	var err error
	switch w.GetWish() {
	case curfewv1.RolloutWish_ROLLOUT_WISH_TRY:
		err = o.tryRollout(ctx, attemptOf(w))
	case curfewv1.RolloutWish_ROLLOUT_WISH_KEEP:
		err = o.keepRollout(ctx, attemptOf(w))
	case curfewv1.RolloutWish_ROLLOUT_WISH_RETURN:
		o.returnRollout(ctx, w.GetId())
	}
	o.problem("rollout", err)
}

// tryRollout has an attempt made that was not made before, and goes on with one that is on trial.
func (o *owner) tryRollout(ctx context.Context, a attempt) error {
	ours := o.ours(a.id)
	switch {
	case o.overruled() != "":
		return nil // the next heartbeat says so
	case ours != nil && ours.Mode == modeswitch.Enforce:
		return o.goOn(ctx, ours, a)
	case ours != nil && ours.Rollout.Attempt >= a.number:
		return nil
	}
	if mode, _ := o.mode(); mode == account.ModeEnforce {
		return nil // by its own word, or an earlier rollout's
	}
	now := o.cfg.Clock().Boot
	if o.rollout.looking == a {
		if now-o.rollout.since > lookOverTime {
			return o.refuseRollout(ctx, a, "looking over the host came to no end; see journalctl -u "+rolloutUnit)
		}
		return nil
	}
	o.rollout.looking, o.rollout.since = a, now
	o.log.Info("a rollout wants this host to enforce", "rollout", a.id, "attempt", a.number)
	run := o.cfg.FollowRollout
	if run == nil {
		run = func(ctx context.Context) error { return session.StartUnit(ctx, rolloutUnit) }
	}
	o.spawnSmall(ctx, func() {
		if err := run(ctx); err != nil {
			o.log.Error("the host cannot be looked over", "error", err)
		}
	})
	o.heartbeat()
	return nil
}

// goOn lengthens a trial whose self-test has passed. A control plane that counts attempts anew, after a
// restore, finds the host where it is.
func (o *owner) goOn(ctx context.Context, ours *modeswitch.Switch, a attempt) error {
	now := o.cfg.Clock()
	later := ours.Rollout.Attempt < a.number
	half := ours.Trial != nil && ours.Rollout.Phase == modeswitch.Passed &&
		time.Duration(ours.Trial.BootMS)*time.Millisecond-now.Boot < rolloutTrial/2
	if !later && !half {
		return nil
	}
	err := o.modes.Change(func(s *modeswitch.Switch) (*modeswitch.Switch, error) {
		if s == nil || s.Mode != modeswitch.Enforce || s.Rollout == nil || s.Rollout.ID != a.id {
			return nil, nil // root was quicker
		}
		s.Rollout.Attempt = max(s.Rollout.Attempt, a.number)
		if half && s.Trial != nil {
			if s.Trial.Over(now.Wall, now.Boot) {
				return nil, nil
			}
			s.Trial.WallMS = now.Wall.Add(rolloutTrial).UnixMilli()
			s.Trial.BootMS = (now.Boot + rolloutTrial).Milliseconds()
		}
		return s, nil
	})
	if err != nil {
		return err
	}
	o.readSwitch()
	o.recon.Retry()
	o.reconcile(ctx)
	o.heartbeat()
	return nil
}

func (o *owner) keepRollout(ctx context.Context, a attempt) error {
	ours := o.ours(a.id)
	if ours == nil || ours.Trial == nil || ours.Rollout.Attempt != a.number ||
		ours.Rollout.Phase != modeswitch.Passed || o.marked {
		return nil
	}
	if now := o.cfg.Clock(); ours.Trial.Over(now.Wall, now.Boot) {
		return nil // settleMode ends it
	}
	return o.last(ctx, ours.Trial.WallMS, a.by(), came(ours.Rollout, modeswitch.Kept, ""))
}

// returnRollout has the host observe, where this rollout is what has it enforce.
func (o *owner) returnRollout(ctx context.Context, id string) {
	ours := o.ours(id)
	if ours == nil || ours.Mode != modeswitch.Enforce {
		return
	}
	o.takeBack(ctx, attempt{id, ours.Rollout.Attempt}, modeswitch.Returned, "the rollout was rolled back")
}

// takeBack throws the switch to observe for a rollout. Root's word, if it came first, stands.
func (o *owner) takeBack(ctx context.Context, a attempt, phase modeswitch.Phase, why string) {
	next := &modeswitch.Switch{
		Mode: modeswitch.Observe, Over: o.settings.Mode, SetMS: o.cfg.Clock().Wall.UnixMilli(), By: a.by(),
		Rollout: came(&modeswitch.Rollout{ID: a.id, Attempt: a.number}, phase, why),
	}
	err := o.modes.Change(func(s *modeswitch.Switch) (*modeswitch.Switch, error) {
		if s != nil && s.Over == o.settings.Mode && s.Rollout == nil && !s.Follow {
			return nil, nil
		}
		return next, nil
	})
	o.problem("switch", err)
	if err != nil { // from memory; a boot would bring the old word back, and the next state this one again
		o.thrown = next
	} else {
		o.readSwitch()
	}
	o.changedMode(ctx, "a rollout is "+string(phase), why, a.by())
	if err := o.modes.Unmark(modeswitch.MarkTrial); err != nil {
		o.log.Warn("a mark stays", "error", err)
	}
}

// rolloutStep takes in how the host was looked over.
func (o *owner) rolloutStep(ctx context.Context, s RolloutStep) error {
	a := attempt{s.ID, s.Attempt}
	w, ours := o.rollout.wish, o.ours(s.ID)
	onTrial := ours != nil && ours.Trial != nil && ours.Rollout.Attempt == a.number
	wanted := w.GetWish() == curfewv1.RolloutWish_ROLLOUT_WISH_TRY && attemptOf(w) == a && o.settings.FollowRollouts
	if !wanted && !(onTrial && s.Did == "failed") { // which takes something back
		return errors.New("no rollout wants that attempt of this host now")
	}
	if why := o.overruled(); why != "" {
		return errors.New(why)
	}
	switch {
	case s.Did == "begin" && (ours == nil || ours.Rollout.Attempt < a.number):
		return o.enforceOn(ctx, rolloutTrial, a.by(),
			&modeswitch.Rollout{ID: a.id, Attempt: a.number, Phase: modeswitch.Begun})
	case s.Did == "passed" && onTrial && ours.Rollout.Phase == modeswitch.Begun:
		return o.passRollout(a)
	case s.Did == "failed" && (ours == nil || ours.Rollout.Phase != modeswitch.Kept):
		return o.refuseRollout(ctx, a, s.Words)
	}
	return fmt.Errorf("%q does not follow what this host has done of that attempt", s.Did)
}

func (o *owner) passRollout(a attempt) error {
	err := o.modes.Change(func(s *modeswitch.Switch) (*modeswitch.Switch, error) {
		if s == nil || s.Trial == nil || s.Rollout == nil || s.Rollout.ID != a.id {
			return nil, errors.New("the trial was ended meanwhile")
		}
		s.Rollout.Phase = modeswitch.Passed
		return s, nil
	})
	if err == nil {
		o.readSwitch()
		o.heartbeat()
	}
	return err
}

// refuseRollout keeps that an attempt came to nothing, and takes back what it had begun.
func (o *owner) refuseRollout(ctx context.Context, a attempt, why string) error {
	o.takeBack(ctx, a, modeswitch.Refused, why)
	if o.problems["switch"] != "" {
		return errors.New(o.problems["switch"])
	}
	return nil
}

var phases = map[modeswitch.Phase]curfewv1.RolloutPhase{
	modeswitch.Begun:    curfewv1.RolloutPhase_ROLLOUT_PHASE_CHECKING,
	modeswitch.Passed:   curfewv1.RolloutPhase_ROLLOUT_PHASE_TRIAL,
	modeswitch.Kept:     curfewv1.RolloutPhase_ROLLOUT_PHASE_KEPT,
	modeswitch.Refused:  curfewv1.RolloutPhase_ROLLOUT_PHASE_REFUSED,
	modeswitch.Lapsed:   curfewv1.RolloutPhase_ROLLOUT_PHASE_LAPSED,
	modeswitch.Returned: curfewv1.RolloutPhase_ROLLOUT_PHASE_RETURNED,
}

// rolloutReport is how the host stands with rollouts, for heartbeats and for people.
func (o *owner) rolloutReport() *curfewv1.RolloutReport {
	r := &curfewv1.RolloutReport{Follows: o.settings.FollowRollouts}
	held, w := o.holds(), o.rollout.wish
	if w != nil {
		r.Id, r.Attempt = w.GetId(), w.GetAttempt()
	}
	mode, _ := o.mode()
	switch ours := held != nil && held.Rollout != nil; {
	case o.overruled() != "":
		r.Phase, r.Detail = curfewv1.RolloutPhase_ROLLOUT_PHASE_OVERRULED, o.overruled()
	case ours && (w == nil || held.Rollout.ID == w.GetId() && held.Rollout.Attempt >= w.GetAttempt()):
		r.Id, r.Attempt = held.Rollout.ID, held.Rollout.Attempt
		r.Phase, r.Detail = phases[held.Rollout.Phase], held.Rollout.Words
	case w == nil || mode == account.ModeEnforce:
		// Nothing came of it: the host enforces by another word.
	case w.GetWish() == curfewv1.RolloutWish_ROLLOUT_WISH_RETURN:
		r.Phase = curfewv1.RolloutPhase_ROLLOUT_PHASE_RETURNED
	case o.rollout.looking == attemptOf(w):
		r.Phase = curfewv1.RolloutPhase_ROLLOUT_PHASE_CHECKING
	}
	return r
}

func phaseText(p curfewv1.RolloutPhase) string {
	if p == curfewv1.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED {
		return ""
	}
	return strings.ToLower(strings.TrimPrefix(p.String(), "ROLLOUT_PHASE_"))
}
