package request

import "github.com/curfew-access/curfew/internal/grant"

// Left says what of its needs a revision still lacks, each approver counted for one need only.
func (v *Revision) Left(requester string) []grant.Need {
	var people []*grant.Approver
	for _, d := range v.Decisions {
		if d.Approved && !d.Void {
			people = append(people,
				&grant.Approver{Name: d.Approver, Groups: d.Counts, Manages: managed(d, requester)})
		}
	}
	return grant.Missing(v.Needs, requester, people)
}

func managed(d Decision, requester string) []string {
	for _, g := range d.Counts {
		if g == grant.GroupManager {
			return []string{requester}
		}
	}
	return nil
}
