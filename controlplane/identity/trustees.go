package identity

import (
	"slices"
	"strings"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/internal/grant"
)

// fillTrust puts into a trust file what the directory and the policy say: who approves, what a role
// needs at least, which rules open access without approvals and for whom.
func (s *Service) fillTrust(tx Tx, next *grant.Trust) error {
	users, err := tx.Users()
	if err != nil {
		return err
	}
	floor, err := s.floor(tx)
	if err != nil {
		return err
	}
	next.Quorums, next.Standing = append([]grant.Quorum{}, floor.Quorums...), floor.Standing
	next.Approvers, next.Requesters = approversOf(users, floor), requestersOf(users, floor)
	return nil
}

// floor is what the policy file asks of hosts; without one, what the directory's roles do.
func (s *Service) floor(tx Tx) (policy.Floor, error) {
	inForce, err := s.Policy(tx)
	if err != nil {
		return policy.Floor{}, err
	}
	if inForce != nil {
		hosts, err := tx.LabelledHosts()
		if err != nil {
			return policy.Floor{}, err
		}
		return inForce.Floor(hosts)
	}
	roles, err := tx.Roles()
	var floor policy.Floor
	for _, r := range roles {
		floor.Approvers = append(floor.Approvers, r.ApproverGroup)
		floor.Quorums = append(floor.Quorums,
			grant.Quorum{Role: r.Name, Group: r.ApproverGroup, Approvals: r.Approvals})
	}
	return floor, err
}

// approversOf are enabled people with keys, in the groups whose members approve something, and
// managers where their approval counts. An auditor or a workload is none.
func approversOf(users []User, floor policy.Floor) []grant.Approver {
	manages := make(map[string][]string)
	for _, u := range users {
		if floor.Managers && !u.Disabled && u.Manager != "" && u.Manager != u.Name {
			manages[u.Manager] = append(manages[u.Manager], u.Name)
		}
	}
	approvers := []grant.Approver{}
	for _, u := range users {
		in := within(u.Groups, floor.Approvers)
		reports := manages[u.Name]
		if len(in)+len(reports) == 0 || len(u.SSHKeys) == 0 || u.Disabled || !u.decides() {
			continue
		}
		slices.Sort(reports)
		approvers = append(approvers,
			grant.Approver{
				Name: u.Name, Groups: in, SSHKeys: u.SSHKeys, Manages: reports,
				VerifyRequired: u.VerifyRequired,
			})
	}
	slices.SortFunc(approvers, func(a, b grant.Approver) int { return strings.Compare(a.Name, b.Name) })
	return approvers
}

// requestersOf are those for whom standing rules open something, with the only keys they log in with.
func requestersOf(users []User, floor policy.Floor) []grant.Requester {
	var out []grant.Requester
	for _, u := range users {
		if in := within(u.Groups, floor.Requesters); len(in) > 0 && !u.Disabled && !u.Auditor {
			out = append(out, grant.Requester{
				Name: u.Name, UID: u.UID, Groups: in, SSHKeys: append([]string{}, u.SSHKeys...),
			})
		}
	}
	slices.SortFunc(out, func(a, b grant.Requester) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// within are those of some groups that are among others; an empty list, never nil, when none is.
func within(groups, among []string) []string {
	out := []string{}
	for _, g := range groups {
		if slices.Contains(among, g) {
			out = append(out, g)
		}
	}
	return out
}
