package policy_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVnSfmJ1CKPYBIQ8C8oIVz2Bw8MFnKJcSPz3aMmG0mf"

var now = time.UnixMilli(1_800_000_000_000)

// good is an ask that is accepted with its facts; each case spoils one thing.
func good() (request.Ask, policy.Facts) {
	role := policy.Role{
		Name: "ops", AllowLogin: true, MaxDuration: time.Hour, ApproverGroup: "sre", Approvals: 2,
		RequesterGroups: []string{"dev"}, HostLabels: map[string]string{"env": "prod"},
	}
	ask := request.Ask{
		Requester: "alice", Role: "ops", Hosts: []string{"web1"}, Duration: time.Minute,
		Reason: "it hangs",
	}
	return ask, policy.Facts{
		Requester: policy.Person{
			Name: "alice", UID: 1900000001, Groups: []string{"dev", "sre"}, SSHKeys: []string{key},
		},
		Role: &role,
		Hosts: map[string]policy.Host{
			"web1": {ID: grant.HostID{1}, Name: "web1", Labels: map[string]string{"env": "prod"}},
			"web2": {ID: grant.HostID{2}, Name: "web2", Labels: map[string]string{"env": "test"}},
		},
		Trust: &grant.Trust{
			Organisation: "acme", Version: 3,
			Approvers: []grant.Approver{
				{Name: "alice", Groups: []string{"sre"}, SSHKeys: []string{key}},
				{Name: "bob", Groups: []string{"sre"}, SSHKeys: []string{key}},
				{Name: "erin", Groups: []string{"sre"}, SSHKeys: []string{key}},
			},
			Quorums: []grant.Quorum{{Role: "ops", Group: "sre", Approvals: 2}},
		},
		Disabled: map[string]bool{},
	}
}

