package controlplane_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// acmePolicy lets dev into test at once, into prod with two groups and the manager.
const acmePolicy = `policy: 1
roles:
  ops: {login: true, max: 1h, sudo: [{command: /usr/bin/id, contained: true}]}
  root: {login: true, max: 1h, sudo: [{all: true}]}
hosts:
  prod: {env: prod}
  test: {env: test}
rules:
  - name: test
    who: [dev]
    hosts: [test]
    roles: [ops]
    then: auto
  - name: prod
    who: [dev]
    hosts: [prod]
    roles: [ops]
    then: {approvals: [sre, owners, manager], max_duration: 30m, justification: {min_length: 10}}
  - name: fire
    who: [pager]
    roles: [root]
    then: {emergency: true, max_duration: 30m}
`

func (h *house) apply(text string) *apiv1.ApplyPolicyResponse {
	h.t.Helper()
	resp, err := h.admin.ApplyPolicy(h.t.Context(),
		&apiv1.ApplyPolicyRequest{Text: []byte(text), File: "acme.yaml"})
	must(h.t, err)
	return resp
}

// acme is a house under acmePolicy: alice asks, bob is sre and owner, erin an owner, mona her manager.
type acme struct {
	*house
	alice, bob, erin, mona *person
	test1, prod1           *host
}

func buildAcme(t *testing.T, tune func(*controlplane.Config)) *acme {
	t.Helper()
	h := build(t, tune)
	a := &acme{house: h, bob: h.add("bob"), erin: h.add("erin"), mona: h.add("mona")}
	a.alice = h.add("alice")
	manager := "mona"
	_, err := h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "alice", Manager: &manager, SshKeys: []string{grant.SSHKeyText(a.alice.key.PublicKey())},
	}})
	must(t, err)
	h.group("dev", "alice")
	h.group("sre", "bob")
	h.group("owners", "bob", "erin")
	h.group("pager", "alice")
	resp := h.apply(acmePolicy)
	if resp.GetVersion().GetNumber() != 1 || len(resp.GetWarnings()) != 0 || resp.GetTrustWaits() {
		t.Fatalf("applying says %v", resp)
	}
	// Hosts that come after the policy are in the trust file too.
	a.test1 = h.joinWith("test1", map[string]string{"env": "test"})
	a.prod1 = h.joinWith("prod1", map[string]string{"env": "prod"})
	return a
}

func (p *person) want(role, why string, hosts ...string) (*apiv1.Request, error) {
	r, err := p.CreateRequest(p.t.Context(), &apiv1.CreateRequestRequest{
		Hosts: hosts, Role: role, DurationMs: (10 * time.Minute).Milliseconds(), Reason: why,
	})
	return r.GetRequest(), err
}

// What a standing rule opens is granted at once and taken by the host, under the policy's hash.
func TestStandingRuleOpensAtOnce(t *testing.T) {
	a := buildAcme(t, nil)
	r, err := a.alice.want("ops", "look at the logs", "test1")
	must(t, err)
	if !granted(r) || r.GetStandingRule() != "test" || r.GetRule() != "test, line 9" || len(r.GetNeeds()) != 0 {
		t.Fatalf("it is %v", r)
	}
	live := a.test1.eventually(1)[0]
	policy, err := a.admin.GetPolicy(t.Context(), &apiv1.GetPolicyRequest{})
	must(t, err)
	if string(live.Terms.GetPolicyHash()) != string(policy.GetVersion().GetHash()) ||
		string(policy.GetText()) != acmePolicy {
		t.Error("the grant does not name the policy in force")
	}
	ext, err := a.alice.Extend(t.Context(), &apiv1.ExtendRequest{
		Id: a.alice.until(r.GetId(), "applied", applied).GetId(), MoreMs: time.Minute.Milliseconds(), Reason: "more",
	})
	must(t, err)
	if got := ext.GetRequest(); got.GetExtensionPending() || got.GetRevision() != 2 {
		t.Errorf("the extension is %v", got)
	}
	_, err = a.bob.Revoke(t.Context(), &apiv1.RevokeRequest{Id: r.GetId(), Reason: "enough"})
	must(t, err)
	a.test1.eventually(0)
	_, err = a.alice.want("ops", "look at the logs", "test1", "prod1")
	if got := refused(t, err, apiv1.Code_CODE_INVALID); !strings.Contains(got.GetText(), "different hosts") {
		t.Errorf("both at once: %s", got.GetText())
	}
	// An emergency is one only when it is called so.
	_, err = a.alice.want("root", "it burns", "prod1")
	refused(t, err, apiv1.Code_CODE_DENIED)
	fire, err := a.alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"prod1"}, Role: "root", DurationMs: 1000, Reason: "it burns", Emergency: true,
	})
	must(t, err)
	if got := fire.GetRequest(); !granted(got) || !got.GetEmergency() {
		t.Errorf("the emergency is %v", got)
	}
	a.prod1.eventually(1)
}

