package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
)

// Uids of Curfew accounts: outside of what adduser, subuid, systemd and containers give out, and
// below 2^31.
const (
	firstUID = 1900000000
	lastUID  = 1999999999
	// A restore goes on with uids that no lost life of the store can have given out: as if one had been
	// given every uidEvery since uidEpoch, which lasts for thirty years. Where more than that are given
	// already, it skips restoreGap.
	uidEvery   = 10 * time.Second
	restoreGap = 100000
	metaUID    = "next_uid"
)

var uidEpoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Identity is the store as package identity sees it.
type Identity struct{ *Store }

// Update runs f in one writing transaction.
func (s Identity) Update(ctx context.Context, f func(identity.Tx) error) error {
	return s.Store.Update(ctx, func(t *Tx) error { return f(t) })
}

// View runs f over one snapshot.
func (s Identity) View(ctx context.Context, f func(identity.Tx) error) error {
	return s.Store.View(ctx, func(t *Tx) error { return f(t) })
}

// Access is the store as package access sees it.
type Access struct{ *Store }

// Update runs f in one writing transaction.
func (s Access) Update(ctx context.Context, f func(access.Tx) error) error {
	return s.Store.Update(ctx, func(t *Tx) error { return f(t) })
}

// View runs f over one snapshot.
func (s Access) View(ctx context.Context, f func(access.Tx) error) error {
	return s.Store.View(ctx, func(t *Tx) error { return f(t) })
}

// Meta reads one setting; empty when it was never set.
func (t *Tx) Meta(key string) (string, error) {
	var v string
	err := t.row("SELECT value FROM meta WHERE key = ?", key).Scan(&v)
	if err != nil && !noRows(err) {
		return "", fmt.Errorf("reading setting %s: %w", key, err)
	}
	return v, nil
}

