package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/keys"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// verdict is what the host's own checks said of a live grant.
type verdict struct {
	// refused says why it may not be applied; empty when it may.
	refused string
	// standing are rules of others that observe mode lets pass.
	standing []string
	// stood: the files were on disk before; read: sudo was found to read the rules, and programs to
	// find the account.
	stood, read bool
}

// Pending tells whether any of these results still waits for the host's checks (Admit, Verify).
func (r *Reconciler) Pending(results []Result) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(results, func(res Result) bool {
		if !res.Applied() {
			return res.Status == curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED
		}
		return !r.verdicts[res.Live.ID].read
	})
}

// Retry forgets refusals, so that the next Admit looks again.
func (r *Reconciler) Retry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.verdicts, func(_ grant.ID, v verdict) bool { return v.refused != "" })
}

// Admit runs the checks that need the host's own programs, for the live grants that were not checked
// yet: commands are root's alone, sudo agrees with the text, and nothing else on the host gives the
// same person sudo. Programs may be slow or hang: Admit changes no file and holds nobody up.
func (r *Reconciler) Admit(ctx context.Context, s State) {
	local, err := account.ReadLocal(r.cfg.Root)
	host := &hostPolicy{checker: r.cfg.Checker}
	ours := make([]sudoers.Dropin, 0, len(s.Live))
	for _, l := range s.Live {
		if len(l.Terms.GetSudoRules()) > 0 {
			ours = append(ours, DropinOf(l))
		}
	}
	in := Input{Live: s.Live, Mode: s.Mode, Rules: s.Rules, Local: local, Keys: r.cfg.Keys}
	for _, l := range s.Live {
		if ctx.Err() != nil || !r.unchecked(l.ID, s.Mode) {
			continue
		}
		v := verdict{}
		if err != nil {
			v.refused = err.Error()
		} else {
			v = r.admitOne(ctx, in, l, ours, host)
		}
		if ctx.Err() == nil { // a check that was cut short says nothing
			r.keep(l.ID, v)
		}
	}
}

func (r *Reconciler) unchecked(id grant.ID, mode account.Mode) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.verdicts[id]
	return !ok || len(v.standing) > 0 && mode == account.ModeEnforce
}

func (r *Reconciler) keep(id grant.ID, v verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verdicts[id] = v
}

// hostPolicy reads the host's sudoers at most once per round, and asks a tool that failed no more.
type hostPolicy struct {
	checker sudoers.Checker
	read    bool
	policy  sudoers.Policy
	err     error
	asked   bool // what sudo it is
	syntax  error
}

func (h *hostPolicy) get(ctx context.Context) (sudoers.Policy, error) {
	if !h.read {
		h.policy, h.err = h.checker.Policy(ctx)
		h.read = true
	}
	return h.policy, h.err
}

func (h *hostPolicy) check(ctx context.Context, text []byte) error {
	if h.syntax != nil {
		return h.syntax
	}
	var asking sync.WaitGroup
	if !h.asked {
		h.asked = true
		asking.Go(func() { h.syntax = h.checker.Genuine(ctx) })
	}
	err := h.checker.Syntax(ctx, text)
	asking.Wait()
	if h.syntax != nil {
		return h.syntax
	}
	if errors.Is(err, sudoers.ErrTool) {
		h.syntax = err
	}
	return err
}

func (r *Reconciler) admitOne(
	ctx context.Context, in Input, live grant.Live, ours []sudoers.Dropin, host *hostPolicy,
) verdict {
	subject, err := in.Rules.Classify(in.Local, live.Terms.GetLogin(), live.Terms.GetUid())
	if err != nil {
		return verdict{refused: err.Error()}
	}
	stood := r.stood(live, subject)
	// Somebody waits for the access that these programs check: they run side by side, the name service's
	// first, since that asks others in turn.
	var checks sync.WaitGroup
	var errFree error
	checks.Go(func() { err = r.admitRules(ctx, in, live, host) })
	if r.cfg.Checker.Present() {
		checks.Go(func() { _, _ = host.get(ctx) }) // asked again below
	}
	if subject.Class == account.ClassAccount {
		errFree = r.cfg.Directory.Free(ctx, subject.Login, subject.UID)
	}
	checks.Wait()
	if err == nil {
		err = errFree
	}
	outage := errors.Is(err, sudoers.ErrTool) || errors.Is(err, account.ErrDirectory)
	if err != nil && !(stood && outage) {
		return verdict{refused: err.Error()}
	}
	if !r.cfg.Checker.Present() {
		return verdict{stood: stood} // without sudoers there are no standing rules
	}
	policy, err := host.get(ctx)
	if err != nil && !stood {
		return verdict{refused: err.Error()}
	}
	standing := sudoers.Standing(policy, personOf(in, live, subject), ours)
	if len(standing) > 0 && in.Mode == account.ModeEnforce {
		return verdict{refused: strings.Join(standing, "; ")}
	}
	return verdict{standing: standing, stood: stood}
}

