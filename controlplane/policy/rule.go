package policy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/curfew-access/curfew/internal/grant"
)

const (
	sequence = yaml.SequenceNode
	scalar   = yaml.ScalarNode
)

// kinds are what a rule is for: people, workloads, or both.
type kinds uint8

const (
	people kinds = 1 << iota
	workloads
)

// outcome is what follows from a rule.
type outcome uint8

const (
	deny outcome = iota + 1
	auto
	emergency
	approve
)

var outcomeNames = map[outcome]string{
	deny: "deny", auto: "auto", emergency: "emergency", approve: "approvals",
}

// rule is one rule of a policy file.
type rule struct {
	Name  string
	Line  int
	kinds kinds
	// groups as a set of the policy's numbers, and as names in order; none means anybody.
	groups     []uint64
	groupNames []string
	users      []string // none means anybody
	hosts      []int    // numbers of host sets, any of which suffices; none means every host
	roles      []string // none means every role
	zone       int
	when       *condition // nil holds always
	then       then
}

// then is what follows from a rule that matches.
type then struct {
	kind  outcome
	words string // of a denial
	needs []grant.Need
	max   time.Duration // 0: the role's
	// minReason, reason, ticket and check are what the justification must be.
	minReason int
	reason    *regexp.Regexp
	ticket    *regexp.Regexp
	// check names the ticket check of the control plane's configuration.
	check    string
	fresh    time.Duration // 0: any session
	firstUse bool
}

// standing says whether the outcome is a standing rule of the trust file.
func (t *then) standing() bool { return t.kind == auto || t.kind == emergency }

// standingName is how hosts know a rule for one role of it.
func (r *rule) standingName(role string) string {
	if len(r.roles) == 1 {
		return r.Name
	}
	return r.Name + "-" + role
}

func (p *Policy) readRule(v value, zone int, c *compiler) {
	f := v.fields("name", "who", "hosts", "roles", "zone", "when", "then")
	if !v.present() || v.node.Kind != yaml.MappingNode {
		return
	}
	r := &rule{Name: f["name"].name(grant.CheckRoleName), Line: v.line(), zone: p.zone(f["zone"], zone)}
	for _, need := range []string{"name", "then"} {
		if !f[need].present() {
			v.r.fail(v.line(), f[need].path, "it is missing")
		}
	}
	p.readWho(f["who"], r)
	p.readHosts(f["hosts"], r)
	if f["roles"].present() {
		r.roles = f["roles"].some(maxRoles, p.checkRole, "no role; leave it out for every role")
	}
	if w := f["when"]; w.present() {
		if src := w.text(maxWhen); src != "" {
			var err error
			if r.when, err = c.compile(src); err != nil {
				w.fail("%v", err)
			}
			p.countsRow = p.countsRow || strings.Contains(src, "approved_in_a_row")
		}
	}
	if f["then"].present() {
		r.then = readThen(f["then"])
	}
	if r.then.standing() && len(r.groupNames) == 0 {
		v.r.fail(v.line(), f["who"].path, "rule %s opens access without approvals, so it must name groups: "+
			"hosts check that the requester is in one of them", r.Name)
	}
	if r.then.standing() && len(r.groupNames) > grant.MaxGroups {
		f["who"].fail("%d groups; at most %d where no approval is needed", len(r.groupNames), grant.MaxGroups)
	}
	p.rules = append(p.rules, r)
}

func (p *Policy) checkRole(name string) error {
	if err := grant.CheckRoleName(name); err != nil {
		return err
	}
	if p.roles[name] == nil {
		return &unknown{"role", name}
	}
	return nil
}

// unknown is a name that the file does not define.
type unknown struct{ what, name string }

// Error says what is not there.
func (u *unknown) Error() string {
	return "there is no " + u.what + " " + grant.VisibleText(u.name) + " in this file"
}

// readWho reads a list of groups, or groups, users and kind, all of which must hold.
func (p *Policy) readWho(v value, r *rule) {
	r.kinds = people
	if !v.present() {
		return
	}
	list := v
	if v.node.Kind == yaml.MappingNode {
		f := v.fields("groups", "users", "kind")
		list = f["groups"]
		if f["users"].present() {
			r.users = f["users"].some(maxWho, grant.CheckUserName, "nobody; leave it out for everybody")
		}
		if k := f["kind"]; k.present() {
			switch s := k.text(16); s {
			case "person", "":
			case "workload":
				r.kinds = workloads
			case "any":
				r.kinds = people | workloads
			default:
				k.fail("%q is none of person, workload and any", grant.VisibleText(s))
			}
		}
	}
	if !list.present() {
		return
	}
	r.groupNames = list.some(maxWho, grant.CheckGroupName, "no group; leave it out for everybody")
	for _, g := range r.groupNames {
		r.groups = add(r.groups, p.group(g))
	}
}

