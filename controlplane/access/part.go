package access

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Parting is how far a removed host has got with its last state.
type Parting struct {
	// Told: the host has accepted that state.
	Told bool
	// Left are the requests that it ended there and of which the host has not said that nothing is left.
	Left []string
}

// Removal is what the removal of a host did here.
type Removal struct {
	Host grant.HostID
	// Ended are the requests that had a grant there; a code's are the host's own.
	Ended []string
	// OpensUntil and RunsUntil bound what a host that cannot be told still does: open something under
	// what it holds, and let it run.
	OpensUntil, RunsUntil time.Time
	// CodesOut of its break-glass codes were fetched by somebody and used by nobody.
	CodesOut int
}

// Reach is what is known of the way to a host.
type Reach struct {
	Connected bool
	// Lease is until when it opens something new at most, if it hears nothing more.
	Lease time.Time
}

// RemoveHost ends a host's grants and gives its name free. Of the host there is one last state left,
// which ends everything there: package stream serves it until then, and refuses it ever after. A host
// that is not connected is removed by force only: it obeys what it has.
func (s *Service) RemoveHost(
	ctx context.Context, p identity.Person, name string, reach func(grant.HostID) Reach, force bool,
) (r Removal, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		r = Removal{}
		h, err := hostNamed(tx, name)
		if err != nil {
			return err
		}
		live, err := tx.LiveGrantsOf(h.ID)
		if err != nil {
			return err
		}
		way := reach(h.ID)
		r.weigh(h, live, way)
		if !way.Connected && !force {
			return reason.Conflict("host %s is not connected, so it cannot be told: %s", name, r.stillHolds(s.now())).
				WithHint("when it is back, run this again; or curfew admin host rm --force %s: it is told "+
					"should it ever connect", name)
		}
		if err := r.codesOf(tx, h.ID); err != nil {
			return err
		}
		return s.removeHost(tx, p.Name, h, live)
	})
	return r, err
}

func (s *Service) removeHost(tx Tx, by string, h Host, live []Grant) error {
	now, end := s.now(), request.GrantEnd{Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: by}
	for _, g := range live {
		if err := tx.EndGrant(g.ID, end.Cause, end.By, now); err != nil {
			return err
		}
		if err := Settle(tx, g.RequestID, end, now); err != nil {
			return err
		}
	}
	return errors.Join(tx.PutRotation(h.ID, by), tx.RemoveHost(h.ID, now), tx.Append(trail.Record{
		TimeMS: now.UnixMilli(), Kind: KindHostGone, Actor: by, Host: h.Name, HostID: h.ID.String(),
		Details: map[string]string{"grants_ended": fmt.Sprint(len(live))},
	}), s.c.Directory.RefreshTrust(tx, by))
}

// weigh notes what the host holds.
func (r *Removal) weigh(h Host, live []Grant, way Reach) {
	r.Host = h.ID
	for _, g := range live {
		if !slices.Contains(r.Ended, g.RequestID) {
			r.Ended = append(r.Ended, g.RequestID)
		}
		end := g.End
		if end.IsZero() {
			end = g.HardEnd
		}
		if end.After(r.RunsUntil) {
			r.RunsUntil = end
		}
	}
	slices.Sort(r.Ended)
	r.OpensUntil = minTime(way.Lease, r.RunsUntil)
}

func (r *Removal) codesOf(tx Tx, host grant.HostID) error {
	set, err := tx.CodeSet(host)
	if errors.Is(err, identity.ErrNone) {
		return nil
	}
	for _, c := range set.Codes {
		if !c.Fetched.IsZero() && c.Used.IsZero() {
			r.CodesOut++
		}
	}
	return err
}

// stillHolds says what an unreachable host does until it hears of its removal.
func (r *Removal) stillHolds(now time.Time) string {
	if len(r.Ended) == 0 {
		return "nothing is granted there; break-glass codes that people hold still count"
	}
	text := fmt.Sprintf("%d of its grants are live there; what runs under them goes on, at most until %s",
		len(r.Ended), at(r.RunsUntil))
	if !r.OpensUntil.After(now) {
		return text + ", and nothing new opens, since its lease is over"
	}
	return text + ", and something new opens at most until " + at(r.OpensUntil) + ", when its lease is over"
}

func at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// Parting is how far a removed host has got.
func (s *Service) Parting(ctx context.Context, id grant.HostID) (p Parting, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		p, err = tx.Parting(id)
		return err
	})
	return p, err
}