func TestDecide(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*request.Ask, *policy.Facts)
		fault policy.Fault
		says  string
	}{
		"good":         {func(*request.Ask, *policy.Facts) {}, policy.None, "needs 2 approvals of group sre"},
		"blank reason": {func(a *request.Ask, _ *policy.Facts) { a.Reason = " " }, policy.BadAsk, "reason"},
		"long reason": {func(a *request.Ask, _ *policy.Facts) {
			a.Reason = strings.Repeat("x", 4097)
		}, policy.BadAsk, "4097 bytes"},
		"broken reason": {func(a *request.Ask, _ *policy.Facts) { a.Reason = "\xff" }, policy.BadAsk, "UTF-8"},
		"role name":     {func(a *request.Ask, _ *policy.Facts) { a.Role = "Ops" }, policy.BadAsk, "role name"},
		"no host":       {func(a *request.Ask, _ *policy.Facts) { a.Hosts = nil }, policy.BadAsk, "0 hosts"},
		"21 hosts": {func(a *request.Ask, _ *policy.Facts) {
			a.Hosts = make([]string, 21)
		}, policy.BadAsk, "21 hosts"},
		"host twice": {func(a *request.Ask, _ *policy.Facts) {
			a.Hosts = []string{"web1", "web1"}
		}, policy.BadAsk, "twice"},
		"host name":    {func(a *request.Ask, _ *policy.Facts) { a.Hosts = []string{"../x"} }, policy.BadAsk, "host name"},
		"unknown host": {func(a *request.Ask, _ *policy.Facts) { a.Hosts = []string{"web3"} }, policy.Unknown, "web3"},
		"host label": {func(a *request.Ask, _ *policy.Facts) {
			a.Hosts = []string{"web2"}
		}, policy.Forbidden, "env=prod, and web2 has env=test"},
		"refused host": {func(_ *request.Ask, f *policy.Facts) {
			f.Hosts["web1"] = policy.Host{Name: "web1", Refused: "a cloned image"}
		}, policy.NotYet, "cloned"},
		"unknown user":  {func(_ *request.Ask, f *policy.Facts) { f.Requester.Name = "" }, policy.Unknown, "alice"},
		"disabled user": {func(_ *request.Ask, f *policy.Facts) { f.Requester.Disabled = true }, policy.Forbidden, "disabled"},
		"unknown role":  {func(_ *request.Ask, f *policy.Facts) { f.Role = nil }, policy.Unknown, "ops"},
		"not in a requester group": {func(_ *request.Ask, f *policy.Facts) {
			f.Requester.Groups = []string{"sre"}
		}, policy.Forbidden, "only for members of dev"},
		"no key for a login": {func(_ *request.Ask, f *policy.Facts) {
			f.Requester.SSHKeys = nil
		}, policy.Forbidden, "no SSH key"},
		"zero":     {func(a *request.Ask, _ *policy.Facts) { a.Duration = 0 }, policy.BadAsk, "at least 1s"},
		"negative": {func(a *request.Ask, _ *policy.Facts) { a.Duration = -time.Hour }, policy.BadAsk, "at least 1s"},
		"just too long": {func(a *request.Ask, _ *policy.Facts) {
			a.Duration = time.Hour + time.Millisecond
		}, policy.BadAsk, "at most 1h"},
		"exactly the longest": {func(a *request.Ask, _ *policy.Facts) { a.Duration = time.Hour }, policy.None, ""},
		"half a millisecond": {func(a *request.Ask, _ *policy.Facts) {
			a.Duration += 500 * time.Microsecond
		}, policy.BadAsk, "whole milliseconds"},
		"not in the trust file": {func(_ *request.Ask, f *policy.Facts) {
			f.Trust.Quorums = nil
		}, policy.NotYet, "not in force"},
		"the trust file wants more": {func(_ *request.Ask, f *policy.Facts) {
			f.Trust.Quorums[0].Approvals = 3
		}, policy.NotYet, "not in force"},
		"the trust file wants another group": {func(_ *request.Ask, f *policy.Facts) {
			f.Trust.Quorums[0].Group = "boss"
		}, policy.NotYet, "not in force"},
		"too few approvers besides the requester": {func(_ *request.Ask, f *policy.Facts) {
			f.Trust.Approvers = f.Trust.Approvers[:2]
		}, policy.Forbidden, "1 approval of group sre lacking"},
		"a disabled approver": {func(_ *request.Ask, f *policy.Facts) {
			f.Disabled["bob"] = true
		}, policy.Forbidden, "nobody can approve"},
	} {
		t.Run(name, func(t *testing.T) {
			ask, facts := good()
			c.spoil(&ask, &facts)
			v := policy.Decide(ask, facts)
			if v.Fault != c.fault || !strings.Contains(v.Text, c.says) || v.Text == "" {
				t.Errorf("it says %d %q, want %d and %q", v.Fault, v.Text, c.fault, c.says)
			}
			if v.Accepted() && (len(v.Needs) != 1 || v.Needs[0] != grant.Need{Group: "sre", Approvals: 2}) {
				t.Errorf("accepted with %v", v.Needs)
			}
		})
	}
}

