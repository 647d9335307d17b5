package identity

import (
	"context"
	"errors"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
)

// LinkUser hands a user over to the provider: its subject signs in as them from now on.
func (s *Service) LinkUser(ctx context.Context, by, name, subject string) error {
	if s.c.Federation.Provider == nil {
		return s.noProvider()
	}
	if subject == "" || len(subject) > 255 || grant.VisibleText(subject) != subject {
		return reason.Invalid("%q is not a subject", grant.VisibleText(subject))
	}
	issuer := s.c.Federation.Provider.Issuer()
	return s.c.Store.Update(ctx, func(tx Tx) error {
		user, err := tx.User(name)
		if errors.Is(err, ErrNone) {
			return reason.NotFound("there is no user %s", grant.VisibleText(name))
		}
		if err != nil {
			return err
		}
		if user.Kind == KindWorkload {
			return reason.Invalid("%s is a workload; it signs in by its pipeline's tokens", name)
		}
		if l, err := tx.Link(issuer, subject); err == nil {
			return reason.Conflict("subject %s is user %s already", subject, l.User)
		} else if !errors.Is(err, ErrNone) {
			return err
		}
		if l, err := tx.LinkOf(name, issuer); err == nil {
			return reason.Conflict("user %s is subject %s already", name, l.Subject).
				WithHint("curfew admin user unlink %s", name)
		} else if !errors.Is(err, ErrNone) {
			return err
		}
		if user.Source == SourceLocal {
			user.Source = SourceOIDC
			if _, err := s.putUser(tx, by, user, user); err != nil {
				return err
			}
		}
		return errors.Join(tx.PutLink(Link{Issuer: issuer, Subject: subject, User: name}),
			s.note(tx, by, KindLinked, map[string]string{
				"user": name, "issuer": issuer, "subject": subject,
			}))
	})
}

// UnlinkUser takes a user back from every provider. Whom a provider disabled stays disabled, on the
// admin's word now; membership of provider's groups ends.
func (s *Service) UnlinkUser(ctx context.Context, by, name string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		user, err := tx.User(name)
		if errors.Is(err, ErrNone) {
			return reason.NotFound("there is no user %s", grant.VisibleText(name))
		}
		if err != nil {
			return err
		}
		is := user
		is.Source = SourceLocal
		if is.Disabled {
			is.DisabledBy = SourceAdmin
		}
		if is, err = s.putUser(tx, by, user, is); err != nil {
			return err
		}
		for _, source := range []Source{SourceOIDC, SourceSCIM} {
			if _, err := s.regroup(tx, is, source, nil); err != nil {
				return err
			}
		}
		sessions, err := tx.SessionsOf(name)
		if err != nil {
			return err
		}
		for _, session := range sessions {
			if session.Method != MethodOIDC && session.Method != MethodDevice {
				continue
			}
			if err := tx.DeleteSession(session.Key); err != nil {
				return err
			}
		}
		return errors.Join(tx.DeleteLinks(name), tx.DeleteSCIMUserOf(name),
			s.note(tx, by, KindUnlinked, map[string]string{"user": name}), s.refreshTrust(tx, by))
	})
}
