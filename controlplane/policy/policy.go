package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// maxWindows is how many windows one ask has at most; terms say the same.
const maxWindows = 64

// MaxTicket is the longest name of a ticket, in bytes.
const MaxTicket = 128

// Fault says what kind of refusal a verdict is.
type Fault uint8

// The faults, by who can mend them: None is no refusal, BadAsk the requester, Forbidden an admin,
// Unknown a typing error, NotYet time.
const (
	None Fault = iota
	BadAsk
	Forbidden
	Unknown
	NotYet
)

// Verdict is what policy says of a request, in words.
type Verdict struct {
	Fault Fault
	// Text is why, for people; of an accepted request, what it needs.
	Text string
	// Hint is what to type next.
	Hint string
	// Rule is what decided, with its line: "prod-root, line 41". Empty for the directory's roles.
	Rule string
	// PolicyHash names what decided; grants carry it.
	PolicyHash []byte
	// Needs are approvals, all of which are needed; none when Standing opens the request.
	Needs []grant.Need
	// Standing is the trust file's rule that opens the request without approvals.
	Standing string
	// Emergency says that Standing is for emergencies: it is to be reviewed.
	Emergency bool
	// FirstUse says that the window starts with the first login.
	FirstUse bool
	// Check is the ticket check that must be asked first; set only with NotYet.
	Check string
}

// Accepted says whether the request may be put to approvers, or opened by its standing rule.
func (v Verdict) Accepted() bool { return v.Fault == None }

// Decide says what the policy in force makes of an ask. It is pure and bounded: everything that it
// knows is in its arguments.
func Decide(a request.Ask, f Facts) Verdict { return decide(&a, &f, true, nil) }

// Explain decides, and says of each rule that was looked at what it made of the ask. It does not ask
// whether the trust file carries the verdict: what is explained may be old.
func Explain(a request.Ask, f Facts) ([]string, Verdict) {
	trace := &steps{}
	v := decide(&a, &f, false, trace)
	return trace.lines, v
}

func decide(a *request.Ask, f *Facts, trust bool, trace *steps) Verdict {
	if f.Policy != nil {
		f.Role = f.Policy.Role(a.Role)
	}
	for _, check := range []func(*request.Ask, *Facts) Verdict{
		checkText, checkRequester, checkRole, checkHosts,
	} {
		if v := check(a, f); !v.Accepted() {
			return v
		}
	}
	v, d := demand{}.of(a, f, trace)
	if v.Accepted() {
		v = d.check(a, f, v)
	}
	if v.Accepted() && trust {
		v = checkTrust(a, f, v)
	}
	if f.Policy != nil {
		v.PolicyHash = f.Policy.Hash[:]
	}
	return v
}

func refuse(fault Fault, format string, args ...any) Verdict {
	return Verdict{Fault: fault, Text: fmt.Sprintf(format, args...)}
}

func checkText(a *request.Ask, _ *Facts) Verdict {
	if err := grant.CheckReason(a.Reason); err != nil {
		v := refuse(BadAsk, "%v", err)
		v.Hint = `add --reason "…"`
		return v
	}
	if err := grant.CheckRoleName(a.Role); err != nil {
		return refuse(BadAsk, "%v", err)
	}
	if len(a.Ticket) > MaxTicket || grant.VisibleText(a.Ticket) != a.Ticket {
		return refuse(BadAsk, "the ticket has at most %d printable bytes", MaxTicket)
	}
	if len(a.Windows) > maxWindows {
		return refuse(BadAsk, "the request has %d windows; at most %d", len(a.Windows), maxWindows)
	}
	if n := len(a.Hosts); n == 0 || n > grant.MaxHosts {
		return refuse(BadAsk, "the request names %d hosts; it may name 1 to %d", n, grant.MaxHosts)
	}
	for i, h := range a.Hosts {
		if err := grant.CheckHostName(h); err != nil {
			return refuse(BadAsk, "%v", err)
		}
		if slices.Contains(a.Hosts[:i], h) {
			return refuse(BadAsk, "host %s stands twice in the request", h)
		}
	}
	return Verdict{}
}