func (p *Policy) group(name string) int {
	n, ok := p.groups[name]
	if !ok {
		n = len(p.groups)
		p.groups[name] = n
	}
	return n
}

func add(set []uint64, n int) []uint64 {
	for len(set) <= n/64 {
		set = append(set, 0)
	}
	set[n/64] |= 1 << (n % 64)
	return set
}

// readHosts reads a list of host sets, or labels.
func (p *Policy) readHosts(v value, r *rule) {
	if !v.present() {
		return
	}
	if v.node.Kind == yaml.MappingNode {
		r.hosts = []int{len(p.hostSets)}
		p.hostSets = append(p.hostSets, hostSet{labels: readLabels(v)})
		return
	}
	names := v.some(maxValues, func(name string) error {
		if _, ok := p.setNames[name]; !ok {
			return &unknown{"set of hosts", name}
		}
		return nil
	}, "no set of hosts; leave it out for every host")
	for _, name := range names {
		r.hosts = append(r.hosts, p.setNames[name])
	}
}

func readThen(v value) then {
	if v.node.Kind == yaml.ScalarNode {
		switch s := v.text(16); s {
		case "auto":
			return then{kind: auto}
		case "":
		default:
			v.fail("%q is not auto; else write deny:, approvals: or emergency:", grant.VisibleText(s))
		}
		return then{}
	}
	f := v.fields("deny", "auto", "emergency", "approvals", "max_duration", "justification",
		"fresh_sign_in", "start")
	t := then{}
	for _, k := range []outcome{deny, auto, emergency, approve} {
		if !f[outcomeNames[k]].present() {
			continue
		}
		if t.kind != 0 {
			v.fail("%s and %s exclude each other", outcomeNames[t.kind], outcomeNames[k])
			return then{}
		}
		t.kind = k
	}
	switch t.kind {
	case deny:
		t.words = f["deny"].words(maxDenial)
		for _, other := range []string{"max_duration", "justification", "fresh_sign_in", "start"} {
			if f[other].present() {
				f[other].fail("it means nothing where access is denied")
			}
		}
	case auto, emergency:
		if v := f[outcomeNames[t.kind]]; !v.truth() {
			v.fail("write true, or leave it out")
		}
	case approve:
		t.needs = readNeeds(f["approvals"])
	default:
		v.fail("say what follows: deny, auto, approvals or emergency")
	}
	t.max = f["max_duration"].duration(grant.MinDuration, grant.MaxDuration)
	t.fresh = f["fresh_sign_in"].duration(time.Minute, 7*24*time.Hour)
	readJustification(f["justification"], &t)
	if s := f["start"]; s.present() {
		switch word := s.text(16); word {
		case "approval", "":
		case "first_use":
			t.firstUse = true
		default:
			s.fail("%q is neither approval nor first_use", grant.VisibleText(word))
		}
	}
	return t
}

// readNeeds reads [sre, 2 of owners, manager]: all of it is needed.
func readNeeds(v value) []grant.Need {
	items, before := []value{v}, v.r.count
	if v.node.Kind == sequence {
		items = v.items(grant.MaxApprovals)
	}
	var needs []grant.Need
	for _, item := range items {
		s := item.text(64)
		if s == "" {
			continue
		}
		m := countOf.FindStringSubmatch(s)
		if m == nil {
			item.fail("%q is not a group, \"2 of GROUP\" or manager", grant.VisibleText(s))
			continue
		}
		n := 1
		if m[1] != "" {
			n, _ = strconv.Atoi(m[1])
		}
		needs = append(needs, grant.Need{Group: m[2], Approvals: uint32(n)})
	}
	if v.r.count == before {
		if err := grant.CheckNeeds(needs); err != nil {
			v.fail("%v", err)
		}
	}
	slices.SortStableFunc(needs, func(a, b grant.Need) int { return strings.Compare(a.Group, b.Group) })
	return needs
}

func readJustification(v value, t *then) {
	if !v.present() {
		return
	}
	f := v.fields("min_length", "pattern", "ticket")
	if n := f["min_length"]; n.present() {
		t.minReason = n.number(1, grant.MaxReason/4)
	}
	if p := f["pattern"]; p.present() {
		t.reason = p.pattern(false)
	}
	if !f["ticket"].present() {
		return
	}
	ticket := f["ticket"].fields("pattern", "check")
	if p := ticket["pattern"]; p.present() {
		t.ticket = p.pattern(true)
	} else {
		f["ticket"].fail("pattern is missing")
	}
	if c := ticket["check"]; c.present() {
		t.check = c.name(grant.CheckRoleName)
	}
}
