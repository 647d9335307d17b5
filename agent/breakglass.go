package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	// awayAfter is how long the control plane must have been silent before a code opens anything.
	awayAfter = 2 * heartbeatEvery
	// codeTries wrong codes in codeWindow are what one uid has. Nobody guesses 140 bits: this bounds the
	// noise.
	codeTries  = 5
	codeWindow = 10 * time.Minute
	// maxTriers bounds the uids that are remembered; who comes when it is full is refused.
	maxTriers = 1024
)

// CodeUse is what somebody on this host asks of a break-glass code.
type CodeUse struct {
	Code   string `json:"code"`
	Reason string `json:"reason"`
	// Seconds is for how long; 0 takes the longest that this host allows.
	Seconds int64 `json:"seconds,omitempty"`
	// Login is whom it is for. Empty: whoever asks; only root asks for others.
	Login string `json:"login,omitempty"`
}

// CodeOpened is what a code has opened.
type CodeOpened struct {
	Request        string    `json:"request"`
	Login          string    `json:"login"`
	End            time.Time `json:"end"`
	RootEquivalent bool      `json:"root_equivalent"`
	Sudo           []string  `json:"sudo"`
	Class          string    `json:"class"`
	// Code is the number of the code that was spent; Left is how many are not.
	Code int `json:"code"`
	Left int `json:"left"`
	// Failed says why the host could not enforce the grant; empty when it stands.
	Failed string `json:"failed,omitempty"`
	id     grant.ID
}

// tries are one uid's wrong codes.
type tries struct {
	count int
	since time.Duration // boot-time clock
}

// silent returns how much longer the control plane must be silent before codes count; 0: they do. Only
// a signed state that answers one of this host's own nonces is a word of its: nobody else can make one.
func (o *owner) silent(now grant.Clock) time.Duration {
	return max(0, o.heard+awayAfter-now.Boot)
}

func (o *owner) mustBeSilent(now grant.Clock) error {
	left := o.silent(now).Round(time.Second)
	switch {
	case left <= 0:
		return nil
	case !o.heardSince:
		return fmt.Errorf("the agent has just started and may hear the control plane yet; if it does not, "+
			"a code counts in %v", left)
	}
	return fmt.Errorf("the control plane is there: ask it, curfew request %s --role ROLE --for 1h "+
		"--reason \"…\". A code counts once it has been silent for %v, in %v at the earliest", o.welcome,
		awayAfter, left)
}

// mayOpenLocal is mayOpen for local grants: that the control plane is silent is what they are for.
func (o *owner) mayOpenLocal() error {
	if err := o.ledger.MayOpen(o.cfg.Clock()); err != nil && !errors.Is(err, grant.ErrLease) {
		return err
	}
	return o.rec.full()
}

// place tells this store from a copy of it: another machine, or files that a backup brought back. The
// codes that were spent since the copy was made would be good again.
func (o *owner) place() string {
	where, err := o.store.Place()
	if err != nil {
		o.log.Error("the store's place cannot be told", "error", err)
		return ""
	}
	return where + o.machine
}

// codesUsable says why no code of this host can be used at all, or nil.
func (o *owner) codesUsable() error {
	codes := o.ledger.Codes()
	switch {
	case len(codes.Spent) == 0:
		return grant.ErrNoCodes
	case codes.Place == "" || codes.Place != o.place():
		return errors.New("this host's break-glass codes are void: they were made on another machine, or " +
			"the agent's store was restored from a copy")
	case codes.Left() == 0:
		return errors.New("all of this host's break-glass codes are spent")
	}
	return nil
}

// codesProblems is what an admin should know of the codes before they are needed.
func (o *owner) codesProblems() []string {
	if !o.settings.BreakGlass.Enabled {
		return nil
	}
	if err := o.codesUsable(); err != nil {
		return []string{fmt.Sprintf("break-glass is enabled, but %v; run curfew-agent break-glass renew", err)}
	}
	return nil
}

// useCode opens a local grant by a code. Every refusal is an event, but of those who are told to wait.
func (o *owner) useCode(ctx context.Context, uid uint32, use CodeUse) (*CodeOpened, error) {
	if err := o.mayTry(uid); err != nil {
		return nil, err
	}
	opened, err := o.tryCode(ctx, uid, use)
	if err == nil {
		delete(o.tries, uid)
		return opened, nil
	}
	if errors.Is(err, grant.ErrWrongCode) || errors.Is(err, grant.ErrCodeSpent) ||
		errors.Is(err, breakglass.ErrNoCode) {
		o.failedTry(uid)
	}
	o.log.Warn("a break-glass code is refused", "uid", uid, "error", err)
	o.rec.note(trail.KindBreakGlassRefused, func(e *curfewv1.Event) {
		e.Login = o.loginOf(uid)
		e.Details = detail("error", err.Error(), "uid", fmt.Sprint(uid), "for", use.Login)
	})
	return nil, err
}

