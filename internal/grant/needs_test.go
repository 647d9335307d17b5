package grant_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// One of security and one of the owners, the requester's manager, security keys that verified their
// user: what counts for what, and who counts once.
func TestNeedsCountEachPersonOnce(t *testing.T) {
	w := granttest.NewWorld()
	trust := granttest.CloneTrust(w.Trust)
	trust.Approvers[0].Groups = []string{"security"}           // bob
	trust.Approvers[1].Groups = []string{"security", "owners"} // carol
	trust.Approvers[2].Groups = []string{}                     // dave
	trust.Approvers[2].Manages = []string{"alice"}
	trust.Quorums = []grant.Quorum{{
		Role: granttest.RoleOps, Group: "security", Approvals: 1,
		Also: []grant.Need{{Group: "owners", Approvals: 1}},
	}, {
		Role: granttest.RoleRoot, Group: grant.GroupManager, Approvals: 1,
	}}
	need := func(role, group string, also ...*curfewv1.Need) func(*curfewv1.Terms) {
		return func(x *curfewv1.Terms) { x.Role, x.ApproverGroup, x.AlsoNeeded = role, group, also }
	}
	owners := &curfewv1.Need{Group: "owners", Approvals: 1}
	both := need(granttest.RoleOps, "security", owners)
	for _, c := range []struct {
		name string
		edit func(*curfewv1.Terms)
		by   []granttest.Person
		want string
	}{
		{"one of each", both, []granttest.Person{w.Bob, w.Carol}, ""},
		{"in the other order", both, []granttest.Person{w.Carol, w.Bob}, ""},
		{"who is in both groups counts once", both, []granttest.Person{w.Carol}, "1 of 2"},
		{"two of one group", both, []granttest.Person{w.Bob}, "still needed: 1 approval of group owners"},
		{"a stranger to both", both, []granttest.Person{w.Bob, w.Dave}, "counts for nothing"},
		{
			"the floor left out", need(granttest.RoleOps, "security"),
			[]granttest.Person{w.Bob},
			"role ops needs 1 approval of group security and 1 approval of group owners",
		},
		{
			"the floor in the other order",
			need(granttest.RoleOps, "owners", &curfewv1.Need{Group: "security", Approvals: 1}),
			[]granttest.Person{w.Bob, w.Carol},
			"",
		},
		{"the manager", need(granttest.RoleRoot, grant.GroupManager), []granttest.Person{w.Dave}, ""},
		{
			"somebody else's manager", func(x *curfewv1.Terms) {
				need(granttest.RoleRoot, grant.GroupManager)(x)
				x.Requester = "erin"
			}, []granttest.Person{w.Dave}, "counts for nothing",
		},
		{
			"a member of a group called manager", need(granttest.RoleRoot, grant.GroupManager),
			[]granttest.Person{w.Carol},
			"counts for nothing",
		},
	} {
		terms := w.Terms(granttest.Noon(), c.edit)
		raw := granttest.Raw(terms)
		var as []*curfewv1.Approval
		for _, p := range c.by {
			as = append(as, p.Approve(raw))
		}
		wants(t, c.name, grant.CheckQuorum(trust, terms, raw, []grant.HostID{w.Host}, as), c.want)
	}
	trust.Approvers[0].VerifyRequired = true
	terms := w.Terms(granttest.Noon(), both)
	raw := granttest.Raw(terms)
	wants(t, "a key without user verification",
		grant.CheckQuorum(trust, terms, raw, []grant.HostID{w.Host},
			[]*curfewv1.Approval{w.Bob.Approve(raw), w.Carol.Approve(raw)}), "security key")
}

func wants(t *testing.T, name string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: %v, want %q", name, err, want)
	}
}

// A role may need less on some hosts: only there.
func TestQuorumOfSomeHosts(t *testing.T) {
	w := granttest.NewWorld()
	dev := grant.HostIDOf(granttest.Public(granttest.Key("a development host")))
	trust := granttest.CloneTrust(w.Trust)
	trust.Quorums = []grant.Quorum{
		{Role: granttest.RoleOps, Group: granttest.GroupLeads, Approvals: 2},
		{Role: granttest.RoleOps, Group: granttest.GroupLeads, Approvals: 1, Hosts: []grant.HostID{dev}},
	}
	needs := func(n uint32) []grant.Need { return []grant.Need{{Group: granttest.GroupLeads, Approvals: n}} }
	for _, c := range []struct {
		n     uint32
		hosts []grant.HostID
		ok    bool
	}{
		{1, []grant.HostID{dev}, true},
		{1, []grant.HostID{w.Host}, false},
		{1, []grant.HostID{dev, w.Host}, false},
		{2, []grant.HostID{dev, w.Host}, true},
	} {
		if err := grant.CheckFloor(trust, granttest.RoleOps, needs(c.n), c.hosts); (err == nil) != c.ok {
			t.Errorf("%d approvals for %d hosts: %v", c.n, len(c.hosts), err)
		}
	}
}

// Missing against trying every assignment of people to what is needed.
func TestMissingFindsTheBestAssignment(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	groups := []string{"a", "b", "c"}
	for range 3000 {
		var needs []grant.Need
		for _, g := range groups[:1+rng.IntN(3)] {
			needs = append(needs, grant.Need{Group: g, Approvals: 1 + rng.Uint32N(2)})
		}
		var people []*grant.Approver
		for i := range rng.IntN(5) {
			p := &grant.Approver{Name: fmt.Sprint("p", i)}
			for _, g := range groups {
				if rng.IntN(2) == 0 {
					p.Groups = append(p.Groups, g)
				}
			}
			people = append(people, p)
		}
		var missing, all uint32
		for _, n := range grant.Missing(needs, "alice", people) {
			missing += n.Approvals
		}
		for _, n := range needs {
			all += n.Approvals
		}
		if got, want := all-missing, best(needs, people); got != want {
			t.Fatalf("needs %v, people %v: %d filled, could be %d", needs, people, got, want)
		}
	}
}

