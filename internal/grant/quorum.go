package grant

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/internal/sshsig"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// GroupManager stands for the requester's manager in needs; no directory group has this name.
const GroupManager = "manager"

// Need is a number of approvals of members of one group.
type Need struct {
	Group     string `json:"group"`
	Approvals uint32 `json:"approvals"`
}

// String says a need in words.
func (n Need) String() string {
	switch {
	case n.Group == GroupManager:
		return "1 approval of the requester's manager"
	case n.Approvals == 1:
		return "1 approval of group " + n.Group
	}
	return fmt.Sprintf("%d approvals of group %s", n.Approvals, n.Group)
}

// NeedsText says in words what all of some needs are.
func NeedsText(needs []Need) string {
	words := make([]string, 0, len(needs))
	for _, n := range needs {
		words = append(words, n.String())
	}
	return strings.Join(words, " and ")
}

// Quorum is the least that a role needs, on all hosts or on some. A role has one or more; terms must
// cover one of them. A role without any is granted by standing rules only.
type Quorum struct {
	Role      string `json:"role"`
	Group     string `json:"group"`
	Approvals uint32 `json:"approvals"`
	// Also are needs beside the first: one person counts for one of them.
	Also []Need `json:"also,omitempty"`
	// Hosts are those that it holds for; none means every host.
	Hosts []HostID `json:"hosts,omitempty"`
}

// Needs are all that the quorum asks for.
func (q Quorum) Needs() []Need {
	return append([]Need{{Group: q.Group, Approvals: q.Approvals}}, q.Also...)
}

// holdsFor tells whether the quorum counts on a host.
func (q Quorum) holdsFor(host HostID) bool {
	return len(q.Hosts) == 0 || slices.Contains(q.Hosts, host)
}

// QuorumsOf returns the quorums of a role that hold for a host.
func (t *Trust) QuorumsOf(role string, host HostID) []Quorum {
	var list []Quorum
	for _, q := range t.Quorums {
		if q.Role == role && q.holdsFor(host) {
			list = append(list, q)
		}
	}
	return list
}

// NeedsOf are what terms ask for: empty for those that a standing rule opens.
func NeedsOf(t *curfewv1.Terms) []Need {
	if t.GetStandingRule() != "" {
		return nil
	}
	needs := []Need{{Group: t.GetApproverGroup(), Approvals: t.GetApprovalsNeeded()}}
	for _, n := range t.GetAlsoNeeded() {
		needs = append(needs, Need{Group: n.GetGroup(), Approvals: n.GetApprovals()})
	}
	return needs
}

// Covers tells whether needs ask for as much as others, group by group, or more.
func Covers(needs, others []Need) bool {
	for _, o := range others {
		if !slices.ContainsFunc(needs, func(n Need) bool {
			return n.Group == o.Group && n.Approvals >= o.Approvals
		}) {
			return false
		}
	}
	return true
}

// CheckNeeds accepts 1 to MaxApprovals approvals in all, each group once.
func CheckNeeds(needs []Need) error {
	seen := make(map[string]bool)
	for _, n := range needs {
		if err := CheckGroupName(n.Group); err != nil {
			return err
		}
		switch {
		case n.Approvals == 0 || n.Approvals > MaxApprovals:
			return fmt.Errorf("%d approvals of group %s: want 1 to %d", n.Approvals, n.Group, MaxApprovals)
		case seen[n.Group]:
			return fmt.Errorf("group %s is needed twice", n.Group)
		case n.Group == GroupManager && n.Approvals != 1:
			return errors.New("a requester has one manager")
		}
		seen[n.Group] = true
	}
	if total := count(needs); total == 0 || total > MaxApprovals {
		return fmt.Errorf("%d approvals in all: want 1 to %d", total, MaxApprovals)
	}
	return nil
}

func (t *Trust) checkQuorums() error {
	if len(t.Quorums) > maxQuorums {
		return fmt.Errorf("%d quorums; at most %d", len(t.Quorums), maxQuorums)
	}
	for i, q := range t.Quorums {
		err := errors.Join(CheckRoleName(q.Role), CheckNeeds(q.Needs()))
		if err == nil && len(q.Hosts) > maxQuorumHost {
			err = fmt.Errorf("%d hosts; at most %d", len(q.Hosts), maxQuorumHost)
		}
		if err == nil && slices.ContainsFunc(t.Quorums[:i], func(o Quorum) bool {
			return o.Role == q.Role && slices.Equal(o.Needs(), q.Needs()) && slices.Equal(o.Hosts, q.Hosts)
		}) {
			err = errors.New("it stands twice")
		}
		if err != nil {
			return fmt.Errorf("quorum of role %q: %w", VisibleText(q.Role), err)
		}
	}
	return nil
}

// countsFor tells whether a person counts for a need of some terms.
func (a *Approver) countsFor(n Need, requester string) bool {
	if n.Group == GroupManager {
		return slices.Contains(a.Manages, requester)
	}
	return slices.Contains(a.Groups, n.Group)
}