// mayTry refuses a uid that has had its tries. Its refusals are not recorded one by one: the last of
// the tries said that they are over.
func (o *owner) mayTry(uid uint32) error {
	now := o.cfg.Clock().Boot
	maps.DeleteFunc(o.tries, func(_ uint32, t tries) bool { return now-t.since >= codeWindow })
	t := o.tries[uid]
	if t.count >= codeTries || len(o.tries) >= maxTriers && t.count == 0 {
		return fmt.Errorf("%d wrong break-glass codes; the next try is in %v", t.count,
			(t.since + codeWindow - now).Round(time.Second))
	}
	return nil
}

func (o *owner) failedTry(uid uint32) {
	t, ok := o.tries[uid]
	if !ok {
		t.since = o.cfg.Clock().Boot
	}
	t.count++
	o.tries[uid] = t
}

func (o *owner) loginOf(uid uint32) string {
	if p, err := o.principalOf(uid); err == nil {
		return p.Name
	}
	if u, ok := o.recon.Local().UserByUID(uid); ok {
		return u.Name
	}
	return ""
}

// principalOf finds whom Curfew manages by uid.
func (o *owner) principalOf(uid uint32) (account.Principal, error) {
	return o.principal(func(p account.Principal) bool { return p.UID == uid })
}

func (o *owner) principal(is func(account.Principal) bool) (account.Principal, error) {
	list, _ := o.settings.rules().Principals(o.recon.Local(), o.store.UIDs())
	i := slices.IndexFunc(list, is)
	if i < 0 || list[i].Class == account.ClassExempt {
		return account.Principal{}, errors.New("a break-glass code is for people whom Curfew manages on " +
			"this host: gated_users, elevate_users and Curfew accounts; others have what they always have")
	}
	return list[i], nil
}

// whose is whom a code is used for: whoever asks, or whom root names.
func (o *owner) whose(uid uint32, login string) (account.Principal, error) {
	if uid == 0 {
		if login == "" {
			return account.Principal{}, errors.New("root needs no code; name whom it is for with --login")
		}
		return o.principal(func(p account.Principal) bool { return p.Name == login })
	}
	p, err := o.principalOf(uid)
	if err == nil && login != "" && login != p.Name {
		err = fmt.Errorf("you are %s; only root uses a code for another login", p.Name)
	}
	return p, err
}

// tryCode checks everything, records the use, and then spends the code and opens the grant in one
// write of the ledger. A crash before that write leaves the code good and an event too many; after it
// the code is spent and the grant is open.
func (o *owner) tryCode(ctx context.Context, uid uint32, use CodeUse) (*CodeOpened, error) {
	now := o.cfg.Clock()
	terms, err := o.drawLocal(uid, use, now)
	if err != nil {
		return nil, err
	}
	code, err := breakglass.ParseCode(use.Code)
	if err != nil {
		return nil, err
	}
	number, err := o.ledger.CheckCode(code)
	if err != nil {
		return nil, err
	}
	next := o.ledger.Clone()
	live, err := next.OpenLocal(code, terms, now, o.settings.BreakGlass.ceiling())
	if err != nil {
		return nil, err
	}
	left := next.Codes().Left()
	if err := o.rec.Record(ctx, own(trail.KindBreakGlassUsed, func(e *curfewv1.Event) {
		e.GrantId, e.RequestId, e.Login = live.ID[:], terms.GetRequestId(), terms.GetLogin()
		e.Details = detail("code", fmt.Sprint(number), "set", next.Codes().Set.String(),
			"left", fmt.Sprint(left), "reason", use.Reason, "uid", fmt.Sprint(uid),
			"until", live.End.UTC().Format(time.RFC3339))
		if terms.GetRootEquivalent() {
			e.Details["root_equivalent"] = "true"
		}
	})); err != nil {
		return nil, fmt.Errorf("the use cannot be recorded, so nothing opens: %w", err)
	}
	if err := o.save(next); err != nil {
		return nil, fmt.Errorf("that the code is spent cannot be kept, so nothing opens: %w", err)
	}
	o.ledger = next
	o.log.Warn("a break-glass code is used", "code", number, "login", terms.GetLogin(), "uid", uid,
		"request", terms.GetRequestId(), "until", live.End, "left", left)
	o.recon.Retry()
	o.reconcile(ctx)
	opened := &CodeOpened{
		Request: terms.GetRequestId(), Login: terms.GetLogin(), End: live.End.UTC(), Code: number, Left: left,
		RootEquivalent: terms.GetRootEquivalent(), Sudo: []string{}, id: live.ID,
	}
	for _, r := range terms.GetSudoRules() {
		opened.Sudo = append(opened.Sudo, grant.RuleText(r))
	}
	return opened, nil
}

