package access

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// How the provider is asked about people who have something here.
const (
	recheckBatch   = 500
	recheckWorkers = 8
	recheckTick    = time.Second
	longestOutage  = 15 * time.Second // between two tries while the provider does not answer
)

// gone ends everything of somebody on a provider's word.
func (s *Service) gone(tx Tx, name string, word identity.Source) error {
	if _, err := s.c.Directory.DisableUser(tx, string(word), name, word); err != nil {
		return err
	}
	return s.endOf(tx, name, string(word), "the identity provider disabled the user",
		func(*request.Request) bool { return true })
}

// RunRecheck asks the provider about linked people until ctx ends. Only its clear no takes anything
// away; an outage changes nothing.
func (s *Service) RunRecheck(ctx context.Context) error {
	every, on := s.c.Directory.Rechecking()
	if !on {
		return nil
	}
	tick, outages := min(recheckTick, every/4), 0
	for {
		wait := tick
		if err := s.recheck(ctx, every); err != nil && ctx.Err() == nil {
			outages++
			wait = min(tick<<min(outages, 10), longestOutage, every)
			s.c.Log.Warn("the identity provider cannot be asked; nobody's access changes", "error", err,
				"again_in", wait)
		} else {
			outages = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// recheck asks about everybody who is due. The first outage ends the round, so that a provider that
// is down is not asked thousands of times.
func (s *Service) recheck(ctx context.Context, every time.Duration) error {
	due, err := s.c.Directory.DueLinks(ctx, s.c.Now().Add(-every), recheckBatch)
	if err != nil || len(due) == 0 {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	work := make(chan identity.Link)
	var wg sync.WaitGroup
	for range min(recheckWorkers, len(due)) {
		wg.Go(func() {
			for l := range work {
				if err := s.recheckOne(ctx, l); err != nil {
					stop(err)
				}
			}
		})
	}
	for _, l := range due {
		select {
		case work <- l:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

func (s *Service) recheckOne(ctx context.Context, l identity.Link) error {
	if ctx.Err() != nil {
		return nil
	}
	err := s.c.Directory.Recheck(ctx, l)
	if !errors.Is(err, identity.ErrGone) {
		return err
	}
	s.c.Log.Info("the identity provider no longer vouches for somebody", "user", l.User)
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		if now, err := tx.Link(l.Issuer, l.Subject); err != nil || !slices.Equal(now.Refresh, l.Refresh) {
			return err // they signed in again meanwhile
		}
		return errors.Join(s.gone(tx, l.User, identity.SourceOIDC), s.c.Directory.DropRefresh(tx, l))
	})
	if errors.Is(err, identity.ErrNone) {
		return nil // unlinked meanwhile
	}
	if reason.Is(err, codeConflict) {
		// The last admin who can sign in is not disabled by a provider.
		s.c.Log.Error("not disabled", "user", l.User, "error", err)
		return s.c.Store.Update(ctx, func(tx Tx) error { return s.c.Directory.DropRefresh(tx, l) })
	}
	return err
}

// AddKey gives the person one more SSH key.
func (s *Service) AddKey(
	ctx context.Context, p identity.Person, session, challenge, sig []byte,
) (key string, err error) {
	if key, err = s.c.Directory.CheckNewKey(ctx, p, session, challenge, sig); err != nil {
		return "", err
	}
	return key, s.c.Store.Update(ctx, func(tx Tx) error {
		_, _, err := s.c.Directory.SetKeys(tx, p.Name, p.Name, func(keys []string) ([]string, error) {
			if slices.Contains(keys, key) {
				return nil, reason.Conflict("this SSH key is yours already")
			}
			return append(keys, key), nil
		})
		return err
	})
}

// RemoveKey takes one of the person's SSH keys, and ends what carries it.
func (s *Service) RemoveKey(ctx context.Context, p identity.Person, fingerprint string) (
	gone string, err error,
) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		gone = ""
		_, _, err := s.c.Directory.SetKeys(tx, p.Name, p.Name, func(keys []string) ([]string, error) {
			for i, k := range keys {
				if identity.Fingerprint(k) == fingerprint {
					gone = k
					return slices.Delete(keys, i, i+1), nil
				}
			}
			return nil, reason.NotFound("you have no SSH key %s", grant.VisibleText(fingerprint)).
				WithHint("curfew keys ls lists them")
		})
		if err != nil {
			return err
		}
		return s.endOf(tx, p.Name, p.Name, "an SSH key of this grant was removed",
			func(r *request.Request) bool { return carries(r, []string{gone}) })
	})
	return gone, err
}

// DeleteWorkload ends a workload's sign-in and everything it has.
func (s *Service) DeleteWorkload(ctx context.Context, p identity.Person, name string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		if err := s.c.Directory.DeleteWorkload(tx, p.Name, name); err != nil {
			return err
		}
		if _, err := s.c.Directory.DisableUser(tx, p.Name, name, identity.SourceAdmin); err != nil {
			return err
		}
		return s.endOf(tx, name, p.Name, "the workload was deleted",
			func(*request.Request) bool { return true })
	})
}
