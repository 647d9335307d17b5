package store

import (
	"encoding/json"
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

// HasRequest tells whether a request has this id.
func (t *Tx) HasRequest(id string) (has bool, err error) {
	err = t.row("SELECT EXISTS (SELECT 1 FROM requests WHERE id = ?)", id).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("looking for request %s: %w", id, err)
	}
	return has, nil
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
		var ended, changed, reviewed, reminded int64
		var state int
		var v request.Review
		err := scan(&r.ID, &r.Requester, &r.Role, &r.State, &r.RootEquivalent, &r.InForce, &r.Cause,
			&r.EndedBy, &ended, &changed, &state, &v.By, &v.Justified, &v.Comment, &reviewed, &reminded)
		r.EndedAt, r.Changed = fromMS(ended), fromMS(changed)
		if v.At, v.Reminded = fromMS(reviewed), fromMS(reminded); state != reviewNone {
			r.Review = &v
		}
		return r, err
	}, `SELECT id, requester, role, state, root_equivalent, in_force, cause, ended_by, ended_ms,
		changed_ms, review, reviewer, justified, review_comment, reviewed_ms, reminded_ms
		FROM requests `+tail, args...)
	if err != nil {
		return nil, err
	}
	for _, r := range rs {
		if err := t.fill(r); err != nil {
			return nil, fmt.Errorf("reading request %s: %w", r.ID, err)
		}
		if t.stored != nil {
			t.stored[r.ID] = storedOf(r)
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
		var needs string
		err = scan(&v.Number, &v.Terms, &duration, &v.Reason, &created, &lapses, &needs, &v.Outcome,
			&v.Standing, &v.Rule, &v.PolicyHash, &v.Facts)
		if err != nil {
			return v, err
		}
		v.Duration = time.Duration(duration) * time.Millisecond
		v.Created, v.Lapses = fromMS(created), fromMS(lapses)
		return v, json.Unmarshal([]byte(needs), &v.Needs)
	}, `SELECT number, terms, duration_ms, reason, created_ms, lapses_ms, needs, outcome, standing,
		rule, policy_hash, facts FROM revisions WHERE request = ? ORDER BY number`, r.ID)
	if err != nil {
		return err
	}
	if len(r.Revisions) == 0 {
		return fmt.Errorf("%w: it has no revision", ErrDamaged)
	}
	decisions, err := list(t, func(scan func(...any) error) (d request.Decision, err error) {
		var at int64
		var counts string
		err = scan(&d.Revision, &d.Approver, &d.Approved, &d.Reason, &at, &d.SSHSig, &d.Void, &counts)
		d.At, d.Counts = fromMS(at), strings.Fields(counts)
		return d, err
	}, `SELECT revision, approver, approved, reason, at_ms, sshsig, void, counts FROM decisions
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

// States of a review, as stored.
const (
	reviewNone = 0
	reviewDue  = 1
	reviewDone = 2
)

func reviewState(r *request.Request) (int, request.Review) {
	switch {
	case r.Review == nil:
		return reviewNone, request.Review{}
	case r.ReviewDue():
		return reviewDue, *r.Review
	}
	return reviewDone, *r.Review
}

// DropRequestHosts forgets which hosts a request names; PutRequest writes them anew.
func (t *Tx) DropRequestHosts(id string) error {
	if is := t.stored[id]; is != nil {
		is.hosts = false
	}
	return t.exec("DELETE FROM request_hosts WHERE request = ?", id)
}

// ReviewsDue lists emergencies that nobody has reviewed or was reminded of since.
func (t *Tx) ReviewsDue(remindedBefore time.Time) ([]string, error) {
	return list(t, scanOne[string],
		"SELECT id FROM requests WHERE review = 1 AND reminded_ms <= ? LIMIT 100", ms(remindedBefore))
}

// PutRequest writes a request whole. Terms and decisions never change once written.
func (t *Tx) PutRequest(r *request.Request) error {
	newest := r.Newest()
	state, review := reviewState(r)
	err := t.exec(`INSERT INTO requests (id, requester, role, state, root_equivalent, in_force, cause,
		ended_by, ended_ms, created_ms, changed_ms, waits, unissued, lapses_ms, review, reviewer,
		justified, review_comment, reviewed_ms, reminded_ms)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET role = excluded.role, state = excluded.state,
		root_equivalent = excluded.root_equivalent, in_force = excluded.in_force,
		cause = excluded.cause, ended_by = excluded.ended_by, ended_ms = excluded.ended_ms,
		changed_ms = excluded.changed_ms, waits = excluded.waits, unissued = excluded.unissued,
		lapses_ms = excluded.lapses_ms, review = excluded.review, reviewer = excluded.reviewer,
		justified = excluded.justified, review_comment = excluded.review_comment,
		reviewed_ms = excluded.reviewed_ms, reminded_ms = excluded.reminded_ms`,
		r.ID, r.Requester, r.Role, r.State, r.RootEquivalent, r.InForce, r.Cause, r.EndedBy,
		ms(r.EndedAt), ms(r.Created()), ms(r.Changed), r.Waiting() != nil, r.Unissued() != nil,
		ms(newest.Lapses), state, review.By, review.Justified, review.Comment, ms(review.At),
		ms(review.Reminded))
	if err != nil {
		return err
	}
	is := t.stored[r.ID]
	for i, h := range r.Hosts {
		if is != nil && is.hosts {
			break
		}
		err := t.exec(`INSERT INTO request_hosts (request, host, name, position) VALUES (?, ?, ?, ?)
			ON CONFLICT DO NOTHING`, r.ID, h.ID[:], h.Name, i)
		if err != nil {
			return err
		}
	}
	for i := range r.Revisions {
		if err := t.putRevision(r.ID, &r.Revisions[i], is.revision(r.Revisions[i].Number)); err != nil {
			return err
		}
	}
	if t.stored != nil {
		t.stored[r.ID] = storedOf(r)
	}
	t.touchRequest(r.ID)
	return nil
}

func (t *Tx) putRevision(id string, v *request.Revision, is storedRevision) error {
	if is.outcome != v.Outcome {
		if err := t.putTerms(id, v); err != nil {
			return err
		}
	}
	for _, d := range v.Decisions {
		if void, ok := is.decisions[d.Approver]; ok && void == d.Void {
			continue
		}
		err := t.exec(`INSERT INTO decisions (request, revision, approver, approved, reason, at_ms,
			sshsig, void, counts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (request, revision, approver) DO UPDATE SET void = excluded.void`,
			id, v.Number, d.Approver, d.Approved, d.Reason, ms(d.At), some(d.SSHSig), d.Void,
			strings.Join(d.Counts, " "))
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Tx) putTerms(id string, v *request.Revision) error {
	var first grant.Need
	if len(v.Needs) > 0 {
		first = v.Needs[0]
	}
	needs, err := json.Marshal(append([]grant.Need{}, v.Needs...))
	if err != nil {
		return fmt.Errorf("encoding the needs of request %s: %w", id, err)
	}
	return t.exec(`INSERT INTO revisions (request, number, terms, duration_ms, reason, created_ms,
		lapses_ms, needed, grp, outcome, needs, standing, rule, policy_hash, facts)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (request, number) DO UPDATE SET outcome = excluded.outcome`,
		id, v.Number, v.Terms, v.Duration.Milliseconds(), v.Reason, ms(v.Created), ms(v.Lapses),
		first.Approvals, first.Group, v.Outcome, string(needs), v.Standing, v.Rule, some(v.PolicyHash),
		some(v.Facts))
}

// some is bytes as the store keeps them: none are empty, not NULL.
func some(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// RequestsSince lists requests in the order of their making.
func (t *Tx) RequestsSince(since time.Time, after string, limit int) ([]*request.Request, error) {
	return t.requests(`WHERE created_ms > ?1 OR created_ms = ?1 AND id > ?2
		ORDER BY created_ms, id LIMIT ?3`, ms(since), after, limit)
}

// Outcomes lists what became of a requester's requests for a role that people decided, made before a
// moment, newest first.
func (t *Tx) Outcomes(requester, role string, before time.Time, limit int) (
	[]request.Outcome, error,
) {
	return list(t, scanOne[request.Outcome], `SELECT v.outcome FROM requests r JOIN revisions v
		ON v.request = r.id WHERE r.requester = ? AND r.role = ? AND r.created_ms < ? AND
		v.standing = '' AND v.outcome IN (?, ?, ?) ORDER BY r.created_ms DESC, v.number DESC LIMIT ?`,
		requester, role, ms(before), request.OutGranted, request.OutDenied, request.OutApproved, limit)
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