// Several needs: one person fills one of them, and the manager is one.
func TestSeveralGroupsAndTheManager(t *testing.T) {
	a := buildAcme(t, nil)
	_, err := a.alice.want("ops", "short", "prod1")
	if got := refused(t, err, apiv1.Code_CODE_INVALID); !strings.Contains(got.GetText(), "(rule prod, line 14)") {
		t.Errorf("a short reason: %s", got.GetText())
	}
	r, err := a.alice.want("ops", "restart the web server", "prod1")
	must(t, err)
	if want := "needs 1 approval of the requester's manager and 1 more of 1 approval of group owners and " +
		"1 more of 1 approval of group sre (rule prod, line 14)"; r.GetVerdict() != want {
		t.Errorf("the verdict says %q", r.GetVerdict())
	}
	_, err = a.alice.approve(r)
	refused(t, err, apiv1.Code_CODE_DENIED)
	me, err := a.mona.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	must(t, err)
	if strings.Join(me.GetApiRoles(), " ") != "user approver" {
		t.Errorf("a manager is %v", me.GetApiRoles())
	}
	for i, p := range []*person{a.bob, a.mona, a.erin} {
		waits, err := p.ListRequests(t.Context(),
			&apiv1.ListRequestsRequest{Filter: &apiv1.RequestFilter{PendingForMe: true}})
		must(t, err)
		if len(waits.GetRequests()) != 1 {
			t.Errorf("%s has %d requests to decide", p.name, len(waits.GetRequests()))
		}
		got, err := p.approve(r)
		must(t, err)
		if granted(got) != (i == 2) {
			t.Fatalf("after %d approvals it is %v: %s", i+1, got.GetState(), got.GetVerdict())
		}
	}
	a.prod1.eventually(1)
}

// A comment voids nothing; what needs more, or gives something else, does.
func TestPolicyChangesBehindARequest(t *testing.T) {
	a := buildAcme(t, nil)
	ask := func() *apiv1.Request {
		r, err := a.alice.want("ops", "restart the web server", "prod1")
		must(t, err)
		return r
	}
	r := ask()
	const other = "  - {name: other, who: [boss], then: {approvals: [sre, owners]}}\n"
	a.apply("# reviewed by the board\n" + acmePolicy + other)
	_, err := a.bob.approve(r)
	must(t, err)
	a.apply(strings.Replace(acmePolicy+other, "[sre, owners, manager]", "[sre, manager]", 1))
	for _, p := range []*person{a.erin, a.mona} {
		_, err = p.approve(r) // it needs less now, and keeps what was asked for
		must(t, err)
	}
	a.prod1.eventually(1)
	for name, change := range map[string][2]string{
		"more people":   {"[sre, owners, manager]", "[sre, 2 of owners, manager]"},
		"other rights":  {"command: /usr/bin/id", "command: /usr/bin/w"},
		"less time":     {"max_duration: 30m", "max_duration: 5m"},
		"denied":        {"then: {approvals: [sre, owners, manager], max_duration: 30m, justification: {min_length: 10}}", "then: {deny: never}"},
		"no rule":       {"    hosts: [prod]\n", "    hosts: [test]\n"},
		"another group": {"[sre, owners, manager]", "[sre, security, manager]"},
		"nobody left":   {"[sre, owners, manager]", "[sre, manager]"},
	} {
		a.apply(acmePolicy)
		r := ask()
		changed := strings.Replace(acmePolicy, change[0], change[1], 1)
		if changed == acmePolicy {
			t.Fatalf("%s changes nothing", name)
		}
		a.apply(changed)
		if _, err := a.bob.approve(r); err == nil {
			t.Errorf("%s: an approval was taken", name)
		}
		_, err := a.alice.Withdraw(t.Context(), &apiv1.WithdrawRequest{Id: r.GetId()})
		must(t, err)
	}
}

