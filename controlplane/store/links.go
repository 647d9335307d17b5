package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// LinkedHost returns an enrolled host with its event chain; see stream.Store.
func (s *Store) LinkedHost(ctx context.Context, id grant.HostID) (h stream.Host, err error) {
	err = s.View(ctx, func(t *Tx) error {
		e, err := t.enrolledHost(id)
		if errors.Is(err, enrol.ErrNoHost) {
			return fmt.Errorf("host %s: %w", id, stream.ErrNoHost)
		}
		if err != nil {
			return err
		}
		h = stream.Host{ID: id, Name: e.Name, RootKey: e.RootKey, Refused: e.Refused}
		var parting bool
		err = t.row(`SELECT event_count, event_head, restored > 0, restored = 1, parting_ms > 0,
			coalesce((SELECT set_id FROM break_glass_sets WHERE host = hosts.id), x''),
			EXISTS (SELECT 1 FROM break_glass_sets WHERE host = hosts.id AND renew_by <> '')
			FROM hosts WHERE id = ?`, id[:]).
			Scan(&h.Chain.Count, &h.Chain.Head, &h.Restored, &h.Unheard, &parting, &h.CodeSet, &h.RenewCodes)
		if err != nil {
			return fmt.Errorf("reading the event chain of host %s: %w", id, err)
		}
		if e.Removed && !parting {
			return fmt.Errorf("host %s: %w", id, stream.ErrNoHost)
		}
		if len(h.Chain.Head) == 0 {
			h.Chain.Head = nil
		}
		return nil
	})
	return h, err
}

// EventDigest returns a stored event's digest; see stream.Store.
func (s *Store) EventDigest(ctx context.Context, id grant.HostID, number uint64) (d []byte, err error) {
	err = s.View(ctx, func(t *Tx) error {
		err := t.row("SELECT digest FROM host_events WHERE host = ? AND number = ?", id[:], number).
			Scan(&d)
		if noRows(err) {
			return fmt.Errorf("event %d of host %s: %w", number, id, identity.ErrNone)
		}
		return err
	})
	return d, err
}

// RefuseHost marks a host refused; see stream.Store.
func (s *Store) RefuseHost(ctx context.Context, id grant.HostID, why string, r trail.Record) error {
	return s.Update(ctx, func(t *Tx) error {
		changed, err := t.one("UPDATE hosts SET refused = ? WHERE id = ? AND refused = ''", why, id[:])
		if err != nil || !changed {
			return err
		}
		t.touchHost(id)
		return t.Append(r)
	})
}

