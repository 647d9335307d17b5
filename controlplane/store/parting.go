package store

import (
	"context"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// outstanding are the requests that a host's removal ended there and of which it has not said that
// nothing is left. ?1 is the host, ?2 the cause, ?3 the status of what it enforced, ?4 now.
const outstanding = `SELECT g.request FROM grants g JOIN hosts h ON h.id = g.host
	WHERE g.host = ?1 AND g.cause = ?2 AND g.status = ?3 AND g.purged_ms = 0
		AND h.parting_ms > 0 AND g.ended_ms >= h.parting_ms
	UNION SELECT request FROM local_grants WHERE host = ?1 AND until_ms > ?4 ORDER BY 1`

func (t *Tx) outstanding(id grant.HostID) ([]string, error) {
	return list(t, func(scan func(...any) error) (request string, err error) {
		return request, scan(&request)
	}, outstanding, id[:], curfewv1.EndCause_END_CAUSE_REVOKED,
		curfewv1.GrantStatus_GRANT_STATUS_APPLIED, ms(t.store.now()))
}

// Parting is how far a removed host has got; see access.Tx.
func (t *Tx) Parting(id grant.HostID) (p access.Parting, err error) {
	var since, told int64
	err = t.row("SELECT parting_ms, told_ms FROM hosts WHERE id = ?", id[:]).Scan(&since, &told)
	if err != nil {
		return p, fmt.Errorf("reading how host %s parts: %w", id, err)
	}
	p.Told = told > 0
	p.Left, err = t.outstanding(id)
	return p, err
}

// Part notes that a removed host has accepted its last state, and, once nothing is left there or after
// longest, that it is gone; see stream.Store.
func (s *Store) Part(
	ctx context.Context, id grant.HostID, longest time.Duration, r trail.Record,
) (gone bool, err error) {
	err = s.Update(ctx, func(t *Tx) error {
		now := s.now()
		var told int64
		err := t.row(`UPDATE hosts SET told_ms = CASE WHEN told_ms = 0 THEN ? ELSE told_ms END
			WHERE id = ? AND parting_ms > 0 RETURNING told_ms`, ms(now), id[:]).Scan(&told)
		if gone = noRows(err); gone {
			return nil
		}
		if err != nil {
			return fmt.Errorf("noting that host %s was told: %w", id, err)
		}
		left, err := t.outstanding(id)
		if err != nil || len(left) > 0 && now.Before(fromMS(told).Add(longest)) {
			return err
		}
		r.Details = stream.PartedDetails(left)
		gone = true
		if err := t.dropCodes(id); err != nil {
			return err
		}
		if err := t.exec("UPDATE hosts SET parting_ms = 0 WHERE id = ?", id[:]); err != nil {
			return err
		}
		return t.Append(r)
	})
	return gone, err
}

// purged notes a host's word that nothing of a grant is left there.
func (t *Tx) purged(host grant.HostID, e stream.HostEvent) error {
	id := e.Event.GetGrantId()
	err := t.exec("UPDATE grants SET purged_ms = ? WHERE id = ? AND host = ? AND purged_ms = 0",
		e.Event.GetTimeMs(), id, host[:])
	if err != nil {
		return err
	}
	return t.exec("DELETE FROM local_grants WHERE id = ? AND host = ?", id, host[:])
}

// putLocal remembers a grant that a code opened, for the day on which its host is removed.
func (t *Tx) putLocal(host grant.HostID, e stream.HostEvent) error {
	id, err := grant.IDFromBytes(e.Event.GetGrantId())
	until, errUntil := time.Parse(time.RFC3339, e.Event.GetDetails()["until"])
	if err != nil || errUntil != nil || e.Record.RequestID == "" {
		return nil // what its host does not say, nobody can end by name
	}
	return t.exec(`INSERT INTO local_grants (id, host, request, until_ms) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`, id[:], host[:], e.Record.RequestID, ms(until.Add(time.Second)))
}

// localEnded names the grants that codes opened on a host and that are not over, as ended.
func (t *Tx) localEnded(host grant.HostID, now time.Time) ([]issue.Ended, error) {
	return list(t, func(scan func(...any) error) (issue.Ended, error) {
		e := issue.Ended{Cause: curfewv1.EndCause_END_CAUSE_REVOKED}
		var id []byte
		var until int64
		if err := scan(&id, &until); err != nil {
			return e, err
		}
		e.HardEnd = fromMS(until)
		var err error
		e.ID, err = grant.IDFromBytes(id)
		return e, err
	}, "SELECT id, until_ms FROM local_grants WHERE host = ? AND until_ms > ?", host[:], ms(now))
}
