package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/agent/modeswitch"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// How long a trial of enforcing may be.
const (
	minTrial = 10 * time.Second
	maxTrial = time.Hour
)

// SwitchDir is where the switch of the host below root is.
func SwitchDir(root string) modeswitch.Dir {
	return modeswitch.Dir{
		State: filepath.Join(root, enforce.StateDir), Run: filepath.Join(root, enforce.RunDir),
	}
}

// holds is the switch that is in force: nil where nobody has thrown it, and where agent.yaml was edited
// since.
func (o *owner) holds() *modeswitch.Switch {
	if o.thrown == nil || o.thrown.Over != o.settings.Mode {
		return nil
	}
	return o.thrown
}

// mode is what this host does, and until when where nobody has confirmed it yet.
func (o *owner) mode() (account.Mode, *account.Trial) {
	held := o.holds()
	switch {
	case o.marked:
		return account.ModeObserve, nil
	case held == nil:
		return o.settings.mode(), nil
	case held.Mode == modeswitch.Observe:
		return account.ModeObserve, nil
	case held.Trial != nil:
		return account.ModeEnforce, &account.Trial{
			Wall: time.UnixMilli(held.Trial.WallMS),
			Boot: time.Duration(held.Trial.BootMS) * time.Millisecond,
		}
	}
	return account.ModeEnforce, nil
}

// word is the mode for people and heartbeats.
func (o *owner) word() string {
	mode, trial := o.mode()
	if trial != nil {
		return mode.String() + ", on trial"
	}
	return mode.String()
}

// readSwitch takes in the switch on disk and the mark beside it.
func (o *owner) readSwitch() {
	thrown, err := o.modes.Read()
	if thrown != nil && thrown.Over != o.settings.Mode {
		// Whoever edited the file has the newer word; it must not lose it by saying the same again.
		err = o.modes.Forget(o.settings.Mode)
		thrown = nil
	}
	o.problem("switch", err)
	o.thrown = thrown
	o.marked = o.modes.Marked(modeswitch.MarkObserve)
}

// settleMode is called each second, at the start, and after each throw of the switch: it ends a trial that
// is over, takes in a mark that somebody made, and takes it away once the host observes without it.
func (o *owner) settleMode(ctx context.Context) {
	if marked := o.modes.Marked(modeswitch.MarkObserve); marked != o.marked {
		o.marked = marked
		o.log.Warn("the mark of observing was made or taken away", "there", marked)
		o.reconcile(ctx)
	}
	if held := o.holds(); held != nil && held.Trial != nil {
		now := o.cfg.Clock()
		switch {
		case held.Trial.Over(now.Wall, now.Boot):
			o.endTrial(ctx, notConfirmed(held.Rollout), modeswitch.Lapsed)
		case !o.modes.Marked(modeswitch.MarkTrial):
			o.endTrial(ctx, "the host has booted, or the mark of the trial was taken away", modeswitch.Lapsed)
		}
	}
	if !o.marked {
		return
	}
	held := o.holds()
	kept := held == nil && o.settings.mode() == account.ModeObserve ||
		held != nil && held.Mode == modeswitch.Observe
	switch {
	case !kept:
		o.problem("switch", errors.New("this host observes until it boots: /run/curfew/observe is there, and "+
			"the mode that is kept is enforce; curfew-agent enforce-off or enforce-on settles it"))
	case o.problems["enforce"] == "":
		o.problem("switch", o.modes.Unmark(modeswitch.MarkObserve))
		o.marked = o.modes.Marked(modeswitch.MarkObserve)
	}
}

func notConfirmed(r *modeswitch.Rollout) string {
	switch {
	case r == nil:
		return "nobody confirmed it in time"
	case r.Phase == modeswitch.Begun:
		return "trying the host's own services came to no end; see journalctl -u " + rolloutUnit
	}
	return "the control plane was not heard, or had the rollout go on no longer"
}

// endTrial has the host observe again. The PAM module does so already. A rollout's trial leaves behind what
// became of it.
func (o *owner) endTrial(ctx context.Context, why string, phase modeswitch.Phase) {
	ended := func(s *modeswitch.Switch) *modeswitch.Switch {
		return &modeswitch.Switch{
			Mode: modeswitch.Observe, Over: s.Over, SetMS: o.cfg.Clock().Wall.UnixMilli(), By: s.By,
			Rollout: came(s.Rollout, phase, why),
		}
	}
	err := o.modes.Change(func(s *modeswitch.Switch) (*modeswitch.Switch, error) {
		if s == nil || s.Trial == nil {
			return nil, nil // somebody else was quicker
		}
		return ended(s), nil
	})
	o.problem("switch", err)
	if err != nil { // from memory, then; the module needs nothing kept
		o.thrown = ended(o.thrown)
	} else {
		o.readSwitch()
	}
	o.changedMode(ctx, "a trial of enforcing is over", why, "")
	if err := o.modes.Unmark(modeswitch.MarkTrial); err != nil {
		o.log.Warn("a mark stays", "error", err)
	}
}

// changedMode enforces the mode in force and says so.
func (o *owner) changedMode(ctx context.Context, what, why, by string) {
	o.log.Info(what, "mode", o.word(), "why", why, "by", by)
	until := ""
	if _, trial := o.mode(); trial != nil {
		until = trial.Wall.UTC().Format(time.RFC3339)
	}
	o.rec.note(trail.KindModeChanged, func(e *curfewv1.Event) {
		e.Details = detail("mode", o.word(), "what", what, "why", why, "by", by, "until", until)
	})
	o.recon.Retry()
	o.reconcile(ctx)
	o.heartbeat()
}

