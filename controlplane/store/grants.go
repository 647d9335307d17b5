package store

import (
	"context"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const grantColumns = `SELECT g.id, g.host, h.name, g.request, g.revision, g.issued_ms, g.hard_end_ms,
	g.live, g.cause, g.ended_by, g.ended_ms, g.status, g.detail, g.confirmed_ms, g.start_ms, g.end_ms,
	g.host_ended_ms FROM grants g JOIN hosts h ON h.id = g.host `

func scanGrant(scan func(...any) error) (g access.Grant, err error) {
	var id, host []byte
	var issued, hard, ended, confirmed, start, end, hostEnded int64
	err = scan(&id, &host, &g.HostName, &g.RequestID, &g.Revision, &issued, &hard, &g.Live, &g.Cause,
		&g.EndedBy, &ended, &g.Status, &g.Detail, &confirmed, &start, &end, &hostEnded)
	if err != nil {
		return g, err
	}
	if g.ID, err = grant.IDFromBytes(id); err != nil {
		return g, err
	}
	g.Host, err = grant.HostIDFromBytes(host)
	g.Issued, g.HardEnd, g.EndedAt = fromMS(issued), fromMS(hard), fromMS(ended)
	g.Confirmed, g.Start, g.End = fromMS(confirmed), fromMS(start), fromMS(end)
	g.HostEnded = fromMS(hostEnded)
	return g, err
}

// Grants lists a request's grants, oldest revision first.
func (t *Tx) Grants(requestID string) ([]access.Grant, error) {
	return list(t, scanGrant, grantColumns+"WHERE g.request = ? ORDER BY g.revision, h.name", requestID)
}

// GrantsDue lists live grants whose end is past. An extension that its host refused, because it came
// when what it extends was over, ends with that: nothing of the request is open there, and the host
// never takes it any more.
func (t *Tx) GrantsDue(before time.Time) ([]access.Grant, error) {
	return list(t, scanGrant, grantColumns+`WHERE g.live = 1 AND
		(g.end_ms > 0 AND g.end_ms <= ?1 OR g.hard_end_ms <= ?1 OR
		g.status = ?2 AND EXISTS (SELECT 1 FROM grants o WHERE o.request = g.request AND
			o.host = g.host AND o.window = g.window AND o.revision < g.revision AND o.cause = ?3 AND
			o.end_ms > 0 AND o.end_ms <= ?1) AND NOT EXISTS (SELECT 1 FROM grants o WHERE
			o.request = g.request AND o.host = g.host AND o.window = g.window AND
			o.revision < g.revision AND o.end_ms > ?1)) LIMIT 100`, ms(before),
		curfewv1.GrantStatus_GRANT_STATUS_REJECTED, curfewv1.EndCause_END_CAUSE_EXTENDED)
}

// LiveGrantsOf lists a host's live grants.
func (t *Tx) LiveGrantsOf(host grant.HostID) ([]access.Grant, error) {
	return list(t, scanGrant, grantColumns+"WHERE g.live = 1 AND g.host = ?", host[:])
}

// EndGrant takes a grant out of the live set.
func (t *Tx) EndGrant(id grant.ID, cause curfewv1.EndCause, by string, at time.Time) error {
	var host []byte
	var requestID string
	err := t.row(`UPDATE grants SET live = 0, cause = ?, ended_by = ?, ended_ms = ?
		WHERE id = ? AND live = 1 RETURNING host, request`, cause, by, ms(at), id[:]).
		Scan(&host, &requestID)
	if noRows(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ending grant %s: %w", id, err)
	}
	hostID, err := grant.HostIDFromBytes(host)
	if err != nil {
		return err
	}
	t.touchHost(hostID)
	t.touchRequest(requestID)
	return nil
}

// ApprovedRequest returns what waits for its grants; see issue.Store.
func (s *Store) ApprovedRequest(ctx context.Context, id string) (a issue.Approved, err error) {
	err = s.View(ctx, func(t *Tx) error {
		r, err := t.Request(id)
		if err != nil {
			return err
		}
		a, err = issue.Of(r)
		return err
	})
	return a, err
}

// PutGrants stores sealed grants and moves the request on; see issue.Store.
func (s *Store) PutGrants(ctx context.Context, id string, revision uint32,
	grants []issue.SealedGrant, record trail.Record,
) error {
	return s.Update(ctx, func(t *Tx) error {
		at := fromMS(record.TimeMS)
		if err := t.granted(id, revision, at); err != nil {
			return err
		}
		put := 0
		for _, g := range grants {
			done, err := t.putGrant(g, at)
			if err != nil {
				return err
			}
			if done {
				put++
			}
		}
		if put == 0 {
			return fmt.Errorf("request %s: no host has a live grant to extend: %w", id,
				issue.ErrNotApproved)
		}
		return t.Append(record)
	})
}

// granted moves a request on whose approved revision gets its grants.
func (t *Tx) granted(id string, revision uint32, at time.Time) error {
	// Nearly always it is the first: then nothing needs reading to do what request.Grant does, since no
	// revision follows one while its request is approved.
	first, err := t.one(`UPDATE requests SET state = ?, in_force = ?, changed_ms = ?, unissued = 0
		WHERE id = ? AND state = ? AND EXISTS (SELECT 1 FROM revisions
			WHERE request = requests.id AND number = ? AND outcome = ?)`,
		request.Granted, revision, ms(at), id, request.Approved, revision, request.OutApproved)
	if err != nil {
		return err
	}
	if first {
		t.touchRequest(id)
		delete(t.stored, id)
		return t.exec("UPDATE revisions SET outcome = ? WHERE request = ? AND number = ?",
			request.OutGranted, id, revision)
	}
	r, err := t.Request(id)
	if err != nil {
		return err
	}
	rev := r.Unissued()
	if rev == nil || rev.Number != revision {
		if r.InForce == revision {
			return issue.ErrIssued
		}
		return fmt.Errorf("request %s is %s: %w", id, r.State, issue.ErrNotApproved)
	}
	if err := r.Grant(at); err != nil {
		return err
	}
	return t.PutRequest(r)
}

// putGrant inserts one grant. An extension is left out on a host whose grant is over, or that has not
// confirmed its start: the host would refuse it, and what it has goes on.
func (t *Tx) putGrant(g issue.SealedGrant, now time.Time) (bool, error) {
	if g.Extends != (grant.ID{}) {
		ended, err := t.one(`UPDATE grants SET live = 0, cause = ?, ended_ms = ?
			WHERE id = ? AND live = 1 AND start_ms > 0`,
			curfewv1.EndCause_END_CAUSE_EXTENDED, ms(now), g.Extends[:])
		if err != nil || !ended {
			return false, err
		}
	}
	var live int
	err := t.row("SELECT count(*) FROM grants WHERE host = ? AND live = 1", g.Host[:]).Scan(&live)
	if err != nil {
		return false, fmt.Errorf("counting the grants of host %s: %w", g.Host, err)
	}
	if live >= grant.MaxLive {
		return false, fmt.Errorf("host %s: %w", g.Host, issue.ErrTooManyLive)
	}
	t.touchHost(g.Host)
	return true, t.exec(`INSERT INTO grants (id, request, revision, host, envelope, issued_ms,
		hard_end_ms, live, window, release_ms, released) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)`,
		g.ID[:], g.RequestID, g.Revision, g.Host[:], g.Envelope, ms(now), ms(g.HardEnd), g.Window,
		ms(g.Release), !now.Before(g.Release))
}

// LiveEnvelopes returns the sealed grants that are live.
func (t *Tx) LiveEnvelopes() (map[grant.ID][]byte, error) {
	type row struct {
		id  grant.ID
		env []byte
	}
	rows, err := list(t, func(scan func(...any) error) (r row, err error) {
		var id []byte
		if err := scan(&id, &r.env); err != nil {
			return r, err
		}
		r.id, err = grant.IDFromBytes(id)
		return r, err
	}, "SELECT id, envelope FROM grants WHERE live = 1")
	out := make(map[grant.ID][]byte, len(rows))
	for _, r := range rows {
		out[r.id] = r.env
	}
	return out, err
}

// PutEnvelope replaces the seal of a grant.
func (t *Tx) PutEnvelope(id grant.ID, env []byte) error {
	return t.exec("UPDATE grants SET envelope = ? WHERE id = ?", env, id[:])
}

// Release lets states list the grants whose time to start has come.
func (t *Tx) Release(now time.Time) error {
	type released struct {
		host    []byte
		request string
	}
	due, err := list(t, func(scan func(...any) error) (r released, err error) {
		err = scan(&r.host, &r.request)
		return r, err
	}, `UPDATE grants SET released = 1 WHERE released = 0 AND live = 1 AND release_ms <= ?
		RETURNING host, request`, ms(now))
	if err != nil {
		return fmt.Errorf("releasing grants: %w", err)
	}
	for _, r := range due {
		host, err := grant.HostIDFromBytes(r.host)
		if err != nil {
			return err
		}
		t.touchHost(host)
		t.touchRequest(r.request)
	}
	return nil
}

// Unreleased tells whether a grant's time to start has come that no state lists yet.
func (t *Tx) Unreleased(now time.Time) (bool, error) {
	var due bool
	err := t.row(`SELECT EXISTS (SELECT 1 FROM grants WHERE released = 0 AND live = 1 AND
		release_ms <= ?)`, ms(now)).Scan(&due)
	if err != nil {
		return false, fmt.Errorf("looking for grants to release: %w", err)
	}
	return due, nil
}

// NextState gives out a host's next sequence with what its state says; see issue.Store.
func (s *Store) NextState(ctx context.Context, host grant.HostID, now time.Time, maxEnded int) (
	facts issue.StateFacts, err error,
) {
	err = s.Update(ctx, func(t *Tx) error {
		facts = issue.StateFacts{}
		err := t.row(`UPDATE hosts SET sequence = sequence + 1 WHERE id = ? AND refused = ''
			AND (removed = 0 OR parting_ms > 0) RETURNING sequence, removed`, host[:]).
			Scan(&facts.Sequence, &facts.Last)
		if noRows(err) {
			return fmt.Errorf("host %s: %w", host, issue.ErrNoHost)
		}
		if err != nil {
			return fmt.Errorf("numbering the state of host %s: %w", host, err)
		}
		trust, err := t.trust()
		if err != nil {
			return err
		}
		facts.Epoch, facts.TrustVersion = trust.Epoch, trust.Version
		facts.Live, err = list(t, scanID, `SELECT id FROM grants WHERE host = ? AND live = 1 AND
			released = 1 AND CASE WHEN end_ms > 0 THEN end_ms ELSE hard_end_ms END > ?`, host[:], ms(now))
		if err != nil {
			return err
		}
		facts.Ended, err = list(t, func(scan func(...any) error) (e issue.Ended, err error) {
			var id []byte
			var hard int64
			if err := scan(&id, &e.Cause, &e.By, &hard); err != nil {
				return e, err
			}
			e.ID, err = grant.IDFromBytes(id)
			e.HardEnd = fromMS(hard)
			return e, err
		}, `SELECT id, cause, ended_by, hard_end_ms FROM grants WHERE host = ? AND live = 0
			ORDER BY ended_ms DESC LIMIT ?`, host[:], maxEnded)
		if err != nil {
			return err
		}
		if facts.Last {
			facts.Live = nil // whatever was sealed since it was removed
			local, err := t.localEnded(host, now)
			if err != nil {
				return err
			}
			facts.Ended = append(local, facts.Ended...)
		}
		if facts.Rollout, err = t.wished(host); err != nil {
			return err
		}
		facts.TrailCount, err = t.trailCount()
		return err
	})
	return facts, err
}

func scanID(scan func(...any) error) (grant.ID, error) {
	var b []byte
	if err := scan(&b); err != nil {
		return grant.ID{}, err
	}
	return grant.IDFromBytes(b)
}
