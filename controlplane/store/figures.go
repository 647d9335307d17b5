package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite" // the driver registers itself
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/rollout"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Figures are what stands in the store now, counted.
type Figures struct {
	// Waiting are requests that wait for decisions, Unissued those that are approved and have no grants.
	Waiting, Unissued int
	// Grants are the live ones, by what their host said of them last.
	Grants map[curfewv1.GrantStatus]int
	// Mails and Webhooks are messages in the outbox; the oldest was written at Oldest, zero for none.
	Mails, Webhooks int
	Oldest          time.Time
	TrustVersion    uint64
	// TrustWaiting is whether a trust file waits for signatures.
	TrustWaiting bool
	Records      uint64
	Hosts        []HostFigures
	// Running and Paused are rollouts that are open.
	Running, Paused int
}

// HostFigures are of one host that is not removed.
type HostFigures struct {
	ID                       grant.HostID
	Mode                     string
	Refused                  bool
	LastSeen, CertificateEnd time.Time
}

// Figures counts, over one snapshot.
func (s *Store) Figures(ctx context.Context) (f Figures, err error) {
	err = s.View(ctx, func(t *Tx) error {
		var oldest int64
		err := t.row(`SELECT (SELECT count(*) FROM requests WHERE waits = 1),
			(SELECT count(*) FROM requests WHERE unissued = 1),
			(SELECT count(*) FROM outbox WHERE lane = ?1), (SELECT count(*) FROM outbox WHERE lane <> ?1),
			(SELECT coalesce(min(created_ms), 0) FROM outbox), (SELECT max(version) FROM trust),
			(SELECT count(*) FROM trust_unsigned), (SELECT coalesce(max(number) + 1, 0) FROM trail),
			(SELECT count(*) FROM rollouts WHERE state = ?2), (SELECT count(*) FROM rollouts WHERE state = ?3)`,
			notify.MailLane, rollout.Running, rollout.Paused).Scan(&f.Waiting, &f.Unissued, &f.Mails, &f.Webhooks, &oldest, &f.TrustVersion,
			&f.TrustWaiting, &f.Records, &f.Running, &f.Paused)
		if err != nil {
			return fmt.Errorf("counting: %w", err)
		}
		f.Oldest = fromMS(oldest)
		if f.Grants, err = t.liveByStatus(); err != nil {
			return err
		}
		f.Hosts, err = list(t, scanHostFigures,
			"SELECT id, mode, refused <> '', last_seen_ms, certificate_ms FROM hosts WHERE removed = 0")
		return err
	})
	return f, err
}

func (t *Tx) liveByStatus() (map[curfewv1.GrantStatus]int, error) {
	type row struct {
		status curfewv1.GrantStatus
		n      int
	}
	rows, err := list(t, func(scan func(...any) error) (r row, err error) {
		err = scan(&r.status, &r.n)
		return r, err
	}, "SELECT status, count(*) FROM grants WHERE live = 1 GROUP BY status")
	out := make(map[curfewv1.GrantStatus]int)
	for _, r := range rows {
		out[r.status] = r.n
	}
	return out, err
}

func scanHostFigures(scan func(...any) error) (h HostFigures, err error) {
	var id []byte
	var seen, cert int64
	if err := scan(&id, &h.Mode, &h.Refused, &seen, &cert); err != nil {
		return h, err
	}
	h.LastSeen, h.CertificateEnd = fromMS(seen), fromMS(cert)
	h.ID, err = grant.HostIDFromBytes(id)
	return h, err
}

// failed tells a failure of the store itself, a full disk perhaps, from what a change may run into.
func failed(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff { // the rest says which kind of it
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_INTERRUPT:
		return false
	}
	return true
}
