package identity

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Rechecking is whether and how often linked users are asked about: every half of deprovision_after,
// so that an answer has the other half to arrive and to be carried out.
func (s *Service) Rechecking() (every time.Duration, on bool) {
	return s.c.Federation.DeprovisionAfter / 2, s.rechecks()
}

// DueLinks lists those who have a session or an open request and for whom the provider has not
// vouched since the moment, longest ago first.
func (s *Service) DueLinks(ctx context.Context, since time.Time, limit int) (links []Link, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		links, err = tx.DueLinks(s.c.Federation.Provider.Issuer(), since, s.c.Now(), limit)
		return err
	})
	return links, err
}

// Recheck asks the provider about one person and stores what it says. ErrGone means that it vouches
// for them no longer; package access ends what they have. Any other error is an outage.
func (s *Service) Recheck(ctx context.Context, l Link) error {
	token, err := s.c.Federation.Sealer.Open(l.Refresh, l.about())
	if err != nil {
		// The key was lost: nobody can be asked, so they must come by the provider again.
		s.c.Log.Error("a refresh token cannot be opened; its user must sign in again", "user", l.User,
			"error", err)
		return s.forgetLink(ctx, l)
	}
	p, err := s.c.Federation.Provider.Refresh(ctx, string(token))
	if err != nil {
		return err
	}
	if p.Subject != "" && (p.Subject != l.Subject || p.Issuer != l.Issuer) {
		return fmt.Errorf("asked about subject %q, the provider answered about %q", l.Subject, p.Subject)
	}
	return s.c.Store.Update(ctx, func(tx Tx) error {
		now, err := tx.Link(l.Issuer, l.Subject)
		if errors.Is(err, ErrNone) {
			return nil // unlinked meanwhile
		}
		if err != nil {
			return err
		}
		user, err := tx.User(now.User)
		if err != nil {
			return err
		}
		if !user.Disabled {
			if err := s.take(tx, user, p); err != nil {
				return err
			}
		}
		if p.Refresh == "" {
			p.Refresh = string(token) // not rotated
		}
		now.Checked = s.c.Now()
		return s.keepLink(tx, now, p)
	})
}

// forgetLink drops a refresh token and the sessions that nobody could ask about any more.
func (s *Service) forgetLink(ctx context.Context, l Link) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		sessions, err := tx.SessionsOf(l.User)
		if err != nil {
			return err
		}
		for _, session := range sessions {
			if err := tx.DeleteSession(session.Key); err != nil {
				return err
			}
		}
		l.Refresh = []byte{}
		return errors.Join(tx.PutLink(l), s.note(tx, Actor, KindSignedOut, map[string]string{
			"user": l.User, "why": "the provider cannot be asked about them any more",
		}))
	})
}

// DropRefresh forgets the refresh token of somebody who is gone, in the caller's transaction.
func (s *Service) DropRefresh(tx Tx, l Link) error {
	l.Refresh = []byte{}
	return tx.PutLink(l)
}

// askFirst refuses an SSH key of somebody about whom the provider could not be asked: they sign in
// there first.
func (s *Service) askFirst(tx Tx, user string) (bool, error) {
	if !s.rechecks() {
		return false, nil
	}
	l, err := tx.LinkOf(user, s.c.Federation.Provider.Issuer())
	if errors.Is(err, ErrNone) {
		return false, nil
	}
	return err == nil && len(l.Refresh) == 0, err
}
