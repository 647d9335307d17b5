package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

// admit runs the checks that need the host, once per grant: the uid is tied to its login, commands
// are root's alone, sudo agrees with the text, and nothing else on the host gives the same person
// sudo. It returns why grants are refused; what passed is remembered until the grant ends.
func (r *Reconciler) admit(ctx context.Context, in Input) map[grant.ID]string {
	refused := make(map[grant.ID]string)
	ours := make([]sudoers.Dropin, 0, len(in.Live))
	live := make(map[grant.ID]bool, len(in.Live))
	for _, l := range in.Live {
		live[l.ID] = true
		if len(l.Terms.GetSudoRules()) > 0 {
			ours = append(ours, DropinOf(l))
		}
	}
	maps.DeleteFunc(r.admitted, func(id grant.ID, _ []string) bool { return !live[id] })
	host := &hostPolicy{checker: r.cfg.Checker}
	for _, l := range in.Live {
		standing, done := r.admitted[l.ID]
		if done && (len(standing) == 0 || in.Mode != account.ModeEnforce) {
			continue
		}
		delete(r.admitted, l.ID)
		standing, err := r.admitOne(ctx, in, l, ours, host)
		if err != nil {
			refused[l.ID] = err.Error()
			continue
		}
		r.admitted[l.ID] = standing
	}
	return refused
}

// hostPolicy reads the host's sudoers at most once per round.
type hostPolicy struct {
	checker sudoers.Checker
	read    bool
	policy  sudoers.Policy
	err     error
}

func (h *hostPolicy) get(ctx context.Context) (sudoers.Policy, error) {
	if !h.read {
		h.policy, h.err = h.checker.Policy(ctx)
		h.read = true
	}
	return h.policy, h.err
}

func (r *Reconciler) admitOne(
	ctx context.Context, in Input, live grant.Live, ours []sudoers.Dropin, host *hostPolicy,
) (standing []string, err error) {
	subject, err := in.Rules.Classify(in.Local, live.Terms.GetLogin(), live.Terms.GetUid())
	if err != nil {
		return nil, err
	}
	if subject.Class == account.ClassAccount {
		if err := r.cfg.UIDs.ReserveUID(subject.Login, subject.UID); err != nil {
			return nil, err
		}
	}
	if err := r.admitRules(ctx, in, live); err != nil {
		return nil, err
	}
	if !r.cfg.Checker.Present() {
		return nil, nil // without sudoers there are no standing rules
	}
	policy, err := host.get(ctx)
	if err != nil {
		return nil, err
	}
	standing = sudoers.Standing(policy, personOf(in, live, subject), ours)
	if len(standing) > 0 && in.Mode == account.ModeEnforce {
		return nil, errors.New(strings.Join(standing, "; "))
	}
	return standing, nil
}

func (r *Reconciler) admitRules(ctx context.Context, in Input, live grant.Live) error {
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
	if r.stands(live.ID, text) {
		return nil // an agent before this one had sudo check these very bytes
	}
	return r.cfg.Checker.Syntax(ctx, text)
}

// stands tells whether the drop-in is on disk already, exactly.
func (r *Reconciler) stands(id grant.ID, text []byte) bool {
	dir, err := r.root.Sub(SudoersDir, 0o755)
	if err != nil {
		return false
	}
	same, err := dir.Holds(id.String(), folder.File{Data: text, Mode: 0o440})
	return errors.Join(err, dir.Close()) == nil && same
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

// unread returns the applied grants whose rules sudo does not see: a host whose sudoers does not
// include our folder would otherwise be told "applied" while nothing is.
func (r *Reconciler) unread(ctx context.Context, results []Result) (map[grant.ID]string, error) {
	var fresh []Result
	for _, res := range results {
		if res.Applied() && len(res.Live.Terms.GetSudoRules()) > 0 && !r.seen[res.Live.ID] {
			fresh = append(fresh, res)
		}
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	policy, err := r.cfg.Checker.Policy(ctx)
	if err != nil {
		return nil, err
	}
	missing := make(map[grant.ID]string)
	for _, res := range fresh {
		if policy.Holds(DropinOf(res.Live)) {
			r.seen[res.Live.ID] = true
			continue
		}
		missing[res.Live.ID] = "sudo does not read " + path.Join("/", SudoersDir) +
			": /etc/sudoers.d/curfew must include it, and /etc/sudoers that"
	}
	return missing, nil
}

// Problems says in words what is wrong for grants that are applied all the same (mode observe).
func (r *Reconciler) problemsOf() []string {
	var list []string
	for _, standing := range r.admitted {
		list = append(list, standing...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
