package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/notify"
)

// Notify puts a message into the outbox, once per webhook; see access.Tx.
func (t *Tx) Notify(m access.Message) error {
	if len(t.store.webhooks) == 0 {
		return nil
	}
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	t.change.Messages = true
	for _, url := range t.store.webhooks {
		err := t.exec(`INSERT INTO outbox (id, url, body, created_ms, next_ms) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT DO NOTHING`, m.ID, url, body, m.AtMS, m.AtMS)
		if err != nil {
			return err
		}
	}
	return nil
}

// DueDeliveries lists what is to be tried now, oldest first; see notify.Store.
func (s *Store) DueDeliveries(ctx context.Context, url string, now time.Time, limit int) (
	out []notify.Delivery, err error,
) {
	err = s.View(ctx, func(t *Tx) error {
		out, err = list(t, func(scan func(...any) error) (d notify.Delivery, err error) {
			var created int64
			err = scan(&d.ID, &d.URL, &d.Body, &created, &d.Attempts)
			d.Created = fromMS(created)
			return d, err
		}, `SELECT id, url, body, created_ms, attempts FROM outbox WHERE url = ? AND next_ms <= ?
			ORDER BY next_ms LIMIT ?`, url, ms(now), limit)
		return err
	})
	return out, err
}

// NextDelivery is when the next one for a URL is due; zero for none. See notify.Store.
func (s *Store) NextDelivery(ctx context.Context, url string) (next time.Time, err error) {
	err = s.View(ctx, func(t *Tx) error {
		var v int64
		err := t.row("SELECT coalesce(min(next_ms), 0) FROM outbox WHERE url = ?", url).Scan(&v)
		next = fromMS(v)
		return err
	})
	return next, err
}

// PutAttempt notes a failed attempt and when to try again; see notify.Store.
func (s *Store) PutAttempt(ctx context.Context, d notify.Delivery, next time.Time, why string) error {
	return s.Update(ctx, func(t *Tx) error {
		return t.exec(`UPDATE outbox SET attempts = ?, next_ms = ?, last_error = ?
			WHERE id = ? AND url = ?`, d.Attempts, ms(next), why, d.ID, d.URL)
	})
}

// DropDelivery removes one that was delivered or given up; see notify.Store.
func (s *Store) DropDelivery(ctx context.Context, d notify.Delivery) error {
	return s.Update(ctx, func(t *Tx) error {
		return t.exec("DELETE FROM outbox WHERE id = ? AND url = ?", d.ID, d.URL)
	})
}

// DropOthers removes what is for none of these URLs; see notify.Store.
func (s *Store) DropOthers(ctx context.Context, urls []string) error {
	known, err := jsonText(append([]string{}, urls...))
	if err != nil {
		return err
	}
	return s.Update(ctx, func(t *Tx) error {
		return t.exec("DELETE FROM outbox WHERE url NOT IN (SELECT value FROM json_each(?))", known)
	})
}

var _ notify.Store = (*Store)(nil)
