package access

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/approval"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// Approve takes one approver's signature over the exact terms of a revision. The last one needed
// grants: the request is durably approved before its grants are sealed, and what a crash leaves
// approved without grants is sealed by the next sweep.
func (s *Service) Approve(
	ctx context.Context, p identity.Person, id string, revision uint32, sig []byte,
) (*request.Request, error) {
	approved := false
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		approved = false
		r, facts, err := s.decidable(tx, p, id, revision)
		if err != nil {
			return err
		}
		rev := r.Waiting()
		if err := stillTrue(r, rev, facts); err != nil {
			return err
		}
		if err := approval.Verify(facts.Trust, rev, p.Name, sig); err != nil {
			return err
		}
		now := s.now()
		err = r.Vote(request.Decision{
			Approver: p.Name, Approved: true, At: now, Revision: revision, SSHSig: sig,
			Counts: approval.Counts(p.User, rev, facts.Requester.Manager),
		})
		if err != nil {
			return moved(err)
		}
		_, enough, err := approval.Count(facts.Trust, rev)
		if err != nil {
			return err
		}
		digest := grant.TermsDigest(rev.Terms)
		err = tx.Append(noteOn(r, KindApproval, p.Name, now, map[string]string{
			"revision": fmt.Sprint(revision), "terms_digest": hex.EncodeToString(digest[:]),
			"left": grant.NeedsText(rev.Left(r.Requester)), "sshsig": hex.EncodeToString(sig),
		}))
		if err != nil || !enough {
			return errors.Join(err, tx.PutRequest(r))
		}
		if err := r.Approve(now); err != nil {
			return moved(err)
		}
		approved = true
		return s.put(tx, r, noteOn(r, KindApproved, Actor, now, map[string]string{
			"revision": fmt.Sprint(revision),
		}), Notice(r, s.c.Directory.Organisation(), "request.approved", p.Name))
	})
	if err != nil {
		return nil, err
	}
	s.issue(ctx, id, approved)
	return s.Get(ctx, p, id)
}

// decidable reads a request whose waiting revision the person may decide on now.
func (s *Service) decidable(tx Tx, p identity.Person, id string, revision uint32) (
	*request.Request, policy.Facts, error,
) {
	r, err := find(tx, p, id)
	if err != nil {
		return nil, policy.Facts{}, err
	}
	// As the directory stands now, not as it stood when the call came in.
	user, err := tx.User(p.Name)
	if err != nil {
		return nil, policy.Facts{}, err
	}
	requester, err := tx.User(r.Requester)
	if err != nil {
		return nil, policy.Facts{}, err
	}
	if err := approval.MayDecide(user, r, r.Newest(), requester.Manager); err != nil {
		return nil, policy.Facts{}, err
	}
	if err := r.CheckDecision(revision, p.Name); err != nil {
		return nil, policy.Facts{}, moved(err)
	}
	if rev := r.Waiting(); !s.c.Now().Before(rev.Lapses) {
		return nil, policy.Facts{}, reason.Conflict("request %s has lapsed", id).
			WithHint("%s asks again", r.Requester)
	}
	facts, err := s.factsOf(tx, r, r.Newest())
	return r, facts, err
}

// stillTrue refuses to approve what the directory and the policy would no longer give. A policy that
// changed in other words, or that needs less, voids nothing.
func stillTrue(
	r *request.Request, rev *request.Revision, facts policy.Facts,
) error {
	ask := askOf(r, rev)
	verdict := policy.Decide(ask, facts)
	if !verdict.Accepted() {
		return refusal(verdict)
	}
	for _, h := range r.Hosts {
		if facts.Hosts[h.Name].ID != h.ID {
			return reason.Conflict("host %s is another machine than the one that was asked for", h.Name).
				WithHint("%s asks again", r.Requester)
		}
	}
	if err := policy.Unchanged(rev.Terms, ask, facts, verdict); errors.Is(err, policy.ErrChanged) {
		return reason.Conflict("%v", err).WithHint("%s asks again", r.Requester)
	} else if err != nil {
		return err
	}
	return nil
}

// Deny ends a revision; the reason is the requester's to read.
func (s *Service) Deny(
	ctx context.Context, p identity.Person, id string, revision uint32, why string,
) (*request.Request, error) {
	if err := grant.CheckReason(why); err != nil {
		return nil, reason.Invalid("%v", err)
	}
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		r, _, err := s.decidable(tx, p, id, revision)
		if err != nil {
			return err
		}
		now := s.now()
		err = r.Deny(request.Decision{Approver: p.Name, Reason: why, At: now, Revision: revision})
		if err != nil {
			return moved(err)
		}
		return s.put(tx, r, noteOn(r, KindDenied, p.Name, now, map[string]string{
			"revision": fmt.Sprint(revision), "reason": grant.VisibleText(why),
		}), Notice(r, s.c.Directory.Organisation(), "request.denied", p.Name))
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, p, id)
}

// Withdraw is the requester's change of mind while nothing is decided; of an extension, only it goes.
func (s *Service) Withdraw(
	ctx context.Context, p identity.Person, id string,
) (*request.Request, error) {
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		r, err := own(tx, p, id)
		if err != nil {
			return err
		}
		now := s.now()
		if err := r.Withdraw(now); err != nil {
			return moved(err)
		}
		return s.put(tx, r, noteOn(r, KindWithdrawn, p.Name, now, map[string]string{
			"revision": fmt.Sprint(r.Newest().Number),
		}), Notice(r, s.c.Directory.Organisation(), "request.withdrawn", p.Name))
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, p, id)
}

// own reads a request of the person's own.
func own(tx Tx, p identity.Person, id string) (*request.Request, error) {
	r, err := find(tx, p, id)
	if err == nil && r.Requester != p.Name {
		return nil, reason.Denied("request %s is %s's, not yours", id, r.Requester)
	}
	return r, err
}
