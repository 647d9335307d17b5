package store

import (
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// Request reads a request with its revisions and decisions.
func (t *Tx) Request(id string) (*request.Request, error) {
	rs, err := t.requests("WHERE id = ?", id)
	if err == nil && len(rs) == 0 {
		err = fmt.Errorf("request %s: %w", grant.VisibleText(id), identity.ErrNone)
	}
	if err != nil {
		return nil, err
	}
	return rs[0], nil
}

// Requests lists requests, newest first.
func (t *Tx) Requests(f access.Filter) ([]*request.Request, error) {
	where, args := []string{"1"}, []any{}
	add := func(cond string, arg ...any) { where, args = append(where, cond), append(args, arg...) }
	if f.Requester != "" {
		add("requester = ?", f.Requester)
	}
	if f.Host != "" {
		add("id IN (SELECT request FROM request_hosts WHERE name = ?)", f.Host)
	}
	if f.Open {
		add("state IN (?, ?, ?)", request.Pending, request.Approved, request.Granted)
	}
	if f.Waiting {
		add("waits = 1")
	}
	return t.requests("WHERE "+strings.Join(where, " AND ")+
		" ORDER BY created_ms DESC, id LIMIT ?", append(args, f.Limit)...)
}

func (t *Tx) requests(tail string, args ...any) ([]*request.Request, error) {
	rs, err := list(t, func(scan func(...any) error) (*request.Request, error) {
		r := new(request.Request)
		var ended, changed int64
		err := scan(&r.ID, &r.Requester, &r.Role, &r.State, &r.RootEquivalent, &r.InForce, &r.Cause,
			&r.EndedBy, &ended, &changed)
		r.EndedAt, r.Changed = fromMS(ended), fromMS(changed)
		return r, err
	}, `SELECT id, requester, role, state, root_equivalent, in_force, cause, ended_by, ended_ms,
		changed_ms FROM requests `+tail, args...)
	if err != nil {
		return nil, err
	}
	for _, r := range rs {
		if err := t.fill(r); err != nil {
			return nil, fmt.Errorf("reading request %s: %w", r.ID, err)
		}
	}
	return rs, nil
}

func (t *Tx) fill(r *request.Request) (err error) {
	r.Hosts, err = list(t, func(scan func(...any) error) (h request.Host, err error) {
		var id []byte
		if err := scan(&id, &h.Name); err != nil {
			return h, err
		}
		h.ID, err = grant.HostIDFromBytes(id)
		return h, err
	}, "SELECT host, name FROM request_hosts WHERE request = ? ORDER BY position", r.ID)
	if err != nil {
		return err
	}
	r.Revisions, err = list(t, func(scan func(...any) error) (v request.Revision, err error) {
		var duration, created, lapses int64
		err = scan(&v.Number, &v.Terms, &duration, &v.Reason, &created, &lapses, &v.Needed, &v.Group,
			&v.Outcome)
		v.Duration = time.Duration(duration) * time.Millisecond
		v.Created, v.Lapses = fromMS(created), fromMS(lapses)
		return v, err
	}, `SELECT number, terms, duration_ms, reason, created_ms, lapses_ms, needed, grp, outcome
		FROM revisions WHERE request = ? ORDER BY number`, r.ID)
	if err != nil {
		return err
	}
	if len(r.Revisions) == 0 {
		return fmt.Errorf("%w: it has no revision", ErrDamaged)
	}
	decisions, err := list(t, func(scan func(...any) error) (d request.Decision, err error) {
		var at int64
		err = scan(&d.Revision, &d.Approver, &d.Approved, &d.Reason, &at, &d.SSHSig,
			&d.Void)
		d.At = fromMS(at)
		return d, err
	}, `SELECT revision, approver, approved, reason, at_ms, sshsig, void FROM decisions
		WHERE request = ? ORDER BY revision, at_ms, rowid`, r.ID)
	if err != nil {
		return err
	}
	for _, d := range decisions {
		for i := range r.Revisions {
			if r.Revisions[i].Number == d.Revision {
				r.Revisions[i].Decisions = append(r.Revisions[i].Decisions, d)
			}
		}
	}
	return nil
}

// PutRequest writes a request whole. Terms, hosts and decisions never change once written.
func (t *Tx) PutRequest(r *request.Request) error {
	newest := r.Newest()
	err := t.exec(`INSERT INTO requests (id, requester, role, state, root_equivalent, in_force, cause,
		ended_by, ended_ms, created_ms, changed_ms, waits, unissued, lapses_ms)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, in_force = excluded.in_force,
		cause = excluded.cause, ended_by = excluded.ended_by, ended_ms = excluded.ended_ms,
		changed_ms = excluded.changed_ms, waits = excluded.waits, unissued = excluded.unissued,
		lapses_ms = excluded.lapses_ms`,
		r.ID, r.Requester, r.Role, r.State, r.RootEquivalent, r.InForce, r.Cause, r.EndedBy,
		ms(r.EndedAt), ms(r.Created()), ms(r.Changed), r.Waiting() != nil, r.Unissued() != nil,
		ms(newest.Lapses))
	if err != nil {
		return err
	}
	for i, h := range r.Hosts {
		err := t.exec(`INSERT INTO request_hosts (request, host, name, position) VALUES (?, ?, ?, ?)
			ON CONFLICT DO NOTHING`, r.ID, h.ID[:], h.Name, i)
		if err != nil {
			return err
		}
	}
	for i := range r.Revisions {
		if err := t.putRevision(r.ID, &r.Revisions[i]); err != nil {
			return err
		}
	}
	t.touchRequest(r.ID)
	return nil
}

func (t *Tx) putRevision(id string, v *request.Revision) error {
	err := t.exec(`INSERT INTO revisions (request, number, terms, duration_ms, reason, created_ms,
		lapses_ms, needed, grp, outcome) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (request, number) DO UPDATE SET outcome = excluded.outcome`,
		id, v.Number, v.Terms, v.Duration.Milliseconds(), v.Reason, ms(v.Created), ms(v.Lapses),
		v.Needed, v.Group, v.Outcome)
	if err != nil {
		return err
	}
	for _, d := range v.Decisions {
		sig := d.SSHSig
		if sig == nil {
			sig = []byte{}
		}
		err := t.exec(`INSERT INTO decisions (request, revision, approver, approved, reason, at_ms,
			sshsig, void) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (request, revision, approver) DO UPDATE SET void = excluded.void`,
			id, v.Number, d.Approver, d.Approved, d.Reason, ms(d.At), sig, d.Void)
		if err != nil {
			return err
		}
	}
	return nil
}

// WaitingOf counts what a requester has waiting.
func (t *Tx) WaitingOf(requester string) (n int, err error) {
	err = t.row("SELECT count(*) FROM requests WHERE requester = ? AND waits = 1", requester).Scan(&n)
	return n, err
}

// Lapsed lists requests whose waiting revision lapsed.
func (t *Tx) Lapsed(now time.Time) ([]string, error) {
	return list(t, scanOne[string],
		"SELECT id FROM requests WHERE waits = 1 AND lapses_ms <= ? LIMIT 100", ms(now))
}

// Unissued lists requests whose approved revision has no grants.
func (t *Tx) Unissued() ([]string, error) {
	return list(t, scanOne[string], "SELECT id FROM requests WHERE unissued = 1 LIMIT 100")
}