// enforceOn begins a trial of enforcing, a rollout's or root's: it ends by itself.
func (o *owner) enforceOn(
	ctx context.Context, lasts time.Duration, by string, rollout *modeswitch.Rollout,
) error {
	if lasts < minTrial || lasts > maxTrial {
		return fmt.Errorf("a trial of %v; %v to %v", lasts, minTrial, maxTrial)
	}
	if mode, trial := o.mode(); mode == account.ModeEnforce {
		if trial != nil {
			return fmt.Errorf("this host enforces on trial until %s; confirm that from a new login with "+
				"curfew-agent enforce-on --confirm", trial.Wall.UTC().Format(time.RFC3339))
		}
		return errors.New("this host enforces already")
	}
	all, err := process.All()
	if err != nil {
		return fmt.Errorf("looking which logins there are already: %w", err)
	}
	now := o.cfg.Clock()
	trial := &modeswitch.Trial{
		WallMS: now.Wall.Add(lasts).UnixMilli(), BootMS: (now.Boot + lasts).Milliseconds(),
	}
	for _, p := range all {
		trial.NewestStart = max(trial.NewestStart, p.StartTicks)
		if p.AuditSession != process.NoAudit {
			trial.NewestSession = max(trial.NewestSession, p.AuditSession)
		}
	}
	err = o.modes.Change(func(*modeswitch.Switch) (*modeswitch.Switch, error) {
		return &modeswitch.Switch{
			Mode: modeswitch.Enforce, Over: o.settings.Mode, SetMS: now.Wall.UnixMilli(), By: by,
			Trial: trial, Rollout: rollout,
		}, nil
	})
	if err == nil {
		err = errors.Join(o.modes.Mark(modeswitch.MarkTrial), o.modes.Unmark(modeswitch.MarkObserve))
	}
	if err != nil {
		return err
	}
	o.readSwitch()
	o.changedMode(ctx, "a trial of enforcing begins", "", by)
	if why := o.problems["enforce"]; why != "" {
		o.endTrial(ctx, why, modeswitch.Refused)
		return errors.New("enforcing is taken back: " + why)
	}
	return nil
}

// confirm makes a trial last. Only a login that was opened after it began may: that one is possible is
// what is confirmed.
func (o *owner) confirm(ctx context.Context, by process.Process) error {
	held := o.holds()
	if mode, trial := o.mode(); mode != account.ModeEnforce || trial == nil {
		return errors.New("there is no trial of enforcing to confirm; curfew-agent enforce-on begins one")
	}
	if err := isNewLogin(held.Trial, by); err != nil {
		return err
	}
	return o.last(ctx, held.Trial.WallMS, Who(by), nil)
}

// last makes the trial that ends at want last, as root's or a rollout's word.
func (o *owner) last(ctx context.Context, want int64, by string, rollout *modeswitch.Rollout) error {
	err := o.modes.Change(func(s *modeswitch.Switch) (*modeswitch.Switch, error) {
		if s == nil || s.Trial == nil || s.Trial.WallMS != want {
			return nil, errors.New("the trial was ended meanwhile")
		}
		return &modeswitch.Switch{
			Mode: modeswitch.Enforce, Over: s.Over, SetMS: o.cfg.Clock().Wall.UnixMilli(), By: by,
			Rollout: rollout,
		}, nil
	})
	if err != nil {
		return err
	}
	o.readSwitch()
	o.changedMode(ctx, "a trial of enforcing is confirmed", "", by)
	if why := o.problems["enforce"]; why != "" {
		return errors.New("confirmed, but the PAM module's table still says trial: " + why)
	}
	return o.modes.Unmark(modeswitch.MarkTrial)
}

// isNewLogin demands that a process belongs to a login session that was opened after a trial began.
func isNewLogin(t *modeswitch.Trial, p process.Process) error {
	if p.AuditSession == process.NoAudit {
		return errors.New("this command runs in no login session that the kernel knows (its audit session is " +
			"unset); log in anew, over ssh or on the console, and confirm there")
	}
	all, err := process.All()
	if err != nil {
		return fmt.Errorf("looking when this login began: %w", err)
	}
	oldest := p
	for _, other := range all {
		if other.AuditSession == p.AuditSession && other.StartTicks < oldest.StartTicks {
			oldest = other
		}
	}
	if p.AuditSession <= t.NewestSession || oldest.StartTicks <= t.NewestStart {
		return fmt.Errorf("this login (audit session %d) is older than the trial; that a new one works is what "+
			"is confirmed: keep this one open, log in anew and confirm there", p.AuditSession)
	}
	return nil
}

// enforceOff takes in that the switch was thrown to observe, by a command that needed nobody for it.
func (o *owner) enforceOff(ctx context.Context, by process.Process) error {
	o.readSwitch()
	if mode, _ := o.mode(); mode != account.ModeObserve {
		return errors.New("the switch does not say observe")
	}
	o.changedMode(ctx, "enforcing is switched off", "", Who(by))
	o.settleMode(ctx)
	if err := o.modes.Unmark(modeswitch.MarkTrial); err != nil {
		o.log.Warn("a mark stays", "error", err)
	}
	if why := o.problems["enforce"]; why != "" {
		return errors.New("nobody is denied, by /run/curfew/observe; but the PAM module's table cannot be " +
			"written: " + why)
	}
	return nil
}

// Who names the login that a process of root's belongs to.
func Who(p process.Process) string {
	if p.LoginUID == process.NoAudit {
		return "root"
	}
	return fmt.Sprintf("root, logged in as uid %d", p.LoginUID)
}
