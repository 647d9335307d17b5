package policy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// FuzzPolicy reads files of any content as policies. Whatever is refused has a file and a line, and no
// control byte; whatever is taken decides every ask in words, gives the same answer twice, and asks of
// hosts only what a trust file can hold.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte(small), "it hangs", "OPS-1", int64(time.Hour), false)
	for _, name := range []string{"startup", "enterprise"} {
		f.Add(read(f, "../../docs/operate/policies/"+name+".yaml"), "INC-1 is bad", "CHG-000001", int64(time.Minute), true)
	}
	f.Add([]byte("policy: 1\nroles: {a: {login: true, max: 1s}}\nrules: [{name: a, then: {deny: x}}]"), "x", "", int64(1), false)
	f.Add([]byte("&a [*a]"), "", "", int64(0), false)
	f.Add([]byte("policy: 1\n? [x]\n: y\n\x1b"), "", "", int64(0), false)
	f.Fuzz(func(t *testing.T, text []byte, reason, ticket string, lasts int64, urgent bool) {
		p, err := policy.Parse("fuzz\x1b.yaml", text)
		if err != nil {
			if p != nil {
				t.Fatal("a policy beside an error")
			}
			for line := range strings.Lines(err.Error()) {
				line = strings.TrimSuffix(line, "\n")
				visible(t, line)
				if !strings.HasPrefix(line, `fuzz\x1b.yaml:`) {
					t.Errorf("a fault without a place: %q", line)
				}
			}
			return
		}
		hosts := []policy.Host{
			{ID: grant.HostID{1}, Name: "web1", Labels: map[string]string{"env": "prod", "tier": "web"}},
			{ID: grant.HostID{2}, Name: "db1", Labels: map[string]string{"env": "staging", "tier": "db"}},
		}
		floor, err := p.Floor(hosts)
		if err != nil {
			t.Fatal(err)
		}
		facts := policy.Facts{
			Now: now, Policy: p, InARow: 3, Hosts: map[string]policy.Host{"web1": hosts[0], "db1": hosts[1]},
			Requester: policy.Person{
				Name: "alice", UID: 1900000001, Groups: p.Groups()[:min(len(p.Groups()), policy.MaxGroupsOfUser)],
				SSHKeys: []string{key}, SignedIn: now,
			},
			Trust: &grant.Trust{Organisation: "acme", Version: 2, Quorums: floor.Quorums, Standing: floor.Standing},
		}
		for i, r := range p.Roles() {
			if i >= 5 {
				break
			}
			a := request.Ask{
				Requester: "alice", Role: r.Name, Hosts: []string{"web1", "db1"}[:1+len(reason)%2], Reason: reason,
				Ticket: ticket, Duration: time.Duration(lasts), Emergency: urgent,
			}
			judgeVerdict(t, a, facts, p)
		}
	})
}

func judgeVerdict(t *testing.T, a request.Ask, f policy.Facts, p *policy.Policy) {
	t.Helper()
	lines, v := policy.Explain(a, f)
	_, again := policy.Explain(a, f)
	if v.Text == "" || v.Text != again.Text {
		t.Errorf("it says %q, then %q", v.Text, again.Text)
	}
	for _, line := range append(lines, v.Text, v.Hint) {
		visible(t, line)
	}
	if !v.Accepted() {
		return
	}
	if (len(v.Needs) == 0) == (v.Standing == "") || v.Rule == "" || !p.SameText(v.PolicyHash) {
		t.Fatalf("accepted with %+v", v)
	}
	if a.Duration > p.Role(a.Role).MaxDuration || a.Emergency != v.Emergency {
		t.Errorf("accepted for %s, emergency %v: %+v", a.Duration, a.Emergency, v)
	}
	if v.Standing == "" {
		hosts := make([]grant.HostID, 0, 2)
		for _, h := range a.Hosts {
			hosts = append(hosts, f.Hosts[h].ID)
		}
		if err := grant.CheckFloor(f.Trust, a.Role, v.Needs, hosts); err != nil {
			t.Errorf("hosts held to this policy would refuse what it accepts: %v", err)
		}
	}
	f.Role = p.Role(a.Role)
	raw, err := policy.Terms(a, f, v, policy.Draft{
		RequestID: "0123456789ab", Revision: 1, Now: now, Lapses: now.Add(time.Hour),
	})
	if err != nil {
		t.Fatalf("what is accepted makes no terms: %v", err)
	}
	if _, err := grant.ParseTerms(raw); err != nil {
		t.Errorf("what is accepted makes terms that hosts refuse: %v", err)
	}
}
