package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/rollout"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Rollouts is the store as package rollout sees it.
type Rollouts struct{ *Store }

// Update runs f in one writing transaction.
func (s Rollouts) Update(ctx context.Context, f func(rollout.Tx) error) error {
	return s.Store.Update(ctx, func(t *Tx) error { return f(t) })
}

// View runs f over one snapshot.
func (s Rollouts) View(ctx context.Context, f func(rollout.Tx) error) error {
	return s.Store.View(ctx, func(t *Tx) error { return f(t) })
}

const rolloutColumns = "SELECT plan, state, stage, stage_ms, refusals, reason FROM rollouts "

func scanRollout(scan func(...any) error) (r rollout.Rollout, err error) {
	var plan []byte
	var since int64
	if err := scan(&plan, &r.State, &r.Stage, &since, &r.Refusals, &r.Reason); err != nil {
		return r, err
	}
	r.StageSince = fromMS(since)
	return r, json.Unmarshal(plan, &r.Plan)
}

// Rollouts lists all, newest first; see rollout.Tx.
func (t *Tx) Rollouts() ([]rollout.Rollout, error) {
	return list(t, scanRollout, rolloutColumns+"ORDER BY started_ms DESC, id")
}

// RolloutNamed finds one; see rollout.Tx.
func (t *Tx) RolloutNamed(name string) (rollout.Rollout, error) {
	r, err := scanRollout(t.row(rolloutColumns+"WHERE name = ?", name).Scan)
	if noRows(err) {
		return r, fmt.Errorf("rollout %s: %w", grant.VisibleText(name), identity.ErrNone)
	}
	return r, err
}

// RolloutsDue lists those of which something is to be done; see rollout.Tx.
func (t *Tx) RolloutsDue() ([]rollout.Rollout, error) {
	return list(t, scanRollout, rolloutColumns+`WHERE state IN (?, ?) OR
		EXISTS (SELECT 1 FROM rollout_hosts WHERE rollout = rollouts.id AND wish <> 0)
		ORDER BY started_ms`, rollout.Running, rollout.Paused)
}

// AddRollout stores a new one; see rollout.Tx.
func (t *Tx) AddRollout(r rollout.Rollout) error {
	plan, err := jsonText(r.Plan)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO rollouts (id, name, plan, state, stage, stage_ms, refusals, reason, started_ms)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, r.ID, r.Name, plan, r.State, r.Stage, ms(r.StageSince),
		r.Refusals, r.Reason, ms(r.Started))
}

// PutProgress stores how far one has got; see rollout.Tx.
func (t *Tx) PutProgress(id string, p rollout.Progress) error {
	return t.exec(`UPDATE rollouts SET state = ?, stage = ?, stage_ms = ?, refusals = ?, reason = ?
		WHERE id = ?`, p.State, p.Stage, ms(p.StageSince), p.Refusals, p.Reason, id)
}

// RolloutHosts are the hosts of one; see rollout.Tx.
func (t *Tx) RolloutHosts(id string) ([]rollout.Host, error) {
	return list(t, func(scan func(...any) error) (h rollout.Host, err error) {
		var host []byte
		var since int64
		err = scan(&host, &h.Stage, &h.State, &since, &h.Attempt, &h.Wish, &h.Refused, &h.WouldRefuse, &h.Detail)
		if err != nil {
			return h, err
		}
		h.Since = fromMS(since)
		h.ID, err = grant.HostIDFromBytes(host)
		return h, err
	}, `SELECT host, stage, state, since_ms, attempt, wish, refused, would_refuse, detail
		FROM rollout_hosts WHERE rollout = ?`, id)
}

// PutRolloutHost stores how far one has got with a host; see rollout.Tx.
func (t *Tx) PutRolloutHost(id string, h rollout.Host) error {
	var was curfewv1.RolloutWish
	err := t.row("SELECT wish FROM rollout_hosts WHERE rollout = ? AND host = ?", id, h.ID[:]).Scan(&was)
	if err != nil && !noRows(err) {
		return fmt.Errorf("reading what is wanted of host %s: %w", h.ID, err)
	}
	if was != h.Wish {
		t.touchHost(h.ID)
	}
	return t.exec(`INSERT INTO rollout_hosts (rollout, host, stage, state, since_ms, attempt, wish, refused,
		would_refuse, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (host, rollout) DO UPDATE SET
		stage = excluded.stage, state = excluded.state, since_ms = excluded.since_ms,
		attempt = excluded.attempt, wish = excluded.wish, refused = excluded.refused,
		would_refuse = excluded.would_refuse, detail = excluded.detail`,
		id, h.ID[:], h.Stage, h.State, ms(h.Since), h.Attempt, h.Wish, h.Refused, h.WouldRefuse, h.Detail)
}

// DropRolloutHost forgets a host; see rollout.Tx.
func (t *Tx) DropRolloutHost(id string, host grant.HostID) error {
	return t.exec("DELETE FROM rollout_hosts WHERE rollout = ? AND host = ?", id, host[:])
}

// wished is what a host's state says of rollouts: what is to be taken back comes first.
func (t *Tx) wished(host grant.HostID) (*curfewv1.Rollout, error) {
	r := new(curfewv1.Rollout)
	err := t.row(`SELECT h.rollout, h.attempt, h.wish FROM rollout_hosts h JOIN rollouts r ON r.id = h.rollout
		WHERE h.host = ? AND h.wish <> 0 ORDER BY h.wish = ? DESC, r.started_ms DESC LIMIT 1`, host[:],
		curfewv1.RolloutWish_ROLLOUT_WISH_RETURN).Scan(&r.Id, &r.Attempt, &r.Wish)
	if noRows(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what is wanted of host %s: %w", host, err)
	}
	return r, nil
}

// refusal counts what a host refused, or would have, for the rollout that is open. What it refuses before
// it is told to enforce is another word's doing.
func (t *Tx) refusal(host grant.HostID, kind string) error {
	if kind == trail.KindWouldDeny {
		return t.exec(`UPDATE rollout_hosts SET would_refuse = would_refuse + 1 WHERE host = ?1 AND attempt = 0
			AND rollout IN (SELECT id FROM rollouts WHERE state IN (?2, ?3))`, host[:], rollout.Running,
			rollout.Paused)
	}
	var id string
	err := t.row(`UPDATE rollout_hosts SET refused = refused + 1 WHERE host = ?1 AND attempt > 0
		AND state NOT IN (?2, ?3) AND rollout IN (SELECT id FROM rollouts WHERE state IN (?4, ?5))
		RETURNING rollout`, host[:], rollout.Own, rollout.Overruled, rollout.Running, rollout.Paused).Scan(&id)
	if noRows(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("counting a refusal of host %s: %w", host, err)
	}
	return t.exec("UPDATE rollouts SET refusals = refusals + 1 WHERE id = ?", id)
}

// pauseRollouts has a restored store switch nobody until an admin has looked.
func (t *Tx) pauseRollouts() error {
	return t.exec("UPDATE rollouts SET state = ?, reason = ? WHERE state = ?", rollout.Paused,
		"the control plane was restored from a backup", rollout.Running)
}

var _ rollout.Tx = (*Tx)(nil)