// A bad policy is refused whole, with file, line and field, and the old one stays.
func TestBadPolicyLeavesTheOldOne(t *testing.T) {
	a := buildAcme(t, nil)
	try := func(text string, replaces []byte, dry bool) error {
		_, err := a.admin.ApplyPolicy(t.Context(), &apiv1.ApplyPolicyRequest{
			Text: []byte(text), File: "acme.yaml", Replaces: replaces, DryRun: dry,
		})
		return err
	}
	bad := strings.Replace(acmePolicy, "hosts: [prod]", "hosts: [pord]", 1)
	got := refused(t, try(bad, nil, false), apiv1.Code_CODE_INVALID)
	if want := "acme.yaml:16: rules[1].hosts[0]: there is no set of hosts pord in this file"; got.GetText() != want {
		t.Errorf("it is refused with %q", got.GetText())
	}
	check := strings.Replace(acmePolicy, "{min_length: 10}", "{ticket: {pattern: X, check: jira}}", 1)
	got = refused(t, try(check, nil, false), apiv1.Code_CODE_INVALID)
	if !strings.Contains(got.GetText(), "jira is not in the control plane's configuration") {
		t.Errorf("an unknown check is refused with %q", got.GetText())
	}
	refused(t, try(acmePolicy+"\n", make([]byte, 32), false), apiv1.Code_CODE_CONFLICT)
	must(t, try(acmePolicy+"\n# tried\n", nil, true))
	must(t, try(acmePolicy, nil, false)) // the same once more is no new version
	_, err := a.admin.PutRole(t.Context(), &apiv1.PutRoleRequest{Role: opsRole(1)})
	if got := refused(t, err, apiv1.Code_CODE_CONFLICT); !strings.Contains(got.GetHint(), "policy apply") {
		t.Errorf("roles by hand are refused with the hint %q", got.GetHint())
	}
	_, err = a.admin.DeleteGroup(t.Context(), &apiv1.DeleteGroupRequest{Name: "owners"})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	list, err := a.bob.ListPolicies(t.Context(), &apiv1.ListPoliciesRequest{})
	must(t, err)
	if n := len(list.GetVersions()); n != 1 {
		t.Errorf("%d versions are kept", n)
	}
	roles, err := a.alice.ListRoles(t.Context(), &apiv1.ListRolesRequest{})
	must(t, err)
	if len(roles.GetRoles()) != 2 || roles.GetRoles()[0].GetName() != "ops" {
		t.Errorf("the roles are %v", roles.GetRoles())
	}
	kinds := 0
	for _, rec := range a.erin.records() {
		parsed, err := trail.ParseRecord(rec.GetLeaf())
		must(t, err)
		if parsed.Kind == "policy.applied" && parsed.Actor == "dana" && parsed.Details["number"] == "1" {
			kinds++
		}
	}
	if kinds != 1 {
		t.Errorf("the trail has %d records of the policy", kinds)
	}
}

// Old decisions stay explainable under newer policies, and a new one is tried on what was asked.
func TestExplainAndReplay(t *testing.T) {
	a := buildAcme(t, nil)
	r, err := a.alice.want("ops", "restart the web server", "prod1")
	must(t, err)
	_, err = a.alice.want("ops", "look at the logs", "test1")
	must(t, err)
	a.test1.eventually(1) // before the rule that opened it goes
	strict := strings.Replace(acmePolicy, "then: auto", "then: {approvals: [2 of owners]}", 1)
	strict = strings.Replace(strict, "[sre, owners, manager]", "[sre]", 1)
	replay, err := a.admin.ReplayPolicy(t.Context(), &apiv1.ReplayPolicyRequest{
		Text: []byte(strict), SinceMs: time.Now().Add(-time.Hour).UnixMilli(),
	})
	must(t, err)
	var got []string
	for _, d := range replay.GetDifferences() {
		got = append(got, d.GetRequester()+" "+d.GetWas()+" -> "+d.GetWouldBe())
	}
	want := "alice needs 1 approval of the requester's manager and 1 approval of group owners and " +
		"1 approval of group sre -> needs 1 approval of group sre\n" +
		"alice auto -> needs 2 approvals of group owners"
	if s := strings.Join(got, "\n"); replay.GetReplayed() != 2 || s != want {
		t.Errorf("%d replayed:\n%s", replay.GetReplayed(), s)
	}
	a.apply(strict)
	e, err := a.alice.ExplainRequest(t.Context(), &apiv1.ExplainRequestRequest{Id: r.GetId()})
	must(t, err)
	if s := strings.Join(e.GetSteps(), "\n"); s != "test (line 9): no: host prod1 is not of test\n"+
		"prod (line 14): decides: 1 approval of the requester's manager and 1 approval of group owners and "+
		"1 approval of group sre" || !strings.Contains(e.GetVerdictNow(), "needs 1 approval of group sre (rule prod") {
		t.Errorf("it is explained as\n%s\nand now as %s", s, e.GetVerdictNow())
	}
	mallory := a.add("mallory")
	_, err = mallory.ExplainRequest(t.Context(), &apiv1.ExplainRequestRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
	_, err = mallory.GetPolicy(t.Context(), &apiv1.GetPolicyRequest{})
	refused(t, err, apiv1.Code_CODE_DENIED)
}

// With the root key elsewhere, a rule that the root key has not signed opens nothing and says so.
func TestUnsignedRuleOpensNothing(t *testing.T) {
	h := build(t, nil)
	alice := h.add("alice")
	h.group("dev", "alice")
	test1 := h.joinWith("test1", map[string]string{"env": "test"})
	must(t, os.Rename(filepath.Join(h.dir, "root.key"), filepath.Join(h.dir, "elsewhere")))
	text := "policy: 1\nroles: {ops: {login: true, max: 1h}}\nrules:\n" +
		"  - {name: test, who: [dev], hosts: {env: [test]}, then: auto}\n"
	if resp := h.apply(text); !resp.GetTrustWaits() {
		t.Error("it does not say that the trust file waits")
	}
	_, err := alice.want("ops", "look at the logs", "test1")
	got := refused(t, err, apiv1.Code_CODE_CONFLICT)
	if !strings.Contains(got.GetText(), "rule test, line 4 is not in force yet") || !strings.Contains(got.GetHint(), "trust sign") {
		t.Errorf("it is refused with %q, %q", got.GetText(), got.GetHint())
	}
	must(t, os.Rename(filepath.Join(h.dir, "elsewhere"), filepath.Join(h.dir, "root.key")))
	h.group("other", "alice") // any change makes the file anew
	r, err := alice.want("ops", "look at the logs", "test1")
	must(t, err)
	if !granted(r) {
		t.Errorf("signed, it is %v", r.GetState())
	}
	test1.eventually(1)
	// A key that is not in the trust file logs nobody in.
	must(t, os.Rename(filepath.Join(h.dir, "root.key"), filepath.Join(h.dir, "elsewhere")))
	_, err = h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "alice", SshKeys: []string{
			grant.SSHKeyText(alice.key.PublicKey()), grant.SSHKeyText(newKey(t).PublicKey()),
		},
	}})
	must(t, err)
	_, err = alice.want("ops", "look at the logs", "test1")
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}

