package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// Limits on a file of cases.
const (
	maxCases  = 5000
	maxPeople = 5000
)

// Case is one line of a policy's test: an ask with its facts, and what the policy must say.
type Case struct {
	Name  string
	Line  int
	ask   request.Ask
	facts Facts
	// expect is deny, invalid, auto, emergency or approvals.
	expect string
	needs  []grant.Need
	rule   string // empty: any
	says   string // a part of the verdict's words; empty: any
	start  string // approval or first_use; empty: any
}

// cases reads a file of cases.
type cases struct {
	people map[string]Person
	hosts  map[string]Host
}

// ParseCases reads the cases that a policy is tested with. Users and hosts are the file's own.
func ParseCases(file string, text []byte) ([]Case, error) {
	r := &reader{file: grant.VisibleText(file)}
	if len(text) > MaxFile {
		r.fail(1, "", "%d bytes; at most %d", len(text), MaxFile)
		return nil, r.err()
	}
	doc := r.document(text)
	c := cases{people: make(map[string]Person), hosts: make(map[string]Host)}
	var out []Case
	if doc.present() {
		top := doc.fields("users", "hosts", "cases")
		for _, e := range top["users"].entries(maxPeople) {
			c.readUser(e)
		}
		for _, e := range top["hosts"].entries(maxPeople) {
			c.readHost(e)
		}
		for _, v := range top["cases"].items(maxCases) {
			out = append(out, c.readCase(v))
		}
		if len(out) == 0 && r.count == 0 {
			r.fail(1, "cases", "there is no case")
		}
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return out, nil
}

func (c *cases) readUser(e pair) {
	f := e.fields("groups", "manager", "kind", "claims")
	p := Person{Name: e.key, Groups: f["groups"].names(MaxGroupsOfUser, grant.CheckGroupName)}
	if f["manager"].present() {
		p.Manager = f["manager"].name(grant.CheckUserName)
	}
	if k := f["kind"]; k.present() {
		switch s := k.text(16); s {
		case "workload":
			p.Workload = true
		case "person", "":
		default:
			k.fail("%q is neither person nor workload", grant.VisibleText(s))
		}
	}
	for _, claim := range f["claims"].entries(MaxClaims) {
		if p.Claims == nil {
			p.Claims = make(map[string]string)
		}
		p.Claims[claim.key] = claim.text(longest)
	}
	if err := grant.CheckUserName(e.key); err != nil {
		e.fail("%v", err)
	}
	c.people[e.key] = p
}

func (c *cases) readHost(e pair) {
	labels := make(map[string]string)
	for _, l := range e.entries(maxLabels) {
		labels[l.key] = l.name(checkLabelValue)
	}
	if err := grant.CheckHostName(e.key); err != nil {
		e.fail("%v", err)
	}
	c.hosts[e.key] = Host{Name: e.key, Labels: labels}
}

func (c *cases) readCase(v value) Case {
	f := v.fields("name", "user", "role", "hosts", "for", "reason", "ticket", "start", "windows",
		"single_use", "emergency", "extends", "at", "signed_in", "approved_in_a_row", "ticket_checks",
		"expect", "rule", "says", "starts")
	out := Case{Line: v.line(), Name: f["name"].words(maxDescription)}
	for _, need := range []string{"name", "user", "role", "hosts", "at", "expect"} {
		if v.present() && !f[need].present() {
			v.r.fail(v.line(), f[need].path, "it is missing")
		}
	}
	out.ask = request.Ask{
		Requester: f["user"].name(c.knowsUser), Role: f["role"].name(grant.CheckRoleName),
		Hosts: f["hosts"].names(grant.MaxHosts, c.knowsHost), Reason: "as asked for in a test",
		SingleUse: f["single_use"].truth(), Emergency: f["emergency"].truth(),
		Extends: f["extends"].truth(), Duration: time.Hour,
	}
	if d := f["for"]; d.present() {
		out.ask.Duration = d.duration(time.Millisecond, 400*24*time.Hour)
	}
	if s := f["reason"]; s.present() {
		out.ask.Reason = s.text(grant.MaxReason)
	}
	if s := f["ticket"]; s.present() {
		out.ask.Ticket = s.text(MaxTicket)
	}
	if s := f["start"]; s.present() {
		out.ask.Start = s.moment()
	}
	for _, w := range f["windows"].items(maxWindows) {
		span := w.fields("start", "end")
		out.ask.Windows = append(out.ask.Windows,
			request.Span{Start: span["start"].moment(), End: span["end"].moment()})
		out.ask.Duration = 0
	}
	c.readFacts(f, &out)
	out.readExpect(f)
	return out
}

func (c *cases) knowsUser(name string) error {
	if _, ok := c.people[name]; !ok {
		return &unknown{"user", name}
	}
	return nil
}

func (c *cases) knowsHost(name string) error {
	if _, ok := c.hosts[name]; !ok {
		return &unknown{"host", name}
	}
	return nil
}

func (c *cases) readFacts(f map[string]value, out *Case) {
	out.facts = Facts{Now: f["at"].moment(), Hosts: c.hosts, Requester: c.people[out.ask.Requester]}
	out.facts.Requester.SignedIn = out.facts.Now
	if s := f["signed_in"]; s.present() {
		ago := s.duration(0, 366*24*time.Hour)
		out.facts.Requester.SignedIn = out.facts.Now.Add(-ago)
	}
	if n := f["approved_in_a_row"]; n.present() {
		out.facts.InARow = n.number(0, MaxInARow)
	}
	for _, e := range f["ticket_checks"].entries(maxPeople) {
		if out.facts.Tickets == nil {
			out.facts.Tickets = make(map[string]TicketCheck)
		}
		answer := e.words(maxDenial)
		out.facts.Tickets[e.key] = TicketCheck{OK: answer == "ok", Text: answer}
	}
}

// moment reads a time with its zone, as RFC 3339 writes it. YAML calls what is not quoted a timestamp.
func (v value) moment() time.Time {
	if !v.present() {
		return time.Time{}
	}
	if !v.is(scalar, "a time such as 2026-11-03T14:30:00+01:00") {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, v.node.Value)
	if err != nil {
		v.fail("%q is not a time such as 2026-11-03T14:30:00+01:00", grant.VisibleText(v.node.Value))
	}
	return t
}

func (c *Case) readExpect(f map[string]value) {
	e := f["expect"]
	if e.present() && e.node.Kind == sequence {
		c.expect, c.needs = "approvals", readNeeds(e)
	} else if e.present() {
		c.expect = e.text(16)
		if !slices.Contains([]string{"deny", "invalid", "auto", "emergency", ""}, c.expect) {
			e.fail("%q is none of deny, invalid, auto, emergency and a list of approvals",
				grant.VisibleText(c.expect))
		}
	}
	if f["rule"].present() {
		c.rule = f["rule"].name(grant.CheckRoleName)
	}
	if f["says"].present() {
		c.says = f["says"].text(maxDenial)
	}
	if s := f["starts"]; s.present() {
		if c.start = s.text(16); c.start != "approval" && c.start != "first_use" && c.start != "" {
			s.fail("%q is neither approval nor first_use", grant.VisibleText(c.start))
		}
	}
}

// Result is what became of one case.
type Result struct {
	Case Case
	// Failed is what differs, in words; empty when the case holds.
	Failed string
	// Steps are how the policy came to its verdict.
	Steps []string
}

// Test runs cases against a policy. It returns their results and the rules that decided none of them.
func (p *Policy) Test(cs []Case) (results []Result, untried []string) {
	tried := make(map[string]bool)
	for _, c := range cs {
		c.facts.Policy, c.facts.Role = p, p.Role(c.ask.Role)
		lines, v := Explain(c.ask, c.facts)
		for _, part := range strings.Split(v.Rule, "; ") {
			name, _, _ := strings.Cut(part, ",")
			tried[name] = true
		}
		results = append(results, Result{Case: c, Steps: lines, Failed: c.differs(v)})
	}
	for _, r := range p.rules {
		if !tried[r.Name] {
			untried = append(untried, fmt.Sprintf("%s (line %d)", r.Name, r.Line))
		}
	}
	return results, untried
}

// differs says what a verdict is other than expected.
func (c *Case) differs(v Verdict) string {
	got := v.Outcome()
	start := "approval"
	if v.FirstUse {
		start = "first_use"
	}
	switch {
	case got != c.expect:
		return fmt.Sprintf("expected %s, and it is %s: %s", c.expect, got, v.Text)
	case c.expect == "approvals" && !slices.Equal(c.needs, v.Needs):
		return fmt.Sprintf("expected %s, and it needs %s", grant.NeedsText(c.needs), grant.NeedsText(v.Needs))
	case c.rule != "" && !strings.Contains("; "+v.Rule, "; "+c.rule+","):
		return fmt.Sprintf("expected rule %s, and it is rule %s: %s", c.rule, v.Rule, v.Text)
	case c.says != "" && !strings.Contains(v.Text, c.says):
		return fmt.Sprintf("expected %q in its words: %s", c.says, v.Text)
	case c.start != "" && v.Accepted() && c.start != start:
		return fmt.Sprintf("expected a start at %s, and it is %s", c.start, start)
	}
	return ""
}

// Outcome is a verdict in one word: deny, invalid, auto, emergency or approvals.
func (v Verdict) Outcome() string {
	switch {
	case v.Fault == BadAsk || v.Fault == Unknown:
		return "invalid"
	case !v.Accepted():
		return "deny"
	case v.Emergency:
		return "emergency"
	case v.Standing != "":
		return "auto"
	}
	return "approvals"
}

// Short is a verdict in a few words, without its rule: what a list of differences shows.
func (v Verdict) Short() string {
	if v.Outcome() == "approvals" {
		return "needs " + grant.NeedsText(v.Needs)
	}
	if v.Accepted() {
		return v.Outcome()
	}
	return v.Outcome() + ": " + v.Text
}