// PutMeta writes one setting.
func (t *Tx) PutMeta(key, value string) error {
	return t.exec(`INSERT INTO meta (key, value) VALUES (?, ?)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
}

const userColumns = `SELECT name, uid, kind, source, admin, auditor, disabled, disabled_by, email,
	manager, verify_required`

func userFields(u *identity.User) []any {
	return []any{
		&u.Name, &u.UID, &u.Kind, &u.Source, &u.Admin, &u.Auditor, &u.Disabled, &u.DisabledBy, &u.Email,
		&u.Manager, &u.VerifyRequired,
	}
}

// User reads one user with keys and groups.
func (t *Tx) User(name string) (identity.User, error) {
	u, err := remembered(t, "user "+name, func() (identity.User, error) { return t.user(name) })
	u.SSHKeys, u.Groups = slices.Clone(u.SSHKeys), slices.Clone(u.Groups)
	return u, err
}

func (t *Tx) user(name string) (u identity.User, err error) {
	var keys, groups string
	err = t.row(userColumns+`,
		(SELECT json_group_array(ssh_key ORDER BY position) FROM user_keys WHERE user = users.name),
		(SELECT json_group_array(grp ORDER BY grp) FROM group_members WHERE user = users.name)
		FROM users WHERE name = ?`, name).Scan(append(userFields(&u), &keys, &groups)...)
	if noRows(err) {
		return identity.User{}, fmt.Errorf("user %s: %w", name, identity.ErrNone)
	}
	if err != nil {
		return identity.User{}, fmt.Errorf("reading user %s: %w", name, err)
	}
	if u.SSHKeys, err = someOf(keys); err == nil {
		u.Groups, err = someOf(groups)
	}
	return u, err
}

// someOf reads a JSON list of strings; nil for an empty one.
func someOf(text string) (out []string, err error) {
	if text == "[]" {
		return nil, nil
	}
	return out, json.Unmarshal([]byte(text), &out)
}

// Users lists all users by name. Three statements serve 5,000 of them.
func (t *Tx) Users() ([]identity.User, error) {
	users, err := list(t, func(scan func(...any) error) (u identity.User, err error) {
		err = scan(userFields(&u)...)
		return u, err
	}, userColumns+" FROM users ORDER BY name")
	if err != nil {
		return nil, err
	}
	keys, err := t.perUser("SELECT user, ssh_key FROM user_keys ORDER BY user, position")
	if err != nil {
		return nil, err
	}
	groups, err := t.perUser("SELECT user, grp FROM group_members ORDER BY user, grp")
	for i := range users {
		users[i].SSHKeys, users[i].Groups = keys[users[i].Name], groups[users[i].Name]
	}
	return users, err
}

// perUser reads pairs of a user and something of theirs.
func (t *Tx) perUser(query string) (map[string][]string, error) {
	pairs, err := list(t, func(scan func(...any) error) (p [2]string, err error) {
		err = scan(&p[0], &p[1])
		return p, err
	}, query)
	out := make(map[string][]string)
	for _, p := range pairs {
		out[p[0]] = append(out[p[0]], p[1])
	}
	return out, err
}

// PutUser writes a user and the keys; groups are written by PutGroup.
func (t *Tx) PutUser(u identity.User, now time.Time) (identity.User, error) {
	if u.UID == 0 {
		uid, err := t.takeUID()
		if err != nil {
			return u, err
		}
		u.UID = uid
	}
	if u.Kind == "" {
		u.Kind = identity.KindPerson
	}
	if u.Source == "" {
		u.Source = identity.SourceLocal
	}
	err := t.exec(`INSERT INTO users (name, uid, kind, source, admin, auditor, disabled, disabled_by,
		email, manager, verify_required, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET source = excluded.source, admin = excluded.admin,
		auditor = excluded.auditor, disabled = excluded.disabled, disabled_by = excluded.disabled_by,
		email = excluded.email, manager = excluded.manager,
		verify_required = excluded.verify_required`,
		u.Name, u.UID, string(u.Kind), string(u.Source), u.Admin, u.Auditor, u.Disabled,
		string(u.DisabledBy), u.Email, u.Manager, u.VerifyRequired, ms(now))
	if err != nil {
		return u, err
	}
	if err := t.exec("DELETE FROM user_keys WHERE user = ?", u.Name); err != nil {
		return u, err
	}
	for i, key := range u.SSHKeys {
		err := t.exec("INSERT INTO user_keys (ssh_key, user, position) VALUES (?, ?, ?)",
			key, u.Name, i)
		if err != nil {
			return u, err
		}
	}
	return t.User(u.Name)
}

func (t *Tx) takeUID() (uint32, error) {
	next := firstUID
	v, err := t.Meta(metaUID)
	if err != nil {
		return 0, err
	}
	if v != "" {
		if next, err = strconv.Atoi(v); err != nil {
			return 0, fmt.Errorf("the next uid is stored as %q: %w", v, err)
		}
	}
	if next < firstUID || next > lastUID {
		return 0, fmt.Errorf("uid %d is outside of %d to %d: no uid is left", next, firstUID, lastUID)
	}
	return uint32(next), t.PutMeta(metaUID, strconv.Itoa(next+1))
}

// SkipUIDs leaves out the uids that lost newer stores gave out. Where it goes on depends on the time
// alone, and not on the backup: one that is restored again, or an older one after a newer one, must not
// give the uids that its first life gave.
func (t *Tx) SkipUIDs(now time.Time) error {
	next, err := t.takeUID()
	if err != nil {
		return err
	}
	reached := firstUID + int(max(0, now.Sub(uidEpoch))/uidEvery)
	if int(next) >= reached {
		reached = int(next) + restoreGap
	}
	return t.PutMeta(metaUID, strconv.Itoa(reached))
}

// KeyOwner is the user under whom an SSH key stands.
func (t *Tx) KeyOwner(key string) (string, error) {
	var name string
	err := t.row("SELECT user FROM user_keys WHERE ssh_key = ?", key).Scan(&name)
	if err != nil && !noRows(err) {
		return "", fmt.Errorf("looking up an SSH key: %w", err)
	}
	return name, nil
}

// Group reads one group.
func (t *Tx) Group(name string) (identity.Group, error) {
	g := identity.Group{}
	err := t.row("SELECT name, source FROM groups WHERE name = ?", name).Scan(&g.Name, &g.Source)
	if noRows(err) {
		return g, fmt.Errorf("group %s: %w", name, identity.ErrNone)
	}
	if err != nil {
		return g, fmt.Errorf("reading group %s: %w", name, err)
	}
	g.Members, err = list(t, scanOne[string],
		"SELECT user FROM group_members WHERE grp = ? ORDER BY user", name)
	return g, err
}

// Groups lists all groups by name.
func (t *Tx) Groups() ([]identity.Group, error) {
	names, err := list(t, scanOne[string], "SELECT name FROM groups ORDER BY name")
	if err != nil {
		return nil, err
	}
	out := make([]identity.Group, 0, len(names))
	for _, name := range names {
		g, err := t.Group(name)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

// PutGroup replaces a group's members.
func (t *Tx) PutGroup(g identity.Group) error {
	if g.Source == "" {
		g.Source = identity.SourceLocal
	}
	err := t.exec(`INSERT INTO groups (name, source) VALUES (?, ?)
		ON CONFLICT (name) DO UPDATE SET source = excluded.source`, g.Name, string(g.Source))
	if err != nil {
		return err
	}
	if err := t.exec("DELETE FROM group_members WHERE grp = ?", g.Name); err != nil {
		return err
	}
	for _, m := range g.Members {
		err := t.exec("INSERT INTO group_members (grp, user) VALUES (?, ?)", g.Name, m)
		if err != nil {
			return err
		}
	}
	return nil
}

// DeleteGroup removes a group that no role names as approver group.
func (t *Tx) DeleteGroup(name string) error { return t.exec("DELETE FROM groups WHERE name = ?", name) }

// Role reads one role.
func (t *Tx) Role(name string) (policy.Role, error) {
	roles, err := t.roles(" WHERE name = ?", name)
	if err == nil && len(roles) == 0 {
		err = fmt.Errorf("role %s: %w", name, identity.ErrNone)
	}
	if err != nil {
		return policy.Role{}, err
	}
	return roles[0], nil
}

// Roles lists all roles by name.
func (t *Tx) Roles() ([]policy.Role, error) { return t.roles("") }

func (t *Tx) roles(where string, args ...any) ([]policy.Role, error) {
	return list(t, func(scan func(...any) error) (r policy.Role, err error) {
		var body string
		if err := scan(&body); err != nil {
			return r, err
		}
		err = json.Unmarshal([]byte(body), &r)
		return r, err
	}, "SELECT body FROM roles"+where+" ORDER BY name", args...)
}

// PutRole writes a role.
func (t *Tx) PutRole(r policy.Role) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding role %s: %w", r.Name, err)
	}
	return t.exec(`INSERT INTO roles (name, approver_group, body) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET approver_group = excluded.approver_group,
		body = excluded.body`, r.Name, r.ApproverGroup, string(body))
}

// DeleteRole removes a role; requests that name it stay.
func (t *Tx) DeleteRole(name string) error { return t.exec("DELETE FROM roles WHERE name = ?", name) }

// PutChallenge keeps a challenge's hash.
func (t *Tx) PutChallenge(hash [32]byte, expires time.Time) error {
	return t.exec("INSERT INTO challenges (hash, expires_ms) VALUES (?, ?)", hash[:], ms(expires))
}

// Challenges counts what is kept.
func (t *Tx) Challenges() (n int, err error) {
	err = t.row("SELECT count(*) FROM challenges").Scan(&n)
	return n, err
}

// TakeChallenge spends a challenge.
func (t *Tx) TakeChallenge(hash [32]byte, now time.Time) (bool, error) {
	var expires int64
	err := t.row("DELETE FROM challenges WHERE hash = ? RETURNING expires_ms", hash[:]).Scan(&expires)
	if noRows(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("spending a challenge: %w", err)
	}
	return now.Before(fromMS(expires)), nil
}

// PutSession keeps a session.
func (t *Tx) PutSession(s identity.Session) error {
	claims, err := jsonText(s.Claims)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO sessions (key, user, ssh_key, created_ms, expires_ms, method, device,
		address, used_ms, used_address, claims) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		s.Key[:], s.User, s.SSHKey, ms(s.Created), ms(s.Expires), string(s.Method), s.Device,
		s.Address, ms(s.Used), s.UsedFrom, claims)
}

// TouchSession notes a use of a session.
func (t *Tx) TouchSession(key [32]byte, at time.Time, from string) error {
	return t.exec("UPDATE sessions SET used_ms = ?, used_address = ? WHERE key = ?", ms(at), from,
		key[:])
}

func scanSession(scan func(...any) error) (s identity.Session, err error) {
	var key []byte
	var claims string
	var created, expires, used int64
	err = scan(&key, &s.User, &s.SSHKey, &created, &expires, &s.Method, &s.Device, &s.Address, &used,
		&s.UsedFrom, &claims)
	if err != nil {
		return s, err
	}
	if len(key) != len(s.Key) {
		return s, errors.New("a session's key has the wrong length")
	}
	s.Key, s.Created, s.Expires = [32]byte(key), fromMS(created), fromMS(expires)
	s.Used = fromMS(used)
	return s, json.Unmarshal([]byte(claims), &s.Claims)
}

const sessionColumns = `SELECT key, user, ssh_key, created_ms, expires_ms, method, device, address,
	used_ms, used_address, claims FROM sessions`

// Session reads the session of a key.
func (t *Tx) Session(key [32]byte) (identity.Session, error) {
	s, err := scanSession(t.row(sessionColumns+" WHERE key = ?", key[:]).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("session: %w", identity.ErrNone)
	}
	return s, err
}

// DeleteSession ends a session.
func (t *Tx) DeleteSession(key [32]byte) error {
	return t.exec("DELETE FROM sessions WHERE key = ?", key[:])
}

// SessionsOf lists a user's sessions.
func (t *Tx) SessionsOf(user string) ([]identity.Session, error) {
	return list(t, scanSession, sessionColumns+" WHERE user = ? ORDER BY created_ms", user)
}

// DeleteExpired drops what is over.
func (t *Tx) DeleteExpired(now time.Time) error {
	return errors.Join(
		t.exec("DELETE FROM sessions WHERE expires_ms <= ?", ms(now)),
		t.exec("DELETE FROM challenges WHERE expires_ms <= ?", ms(now)),
		t.exec("DELETE FROM spent_tokens WHERE expires_ms <= ?", ms(now)),
		t.exec("DELETE FROM join_tokens WHERE expires_ms <= ?", ms(now.Add(-24*time.Hour))),
	)
}
