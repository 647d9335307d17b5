package store

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Notify puts a message into the outbox, once per webhook and once per address; see access.Tx.
func (t *Tx) Notify(m access.Message) error {
	type receiver struct{ lane, url string }
	var all []receiver
	for _, hook := range t.store.webhooks {
		all = append(all, receiver{hook, hook})
	}
	if t.store.mail {
		for _, address := range m.To {
			all = append(all, receiver{notify.MailLane, "mailto:" + address})
		}
	}
	if len(all) == 0 {
		return nil
	}
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding a message: %w", err)
	}
	t.change.Messages = true
	for _, r := range all {
		err := t.exec(`INSERT INTO outbox (id, lane, url, body, created_ms, next_ms)
			VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, m.ID, r.lane, r.url, body, m.AtMS, m.AtMS)
		if err != nil {
			return err
		}
	}
	return nil
}

// DueDeliveries lists what is to be tried now, oldest first; see notify.Store.
func (s *Store) DueDeliveries(ctx context.Context, lane string, now time.Time, limit int) (
	out []notify.Delivery, err error,
) {
	err = s.View(ctx, func(t *Tx) error {
		out, err = list(t, func(scan func(...any) error) (d notify.Delivery, err error) {
			var created int64
			err = scan(&d.ID, &d.Lane, &d.URL, &d.Body, &created, &d.Attempts)
			d.Created = fromMS(created)
			return d, err
		}, `SELECT id, lane, url, body, created_ms, attempts FROM outbox
			WHERE lane = ? AND next_ms <= ? ORDER BY next_ms LIMIT ?`, lane, ms(now), limit)
		return err
	})
	return out, err
}

// NextDelivery is when the next one of a lane is due; zero for none. See notify.Store.
func (s *Store) NextDelivery(ctx context.Context, lane string) (next time.Time, err error) {
	err = s.View(ctx, func(t *Tx) error {
		var v int64
		err := t.row("SELECT coalesce(min(next_ms), 0) FROM outbox WHERE lane = ?", lane).Scan(&v)
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

// GiveUp removes one that cannot be delivered, on the record; see notify.Store.
func (s *Store) GiveUp(ctx context.Context, d notify.Delivery, why string) error {
	receiver := d.URL
	if u, err := url.Parse(d.URL); err == nil && u.Host != "" {
		receiver = u.Host // the rest of a webhook's address may be its secret
	}
	return s.Update(ctx, func(t *Tx) error {
		dropped, err := t.one("DELETE FROM outbox WHERE id = ? AND url = ?", d.ID, d.URL)
		if err != nil || !dropped {
			return err
		}
		return t.Append(trail.Record{
			TimeMS: t.store.now().UnixMilli(), Kind: notify.KindUndeliverable, Actor: access.Actor,
			Details: map[string]string{
				"receiver": grant.VisibleText(receiver), "message": d.ID, "attempts": fmt.Sprint(d.Attempts),
				"error": grant.VisibleText(why[:min(len(why), maxWhy)]),
			},
		})
	})
}

// maxWhy bounds a receiver's words on the trail.
const maxWhy = 300

// DropOthers removes what is for none of these lanes; see notify.Store.
func (s *Store) DropOthers(ctx context.Context, lanes []string) error {
	known, err := jsonText(append([]string{}, lanes...))
	if err != nil {
		return err
	}
	return s.Update(ctx, func(t *Tx) error {
		return t.exec("DELETE FROM outbox WHERE lane NOT IN (SELECT value FROM json_each(?))", known)
	})
}

var _ notify.Store = (*Store)(nil)
