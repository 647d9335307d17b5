package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// opener opens sessions as the gate asks for them, with what has to happen before one is allowed. It
// makes a Curfew account's home at its first session, before the gate allows it: a session
// without a home would begin in /.
type opener struct {
	*session.Manager
	owner *owner
}

// Open makes the home where it is missing, registers the session, and then spends what the grant
// gives only once. In this order a spent grant always has its session.
func (h *opener) Open(
	ctx context.Context, s session.Session,
) (session.Session, context.Context, error) {
	if !s.Elevation {
		if err := h.owner.home(s); err != nil {
			return session.Session{}, nil, err
		}
	}
	h.owner.left.use(s.Login)
	opened, ended, err := h.Manager.Open(ctx, s)
	if err != nil {
		return opened, nil, err
	}
	if err := h.owner.spend(ctx, s.GrantID, !s.Elevation); err != nil {
		h.Manager.End(opened.ID)
		return session.Session{}, nil, err
	}
	return opened, ended, nil
}

// spend makes it durable that a grant is used, before the person gets in: it starts the clock of one
// that waited for that, and takes the one login of a single-use grant.
func (o *owner) spend(ctx context.Context, id grant.ID, login bool) error {
	if once := o.once.Load(); once == nil || !(*once)[id] {
		return nil
	}
	var err error
	errDo := o.do(ctx, func(ctx context.Context) { err = o.spendNow(ctx, id, login) })
	return errors.Join(errDo, err)
}

func (o *owner) spendNow(ctx context.Context, id grant.ID, login bool) error {
	next, now := o.ledger.Clone(), o.cfg.Clock()
	var err error
	if login {
		err = next.Use(id, now)
	}
	if err == nil {
		err = next.Start(id, now)
	}
	if err == nil {
		err = o.save(next)
	}
	if err != nil {
		return err
	}
	o.ledger = next
	o.reportAgain()
	o.reconcile(ctx)
	return nil
}

// endUsed ends single-use grants whose session is over.
func (o *owner) endUsed(ctx context.Context) {
	for _, l := range o.live() {
		if !l.Used || o.sessions.LoggedIn(l.Terms.GetRequestId()) {
			continue
		}
		next := o.ledger.Clone()
		change := next.EndUsed(l.ID)
		_ = o.save(next) // says so itself; what was used is on disk, so nobody gets in again
		o.ledger = next
		o.ended(ctx, change.Ended)
		o.reconcile(ctx)
	}
}

// home may run in several goroutines; one makes a home at a time.
func (o *owner) home(s session.Session) error {
	rules, skel := o.homes.Load().rules, o.homes.Load().skel
	subject, err := rules.Classify(o.recon.Local(), s.Login, s.UID)
	if err != nil || subject.Class != account.ClassAccount {
		return nil //nolint:nilerr // local users have their own homes
	}
	o.making.Lock()
	defer o.making.Unlock()
	if skel != "" {
		skel = filepath.Join(o.cfg.Root, skel)
	}
	return account.MakeHome(filepath.Join(o.cfg.Root, rules.HomeRoot), s.Login, subject.UID,
		subject.GID, skel)
}

// homeRules is what making a home needs of the settings in force.
type homeRules struct {
	rules account.Rules
	skel  string
}

// use puts settings in force.
func (o *owner) use(s Settings) {
	o.settings = s
	o.homes.Store(&homeRules{rules: s.rules(), skel: s.Skel})
}

// drifted records files that somebody else changed. It comes from the goroutine that repaired.
func (o *owner) drifted(repairs []enforce.Repair) {
	const most = 8
	for i, r := range repairs {
		if i == most {
			o.rec.note(trail.KindDriftRepaired, func(e *curfewv1.Event) {
				e.Details = detail("more", fmt.Sprint(len(repairs)-most))
			})
			return
		}
		o.rec.note(trail.KindDriftRepaired, func(e *curfewv1.Event) {
			e.Details = detail("path", r.Path, "what", r.What)
			if id, err := grant.ParseID(filepath.Base(r.Path)); err == nil {
				e.GrantId = id[:]
			}
		})
	}
}

// watchSettings loads agent.yaml anew when it changes. A broken file changes nothing but the
// problems: the settings in force stay.
func (o *owner) watchSettings(ctx context.Context, name string) error {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer func() { _ = w.Close() }() // nothing to lose
		err = w.Add(filepath.Dir(name))
	}
	if err != nil {
		o.log.Warn("changes of the settings need a restart", "path", name, "error", err)
		<-ctx.Done()
		return nil
	}
	// What changed before the watch began is not told.
	o.post(ctx, func(ctx context.Context) { o.reload(ctx, name) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return errors.New("watching the settings: the watch ended")
			}
			if e.Name != name {
				continue
			}
			pause(ctx, 50*time.Millisecond) // editors write in several steps
			o.post(ctx, func(ctx context.Context) { o.reload(ctx, name) })
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("watching the settings: the watch ended")
			}
			o.log.Warn("watching the settings", "error", err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (o *owner) reload(ctx context.Context, name string) {
	s, said, err := loadSettings(name)
	if err == nil && o.fromFile && !said {
		// Editors and configuration tools remove and truncate on the way to the next content; for that
		// moment nobody meant the defaults, which deny nobody.
		err = fmt.Errorf("%s is gone or empty; what it said last holds until the next restart", name)
	}
	if err != nil {
		if o.problems["settings"] != err.Error() {
			o.rec.note(trail.KindConfigRejected, func(e *curfewv1.Event) {
				e.Details = detail("error", err.Error())
			})
		}
		o.problem("settings", err)
		return
	}
	o.problem("settings", nil)
	o.fromFile = said
	if sameSettings(s, o.settings) {
		return
	}
	if s.UIDRange != o.settings.UIDRange {
		o.problem("settings", errors.New("uid_range changes with the next restart of curfew-enforce"))
		s.UIDRange = o.settings.UIDRange
	}
	o.use(s)
	o.readSwitch()
	o.log.Info("the settings changed", "mode", o.word())
	o.rec.note(trail.KindConfigLoaded, func(e *curfewv1.Event) { e.Details = detail("mode", o.word()) })
	o.recon.Retry()
	o.orphans() // a lowered ceiling ends what is over it
	o.reconcile(ctx)
	o.heartbeat()
}