func (r *Reconciler) admitRules(
	ctx context.Context, in Input, live grant.Live, host *hostPolicy,
) error {
	rules := live.Terms.GetSudoRules()
	if len(rules) == 0 {
		return nil
	}
	if !r.cfg.Checker.Present() {
		return fmt.Errorf("sudo is not installed on this host: there is no %s", r.cfg.Checker.Sudoers)
	}
	for _, rule := range rules {
		if rule.GetAll() {
			continue
		}
		if _, ok := in.Local.User(rule.GetRunAs()); !ok {
			return fmt.Errorf("there is no user %s to run %s as", rule.GetRunAs(), rule.GetCommand())
		}
		if err := sudoers.CheckCommand(r.cfg.Root, rule.GetCommand()); err != nil {
			return err
		}
	}
	text, err := sudoers.Render(DropinOf(live))
	if err != nil {
		return err
	}
	return host.check(ctx, text)
}

// stood tells whether a grant's files are on disk already, exactly: an agent before this one checked
// and wrote them since the host booted. They stay while the checks run again, and when the tools for
// that are broken: an outage takes no valid grant away.
func (r *Reconciler) stood(live grant.Live, s account.Subject) bool {
	if len(live.Terms.GetSudoRules()) > 0 {
		text, err := sudoers.Render(DropinOf(live))
		return err == nil && r.onDisk(SudoersDir, live.ID.String(), func(have []byte) bool {
			return string(have) == string(text)
		})
	}
	list := keysOf(Result{Live: live})
	if s.Class != account.ClassAccount || len(list) == 0 {
		return false
	}
	lines, err := keys.Render(r.cfg.Keys, list)
	return err == nil && r.onDisk(KeysDir, s.Login, func(have []byte) bool {
		for line := range strings.Lines(string(lines)) {
			if !strings.Contains(string(have), line) {
				return false
			}
		}
		return true
	})
}

// Stands tells whether a live grant's files are on disk, as an agent before this one wrote them.
func (r *Reconciler) Stands(live grant.Live, rules account.Rules) bool {
	local, err := account.ReadLocal(r.cfg.Root)
	if err != nil {
		return false
	}
	subject, err := rules.Classify(local, live.Terms.GetLogin(), live.Terms.GetUid())
	return err == nil && r.stood(live, subject)
}

const maxOwnFile = 4 << 20

func (r *Reconciler) onDisk(place, name string, fits func([]byte) bool) bool {
	dir, err := folder.Open(path.Join(r.cfg.Root, place), r.cfg.Kernel)
	if err != nil {
		return false
	}
	have, err := dir.Read(name, maxOwnFile)
	return errors.Join(err, dir.Close()) == nil && fits(have)
}

func personOf(in Input, live grant.Live, s account.Subject) sudoers.Person {
	p := sudoers.Person{Login: s.Login, UID: s.UID, Targets: []string{"root"}}
	for _, rule := range live.Terms.GetSudoRules() {
		p.Targets = append(p.Targets, rule.GetRunAs())
	}
	if u, local := in.Local.User(s.Login); local {
		p.Groups, p.GIDs = in.Local.GroupsOf(u)
		return p
	}
	p.Groups = append([]string{s.Login, UsersGroup}, live.Terms.GetGroups()...)
	p.GIDs = []uint32{s.GID}
	for _, name := range p.Groups {
		if g, ok := in.Local.Group(name); ok {
			p.GIDs = append(p.GIDs, g.GID)
		}
	}
	return p
}

// Verify finds out whether what Apply wrote has effect: whether sudo reads the drop-ins, and programs
// find the accounts. Otherwise a host whose sudoers or name service does not include ours would be
// told "applied" while nothing is. What has no effect is refused, and the caller applies again. Like
// Admit it may take its time.
func (r *Reconciler) Verify(ctx context.Context, results []Result) {
	var fresh []Result
	r.mu.Lock()
	for _, res := range results {
		if v, checked := r.verdicts[res.Live.ID]; res.Applied() && checked && !v.read {
			fresh = append(fresh, res)
		}
	}
	r.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	if err := r.cfg.Directory.Forget(ctx); err != nil {
		r.cfg.Log.Warn("look-ups may be answered from before", "error", err)
	}
	host := &hostPolicy{checker: r.cfg.Checker}
	for _, res := range fresh {
		err := r.effect(ctx, res, host)
		if ctx.Err() != nil {
			return
		}
		r.mu.Lock()
		v := r.verdicts[res.Live.ID]
		outage := errors.Is(err, sudoers.ErrTool) || errors.Is(err, account.ErrDirectory)
		if err == nil || v.stood && outage {
			v.read = true
		} else {
			v.refused = err.Error()
		}
		r.verdicts[res.Live.ID] = v
		r.mu.Unlock()
	}
}

func (r *Reconciler) effect(ctx context.Context, res Result, host *hostPolicy) error {
	rules := len(res.Live.Terms.GetSudoRules()) > 0
	var reading sync.WaitGroup
	if rules {
		reading.Go(func() { _, _ = host.get(ctx) }) // asked again below
	}
	var err error
	if res.Subject.Class == account.ClassAccount {
		err = r.cfg.Directory.Resolves(ctx, res.Subject.Login, res.Subject.UID)
	}
	reading.Wait()
	if err != nil || !rules {
		return err
	}
	policy, err := host.get(ctx)
	if err != nil {
		return err
	}
	if !policy.Holds(DropinOf(res.Live)) {
		return errors.New("sudo does not read " + path.Join("/", SudoersDir) +
			": /etc/sudoers.d/curfew must include it, and /etc/sudoers that")
	}
	return nil
}

// standing says in words what is wrong for grants that are applied all the same (mode observe).
func (r *Reconciler) standing() []string {
	var list []string
	for _, v := range r.verdicts {
		list = append(list, v.standing...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