// drawLocal decides whether a code may be used at all now, and draws up what it would open.
func (o *owner) drawLocal(uid uint32, use CodeUse, now grant.Clock) (*curfewv1.Terms, error) {
	settings := o.settings.BreakGlass
	if !settings.Enabled {
		return nil, errors.New("break-glass codes are not enabled on this host (break_glass.enabled in " +
			ConfigPath + ")")
	}
	if err := o.codesUsable(); err != nil {
		return nil, err
	}
	p, err := o.whose(uid, use.Login)
	if err != nil {
		return nil, err
	}
	if err := o.mustBeSilent(now); err != nil {
		return nil, err
	}
	if err := o.mayOpenLocal(); err != nil {
		return nil, err
	}
	if err := grant.CheckReason(use.Reason); err != nil {
		return nil, err
	}
	d := time.Duration(use.Seconds) * time.Second
	if use.Seconds < 0 || use.Seconds > int64(maxBreakGlass/time.Second) {
		return nil, fmt.Errorf("%d seconds is out of range", use.Seconds)
	}
	if d == 0 {
		d = settings.MaxDuration
	}
	id, err := grant.NewRequestID(rand.Reader)
	if err != nil {
		return nil, err
	}
	return o.ledger.Clone().DrawLocal(grant.Wish{
		Request: id, Login: p.Name, UID: p.UID, HostName: o.welcome, Reason: use.Reason, Duration: d,
	}, now, settings.ceiling())
}

// standing tells how a grant that a code opened stands: nil while the host's checks run.
func (o *owner) standing(id grant.ID) *enforce.Result {
	i := slices.IndexFunc(o.results, func(r enforce.Result) bool { return r.Live.ID == id })
	if i < 0 || o.results[i].Status == curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED {
		return nil
	}
	r := o.results[i]
	return &r
}

// endLocal ends the local grants of a login, or all of them at root's word.
func (o *owner) endLocal(ctx context.Context, uid uint32, login string) (ended []string, err error) {
	by := o.loginOf(uid)
	if uid != 0 {
		p, err := o.whose(uid, login)
		if err != nil {
			return nil, err
		}
		login = p.Name
	}
	next := o.ledger.Clone()
	var list []grant.EndedGrant
	for _, l := range o.ledger.Live(o.cfg.Clock()) {
		if !l.Local || login != "" && l.Terms.GetLogin() != login {
			continue
		}
		change, err := next.EndLocal(l.ID, by)
		if err != nil {
			return nil, err
		}
		list = append(list, change.Ended...)
		ended = append(ended, l.Terms.GetRequestId())
	}
	if len(list) == 0 {
		return nil, errors.New("no access is open here by a break-glass code")
	}
	if err := o.save(next); err != nil {
		return nil, err
	}
	o.ledger = next
	o.ended(ctx, list)
	o.reconcile(ctx)
	return ended, nil
}

// putCodes puts a new set of codes in force: what is sealed is kept for the control plane first, so
// that no set counts on the host that nobody can be given.
func (o *owner) putCodes(in NewCodes) error {
	next := o.ledger.Clone()
	place := o.place()
	if place == "" {
		return errors.New("the place of the agent's store cannot be told; see the log")
	}
	if err := next.InstallCodes(in.Set, in.Hashes, place, o.cfg.Clock()); err != nil {
		return err
	}
	if err := o.store.SaveSealedCodes(in.Sealed); err != nil {
		return err
	}
	if err := o.save(next); err != nil {
		return err
	}
	o.ledger = next
	o.noteCodes(in)
	return nil
}

// installCodes is putCodes on a host that runs.
func (o *owner) installCodes(in NewCodes) error {
	if err := o.putCodes(in); err != nil {
		return err
	}
	o.offerCodes()
	o.heartbeat()
	return nil
}

func (o *owner) noteCodes(in NewCodes) {
	o.log.Info("new break-glass codes are in force", "codes", len(in.Hashes), "set", in.Set)
	o.rec.note(trail.KindBreakGlassRenewed, func(e *curfewv1.Event) {
		e.Details = detail("set", in.Set.String(), "codes", fmt.Sprint(len(in.Hashes)),
			"custodians", in.Custodians, "printed", in.printed())
	})
}
