package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/request"
)

// first is the only row of a query that gives at most one.
func first[T any](t *Tx, what string, scan func(func(...any) error) (T, error), query string,
	args ...any,
) (v T, err error) {
	all, err := list(t, scan, query, args...)
	if err == nil && len(all) == 0 {
		return v, fmt.Errorf("%s: %w", what, identity.ErrNone)
	}
	if err != nil {
		return v, err
	}
	return all[0], nil
}

const linkColumns = "SELECT issuer, subject, user, refresh, checked_ms FROM user_links"

func scanLink(scan func(...any) error) (l identity.Link, err error) {
	var checked int64
	err = scan(&l.Issuer, &l.Subject, &l.User, &l.Refresh, &checked)
	l.Checked = fromMS(checked)
	return l, err
}

// Link reads the link of a subject.
func (t *Tx) Link(issuer, subject string) (identity.Link, error) {
	return first(t, "link", scanLink, linkColumns+" WHERE issuer = ? AND subject = ?", issuer, subject)
}

// LinkOf reads a user's link with an issuer.
func (t *Tx) LinkOf(user, issuer string) (identity.Link, error) {
	return first(t, "link", scanLink, linkColumns+" WHERE user = ? AND issuer = ?", user, issuer)
}

// PutLink writes a link.
func (t *Tx) PutLink(l identity.Link) error {
	if l.Refresh == nil {
		l.Refresh = []byte{}
	}
	return t.exec(`INSERT INTO user_links (issuer, subject, user, refresh, checked_ms)
		VALUES (?, ?, ?, ?, ?) ON CONFLICT (issuer, subject) DO UPDATE SET
		refresh = excluded.refresh, checked_ms = excluded.checked_ms`,
		l.Issuer, l.Subject, l.User, l.Refresh, ms(l.Checked))
}

// DeleteLinks drops a user's links.
func (t *Tx) DeleteLinks(user string) error {
	return t.exec("DELETE FROM user_links WHERE user = ?", user)
}

// DueLinks lists whom to ask about; see identity.Tx.
func (t *Tx) DueLinks(issuer string, since, now time.Time, limit int) ([]identity.Link, error) {
	return list(t, scanLink, linkColumns+` WHERE issuer = ? AND checked_ms <= ? AND refresh <> x''
		AND user IN (SELECT name FROM users WHERE disabled = 0)
		AND (user IN (SELECT user FROM sessions WHERE expires_ms > ?)
		OR user IN (SELECT requester FROM requests WHERE state IN (?, ?, ?)))
		ORDER BY checked_ms LIMIT ?`, issuer, ms(since), ms(now), request.Pending, request.Approved,
		request.Granted, limit)
}

const workloadColumns = "SELECT name, issuer, subject, claims FROM workloads"

func scanWorkload(scan func(...any) error) (w identity.Workload, err error) {
	var claims string
	if err := scan(&w.Name, &w.Issuer, &w.Subject, &claims); err != nil {
		return w, err
	}
	return w, json.Unmarshal([]byte(claims), &w.Claims)
}

// Workload reads one workload.
func (t *Tx) Workload(name string) (identity.Workload, error) {
	return first(t, "workload", scanWorkload, workloadColumns+" WHERE name = ?", name)
}

// Workloads lists all by name.
func (t *Tx) Workloads() ([]identity.Workload, error) {
	return list(t, scanWorkload, workloadColumns+" ORDER BY name")
}

