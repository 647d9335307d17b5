package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// maxEvaluations is how many conditions one decision evaluates, over all its hosts and windows.
const maxEvaluations = 10000

// miss is why a rule does not decide; hit is none.
type miss uint8

const (
	hit miss = iota
	missKind
	missGroup
	missUser
	missHost
	missEmergency
	missPlain
	missWhen
)

// tries says whether a rule decides for the host and the start that the matter looks at. The typed
// fields come first; only what passes them costs an evaluation.
func (m *matter) tries(r *rule) (miss, error) {
	kind := people
	if m.facts.Requester.Workload {
		kind = workloads
	}
	switch {
	case r.kinds&kind == 0:
		return missKind, nil
	case m.ask.Emergency && r.then.kind != emergency && r.then.kind != deny:
		return missPlain, nil
	case !m.ask.Emergency && r.then.kind == emergency:
		return missEmergency, nil
	case len(r.groups) > 0 && !overlap(r.groups, m.groups):
		return missGroup, nil
	case len(r.users) > 0 && !slices.Contains(r.users, m.ask.Requester):
		return missUser, nil
	case len(r.hosts) > 0 && !slices.ContainsFunc(r.hosts, m.inSet):
		return missHost, nil
	case r.when == nil:
		return hit, nil
	}
	if m.spent++; m.spent > maxEvaluations {
		return hit, errors.New("the ask has too many hosts and windows for the conditions of the " +
			"policy; ask for fewer at a time")
	}
	m.zone = r.zone
	yes, err := r.when.holds(m)
	if err != nil {
		return hit, fmt.Errorf("rule %s (line %d): its condition cannot be evaluated: %s", r.Name, r.Line,
			grant.VisibleText(err.Error()))
	}
	if !yes {
		return missWhen, nil
	}
	return hit, nil
}

func overlap(a, b []uint64) bool {
	for i := range min(len(a), len(b)) {
		if a[i]&b[i] != 0 {
			return true
		}
	}
	return false
}

// first finds the rule that decides; nil when none does. With a trace, it says of each rule that was
// looked at why it did not.
func (m *matter) first(trace *steps) (*rule, error) {
	for _, r := range m.policy.byRole[m.ask.Role] {
		why, err := m.tries(r)
		if err != nil {
			trace.add("%s (line %d): its condition fails, which denies", r.Name, r.Line)
			return r, err
		}
		if trace != nil {
			trace.add("%s (line %d): %s", r.Name, r.Line, m.missText(r, why))
		}
		if why == hit {
			return r, nil
		}
	}
	return nil, nil
}

// steps are the lines of an explanation, no more than a person reads.
type steps struct{ lines []string }

const maxSteps = 400

func (s *steps) add(format string, args ...any) {
	if s != nil && len(s.lines) < maxSteps {
		s.lines = append(s.lines, fmt.Sprintf(format, args...))
	}
}

func (m *matter) missText(r *rule, why miss) string {
	switch why {
	case hit:
		return "decides: " + r.then.text()
	case missKind:
		if r.kinds == people {
			return "no: for people, and this is a workload"
		}
		return "no: for workloads, and this is a person"
	case missGroup:
		return fmt.Sprintf("no: %s is in none of %s", m.ask.Requester, strings.Join(r.groupNames, ", "))
	case missUser:
		return fmt.Sprintf("no: for %s only", strings.Join(r.users, ", "))
	case missHost:
		var sets []string
		for _, n := range r.hosts {
			sets = append(sets, m.policy.hostSets[n].text())
		}
		return fmt.Sprintf("no: host %s is not of %s", m.host.Name, strings.Join(sets, ", "))
	case missEmergency:
		return "no: for emergencies only"
	case missPlain:
		return "no: not for emergencies"
	}
	return "no: not so: " + grant.VisibleText(r.when.source)
}

// text says in words what follows from a rule.
func (t *then) text() string {
	switch t.kind {
	case deny:
		return "denied: " + t.words
	case auto:
		return "approved by the rule"
	case emergency:
		return "granted at once, to be reviewed"
	}
	return grant.NeedsText(t.needs)
}

// ruled is what the rules say of one ask: the rules that decide, in the order of its hosts and starts,
// none twice, or the refusal.
type ruled struct {
	rules   []*rule
	refusal Verdict
}

// rule looks at every host and every start of an ask. A denial of one of them denies the whole: else a
// host would be let through in the company of others.
func (m *matter) rule(trace *steps) ruled {
	var out ruled
	starts := m.ask.Starts(m.facts.Now)
	for _, name := range m.ask.Hosts {
		host := m.facts.Hosts[name]
		for i, start := range starts {
			m.lookAt(&host, start)
			if trace != nil && len(m.ask.Hosts)*len(starts) > 1 {
				trace.add("host %s, from %s:", name, start.UTC().Format(time.RFC3339))
			}
			r, err := m.first(trace)
			if err != nil {
				out.refusal = refuse(Forbidden, "%v", err)
				out.refusal.Rule = m.place(r)
				return out
			}
			if r == nil {
				trace.add("no rule decides, which denies")
				out.refusal = m.nobody(name, start, i > 0 || !start.Equal(m.facts.Now))
				return out
			}
			if r.then.kind == deny {
				out.refusal = refuse(Forbidden, "%s (rule %s)", r.then.words, m.place(r))
				out.refusal.Rule = m.place(r)
				return out
			}
			if !slices.Contains(out.rules, r) {
				out.rules = append(out.rules, r)
			}
		}
	}
	return out
}

func (m *matter) nobody(host string, start time.Time, later bool) Verdict {
	what := "gets"
	if m.ask.Emergency {
		what = "gets in an emergency"
	}
	when := ""
	if later {
		when = " from " + start.UTC().Format(time.RFC3339)
	}
	v := refuse(Forbidden, "no rule of the policy says that %s %s role %s on %s%s", m.ask.Requester, what,
		m.ask.Role, host, when)
	v.Hint = "curfew roles shows the roles; an admin changes the policy"
	return v
}

// place names a rule as verdicts do.
func (m *matter) place(r *rule) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%s, line %d", r.Name, r.Line)
}
