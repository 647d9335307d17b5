package identity

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// A use of a session is written down when the last one is this long ago: a busy session costs one
// write a minute.
const (
	touchEvery      = time.Minute
	touchEveryMoved = 5 * time.Second // when it is used from another address
)

// ID names a session for people; it opens nothing.
func (s *Session) ID() string { return hex.EncodeToString(s.Key[:8]) }

// Touch notes that a person's session was used now.
func (s *Service) Touch(ctx context.Context, p Person, from string) {
	since := s.c.Now().Sub(p.Session.Used)
	if since < touchEveryMoved || since < touchEvery && from == p.Session.UsedFrom {
		return
	}
	err := s.c.Store.Update(ctx, func(tx Tx) error {
		return tx.TouchSession(p.Session.Key, s.c.Now(), from)
	})
	if err != nil && ctx.Err() == nil {
		s.c.Log.Error("a session's use cannot be noted", "user", p.Name, "error", err)
	}
}

// Sessions lists what speaks for a user now, or for everybody when the name is empty.
func (s *Service) Sessions(ctx context.Context, user string) (out []Session, err error) {
	now := s.c.Now()
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		if user == "" {
			out, err = tx.Sessions()
		} else {
			out, err = tx.SessionsOf(user)
		}
		return err
	})
	return slices.DeleteFunc(out, func(x Session) bool { return !now.Before(x.Expires) }), err
}

// Logout ends the session that calls.
func (s *Service) Logout(ctx context.Context, p Person) error {
	_, err := s.EndSessions(ctx, p.Name, p.Name, p.Session.ID())
	return err
}

// EndSessions ends one session of a user, or all when the id is empty, at once: the next call under
// it is refused, and calls that run end.
func (s *Service) EndSessions(ctx context.Context, by, user, id string) (ended []Session, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		ended = nil
		if _, err := tx.User(user); errors.Is(err, ErrNone) {
			return reason.NotFound("there is no user %s", grant.VisibleText(user))
		} else if err != nil {
			return err
		}
		all, err := tx.SessionsOf(user)
		if err != nil {
			return err
		}
		for _, session := range all {
			if id != "" && session.ID() != id {
				continue
			}
			details := map[string]string{"session": session.ID()}
			if by != user {
				details["user"] = user
			}
			if err := errors.Join(tx.DeleteSession(session.Key), tx.Append(trail.Record{
				TimeMS: s.c.Now().UnixMilli(), Kind: KindSignedOut, Actor: by, Details: details,
			})); err != nil {
				return err
			}
			ended = append(ended, session)
		}
		if id != "" && len(ended) == 0 {
			return reason.NotFound("user %s has no session %s", user, grant.VisibleText(id)).
				WithHint("curfew sessions lists yours")
		}
		return nil
	})
	return ended, err
}
