package access

import (
	"github.com/curfew-access/curfew/controlplane/approval"
	"github.com/curfew-access/curfew/controlplane/request"
)

// addresses are those of the people whose word a request waits for, and of an emergency those of the
// people who were not asked. Others hear by webhook, or look.
func (s *Service) addresses(tx Tx, r *request.Request, event string) (out []string, err error) {
	rev := r.Waiting()
	skipped := event == EventEmergency || event == EventReviewDue
	if !skipped && (event != "request.pending" || rev == nil) {
		return nil, nil
	}
	requester, err := tx.User(r.Requester)
	if err != nil {
		return nil, err
	}
	users, err := tx.Users()
	for _, u := range users {
		if u.Email == "" || u.Name == r.Requester {
			continue
		}
		may := !skipped && approval.MayDecide(u, r, rev, requester.Manager) == nil
		if skipped {
			if may, err = s.mayRevoke(tx, u, r); err != nil {
				return nil, err
			}
		}
		if may {
			out = append(out, u.Email)
		}
	}
	return out, err
}
