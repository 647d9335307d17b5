package policy

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/internal/grant"
)

// Floor is what the trust file says of a policy: below it hosts go for nobody, whatever the control
// plane says. Conditions are not in it; they are the control plane's word.
type Floor struct {
	Quorums  []grant.Quorum
	Standing []grant.Standing
	// Approvers are the groups whose members approve something.
	Approvers []string
	// Managers says that something needs the requester's manager.
	Managers bool
	// Requesters are the groups for which standing rules open something.
	Requesters []string
}

// Floor works out what hosts hold the control plane to. hosts are all that are enrolled: a rule for
// some of them holds for those that carry its labels now.
func (p *Policy) Floor(hosts []Host) (Floor, error) {
	var f Floor
	approvers, requesters := make(map[string]bool), make(map[string]bool)
	for _, role := range slices.Sorted(maps.Keys(p.roles)) {
		var quorums []grant.Quorum
		for _, r := range p.byRole[role] {
			ids, some := p.hostsOf(r, hosts)
			if !some {
				continue
			}
			switch {
			case r.then.kind == approve:
				quorums = withQuorum(quorums, role, r.then.needs, ids)
				for _, n := range r.then.needs {
					approvers[n.Group] = true
				}
			case r.then.standing():
				s, err := standing(r, p.roles[role], ids)
				if err != nil {
					return f, err
				}
				f.Standing = append(f.Standing, s)
				for _, g := range s.Groups {
					requesters[g] = true
				}
			}
		}
		f.Quorums = append(f.Quorums, least(quorums)...)
	}
	f.Managers = approvers[grant.GroupManager]
	delete(approvers, grant.GroupManager)
	f.Approvers, f.Requesters = slices.Sorted(maps.Keys(approvers)), slices.Sorted(maps.Keys(requesters))
	slices.SortFunc(f.Standing, func(a, b grant.Standing) int { return strings.Compare(a.Name, b.Name) })
	return f, nil
}

// hostsOf are the hosts that a rule is for, sorted; none with true for every host.
func (p *Policy) hostsOf(r *rule, hosts []Host) (ids []grant.HostID, some bool) {
	if len(r.hosts) == 0 || p.anyHost {
		return nil, true
	}
	for _, h := range hosts {
		if slices.ContainsFunc(r.hosts, func(n int) bool { return p.hostSets[n].holds(h.Labels) }) {
			ids = append(ids, h.ID)
		}
	}
	slices.SortFunc(ids, compareHosts)
	return ids, len(ids) > 0
}

func compareHosts(a, b grant.HostID) int { return bytes.Compare(a[:], b[:]) }

func standing(r *rule, role *Role, ids []grant.HostID) (grant.Standing, error) {
	s := grant.Standing{
		Name: r.standingName(role.Name), Role: role.Name, MaxDurationMS: role.MaxDuration.Milliseconds(),
		Groups: slices.Sorted(slices.Values(r.groupNames)), Hosts: ids,
		Emergency: r.then.kind == emergency,
	}
	if r.then.max > 0 {
		s.MaxDurationMS = min(s.MaxDurationMS, r.then.max.Milliseconds())
	}
	var err error
	s.Rights, err = grant.RightsDigest(role.rights())
	return s, err
}

// withQuorum adds a quorum, to the hosts of one with the same needs if there is one.
func withQuorum(
	to []grant.Quorum, role string, needs []grant.Need, ids []grant.HostID,
) []grant.Quorum {
	for i := range to {
		if !slices.Equal(to[i].Needs(), needs) {
			continue
		}
		if len(to[i].Hosts) == 0 || len(ids) == 0 {
			to[i].Hosts = nil
			return to
		}
		all := append(slices.Clone(to[i].Hosts), ids...)
		slices.SortFunc(all, compareHosts)
		to[i].Hosts = slices.Compact(all)
		return to
	}
	q := grant.Quorum{Role: role, Group: needs[0].Group, Approvals: needs[0].Approvals, Hosts: ids}
	q.Also = append(q.Also, needs[1:]...)
	return append(to, q)
}

// least leaves out what another quorum permits anyhow: hosts take the terms that cover any one.
func least(quorums []grant.Quorum) []grant.Quorum {
	var out []grant.Quorum
	for i, q := range quorums {
		if !slices.ContainsFunc(quorums, func(o grant.Quorum) bool {
			return !slices.Equal(o.Needs(), quorums[i].Needs()) && grant.Covers(q.Needs(), o.Needs()) &&
				within(q.Hosts, o.Hosts)
		}) {
			out = append(out, q)
		}
	}
	return out
}

// within says whether some hosts are among others; none are all of them.
func within(some, among []grant.HostID) bool {
	if len(among) == 0 || len(some) == 0 {
		return len(among) == 0
	}
	for _, h := range some {
		if _, found := slices.BinarySearchFunc(among, h, compareHosts); !found {
			return false
		}
	}
	return true
}

// ApproversOf are the groups whose members approve requests for a role, "manager" included.
func (p *Policy) ApproversOf(role string) []string {
	groups := make(map[string]bool)
	for _, r := range p.byRole[role] {
		for _, n := range r.then.needs {
			groups[n.Group] = true
		}
	}
	return slices.Sorted(maps.Keys(groups))
}

// Approving are the groups whose members approve anything, "manager" included.
func (p *Policy) Approving() []string {
	groups := make(map[string]bool)
	for _, r := range p.rules {
		for _, n := range r.then.needs {
			groups[n.Group] = true
		}
	}
	return slices.Sorted(maps.Keys(groups))
}

// Names says whether the file speaks of a group, so that it cannot be deleted under it.
func (p *Policy) Names(group string) bool {
	_, who := p.groups[group]
	return who || slices.Contains(p.onCall, group) || slices.Contains(p.Approving(), group)
}

// Groups are all groups that the file speaks of.
func (p *Policy) Groups() []string {
	all := append(slices.Collect(maps.Keys(p.groups)), p.onCall...)
	all = append(all, p.Approving()...)
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(g string) bool { return g == grant.GroupManager })
}

// Checks are the ticket checks that the file names.
func (p *Policy) Checks() []string {
	names := make(map[string]bool)
	for _, r := range p.rules {
		if r.then.check != "" {
			names[r.then.check] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
