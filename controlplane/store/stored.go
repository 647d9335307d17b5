package store

import "github.com/curfew-access/curfew/controlplane/request"

// stored is what a transaction knows of a request in the store, since it read or wrote it: what does
// not change once written (hosts, terms, decisions) need not be written again.
type stored struct {
	hosts     bool
	revisions []storedRevision
}

type storedRevision struct {
	number    uint32
	outcome   request.Outcome
	decisions map[string]bool // by approver, whether it is void
}

func storedOf(r *request.Request) *stored {
	out := &stored{hosts: true, revisions: make([]storedRevision, 0, len(r.Revisions))}
	for i := range r.Revisions {
		v := &r.Revisions[i]
		rev := storedRevision{number: v.Number, outcome: v.Outcome}
		for _, d := range v.Decisions {
			if rev.decisions == nil {
				rev.decisions = make(map[string]bool)
			}
			rev.decisions[d.Approver] = d.Void
		}
		out.revisions = append(out.revisions, rev)
	}
	return out
}

// revision finds one, or the zero value, which no revision of a request equals.
func (s *stored) revision(number uint32) storedRevision {
	if s != nil {
		for _, v := range s.revisions {
			if v.number == number {
				return v
			}
		}
	}
	return storedRevision{}
}
