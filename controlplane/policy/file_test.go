package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// small is a policy in which each test replaces one line.
const small = `policy: 1
zone: Europe/Berlin
on_call: [pager]
roles:
  ops: {login: true, max: 4h}
  root: {login: true, sudo: [{all: true}], max: 1h}
hosts:
  prod: {env: prod}
  some: {env: [test, stage]}
rules:
  - name: first
    who: [dev]
    hosts: [prod]
    roles: [ops]
    when: lasts <= duration("1h")
    then: {approvals: [2 of sre, manager], max_duration: 2h}
  - name: second
    who: [dev]
    hosts: [some]
    then: auto
`

func TestBadPolicyIsRefusedWhole(t *testing.T) {
	if _, err := policy.Parse("p.yaml", []byte(small)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for _, c := range []struct{ old, new, says string }{
		{"policy: 1\n", "", "p.yaml:1: policy: it is missing"},
		{"policy: 1\n", "policy: 2\n", "p.yaml:1: policy: 2 is not a whole number from 1 to 1"},
		{"policy: 1\n", "policy: 1\npolicy: 1\n", "p.yaml:2: policy: it stands twice, first in line 1"},
		{"policy: 1\n", "policy: 1\nrule: []\n", "p.yaml:2: rule: there is no such field; there are: policy, zone"},
		{"policy: 1\n", "---\npolicy: 1\n---\n", "p.yaml:"},
		{"zone: Europe/Berlin", "zone: Berlin", `p.yaml:2: zone: there is no time zone "Berlin"`},
		{"zone: Europe/Berlin", "zone: ../../etc/passwd", "p.yaml:2: zone: there is no time zone"},
		{"zone: Europe/Berlin", "zone: Local", "p.yaml:2: zone: there is no time zone"},
		{"zone: Europe/Berlin", "zone: 1", `p.yaml:2: zone: "1" is not text; quote it`},
		{"zone: Europe/Berlin", "zone: ~", "p.yaml:2: zone: it says nothing"},
		{"zone: Europe/Berlin", "trust_hosts: some", "p.yaml:2: trust_hosts: "},
		{"[pager]", "[Pager]", `p.yaml:3: on_call[0]: group name "Pager"`},
		{"[pager]", "[pаger]", "p.yaml:3: on_call[0]: group name"}, // a Cyrillic a
		{"[pager]", "[pager, pager]", "p.yaml:3: on_call[1]: pager stands twice"},
		{"[pager]", "{a: b}", "p.yaml:3: on_call: this must be a list"},
		{"ops: {login: true, max: 4h}", "ops: {login: yes, max: 4h}", "p.yaml:5: roles.ops.login: "},
		{"ops: {login: true, max: 4h}", "ops: {max: 4h}", "p.yaml:5: roles.ops: role ops gives nothing"},
		{"ops: {login: true, max: 4h}", "ops: {login: true}", "p.yaml:5: roles.ops.max: it is missing"},
		{"ops: {login: true, max: 4h}", "ops: {login: true, max: 4}", `p.yaml:5: roles.ops.max: "4" is not text`},
		{"ops: {login: true, max: 4h}", "ops: {login: true, max: 4x}", `p.yaml:5: roles.ops.max: "4x" is not a duration`},
		{"ops: {login: true, max: 4h}", "ops: {login: true, max: 31d}", "p.yaml:5: roles.ops.max: 31d is not from"},
		{"ops: {login: true, max: 4h}", "ops: &a {login: true, max: 4h}", "p.yaml:5: roles.ops: anchors"},
		{"{all: true}", "{command: 'bin/id'}", "p.yaml:6: roles.root: "},
		{"{all: true}", `{command: "/bin/id\nALL"}`, "p.yaml:6: roles.root: "},
		{"{all: true}", "{comand: /bin/id}", "p.yaml:6: roles.root.sudo[0].comand: there is no such field"},
		{"{env: prod}", "{env: pro d}", "p.yaml:8: hosts.prod.env: "},
		{"{env: prod}", "{env: []}", "p.yaml:8: hosts.prod.env: no value"},
		{"{env: prod}", "{}", "p.yaml:8: hosts.prod: it names no label"},
		{"{env: prod}", "{env: 1}", `p.yaml:8: hosts.prod.env: "1" is not text; quote it`},
		{"  - name: first\n", "  - nam: first\n", "p.yaml:11: rules[0].nam: there is no such field"},
		{"  - name: first\n", "  - name: second\n", "rule second stands twice"},
		{"    who: [dev]\n    hosts: [prod]", "    who: []\n    hosts: [prod]", "p.yaml:12: rules[0].who: it names no group"},
		{"    who: [dev]\n    hosts: [prod]", "    who: {kind: robot}\n    hosts: [prod]", "p.yaml:12: rules[0].who.kind: "},
		{"hosts: [prod]", "hosts: [prd]", "p.yaml:13: rules[0].hosts[0]: there is no set of hosts prd"},
		{"hosts: [prod]", "hosts: prod", "p.yaml:13: rules[0].hosts: this must be a list"},
		{"roles: [ops]", "roles: [oops]", "p.yaml:14: rules[0].roles[0]: there is no role oops"},
		{"when: lasts", "when: lats", "p.yaml:15: rules[0].when: not a condition: column 1:1: undeclared reference to 'lats'"},
		{`when: lasts <= duration("1h")`, "when: user", "p.yaml:15: rules[0].when: it is a string"},
		{`when: lasts <= duration("1h")`, "when: true", `p.yaml:15: rules[0].when: "true" is not text`},
		{`when: lasts <= duration("1h")`, "when: '" + strings.Repeat("(", 300) + "'", "p.yaml:15: rules[0].when: not a condition"},
		{`when: lasts <= duration("1h")`, "when: '" + strings.Repeat("x", 2100) + "'", "p.yaml:15: rules[0].when: 2100 bytes; at most 2048"},
		{
			`when: lasts <= duration("1h")`,
			"when: groups.all(a, groups.all(b, groups.all(c, a + b + c != reason)))", "p.yaml:15: rules[0].when: it may cost",
		},
		{"2 of sre, manager", "17 of sre", "p.yaml:16: rules[0].then.approvals: 17 approvals"},
		{"2 of sre, manager", "0 of sre", "p.yaml:16: rules[0].then.approvals: 0 approvals"},
		{"2 of sre, manager", "2 of manager", "p.yaml:16: rules[0].then.approvals: "},
		{"2 of sre, manager", "sre, sre", "p.yaml:16: rules[0].then.approvals: group sre is needed twice"},
		{"2 of sre, manager", "two of sre", `p.yaml:16: rules[0].then.approvals[0]: "two of sre" is not`},
		{"max_duration: 2h", "max_duration: 2h, deny: no", "p.yaml:16: rules[0].then: deny and approvals exclude"},
		{"max_duration: 2h", "justification: {pattern: '('}", "p.yaml:16: rules[0].then.justification.pattern: not a pattern"},
		{"max_duration: 2h", "justification: {ticket: {}}", "p.yaml:16: rules[0].then.justification.ticket: pattern is missing"},
		{"max_duration: 2h", "start: soon", "p.yaml:16: rules[0].then.start: "},
		{"max_duration: 2h", "fresh_sign_in: 1s", "p.yaml:16: rules[0].then.fresh_sign_in: 1s is not from 1m"},
		{"{approvals: [2 of sre, manager], max_duration: 2h}", "{max_duration: 2h}", "p.yaml:16: rules[0].then: say what follows"},
		{"{approvals: [2 of sre, manager], max_duration: 2h}", "{deny: no, start: approval}", "p.yaml:16: rules[0].then.start: it means nothing"},
		{"    who: [dev]\n    hosts: [some]", "    hosts: [some]", "p.yaml:17: rules[1].who: rule second opens access without approvals"},
		{"then: auto", "then: never", `p.yaml:20: rules[1].then: "never" is not auto`},
		{"then: auto", "then: {auto: false}", "p.yaml:20: rules[1].then.auto: write true"},
		{"then: auto", "then: {", "p.yaml:2"},
		{"name: second", "name: " + strings.Repeat("x", 30), "p.yaml:17: rules.name: hosts know this rule for role root as"},
	} {
		text := strings.Replace(small, c.old, c.new, 1)
		if text == small {
			t.Fatalf("%q is not in the policy", c.old)
		}
		p, err := policy.Parse("p.yaml", []byte(text))
		if err == nil || p != nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("with %q:\n got %v\nwant %s", c.new, err, c.says)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "a comment": "# x\n", "a list": "[]", "text": "x", "garbage": "\x00\xff", "a megabyte": "#" +
			strings.Repeat("x", policy.MaxFile),
	} {
		if p, err := policy.Parse("p.yaml", []byte(text)); err == nil || p != nil ||
			!strings.HasPrefix(err.Error(), "p.yaml:1:") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryFaultIsTold(t *testing.T) {
	text := strings.NewReplacer("zone: Europe/Berlin", "zone: x", "[pager]", "[P]", "then: auto", "then: x").Replace(small)
	_, err := policy.Parse("p.yaml", []byte(text))
	if n := strings.Count(fmt.Sprint(err), "\n"); n != 2 {
		t.Errorf("three faults are told as\n%v", err)
	}
}

// facts are of alice, a developer with a manager, and of a production and a test host.
func facts(t *testing.T, text string) policy.Facts {
	t.Helper()
	p, err := policy.Parse("p.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	f := policy.Facts{
		Now: time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC), Policy: p, Role: p.Role("ops"),
		Requester: policy.Person{
			Name: "alice", UID: 1900000001, Groups: []string{"dev"}, SSHKeys: []string{key}, Manager: "mona",
		},
		Hosts: map[string]policy.Host{
			"web1": {ID: grant.HostID{1}, Name: "web1", Labels: map[string]string{"env": "prod"}},
			"web2": {ID: grant.HostID{2}, Name: "web2", Labels: map[string]string{"env": "test"}},
		},
		Trust: &grant.Trust{Organisation: "acme", Version: 2},
	}
	for i, name := range []string{"bob", "erin", "mona"} {
		f.Trust.Approvers = append(f.Trust.Approvers, grant.Approver{
			Name: name, Groups: []string{"sre"}, SSHKeys: []string{fmt.Sprintf("%s%d", key, i)},
		})
	}
	f.Trust.Approvers[2].Groups, f.Trust.Approvers[2].Manages = nil, []string{"alice"}
	floor, err := p.Floor([]policy.Host{f.Hosts["web1"], f.Hosts["web2"]})
	if err != nil {
		t.Fatal(err)
	}
	f.Trust.Quorums, f.Trust.Standing = floor.Quorums, floor.Standing
	f.Trust.Requesters = []grant.Requester{
		{Name: "alice", UID: 1900000001, Groups: []string{"dev"}, SSHKeys: []string{key}},
	}
	return f
}

func ask(hosts ...string) request.Ask {
	return request.Ask{
		Requester: "alice", Role: "ops", Hosts: hosts, Duration: time.Hour, Reason: "it hangs",
	}
}

func TestVerdictsMeetTheTrustFile(t *testing.T) {
	for name, c := range map[string]struct {
		host    string
		spoil   func(*policy.Facts)
		outcome string
		says    string
	}{
		"approvals": {"web1", func(*policy.Facts) {}, "approvals", "manager and 2 approvals of group sre (rule first, line 11)"},
		"auto":      {"web2", func(*policy.Facts) {}, "auto", "approved by the rule (rule second, line 17)"},
		"no quorum": {"web1", func(f *policy.Facts) { f.Trust.Quorums = nil }, "deny", "not in force yet"},
		"a quorum of other hosts": {"web1", func(f *policy.Facts) {
			f.Trust.Quorums[0].Hosts = []grant.HostID{{9}}
		}, "deny", "not in force yet"},
		"a stricter quorum": {"web1", func(f *policy.Facts) {
			f.Trust.Quorums[0].Approvals++
			f.Trust.Quorums[0].Also[0].Approvals++
		}, "deny", "not in force yet"},
		"no such standing rule": {"web2", func(f *policy.Facts) { f.Trust.Standing = nil }, "deny", "not in force yet"},
		"standing for other rights": {"web2", func(f *policy.Facts) {
			for i := range f.Trust.Standing {
				f.Trust.Standing[i].Rights = grant.Digest{1}
			}
		}, "deny", "not in force yet"},
		"standing for less time": {"web2", func(f *policy.Facts) {
			for i := range f.Trust.Standing {
				f.Trust.Standing[i].MaxDurationMS = 1000
			}
		}, "deny", "not in force yet"},
		"standing, the requester is not known to hosts": {"web2", func(f *policy.Facts) {
			f.Trust.Requesters = nil
		}, "deny", "not in force yet"},
		"standing, with a new key": {"web2", func(f *policy.Facts) {
			f.Requester.SSHKeys = append(f.Requester.SSHKeys, key+"9")
		}, "deny", "not in force yet"},
		"the manager is the requester's only on paper": {"web1", func(f *policy.Facts) {
			f.Trust.Approvers[2].Manages = nil
		}, "deny", "1 approval of the requester's manager lacking"},
		"a disabled approver": {"web1", func(f *policy.Facts) {
			f.Disabled = map[string]bool{"erin": true}
		}, "deny", "1 approval of group sre lacking"},
		"one person for two needs": {"web1", func(f *policy.Facts) {
			f.Trust.Approvers = f.Trust.Approvers[1:]
			f.Trust.Approvers[1].Groups = []string{"sre"}
		}, "deny", "lacking"},
		"no key to log in with": {"web2", func(f *policy.Facts) { f.Requester.SSHKeys = nil }, "deny", "no SSH key"},
		"too many groups": {"web2", func(f *policy.Facts) {
			f.Requester.Groups = make([]string, policy.MaxGroupsOfUser+1)
		}, "deny", "at most 256"},
		"a workload": {"web2", func(f *policy.Facts) { f.Requester.Workload = true }, "deny", "no rule of the policy"},
	} {
		t.Run(name, func(t *testing.T) {
			f := facts(t, small)
			c.spoil(&f)
			v := policy.Decide(ask(c.host), f)
			if v.Outcome() != c.outcome || !strings.Contains(v.Text, c.says) {
				t.Errorf("it is %s: %s", v.Outcome(), v.Text)
			}
			if v.Accepted() && !f.Policy.SameText(v.PolicyHash) {
				t.Error("the verdict does not name its policy")
			}
		})
	}
}

// A host is not let through in the company of others, nor a window.
func TestCompanyOpensNothing(t *testing.T) {
	text := small + "  - name: third\n    hosts: {env: prod}\n    roles: [ops]\n    then: {deny: not there}\n"
	f := facts(t, strings.Replace(text, `lasts <= duration("1h")`, `clock < "12:00"`, 1))
	a := ask("web1", "web2")
	if v := policy.Decide(a, f); v.Outcome() != "invalid" || !strings.Contains(v.Text, "first, line 11 and second, line 17") {
		t.Errorf("approvals and a standing rule at once: %s %s", v.Outcome(), v.Text)
	}
	morning := time.Date(2026, 11, 4, 8, 0, 0, 0, time.UTC)
	a = ask("web1")
	a.Duration, a.Windows = 0, []request.Span{{Start: morning, End: morning.Add(time.Hour)}}
	if v := policy.Decide(a, f); v.Outcome() != "approvals" {
		t.Errorf("a window in the morning: %s", v.Text)
	}
	night := morning.Add(14 * time.Hour)
	a.Windows = append(a.Windows, request.Span{Start: night, End: night.Add(time.Hour)})
	if v := policy.Decide(a, f); v.Outcome() != "deny" || !strings.Contains(v.Text, "not there (rule third, line 21)") {
		t.Errorf("a window in the morning and one at night: %s", v.Text)
	}
}

// What cannot be evaluated denies, also where the rule would have denied and where a later one permits.
func TestAnErrorDenies(t *testing.T) {
	for _, then := range []string{"auto", "{deny: no}", "{approvals: sre}"} {
		rule := "  - name: bad\n    who: [dev]\n    when: labels[\"tier\"] == \"web\"\n    then: " + then + "\n"
		f := facts(t, strings.Replace(small, "rules:\n", "rules:\n"+rule, 1))
		v := policy.Decide(ask("web2"), f)
		if v.Outcome() != "deny" || !strings.Contains(v.Text, "rule bad (line 11)") ||
			!strings.Contains(v.Text, "no such key") {
			t.Errorf("%s: %s %s", then, v.Outcome(), v.Text)
		}
		f = facts(t, strings.Replace(small, "rules:\n", "rules:\n"+strings.Replace(rule, `labels["tier"]`,
			`labels.get("tier")`, 1), 1))
		if v := policy.Decide(ask("web2"), f); v.Outcome() != "auto" {
			t.Errorf("with get: %s", v.Text)
		}
	}
}

// A decision over many hosts and windows stays bounded.
func TestDecisionsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("policy: 1\nroles:\n  ops: {login: true, max: 4h}\nrules:\n")
	for i := range 500 {
		fmt.Fprintf(&b, "  - name: r%d\n    when: groups.exists(g, g.startsWith(user)) || reason.contains(user)\n    then: {approvals: sre}\n", i)
	}
	f := facts(t, b.String())
	f.Requester.Groups = nil
	for i := range policy.MaxGroupsOfUser {
		f.Requester.Groups = append(f.Requester.Groups, fmt.Sprintf("group-%d", i))
	}
	a := ask()
	a.Reason, a.Duration = strings.Repeat("x", grant.MaxReason), 0
	for i := range grant.MaxHosts {
		name := fmt.Sprintf("h%d", i)
		f.Hosts[name] = policy.Host{ID: grant.HostID{byte(i)}, Name: name}
		a.Hosts = append(a.Hosts, name)
	}
	for i := range 64 {
		start := f.Now.Add(time.Duration(i) * time.Hour)
		a.Windows = append(a.Windows, request.Span{Start: start, End: start.Add(time.Minute)})
	}
	began := time.Now()
	v := policy.Decide(a, f)
	if v.Outcome() != "deny" || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %s", time.Since(began), v.Text)
	}
}

