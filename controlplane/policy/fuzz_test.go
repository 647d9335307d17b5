package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// words splits what the fuzzer makes into a list; none is nil.
func words(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// FuzzDecide puts requests of any content to policy, with a directory of any content. Whatever it
// says has no control byte; whatever it accepts keeps every rule of the role, can be approved by
// enough people who are not the requester, and makes terms that a host accepts.
func FuzzDecide(f *testing.F) {
	f.Add("alice", "alice", "it hangs", "web1", "env=prod", "dev", "dev", "alice,bob,erin", "",
		int64(time.Minute), int64(time.Hour), uint32(2), uint32(2), true, false, "root", "/bin/id", "-u")
	f.Add("alice", "alice", "it hangs", "web1", "env=prod", "dev", "dev", "alice,bob", "",
		int64(time.Minute), int64(time.Hour), uint32(2), uint32(2), true, false, "root", "/bin/id", "-u")
	f.Add("alice", "alice", "it hangs", "web1,web2", "", "", "", "alice,bob", "bob",
		int64(time.Hour), int64(time.Hour), uint32(1), uint32(1), false, false, "root", "", "")
	f.Add("Alice", "bob", "\x1b[2J", "web1,web1,../x", "env=test", "ops", "dev", "", "",
		int64(-1), int64(time.Second), uint32(0), uint32(17), true, true, "ALL", "/bin/id\nALL", "*")
	f.Fuzz(func(t *testing.T, requester, known, reason, hosts, labels, inGroups, forGroups, approvers,
		disabled string, duration, longest int64, needed, trusted uint32, login, off bool,
		runAs, command, args string,
	) {
		role := policy.Role{
			Name: "ops", AllowLogin: login, MaxDuration: time.Duration(longest), ApproverGroup: "sre",
			Approvals: needed, RequesterGroups: words(forGroups),
		}
		if command != "" {
			role.SudoRules = []policy.SudoRule{{RunAs: runAs, Command: command, Args: words(args)}}
		}
		if k, v, ok := strings.Cut(labels, "="); ok {
			role.HostLabels = map[string]string{k: v}
		}
		if err := role.Check(); err != nil {
			for line := range strings.Lines(err.Error()) {
				visible(t, strings.TrimSuffix(line, "\n"))
			}
			return // the directory holds no such role
		}
		if grant.CheckUserName(known) != nil {
			return // nor such a person
		}
		ask := request.Ask{
			Requester: requester, Role: role.Name, Hosts: words(hosts),
			Duration: time.Duration(duration), Reason: reason,
		}
		_, facts := good()
		facts.Role = &role
		facts.Requester.Name, facts.Requester.Groups = known, words(inGroups)
		facts.Requester.Disabled = off
		facts.Trust.Quorums[0].Approvals = trusted
		facts.Trust.Approvers = nil
		for i, name := range words(approvers) {
			if slices.Contains(words(approvers)[:i], name) {
				return // nor does a trust file name anybody twice
			}
			facts.Trust.Approvers = append(facts.Trust.Approvers,
				grant.Approver{Name: name, Groups: []string{"sre"}, SSHKeys: []string{key}})
		}
		for _, name := range words(disabled) {
			facts.Disabled[name] = true
		}
		v := policy.Decide(ask, facts)
		visible(t, v.Text)
		visible(t, v.Hint)
		if v.Text == "" {
			t.Error("a verdict without words")
		}
		if v.Accepted() {
			judge(t, ask, facts, v)
		}
	})
}

func visible(t *testing.T, text string) {
	t.Helper()
	if got := grant.VisibleText(text); got != text {
		t.Errorf("what people read has control characters: %q", text)
	}
}

// judge says of an accepted request, in other words than policy's own, what must hold.
func judge(t *testing.T, a request.Ask, f policy.Facts, v policy.Verdict) {
	t.Helper()
	if a.Requester != f.Requester.Name || f.Requester.Disabled {
		t.Errorf("%q is accepted as %+v", a.Requester, f.Requester)
	}
	if a.Duration < grant.MinDuration || a.Duration > f.Role.MaxDuration {
		t.Errorf("%s is accepted under %s", a.Duration, f.Role.MaxDuration)
	}
	member := len(f.Role.RequesterGroups) == 0
	for _, g := range f.Requester.Groups {
		member = member || slices.Contains(f.Role.RequesterGroups, g)
	}
	if !member {
		t.Errorf("a member of %q is accepted for %q", f.Requester.Groups, f.Role.RequesterGroups)
	}
	for _, name := range a.Hosts {
		for k, want := range f.Role.HostLabels {
			if got := f.Hosts[name].Labels[k]; got != want {
				t.Errorf("host %s with %s=%s is accepted, the role wants %s", name, k, got, want)
			}
		}
	}
	able := make(map[string]bool)
	for _, p := range f.Trust.Approvers {
		able[p.Name] = p.Name != a.Requester && !f.Disabled[p.Name]
	}
	others := 0
	for _, ok := range able {
		if ok {
			others++
		}
	}
	k := f.Trust.Quorums[0].Approvals
	if len(v.Needs) != 1 {
		t.Fatalf("accepted with needs %v", v.Needs)
	}
	n := v.Needs[0].Approvals
	if n < 1 || n != f.Role.Approvals || n < k || others < int(n) {
		t.Errorf("accepted with %d approvals: the role wants %d, the trust file %d, and %d others can",
			n, f.Role.Approvals, k, others)
	}
	raw, err := policy.Terms(a, f, v, policy.Draft{
		RequestID: "0123456789ab", Revision: 1, Now: now, Lapses: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatalf("what is accepted makes no terms: %v", err)
	}
	terms, err := grant.ParseTerms(raw)
	if err != nil {
		t.Fatalf("what is accepted makes terms that hosts refuse: %v", err)
	}
	if terms.GetDurationMs() != a.Duration.Milliseconds() || terms.GetLogin() != a.Requester ||
		len(terms.GetHosts()) != len(a.Hosts) || terms.GetApprovalsNeeded() != n {
		t.Errorf("the terms of %+v are %v", a, terms)
	}
}
