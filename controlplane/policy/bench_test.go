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

// large is a policy of 500 rules, 20 of them with conditions, two of these on other zones than the
// rest, and asks that spread over all of it.
func large(tb testing.TB) (*policy.Policy, []request.Ask, policy.Facts) {
	tb.Helper()
	var b strings.Builder
	b.WriteString("policy: 1\nroles:\n")
	const roles, rules = 25, 500
	for i := range roles {
		fmt.Fprintf(&b, "  role-%d: {login: true, max: 8h}\n", i)
	}
	b.WriteString("rules:\n")
	for i := range rules {
		fmt.Fprintf(&b, "  - name: rule-%d\n    who: [team-%d]\n    hosts: {team: t%d, env: [prod, stage]}\n",
			i, i%100, i%100)
		fmt.Fprintf(&b, "    roles: [role-%d]\n", i%roles)
		if i >= 40 && i < 60 { // the roles 15 to 24 and 0 to 9, early: most asks meet one
			when := `clock >= "08:00" && clock < "18:00" && !(weekday in ["sat", "sun"]) && ` +
				`lasts <= duration("4h") && labels.get("tier") != "vault"`
			fmt.Fprintf(&b, "    when: '%s'\n", when)
			if i < 42 {
				fmt.Fprintf(&b, "    zone: %s\n", []string{"Europe/Berlin", "America/New_York"}[i-40])
			}
		}
		fmt.Fprintf(&b, "    then: {approvals: [team-%d], max_duration: 4h}\n", i%100)
	}
	p, err := policy.Parse("large.yaml", []byte(b.String()))
	if err != nil {
		tb.Fatal(err)
	}
	f := policy.Facts{
		Now: time.Date(2026, 11, 3, 10, 0, 0, 0, time.UTC), Policy: p,
		Requester: policy.Person{Name: "alice", UID: 1900000001, SSHKeys: []string{key}},
		Hosts:     make(map[string]policy.Host), Trust: &grant.Trust{},
	}
	var hosts []policy.Host
	for i := range 100 {
		name := fmt.Sprintf("host-%d", i)
		f.Hosts[name] = policy.Host{ID: grant.HostID{byte(i)}, Name: name, Labels: map[string]string{
			"team": fmt.Sprintf("t%d", i), "env": "prod", "tier": "web",
		}}
		hosts = append(hosts, f.Hosts[name])
		f.Requester.Groups = append(f.Requester.Groups, fmt.Sprintf("team-%d", i))
		f.Trust.Approvers = append(f.Trust.Approvers, grant.Approver{
			Name: fmt.Sprintf("boss-%d", i), Groups: []string{fmt.Sprintf("team-%d", i)}, SSHKeys: []string{key},
		})
	}
	floor, err := p.Floor(hosts)
	if err != nil {
		tb.Fatal(err)
	}
	f.Trust.Quorums = floor.Quorums
	var asks []request.Ask
	for i := range rules {
		asks = append(asks, request.Ask{
			Requester: "alice", Role: fmt.Sprintf("role-%d", i%roles), Hosts: []string{fmt.Sprintf("host-%d", i%100)},
			Duration: time.Hour, Reason: "something is slow",
		})
	}
	return p, asks, f
}

// BenchmarkDecide is the measure policy_decide.
func BenchmarkDecide(b *testing.B) {
	_, asks, f := large(b)
	accepted, i := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		if policy.Decide(asks[i%len(asks)], f).Accepted() {
			accepted++
		}
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
	if accepted < b.N {
		b.Fatalf("%d of %d accepted: %s", accepted, b.N, policy.Decide(asks[0], f).Text)
	}
}