func checkRequester(a *request.Ask, f *Facts) Verdict {
	p := &f.Requester
	switch {
	case p.Name != a.Requester:
		return refuse(Unknown, "there is no user %s", grant.VisibleText(a.Requester))
	case p.Disabled:
		return refuse(Forbidden, "user %s is disabled", a.Requester)
	case len(p.Groups) > MaxGroupsOfUser || len(p.Claims) > MaxClaims:
		return refuse(Forbidden, "%s is in %d groups and has %d claims; at most %d and %d can be judged",
			p.Name, len(p.Groups), len(p.Claims), MaxGroupsOfUser, MaxClaims)
	}
	for k, v := range p.Claims {
		if len(k) > longest || len(v) > longest {
			return refuse(Forbidden, "claim %s has %d bytes; at most %d can be judged",
				grant.VisibleText(k[:min(len(k), 64)]), len(v), longest)
		}
	}
	return Verdict{}
}

func checkRole(a *request.Ask, f *Facts) Verdict {
	if f.Role == nil {
		v := refuse(Unknown, "there is no role %s", a.Role)
		v.Hint = "curfew roles shows the roles"
		return v
	}
	return Verdict{}
}

func checkHosts(a *request.Ask, f *Facts) Verdict {
	for _, name := range a.Hosts {
		host, ok := f.Hosts[name]
		if !ok {
			v := refuse(Unknown, "there is no host %s", name)
			v.Hint = "curfew hosts shows the hosts"
			return v
		}
		if host.Refused != "" {
			return refuse(NotYet, "host %s is not served: %s", name, host.Refused)
		}
	}
	return Verdict{}
}

// demand is what the rules that decide ask for beside approvals.
type demand struct {
	rules []*rule
	max   time.Duration
	// narrow is the rule whose longest duration counts; nil when it is the role's.
	narrow *rule
}

func (d demand) of(a *request.Ask, f *Facts, trace *steps) (Verdict, demand) {
	d.max = f.Role.MaxDuration
	if f.Policy == nil {
		return byRole(a, f), d
	}
	m := newMatter(a, f)
	got := m.rule(trace)
	if !got.refusal.Accepted() {
		return got.refusal, d
	}
	d.rules = got.rules
	for _, r := range d.rules {
		if r.then.max > 0 && r.then.max < d.max {
			d.max, d.narrow = r.then.max, r
		}
	}
	return m.combine(d.rules), d
}

// byRole is the policy of the directory's roles: who may ask, where, and k approvals of one group.
func byRole(a *request.Ask, f *Facts) Verdict {
	if a.Emergency {
		return refuse(Forbidden, "there are no emergencies without a policy file that has a rule for them")
	}
	if len(f.Role.RequesterGroups) > 0 && !slices.ContainsFunc(f.Role.RequesterGroups,
		func(g string) bool { return slices.Contains(f.Requester.Groups, g) }) {
		return refuse(Forbidden, "role %s is only for members of %s", a.Role,
			strings.Join(f.Role.RequesterGroups, ", "))
	}
	for _, name := range a.Hosts {
		labels := f.Hosts[name].Labels
		for _, k := range slices.Sorted(maps.Keys(f.Role.HostLabels)) {
			if want := f.Role.HostLabels[k]; labels[k] != want {
				return refuse(Forbidden, "role %s is only for hosts with label %s=%s, and %s has %s",
					a.Role, k, want, name, labelText(k, labels))
			}
		}
	}
	needs := []grant.Need{{Group: f.Role.ApproverGroup, Approvals: f.Role.Approvals}}
	hash, err := f.Role.Hash()
	if err != nil {
		return refuse(Forbidden, "%v", err)
	}
	return Verdict{Text: "needs " + grant.NeedsText(needs), Needs: needs, PolicyHash: hash}
}

func labelText(key string, labels map[string]string) string {
	if v, ok := labels[key]; ok {
		return key + "=" + v
	}
	return "none of that name"
}