// PutWorkload writes a workload.
func (t *Tx) PutWorkload(w identity.Workload) error {
	claims, err := jsonText(w.Claims)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO workloads (name, issuer, subject, claims) VALUES (?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET issuer = excluded.issuer, subject = excluded.subject,
		claims = excluded.claims`, w.Name, w.Issuer, w.Subject, claims)
}

// DeleteWorkload drops a workload; its user stays.
func (t *Tx) DeleteWorkload(name string) error {
	return t.exec("DELETE FROM workloads WHERE name = ?", name)
}

// SpendToken remembers a token and reports whether it was new.
func (t *Tx) SpendToken(hash [32]byte, expires time.Time) (bool, error) {
	return t.one("INSERT INTO spent_tokens (hash, expires_ms) VALUES (?, ?) ON CONFLICT DO NOTHING",
		hash[:], ms(expires))
}

// PutSCIMToken keeps a token's hash, and drops the oldest of too many.
func (t *Tx) PutSCIMToken(hash [32]byte, by string, at time.Time) error {
	return errors.Join(
		t.exec("INSERT INTO scim_tokens (hash, created_by, created_ms) VALUES (?, ?, ?)", hash[:], by,
			ms(at)),
		t.exec(`DELETE FROM scim_tokens WHERE hash NOT IN
			(SELECT hash FROM scim_tokens ORDER BY created_ms DESC, rowid DESC LIMIT 4)`))
}

// SCIMToken says whether a token is kept.
func (t *Tx) SCIMToken(hash [32]byte) (bool, error) {
	var n int
	err := t.row("SELECT count(*) FROM scim_tokens WHERE hash = ?", hash[:]).Scan(&n)
	return n == 1, err
}

// DeleteSCIMTokens drops all and says how many.
func (t *Tx) DeleteSCIMTokens() (int, error) {
	gone, err := list(t, scanOne[[]byte], "DELETE FROM scim_tokens RETURNING hash")
	return len(gone), err
}

const scimUserColumns = `SELECT id, user, user_name, body, active, created_ms, changed_ms, version
	FROM scim_users`

func scanSCIMUser(scan func(...any) error) (u identity.SCIMUser, err error) {
	var body string
	var created, changed int64
	err = scan(&u.ID, &u.User, &u.UserName, &body, &u.Active, &created, &changed, &u.Version)
	if err != nil {
		return u, err
	}
	u.Created, u.Changed = fromMS(created), fromMS(changed)
	return u, json.Unmarshal([]byte(body), &u.SCIMDetails)
}

// SCIMUser reads a user resource.
func (t *Tx) SCIMUser(id string) (identity.SCIMUser, error) {
	return first(t, "SCIM user", scanSCIMUser, scimUserColumns+" WHERE id = ?", id)
}

// SCIMUserNamed reads the user resource of a userName.
func (t *Tx) SCIMUserNamed(name string) (identity.SCIMUser, error) {
	return first(t, "SCIM user", scanSCIMUser, scimUserColumns+" WHERE user_name = ?", name)
}

// SCIMUserOf reads the user resource of a user of the directory.
func (t *Tx) SCIMUserOf(user string) (identity.SCIMUser, error) {
	return first(t, "SCIM user", scanSCIMUser, scimUserColumns+" WHERE user = ?", user)
}

// SCIMUsers lists all user resources in the order in which they were made.
func (t *Tx) SCIMUsers() ([]identity.SCIMUser, error) {
	return list(t, scanSCIMUser, scimUserColumns+" ORDER BY created_ms, id")
}

// PutSCIMUser writes a user resource.
func (t *Tx) PutSCIMUser(u identity.SCIMUser) error {
	body, err := jsonText(u.SCIMDetails)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO scim_users (id, user, user_name, body, active, created_ms, changed_ms,
		version) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
		user_name = excluded.user_name, body = excluded.body, active = excluded.active,
		created_ms = excluded.created_ms, changed_ms = excluded.changed_ms, version = excluded.version`,
		u.ID, u.User, u.UserName, body, u.Active, ms(u.Created), ms(u.Changed), u.Version)
}

// DeleteSCIMUserOf drops the user resource of a user of the directory.
func (t *Tx) DeleteSCIMUserOf(user string) error {
	return t.exec("DELETE FROM scim_users WHERE user = ?", user)
}

const scimGroupColumns = `SELECT id, grp, display_name, external_id, created_ms, changed_ms, version
	FROM scim_groups`

func scanSCIMGroup(scan func(...any) error) (g identity.SCIMGroup, err error) {
	var created, changed int64
	err = scan(&g.ID, &g.Group, &g.DisplayName, &g.ExternalID, &created, &changed, &g.Version)
	g.Created, g.Changed = fromMS(created), fromMS(changed)
	return g, err
}

// SCIMGroup reads a group resource.
func (t *Tx) SCIMGroup(id string) (identity.SCIMGroup, error) {
	return first(t, "SCIM group", scanSCIMGroup, scimGroupColumns+" WHERE id = ?", id)
}

// SCIMGroups lists all group resources in the order in which they were made.
func (t *Tx) SCIMGroups() ([]identity.SCIMGroup, error) {
	return list(t, scanSCIMGroup, scimGroupColumns+" ORDER BY created_ms, id")
}

// PutSCIMGroup writes a group resource; its members are the group's.
func (t *Tx) PutSCIMGroup(g identity.SCIMGroup) error {
	return t.exec(`INSERT INTO scim_groups (id, grp, display_name, external_id, created_ms, changed_ms,
		version) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET
		display_name = excluded.display_name, external_id = excluded.external_id,
		changed_ms = excluded.changed_ms, version = excluded.version`,
		g.ID, g.Group, g.DisplayName, g.ExternalID, ms(g.Created), ms(g.Changed), g.Version)
}

// DeleteSCIMGroup drops a group resource.
func (t *Tx) DeleteSCIMGroup(id string) error {
	return t.exec("DELETE FROM scim_groups WHERE id = ?", id)
}

// Sessions lists everybody's; see identity.Tx.
func (t *Tx) Sessions() ([]identity.Session, error) {
	return list(t, scanSession, sessionColumns+" ORDER BY user, created_ms")
}