// best tries everything.
func best(needs []grant.Need, people []*grant.Approver) (filled uint32) {
	if len(people) == 0 {
		return 0
	}
	filled = best(needs, people[1:])
	for i, n := range needs {
		if n.Approvals > 0 && slices.Contains(people[0].Groups, n.Group) {
			rest := slices.Clone(needs)
			rest[i].Approvals--
			filled = max(filled, 1+best(rest, people[1:]))
		}
	}
	return filled
}

func standing() grant.Standing {
	rights, err := grant.RightsDigest(granttest.NewWorld().Terms(granttest.Noon()))
	if err != nil {
		panic(err)
	}
	return grant.Standing{
		Name: "dev-ops", Role: granttest.RoleOps, Rights: rights,
		MaxDurationMS: time.Hour.Milliseconds(), Groups: []string{"developers"},
	}
}

// A standing rule opens exactly what the root keys signed: whoever holds the issuer's key and the
// whole control plane gets nothing more out of it.
func TestStandingRuleOpensNothingElse(t *testing.T) {
	w := granttest.NewWorld()
	mallory := granttest.NewPerson("mallory", 1900000066)
	elsewhere := grant.HostIDOf(granttest.Public(granttest.Key("another host")))
	rule := func(edit func(*grant.Standing)) func(*grant.Trust) {
		return func(x *grant.Trust) { edit(&x.Standing[0]) }
	}
	person := func(edit func(*grant.Requester)) func(*grant.Trust) {
		return func(x *grant.Trust) { edit(&x.Requesters[0]) }
	}
	terms := func(edit func(*curfewv1.Terms)) func(*curfewv1.Terms) { return edit }
	for _, c := range []struct {
		name  string
		trust func(*grant.Trust)
		terms func(*curfewv1.Terms)
		by    []granttest.Person
		limit grant.StandingCeiling
		want  string
	}{
		{name: "as signed", limit: grant.StandingContained},
		{name: "the host follows none", limit: grant.StandingNone, want: "ceiling.standing"},
		{
			name: "a rule that nobody signed", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.StandingRule = "invented" }), want: "no standing rule",
		},
		{
			name: "another role", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.Role = granttest.RoleRoot }), want: "other rights",
		},
		{
			name: "more rights under the same role", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.SudoRules[0].Args[1] = "ssh.service" }),
			want:  "other rights",
		},
		{
			name: "root under the same role", limit: grant.StandingAny,
			terms: terms(func(x *curfewv1.Terms) {
				x.SudoRules, x.RootEquivalent = []*curfewv1.SudoRule{{RunAs: "root", All: true}}, true
			}), want: "ceiling",
		},
		{
			name: "a group more", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.Groups = []string{"adm"} }), want: "other rights",
		},
		{
			name: "for longer", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.DurationMs++ }), want: "at most",
		},
		{
			name: "on another host", limit: grant.StandingContained,
			trust: rule(func(s *grant.Standing) { s.Hosts = []grant.HostID{elsewhere} }), want: "not for host",
		},
		{
			name: "on a host of its list", limit: grant.StandingContained,
			trust: rule(func(s *grant.Standing) { s.Hosts = []grant.HostID{elsewhere, w.Host} }),
		},
		{
			name: "for another group", limit: grant.StandingContained,
			trust: rule(func(s *grant.Standing) { s.Groups = []string{"owners"} }), want: "not for alice",
		},
		{
			name: "for somebody whom nobody named", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.Requester, x.Login = "mallory", "mallory" }),
			want:  "not for mallory",
		},
		{
			name: "another login", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.Login = "bob" }), want: "not alice's",
		},
		{
			name: "another uid", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.Uid = mallory.UID }), want: "not alice's",
		},
		{
			name: "the attacker's key", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.AuthorizedKeys = []string{mallory.SSHKey} }),
			want:  "key that is not theirs",
		},
		{
			name: "a key that the person lost", limit: grant.StandingContained,
			trust: person(func(r *grant.Requester) { r.SSHKeys = nil }), want: "key that is not theirs",
		},
		{
			name: "called an emergency", limit: grant.StandingContained,
			terms: terms(func(x *curfewv1.Terms) { x.Emergency = true }), want: "emergency",
		},
		{
			name: "with an approval beside", limit: grant.StandingContained,
			by: []granttest.Person{w.Bob}, want: "carry approvals",
		},
	} {
		trust := granttest.CloneTrust(w.Trust)
		trust.Standing = []grant.Standing{standing()}
		trust.Requesters = []grant.Requester{{
			Name: "alice", UID: w.Alice.UID, Groups: []string{"developers"}, SSHKeys: []string{w.Alice.SSHKey},
		}}
		if c.trust != nil {
			c.trust(trust)
		}
		l := w.Ledger()
		if err := l.AcceptTrust(granttest.SealTrust(trust, w.Root)); err != nil {
			t.Fatal(err)
		}
		edits := []func(*curfewv1.Terms){func(x *curfewv1.Terms) {
			x.StandingRule, x.ApproverGroup, x.ApprovalsNeeded = "dev-ops", "", 0
		}}
		if c.terms != nil {
			edits = append(edits, c.terms)
		}
		_, env := w.Grant(w.Terms(granttest.Noon(), edits...), c.by...)
		ceiling := w.Ceiling()
		ceiling.Standing = c.limit
		_, err := l.AcceptGrant(env, clockAt(granttest.Noon()), ceiling)
		wants(t, c.name, err, c.want)
	}
}
