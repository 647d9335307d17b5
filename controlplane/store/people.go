package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
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
	// restoreGap is skipped by Restored, so that no uid that was given out after the backup is
	// given to a second person.
	restoreGap = 100000
	metaUID    = "next_uid"
)

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

// User reads one user with keys and groups.
func (t *Tx) User(name string) (identity.User, error) {
	users, err := t.users(" WHERE name = ?", name)
	if err == nil && len(users) == 0 {
		err = fmt.Errorf("user %s: %w", name, identity.ErrNone)
	}
	if err != nil {
		return identity.User{}, err
	}
	return users[0], nil
}

// Users lists all users by name.
func (t *Tx) Users() ([]identity.User, error) { return t.users("") }

func (t *Tx) users(where string, args ...any) ([]identity.User, error) {
	users, err := list(t, func(scan func(...any) error) (u identity.User, err error) {
		err = scan(&u.Name, &u.UID, &u.Admin, &u.Disabled)
		return u, err
	}, "SELECT name, uid, admin, disabled FROM users"+where+" ORDER BY name", args...)
	if err != nil {
		return nil, err
	}
	for i := range users {
		u := &users[i]
		u.SSHKeys, err = list(t, scanOne[string],
			"SELECT ssh_key FROM user_keys WHERE user = ? ORDER BY position", u.Name)
		if err != nil {
			return nil, err
		}
		u.Groups, err = list(t, scanOne[string],
			"SELECT grp FROM group_members WHERE user = ? ORDER BY grp", u.Name)
		if err != nil {
			return nil, err
		}
	}
	return users, nil
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
	err := t.exec(`INSERT INTO users (name, uid, admin, disabled, created_ms) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET admin = excluded.admin, disabled = excluded.disabled`,
		u.Name, u.UID, u.Admin, u.Disabled, ms(now))
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

// SkipUIDs leaves a gap in the uids, for those that a lost newer store gave out.
func (t *Tx) SkipUIDs() error {
	next, err := t.takeUID()
	if err != nil {
		return err
	}
	return t.PutMeta(metaUID, strconv.Itoa(int(next)+restoreGap))
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
	err := t.row("SELECT name FROM groups WHERE name = ?", name).Scan(&g.Name)
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
	err := t.exec("INSERT INTO groups (name) VALUES (?) ON CONFLICT (name) DO NOTHING", g.Name)
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
	return t.exec(`INSERT INTO sessions (key, user, ssh_key, created_ms, expires_ms)
		VALUES (?, ?, ?, ?, ?)`, s.Key[:], s.User, s.SSHKey, ms(s.Created), ms(s.Expires))
}

func scanSession(scan func(...any) error) (s identity.Session, err error) {
	var key []byte
	var created, expires int64
	if err := scan(&key, &s.User, &s.SSHKey, &created, &expires); err != nil {
		return s, err
	}
	if len(key) != len(s.Key) {
		return s, errors.New("a session's key has the wrong length")
	}
	s.Key, s.Created, s.Expires = [32]byte(key), fromMS(created), fromMS(expires)
	return s, nil
}

const sessionColumns = "SELECT key, user, ssh_key, created_ms, expires_ms FROM sessions"

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
		t.exec("DELETE FROM join_tokens WHERE expires_ms <= ?", ms(now.Add(-24*time.Hour))),
	)
}