// combine makes one verdict of the rules that decide for the hosts of an ask: the strictest of each.
func (m *matter) combine(rules []*rule) Verdict {
	first := rules[0]
	places := make([]string, 0, len(rules))
	v := Verdict{FirstUse: true}
	for _, r := range rules {
		places = append(places, m.place(r))
		if r.then.kind != first.then.kind || r.then.standing() && r != first {
			v := refuse(BadAsk, "rules %s and %s decide on different hosts or windows of this request",
				m.place(first), m.place(r))
			v.Hint = "ask for them one by one"
			return v
		}
		v.FirstUse = v.FirstUse && r.then.firstUse
		for _, n := range r.then.needs {
			i := slices.IndexFunc(v.Needs, func(o grant.Need) bool { return o.Group == n.Group })
			if i < 0 {
				v.Needs = append(v.Needs, n)
			} else {
				v.Needs[i].Approvals = max(v.Needs[i].Approvals, n.Approvals)
			}
		}
	}
	v.Rule = strings.Join(places, "; ")
	if first.then.standing() {
		v.Standing = first.standingName(m.ask.Role)
		v.Emergency = first.then.kind == emergency
		v.Text = fmt.Sprintf("%s (rule %s)", first.then.text(), v.Rule)
		return v
	}
	slices.SortFunc(v.Needs, func(a, b grant.Need) int { return strings.Compare(a.Group, b.Group) })
	if err := grant.CheckNeeds(v.Needs); err != nil {
		bad := refuse(BadAsk, "the hosts together need too much: %v (rules %s)", err, v.Rule)
		bad.Hint = "ask for fewer hosts at a time"
		return bad
	}
	v.Text = fmt.Sprintf("needs %s (rule %s)", grant.NeedsText(v.Needs), v.Rule)
	return v
}

// check demands what goes with the rules: the duration, the justification, a fresh sign-in.
func (d *demand) check(a *request.Ask, f *Facts, v Verdict) Verdict {
	if bad := d.duration(a, f); !bad.Accepted() {
		return bad
	}
	for _, r := range d.rules {
		for _, check := range []func(*request.Ask, *Facts) Verdict{
			r.then.checkReason, r.then.checkTicket, r.then.checkFresh,
		} {
			if bad := check(a, f); !bad.Accepted() {
				bad.Text += fmt.Sprintf(" (rule %s, line %d)", r.Name, r.Line)
				bad.Rule = v.Rule
				return bad
			}
		}
	}
	return v
}

func (d *demand) duration(a *request.Ask, f *Facts) Verdict {
	for _, w := range a.Windows {
		if w.End.Sub(w.Start) < grant.MinDuration {
			return refuse(BadAsk, "a window is shorter than %s", grant.MinDuration)
		}
	}
	switch longest := a.Longest(); {
	case longest < grant.MinDuration:
		return refuse(BadAsk, "the duration is %s; it must be at least %s", longest, grant.MinDuration)
	case longest%time.Millisecond != 0:
		return refuse(BadAsk, "the duration %s is not in whole milliseconds", longest)
	case longest > d.max:
		who := "role " + a.Role
		if d.narrow != nil {
			who = fmt.Sprintf("rule %s (line %d)", d.narrow.Name, d.narrow.Line)
		}
		v := refuse(BadAsk, "the duration is %s; %s gives at most %s", longest, who, d.max)
		v.Hint = fmt.Sprintf("use --for %s or less", d.max)
		return v
	}
	return Verdict{}
}

func (t *then) checkReason(a *request.Ask, _ *Facts) Verdict {
	if n := utf8.RuneCountInString(strings.TrimSpace(a.Reason)); n < t.minReason {
		v := refuse(BadAsk, "the reason has %d characters; at least %d are wanted", n, t.minReason)
		v.Hint = `say more: --reason "…"`
		return v
	}
	if t.reason != nil && !t.reason.MatchString(a.Reason) {
		v := refuse(BadAsk, "the reason must hold something like %s", t.reason)
		v.Hint = `say it in --reason "…"`
		return v
	}
	return Verdict{}
}