func TestTermsAreWhatWasAskedFor(t *testing.T) {
	ask, facts := good()
	ask.Hosts, facts.Role.HostLabels = []string{"web2", "web1"}, nil
	draft := policy.Draft{RequestID: "0123456789ab", Revision: 1, Now: now, Lapses: now.Add(24 * time.Hour)}
	verdict := policy.Decide(ask, facts)
	raw, err := policy.Terms(ask, facts, verdict, draft)
	if err != nil {
		t.Fatal(err)
	}
	terms, err := grant.ParseTerms(raw)
	if err != nil {
		t.Fatal(err)
	}
	if terms.GetRequester() != "alice" || terms.GetHosts()[0].GetName() != "web1" ||
		terms.GetDurationMs() != 60000 || terms.GetApprovalsNeeded() != 2 ||
		terms.GetHardEndMs() != now.Add(25*time.Hour+time.Minute).UnixMilli() {
		t.Errorf("the terms are %v", terms)
	}
	if err := policy.Unchanged(raw, ask, facts, verdict); err != nil {
		t.Errorf("unchanged facts: %v", err)
	}
	for name, change := range map[string]func(*policy.Facts){
		"role":        func(f *policy.Facts) { f.Role.AllowLogin, f.Role.Groups = false, []string{"adm"} },
		"more needed": func(f *policy.Facts) { f.Role.Approvals = 3 },
		"others needed": func(f *policy.Facts) {
			f.Role.ApproverGroup, f.Trust.Quorums[0].Group = "boss", "boss"
		},
		"no role":     func(f *policy.Facts) { f.Role = nil },
		"another key": func(f *policy.Facts) { f.Requester.SSHKeys = nil },
		"another uid": func(f *policy.Facts) { f.Requester.UID++ },
	} {
		_, changed := good()
		changed.Role.HostLabels = nil
		change(&changed)
		now := verdict
		if changed.Role != nil {
			now.Needs = []grant.Need{{Group: changed.Role.ApproverGroup, Approvals: changed.Role.Approvals}}
		}
		if err := policy.Unchanged(raw, ask, changed, now); !errors.Is(err, policy.ErrChanged) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	draft.Follows, draft.Revision, ask.Duration = raw, 2, 3*time.Minute
	draft.Now = now.Add(time.Hour)
	next, err := policy.Terms(ask, facts, verdict, draft)
	if err != nil {
		t.Fatal(err)
	}
	ext, err := grant.ParseTerms(next)
	if err != nil {
		t.Fatal(err)
	}
	digest := grant.TermsDigest(raw)
	if !bytes.Equal(ext.GetFollows(), digest[:]) ||
		ext.GetHardEndMs() != terms.GetHardEndMs()+(2*time.Minute).Milliseconds() {
		t.Errorf("the extension's terms are %v", ext)
	}
}

func TestRoleCheck(t *testing.T) {
	base := func() policy.Role {
		return policy.Role{
			Name: "ops", MaxDuration: time.Hour, ApproverGroup: "sre", Approvals: 1,
			SudoRules: []policy.SudoRule{{RunAs: "root", Command: "/usr/bin/id"}},
			Groups:    []string{"b", "a", "b"},
		}
	}
	r := base()
	if err := r.Check(); err != nil || strings.Join(r.Groups, " ") != "a b" || !r.RootEquivalent() {
		t.Errorf("a good role: %v, groups %v", err, r.Groups)
	}
	for name, spoil := range map[string]func(*policy.Role){
		"name":           func(r *policy.Role) { r.Name = "a.b" },
		"approver group": func(r *policy.Role) { r.ApproverGroup = "" },
		"approvals":      func(r *policy.Role) { r.Approvals = 0 },
		"many approvals": func(r *policy.Role) { r.Approvals = 17 },
		"no duration":    func(r *policy.Role) { r.MaxDuration = 0 },
		"too long":       func(r *policy.Role) { r.MaxDuration = 31 * 24 * time.Hour },
		"nothing":        func(r *policy.Role) { r.SudoRules = nil },
		"description":    func(r *policy.Role) { r.Description = "a\nb" },
		"sudo newline":   func(r *policy.Role) { r.SudoRules[0].Command = "/bin/id\nALL" },
		"sudo wildcard":  func(r *policy.Role) { r.SudoRules[0].Args = []string{"*"} },
		"run as":         func(r *policy.Role) { r.SudoRules[0].RunAs = "ALL" },
		"relative":       func(r *policy.Role) { r.SudoRules[0].Command = "bin/id" },
		"unix group":     func(r *policy.Role) { r.Groups = []string{"../x"} },
		"requesters":     func(r *policy.Role) { r.RequesterGroups = []string{"A"} },
		"label":          func(r *policy.Role) { r.HostLabels = map[string]string{"env": "a b"} },
		"many labels": func(r *policy.Role) {
			r.HostLabels = map[string]string{}
			for c := range 17 {
				r.HostLabels[string(rune('a'+c))] = "x"
			}
		},
	} {
		r := base()
		spoil(&r)
		if err := r.Check(); err == nil {
			t.Errorf("a role with a bad %s passes", name)
		}
	}
	a, b := base(), base()
	b.SudoRules[0].Contained = true
	x, errX := a.Hash()
	y, errY := b.Hash()
	if errX != nil || errY != nil || bytes.Equal(x, y) {
		t.Error("two roles have one hash")
	}
}