func TestFloor(t *testing.T) {
	f := facts(t, small)
	floor, err := f.Policy.Floor([]policy.Host{f.Hosts["web1"], f.Hosts["web2"]})
	if err != nil {
		t.Fatal(err)
	}
	if len(floor.Quorums) != 1 || len(floor.Quorums[0].Hosts) != 1 || floor.Quorums[0].Hosts[0] != (grant.HostID{1}) ||
		len(floor.Quorums[0].Needs()) != 2 || !floor.Managers || strings.Join(floor.Approvers, " ") != "sre" {
		t.Errorf("quorums %+v, approvers %v", floor.Quorums, floor.Approvers)
	}
	if len(floor.Standing) != 2 || floor.Standing[0].Name != "second-ops" || floor.Standing[1].Name != "second-root" ||
		floor.Standing[0].Hosts[0] != (grant.HostID{2}) || floor.Standing[1].MaxDurationMS != time.Hour.Milliseconds() ||
		floor.Standing[0].Rights == floor.Standing[1].Rights {
		t.Errorf("standing %+v", floor.Standing)
	}
	// Without a host of theirs, rules for some hosts must not become rules for every host.
	empty, err := f.Policy.Floor(nil)
	if err != nil || len(empty.Quorums) != 0 || len(empty.Standing) != 0 {
		t.Errorf("without hosts: %+v, %v", empty, err)
	}
	anywhere, err := policy.Parse("p.yaml", []byte(strings.Replace(small, "roles:", "trust_hosts: any\nroles:", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if floor, err := anywhere.Floor(nil); err != nil || len(floor.Quorums) != 1 || floor.Quorums[0].Hosts != nil {
		t.Errorf("with trust_hosts any: %+v, %v", floor, err)
	}
}

// What a weaker rule permits anyhow is left out; what it does not is kept.
func TestFloorIsTheLeast(t *testing.T) {
	p, err := policy.Parse("p.yaml", []byte(`policy: 1
roles: {ops: {login: true, max: 4h}}
hosts: {prod: {env: prod}, web: {env: prod, tier: web}}
rules:
  - {name: a, hosts: [web], then: {approvals: [sre, boss]}}
  - {name: b, hosts: [prod], then: {approvals: sre}}
  - {name: c, who: [dev], hosts: [web], then: {approvals: 2 of dev}}
  - {name: d, then: {approvals: 3 of sre}}
`))
	if err != nil {
		t.Fatal(err)
	}
	floor, err := p.Floor([]policy.Host{
		{ID: grant.HostID{1}, Labels: map[string]string{"env": "prod", "tier": "web"}},
		{ID: grant.HostID{2}, Labels: map[string]string{"env": "prod"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, q := range floor.Quorums {
		got = append(got, fmt.Sprintf("%d of %s on %d", q.Approvals, q.Group, len(q.Hosts)))
	}
	if s := strings.Join(got, ", "); s != "1 of sre on 2, 2 of dev on 1, 3 of sre on 0" {
		t.Errorf("the floor is %s", s)
	}
}