// VerifyApproval checks one approval over the exact bytes of the terms: a known person, not the
// requester, who counts for something that the terms need, by one of that person's own keys.
func VerifyApproval(t *Trust, terms *curfewv1.Terms, raw []byte, a *curfewv1.Approval) error {
	person := t.Approver(a.GetApprover())
	switch {
	case a.GetApprover() == terms.GetRequester() || a.GetApprover() == terms.GetLogin():
		return fmt.Errorf("%s cannot approve their own request", VisibleText(a.GetApprover()))
	case person == nil:
		return fmt.Errorf("%s is not an approver", VisibleText(a.GetApprover()))
	case !slices.ContainsFunc(NeedsOf(terms), func(n Need) bool {
		return person.countsFor(n, terms.GetRequester())
	}):
		return fmt.Errorf("%s counts for nothing that is needed: %s", person.Name,
			NeedsText(NeedsOf(terms)))
	}
	sig, err := sshsig.Check(a.GetSshsig(), sshsig.NamespaceApprove, raw)
	if err != nil {
		return fmt.Errorf("approval of %s: %w", person.Name, err)
	}
	key := SSHKeyText(sig.Key)
	if !slices.Contains(person.SSHKeys, key) {
		return fmt.Errorf("approval of %s is signed by a key that is not theirs", person.Name)
	}
	if person.VerifyRequired && !sig.UserVerified {
		return fmt.Errorf("approval of %s is not by a security key that verified its user (PIN or "+
			"fingerprint), which this person's must be", person.Name)
	}
	// A second account of the requester's is the requester: who logs in with the key holds it.
	if slices.Contains(terms.GetAuthorizedKeys(), key) {
		return fmt.Errorf("approval of %s is signed by a key of %s, who asks",
			person.Name, terms.GetRequester())
	}
	return nil
}

// CheckQuorum demands, for each of the hosts, that the terms need at least what one quorum of their
// role needs there, and valid approvals of distinct people for all of it. One bad approval refuses
// the whole: nobody honest attaches one.
func CheckQuorum(
	t *Trust, terms *curfewv1.Terms, raw []byte, hosts []HostID, approvals []*curfewv1.Approval,
) error {
	needs := NeedsOf(terms)
	if err := CheckFloor(t, terms.GetRole(), needs, hosts); err != nil {
		return err
	}
	var people []*Approver
	for _, a := range approvals {
		if err := VerifyApproval(t, terms, raw, a); err != nil {
			return err
		}
		if p := t.Approver(a.GetApprover()); !slices.Contains(people, p) {
			people = append(people, p)
		}
	}
	if missing := Missing(needs, terms.GetRequester(), people); len(missing) > 0 {
		all := count(needs)
		return fmt.Errorf("%d of %d approvals; still needed: %s", all-count(missing), all,
			NeedsText(missing))
	}
	return nil
}

func count(needs []Need) (n uint32) {
	for _, need := range needs {
		n += need.Approvals
	}
	return n
}

// CheckFloor demands that needs cover one quorum of the role on each host.
func CheckFloor(t *Trust, role string, needs []Need, hosts []HostID) error {
	for _, host := range hosts {
		floor := t.QuorumsOf(role, host)
		if len(floor) == 0 {
			return fmt.Errorf("role %s has no quorum in trust file version %d", role, t.Version)
		}
		if !slices.ContainsFunc(floor, func(q Quorum) bool { return Covers(needs, q.Needs()) }) {
			return fmt.Errorf("they need %s; role %s needs %s", NeedsText(needs), role,
				NeedsText(floor[0].Needs()))
		}
	}
	return nil
}

// Missing says what of the needs these people do not fill, each counted for one need only. People are
// moved from one need to another as long as that fills more.
func Missing(needs []Need, requester string, people []*Approver) []Need {
	var slots []int // index into needs
	for i, n := range needs {
		for range min(n.Approvals, MaxApprovals) {
			slots = append(slots, i)
		}
	}
	in := make([]int, len(slots)) // the person in a slot, from 1
	var place func(person int, seen []bool) bool
	place = func(person int, seen []bool) bool {
		for s, need := range slots {
			if seen[s] || !people[person-1].countsFor(needs[need], requester) {
				continue
			}
			seen[s] = true
			if in[s] == 0 || place(in[s], seen) {
				in[s] = person
				return true
			}
		}
		return false
	}
	for i := range people {
		place(i+1, make([]bool, len(slots)))
	}
	var missing []Need
	for s, need := range slots {
		if in[s] != 0 {
			continue
		}
		if n := len(missing); n > 0 && missing[n-1].Group == needs[need].Group {
			missing[n-1].Approvals++
		} else {
			missing = append(missing, Need{Group: needs[need].Group, Approvals: 1})
		}
	}
	return missing
}
