package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	decideRoles, decideRules, decideTeams = 25, 500, 100
	decideBatch, decideSamples            = 20000, 7
)

// policyDecide measures decisions a second on one core: 500 rules, 20 of them with conditions, two of
// these in zones of their own; asks go round all of them, through the trust file's check.
func policyDecide(_ context.Context, b *Bench) error {
	asks, facts, err := decisions()
	if err != nil {
		return err
	}
	var took samples
	for range decideSamples + 1 {
		before, err := cpuTime()
		if err != nil {
			return err
		}
		for i := range decideBatch {
			if v := policy.Decide(asks[i%len(asks)], facts); !v.Accepted() {
				return fmt.Errorf("ask %d: %s", i%len(asks), v.Text)
			}
		}
		after, err := cpuTime()
		if err != nil {
			return err
		}
		took = append(took, after-before)
	}
	b.Print(Line{
		Name: "policy_decide", Value: decideBatch / took[1:].median().Seconds(), Unit: "/s/core",
		Bar: 20000, BarUnit: "/s/core", AtLeast: true, N: decideSamples,
	})
	return nil
}

// cpuTime is what this process has used of all cores: on a machine that does other things too, the
// wall clock would measure those.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func decisions() ([]request.Ask, policy.Facts, error) {
	p, err := policy.Parse("bench.yaml", []byte(decidePolicy()))
	if err != nil {
		return nil, policy.Facts{}, err
	}
	f := policy.Facts{
		Now: time.Date(2026, 11, 3, 14, 0, 0, 0, time.UTC), Policy: p,
		Requester: policy.Person{Name: "alice", UID: 1900000001, SSHKeys: []string{"key"}},
		Hosts:     make(map[string]policy.Host), Trust: &grant.Trust{},
	}
	hosts := make([]policy.Host, 0, decideTeams)
	for i := range decideTeams {
		team, name := fmt.Sprintf("team-%d", i), fmt.Sprintf("host-%d", i)
		f.Hosts[name] = policy.Host{ID: grant.HostID{byte(i)}, Name: name, Labels: map[string]string{
			"team": team, "env": "prod", "tier": "web",
		}}
		hosts = append(hosts, f.Hosts[name])
		f.Requester.Groups = append(f.Requester.Groups, team)
		f.Trust.Approvers = append(f.Trust.Approvers,
			grant.Approver{Name: "boss-" + team, Groups: []string{team}, SSHKeys: []string{"key"}})
	}
	floor, err := p.Floor(hosts)
	f.Trust.Quorums = floor.Quorums
	asks := make([]request.Ask, 0, decideRules)
	for i := range decideRules {
		asks = append(asks, request.Ask{
			Requester: "alice", Role: fmt.Sprintf("role-%d", i%decideRoles),
			Hosts: []string{fmt.Sprintf("host-%d", i%decideTeams)}, Duration: time.Hour, Reason: "it is slow",
		})
	}
	return asks, f, err
}

func decidePolicy() string {
	var b strings.Builder
	b.WriteString("policy: 1\nzone: Europe/Berlin\nroles:\n")
	for i := range decideRoles {
		fmt.Fprintf(&b, "  role-%d: {login: true, max: 8h}\n", i)
	}
	b.WriteString("rules:\n")
	for i := range decideRules {
		team := fmt.Sprintf("team-%d", i%decideTeams)
		fmt.Fprintf(&b, "  - name: rule-%d\n    who: [%s]\n    hosts: {team: %s, env: [prod, stage]}\n"+
			"    roles: [role-%d]\n", i, team, team, i%decideRoles)
		if i < 20 {
			b.WriteString("    when: clock >= \"08:00\" && clock < \"18:00\" && !(weekday in [\"sat\", \"sun\"])" +
				" && lasts <= duration(\"4h\") && labels.get(\"tier\") != \"vault\"\n")
		}
		if i < 2 {
			fmt.Fprintf(&b, "    zone: %s\n", []string{"America/New_York", "Europe/Lisbon"}[i])
		}
		fmt.Fprintf(&b, "    then: {approvals: [%s], max_duration: 4h}\n", team)
	}
	return b.String()
}