func (t *then) checkTicket(a *request.Ask, f *Facts) Verdict {
	if t.ticket == nil {
		return Verdict{}
	}
	if !t.ticket.MatchString(a.Ticket) {
		like := strings.TrimSuffix(strings.TrimPrefix(t.ticket.String(), `\A(?:`), `)\z`)
		v := refuse(BadAsk, "a ticket like %s is wanted", like)
		if a.Ticket != "" {
			v = refuse(BadAsk, "%q is not a ticket like %s", a.Ticket, like)
		}
		v.Hint = "name one: --ticket …"
		return v
	}
	if t.check == "" || f.Asked {
		return Verdict{}
	}
	answer, asked := f.Tickets[t.check]
	switch {
	case !asked:
		v := refuse(NotYet, "ticket %s must be checked by %s first", a.Ticket, t.check)
		v.Check = t.check
		return v
	case !answer.OK:
		return refuse(Forbidden, "ticket %s is refused by check %s: %s", a.Ticket, t.check,
			grant.VisibleText(answer.Text))
	}
	return Verdict{}
}

func (t *then) checkFresh(_ *request.Ask, f *Facts) Verdict {
	if t.fresh == 0 || f.Asked || f.Requester.Workload {
		return Verdict{}
	}
	if in := f.Requester.SignedIn; !in.IsZero() && f.Now.Sub(in) <= t.fresh {
		return Verdict{}
	}
	v := refuse(Forbidden, "this needs a sign-in that is at most %s old", t.fresh)
	v.Hint = "curfew login, then ask again"
	return v
}

// checkTrust refuses what nobody could approve, and what hosts would refuse because their trust file
// says otherwise.
func checkTrust(a *request.Ask, f *Facts, v Verdict) Verdict {
	if f.Role.AllowLogin && len(f.Requester.SSHKeys) == 0 {
		return refuse(Forbidden, "role %s opens logins and user %s has no SSH key",
			a.Role, a.Requester)
	}
	ids := make([]grant.HostID, 0, len(a.Hosts))
	for _, name := range a.Hosts {
		ids = append(ids, f.Hosts[name].ID)
	}
	if v.Standing != "" {
		if err := grant.CheckStanding(f.Trust, standingTerms(a, f, v), ids, nil); err != nil {
			return notInForce("rule "+v.Rule, err)
		}
		return v
	}
	if err := grant.CheckFloor(f.Trust, a.Role, v.Needs, ids); err != nil {
		return notInForce("role "+a.Role, err)
	}
	if missing := grant.Missing(v.Needs, a.Requester, f.approvers(a, v.Needs)); len(missing) > 0 {
		return refuse(Forbidden, "nobody can approve this: role %s needs %s, and besides the requester "+
			"there are too few with an SSH key: %s lacking", a.Role, grant.NeedsText(v.Needs), grant.NeedsText(missing))
	}
	return v
}

func notInForce(what string, err error) Verdict {
	v := refuse(NotYet, "%s is not in force yet: the trust file that hosts obey does not carry it as it "+
		"stands (%v)", what, err)
	v.Hint = "an admin completes it with: curfew admin trust sign"
	return v
}

// standingTerms are what a standing rule is compared with.
func standingTerms(a *request.Ask, f *Facts, v Verdict) *curfewv1.Terms {
	return &curfewv1.Terms{
		Requester: a.Requester, Role: a.Role, Login: a.Requester, Uid: f.Requester.UID,
		AllowLogin: f.Role.AllowLogin, Groups: f.Role.Groups, SudoRules: f.Role.Rules(),
		AuthorizedKeys: loginKeys(*f), RootEquivalent: f.Role.RootEquivalent(),
		DurationMs: a.Longest().Milliseconds(), StandingRule: v.Standing, Emergency: v.Emergency,
	}
}

// approvers are people of the trust file who could approve, for each need as many as could be needed:
// more would change nothing.
func (f *Facts) approvers(a *request.Ask, needs []grant.Need) []*grant.Approver {
	var all uint32
	for _, n := range needs {
		all += n.Approvals
	}
	var out []*grant.Approver
	have := make([]uint32, len(needs))
	for i := range f.Trust.Approvers {
		p := &f.Trust.Approvers[i]
		if len(p.SSHKeys) == 0 || p.Name == a.Requester || f.Disabled[p.Name] {
			continue
		}
		wanted := false
		for k, n := range needs {
			if have[k] < all && (n.Group == grant.GroupManager && slices.Contains(p.Manages, a.Requester) ||
				slices.Contains(p.Groups, n.Group)) {
				have[k]++
				wanted = true
			}
		}
		if wanted {
			out = append(out, p)
		}
	}
	return out
}