// A dry run says what a request would need and stores nothing.
func TestDryRunStoresNothing(t *testing.T) {
	a := buildAcme(t, nil)
	before := len(a.erin.records())
	r, err := a.alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"prod1"}, Role: "ops", DurationMs: 60000, Reason: "restart the web server", DryRun: true,
	})
	must(t, err)
	if len(r.GetRequest().GetNeeds()) != 3 || len(a.erin.records()) != before {
		t.Errorf("it says %v", r.GetRequest().GetVerdict())
	}
	_, err = a.alice.GetRequest(t.Context(), &apiv1.GetRequestRequest{Id: r.GetRequest().GetId()})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
}

// Without a policy file the directory's roles count again, on hosts too, and the way there is on record.
func TestPolicyIsCleared(t *testing.T) {
	h := build(t, nil)
	clear := func(replaces []byte) error {
		_, err := h.admin.ClearPolicy(t.Context(), &apiv1.ClearPolicyRequest{Replaces: replaces})
		return err
	}
	refused(t, clear(nil), apiv1.Code_CODE_CONFLICT)
	alice, bob, _, web1 := h.cast(1)
	h.group("dev", "alice")
	applied := h.apply("policy: 1\nroles: {other: {login: true, max: 1h}}\n" +
		"rules: [{name: a, who: [dev], then: {approvals: sre}}]\n").GetVersion()
	ask := &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: time.Minute.Milliseconds(), Reason: "it hangs",
	}
	if _, err := alice.CreateRequest(t.Context(), ask); err == nil {
		t.Error("a role of the directory counts under a policy file")
	}
	refused(t, clear(make([]byte, 32)), apiv1.Code_CODE_CONFLICT)
	must(t, clear(applied.GetHash()))
	refused(t, clear(nil), apiv1.Code_CODE_CONFLICT)
	got, err := h.admin.GetPolicy(t.Context(), &apiv1.GetPolicyRequest{})
	must(t, err)
	if got.GetVersion().GetNumber() != 0 {
		t.Errorf("in force is %v", got.GetVersion())
	}
	must(t, func() error {
		_, err := h.admin.PutRole(t.Context(), &apiv1.PutRoleRequest{Role: opsRole(1)})
		return err
	}())
	_, err = bob.approve(alice.ask("web1"))
	must(t, err)
	web1.eventually(1) // its trust file asks for the directory's approvals
	list, err := h.admin.ListPolicies(t.Context(), &apiv1.ListPoliciesRequest{})
	must(t, err)
	if len(list.GetVersions()) != 2 || !h.onTrail(`"kind":"policy.cleared","actor":"dana"`) {
		t.Errorf("kept are %v", list.GetVersions())
	}
	again := h.apply("policy: 1\nroles: {other: {login: true, max: 1h}}\n" +
		"rules: [{name: a, who: [dev], then: {approvals: sre}}]\n").GetVersion()
	if again.GetNumber() != 3 {
		t.Errorf("the same policy applied again is %v", again)
	}
	if _, err := alice.CreateRequest(t.Context(), ask); err == nil {
		t.Error("after it is applied again, the directory's roles count")
	}
}