// PutEvents stores a batch of a host's events; see stream.Store.
func (s *Store) PutEvents(ctx context.Context, id grant.HostID, from, to trail.Chain,
	events []stream.HostEvent,
) error {
	return s.Update(ctx, func(t *Tx) error {
		head := to.Head
		if head == nil {
			head = []byte{}
		}
		fromHead := from.Head
		if fromHead == nil {
			fromHead = []byte{}
		}
		moved, err := t.one(`UPDATE hosts SET event_count = ?, event_head = ?, restored = 0 WHERE id = ?
			AND event_count = ? AND event_head = ?`, to.Count, head, id[:], from.Count, fromHead)
		if err != nil {
			return err
		}
		if !moved {
			return fmt.Errorf("host %s: %w", id, stream.ErrChainMoved)
		}
		for _, e := range events {
			if err := t.putEvent(id, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *Tx) putEvent(id grant.HostID, e stream.HostEvent) error {
	digest, err := trail.EventDigest(e.Event)
	if err != nil {
		return err
	}
	err = t.exec("INSERT INTO host_events (host, number, digest) VALUES (?, ?, ?)",
		id[:], e.Event.GetNumber(), digest[:])
	if err != nil {
		return err
	}
	if err := t.Append(e.Record); err != nil {
		return err
	}
	switch e.Event.GetKind() {
	case trail.KindBreakGlassUsed:
		return errors.Join(t.putLocal(id, e), t.codeUsed(id, e))
	case trail.KindGrantPurged:
		return t.purged(id, e)
	case trail.KindLoginDenied, trail.KindSudoDenied, trail.KindWouldDeny:
		return t.refusal(id, e.Event.GetKind())
	}
	if e.Ended != nil {
		return t.hostEnded(id, *e.Ended)
	}
	return nil
}

// hostEnded notes a host's word that a grant of its own is over. What ended here first keeps its
// cause.
func (t *Tx) hostEnded(host grant.HostID, end stream.GrantEnd) error {
	var requestID string
	err := t.row(`UPDATE grants SET host_ended_ms = ? WHERE id = ? AND host = ? RETURNING request`,
		ms(end.At), end.ID[:], host[:]).Scan(&requestID)
	if noRows(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("noting the end of grant %s: %w", end.ID, err)
	}
	t.touchRequest(requestID)
	now := t.store.now()
	if err := t.EndGrant(end.ID, end.Cause, end.By, now); err != nil {
		return err
	}
	return access.Settle(t, requestID, request.GrantEnd{Cause: end.Cause, By: end.By}, now)
}

// PutAck stores what a host said of its grants; see stream.Store.
func (s *Store) PutAck(ctx context.Context, id grant.HostID, a stream.Ack) error {
	return s.Update(ctx, func(t *Tx) error {
		if a.Accepted {
			err := t.exec(`UPDATE hosts SET acked_epoch = ?, acked_sequence = ?, ack_detail = ''
				WHERE id = ?`, a.Epoch, a.Sequence, id[:])
			if err != nil {
				return err
			}
		} else if err := t.exec("UPDATE hosts SET ack_detail = ? WHERE id = ?", a.Detail, id[:]); err != nil {
			return err
		}
		for _, r := range a.Results {
			if err := t.putResult(id, r, a); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *Tx) putResult(id grant.HostID, r stream.Result, a stream.Ack) error {
	var requestID string
	err := t.row(`UPDATE grants SET status = ?1, detail = ?2, start_ms = ?3, end_ms = ?4,
		confirmed_ms = ?5 WHERE id = ?6 AND host = ?7 AND
		(status <> ?1 OR detail <> ?2 OR start_ms <> ?3 OR end_ms <> ?4) RETURNING request`,
		r.Status, r.Detail, ms(r.Start), ms(r.End), ms(a.At), r.ID[:], id[:]).Scan(&requestID)
	if noRows(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("storing the host's answer for grant %s: %w", r.ID, err)
	}
	t.touchRequest(requestID)
	return nil
}

// PutSeen remembers a host's health; see stream.Store.
func (s *Store) PutSeen(ctx context.Context, id grant.HostID, seen stream.Seen) error {
	return s.Update(ctx, func(t *Tx) error {
		return t.exec(`UPDATE hosts SET last_seen_ms = ?, agent_version = ?,
			mode = CASE WHEN ?3 = '' THEN mode ELSE ?3 END WHERE id = ?4`,
			ms(seen.At), seen.AgentVersion, seen.Mode, id[:])
	})
}

// GrantEnvelopes returns sealed grants of a host by id; see stream.Store.
func (s *Store) GrantEnvelopes(ctx context.Context, host grant.HostID, ids []grant.ID) (
	out []stream.Envelope, err error,
) {
	err = s.View(ctx, func(t *Tx) error {
		for _, id := range ids {
			e := stream.Envelope{ID: id}
			err := t.row("SELECT envelope FROM grants WHERE id = ? AND host = ?", id[:], host[:]).
				Scan(&e.Bytes)
			if noRows(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("reading grant %s: %w", id, err)
			}
			out = append(out, e)
		}
		return nil
	})
	return out, err
}

// trust is the newest trust file.
func (t *Tx) trust() (*grant.Trust, error) {
	row, err := t.NewestTrust()
	if err != nil {
		return nil, err
	}
	trust, err := grant.OpenTrust(row.Envelope, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: trust version %d: %w", ErrDamaged, row.Version, err)
	}
	return trust, nil
}

var _ enrol.Store = (*Store)(nil)
