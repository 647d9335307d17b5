package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Limits on the directory.
const (
	maxMembers   = 1000
	maxRoleOnLog = 16 << 10
)

// Kinds of trail records about the directory.
const (
	KindUserPut      = "user.put"
	KindUserDisabled = "user.disabled"
	KindGroupPut     = "group.put"
	KindGroupDeleted = "group.deleted"
	KindRolePut      = "role.put"
	KindRoleDeleted  = "role.deleted"
)

// reserved are names that mean something else: root, and the trail's word for the program itself.
var reserved = []string{"root", "curfew"}

// PutUser creates a user, or replaces keys and admin flag, in the caller's transaction, and enables a
// disabled one. It returns the user as it was (zero for a new one) and as it is. Ending what rested
// on keys that are gone is package access's.
func (s *Service) PutUser(tx Tx, by string, u User, createOnly bool) (was, is User, err error) {
	if err := checkUser(&u); err != nil {
		return was, is, err
	}
	was, err = tx.User(u.Name)
	isNew := errors.Is(err, ErrNone)
	switch {
	case err != nil && !isNew:
		return was, is, err
	case !isNew && createOnly:
		return was, is, reason.Conflict("user %s exists", u.Name)
	case u.Disabled && !was.Disabled:
		return was, is, reason.Invalid("a user is disabled with its own command").
			WithHint("curfew admin user disable %s", u.Name)
	}
	if err := keysFree(tx, u); err != nil {
		return was, is, err
	}
	if was.Admin && (!u.Admin || len(u.SSHKeys) == 0) {
		if err := otherAdmin(tx, u.Name); err != nil {
			return was, is, err
		}
	}
	u.UID = was.UID
	if is, err = tx.PutUser(u, s.c.Now()); err != nil {
		return was, is, err
	}
	if err := endSessions(tx, is); err != nil {
		return was, is, err
	}
	err = errors.Join(s.note(tx, by, KindUserPut, map[string]string{
		"user": is.Name, "uid": fmt.Sprint(is.UID), "admin": fmt.Sprint(is.Admin),
		"new": fmt.Sprint(isNew), "enabled_again": fmt.Sprint(was.Disabled && !is.Disabled),
		"ssh_keys": fingerprints(is.SSHKeys),
	}), s.refreshTrust(tx, by))
	return was, is, err
}

func checkUser(u *User) error {
	if err := grant.CheckUserName(u.Name); err != nil {
		return reason.Invalid("%v", err)
	}
	if slices.Contains(reserved, u.Name) {
		return reason.Invalid("%s is reserved and cannot be a user", u.Name)
	}
	if len(u.SSHKeys) > grant.MaxSSHKeys {
		return reason.Limit("%d SSH keys; at most %d", len(u.SSHKeys), grant.MaxSSHKeys)
	}
	keys := make([]string, 0, len(u.SSHKeys))
	for _, line := range u.SSHKeys {
		key, err := grant.CanonicalSSHKey(line)
		if err != nil {
			return reason.Invalid("user %s: %v", u.Name, err)
		}
		if slices.Contains(keys, key) {
			return reason.Invalid("user %s: an SSH key stands twice", u.Name)
		}
		keys = append(keys, key)
	}
	u.SSHKeys = keys
	return nil
}

// fingerprints names keys shortly, as ssh-keygen -l does.
func fingerprints(keys []string) string {
	out := make([]string, 0, len(keys))
	for _, line := range keys {
		if key, err := grant.ParseSSHKey(line); err == nil {
			out = append(out, ssh.FingerprintSHA256(key))
		}
	}
	return strings.Join(out, " ")
}

// keysFree refuses a key that stands under somebody else: one person must not count as two.
func keysFree(tx Tx, u User) error {
	for _, key := range u.SSHKeys {
		owner, err := tx.KeyOwner(key)
		if err != nil {
			return err
		}
		if owner != "" && owner != u.Name {
			return reason.Conflict("this SSH key stands under user %s already; a key is one person's",
				owner)
		}
	}
	return nil
}

// otherAdmin refuses to take the last admin who can sign in.
func otherAdmin(tx Tx, but string) error {
	users, err := tx.Users()
	if err != nil {
		return err
	}
	for _, u := range users {
		if u.Name != but && u.Admin && !u.Disabled && len(u.SSHKeys) > 0 {
			return nil
		}
	}
	return reason.Conflict("%s is the last admin who can sign in", but).
		WithHint("make somebody else admin first")
}

// endSessions drops the sessions that rest on keys which are no longer the user's.
func endSessions(tx Tx, u User) error {
	sessions, err := tx.SessionsOf(u.Name)
	if err != nil {
		return err
	}
	for _, session := range sessions {
		if u.Disabled || !slices.Contains(u.SSHKeys, session.SSHKey) {
			if err := tx.DeleteSession(session.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// DisableUser ends sign-in and sessions, in the caller's transaction. Ending the live grants is
// package access's.
func (s *Service) DisableUser(tx Tx, by, name string) (User, error) {
	user, err := tx.User(name)
	if errors.Is(err, ErrNone) {
		return user, reason.NotFound("there is no user %s", grant.VisibleText(name))
	}
	if err != nil || user.Disabled {
		return user, err
	}
	if user.Admin {
		if err := otherAdmin(tx, name); err != nil {
			return user, err
		}
	}
	user.Disabled = true
	if user, err = tx.PutUser(user, s.c.Now()); err != nil {
		return user, err
	}
	return user, errors.Join(
		endSessions(tx, user),
		s.note(tx, by, KindUserDisabled, map[string]string{"user": name}),
		s.refreshTrust(tx, by))
}

// Users lists all users.
func (s *Service) Users(ctx context.Context) (users []User, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		users, err = tx.Users()
		return err
	})
	return users, err
}

// PutGroup creates a group or replaces its members.
func (s *Service) PutGroup(ctx context.Context, by string, g Group) (Group, error) {
	if err := grant.CheckGroupName(g.Name); err != nil {
		return g, reason.Invalid("%v", err)
	}
	slices.Sort(g.Members)
	g.Members = slices.Compact(g.Members)
	if len(g.Members) > maxMembers {
		return g, reason.Limit("%d members; at most %d", len(g.Members), maxMembers)
	}
	return g, s.c.Store.Update(ctx, func(tx Tx) error {
		for _, m := range g.Members {
			if _, err := tx.User(m); errors.Is(err, ErrNone) {
				return reason.NotFound("there is no user %s", grant.VisibleText(m))
			} else if err != nil {
				return err
			}
		}
		if err := tx.PutGroup(g); err != nil {
			return err
		}
		return errors.Join(s.note(tx, by, KindGroupPut, map[string]string{
			"group": g.Name, "members": strings.Join(g.Members, " "),
		}), s.refreshTrust(tx, by))
	})
}

// DeleteGroup removes a group that no role names.
func (s *Service) DeleteGroup(ctx context.Context, by, name string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		if _, err := tx.Group(name); errors.Is(err, ErrNone) {
			return reason.NotFound("there is no group %s", grant.VisibleText(name))
		} else if err != nil {
			return err
		}
		roles, err := tx.Roles()
		if err != nil {
			return err
		}
		for _, r := range roles {
			if r.ApproverGroup == name || slices.Contains(r.RequesterGroups, name) {
				return reason.Conflict("role %s names group %s", r.Name, name).
					WithHint("change or delete that role first")
			}
		}
		return errors.Join(tx.DeleteGroup(name),
			s.note(tx, by, KindGroupDeleted, map[string]string{"group": name}),
			s.refreshTrust(tx, by))
	})
}

// Groups lists all groups.
func (s *Service) Groups(ctx context.Context) (groups []Group, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		groups, err = tx.Groups()
		return err
	})
	return groups, err
}

// PutRole creates or replaces a role. Grants that exist keep what they were approved for; requests
// that wait must be asked anew.
func (s *Service) PutRole(ctx context.Context, by string, r policy.Role) (policy.Role, error) {
	if err := r.Check(); err != nil {
		return r, reason.Invalid("%v", err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return r, fmt.Errorf("encoding role %s: %w", r.Name, err)
	}
	hash, err := r.Hash()
	if err != nil {
		return r, err
	}
	details := map[string]string{
		"role": r.Name, "policy_hash": fmt.Sprintf("%x", hash),
		"root_equivalent": fmt.Sprint(r.RootEquivalent()),
	}
	if len(body) <= maxRoleOnLog {
		details["body"] = string(body)
	}
	return r, s.c.Store.Update(ctx, func(tx Tx) error {
		for _, g := range append([]string{r.ApproverGroup}, r.RequesterGroups...) {
			if _, err := tx.Group(g); errors.Is(err, ErrNone) {
				return reason.NotFound("role %s names group %s, which does not exist", r.Name, g).
					WithHint("curfew admin group set %s …", g)
			} else if err != nil {
				return err
			}
		}
		return errors.Join(tx.PutRole(r), s.note(tx, by, KindRolePut, details),
			s.refreshTrust(tx, by))
	})
}

// DeleteRole removes a role; live grants of it run to their end.
func (s *Service) DeleteRole(ctx context.Context, by, name string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		if _, err := tx.Role(name); errors.Is(err, ErrNone) {
			return reason.NotFound("there is no role %s", grant.VisibleText(name))
		} else if err != nil {
			return err
		}
		return errors.Join(tx.DeleteRole(name),
			s.note(tx, by, KindRoleDeleted, map[string]string{"role": name}),
			s.refreshTrust(tx, by))
	})
}

// Roles lists all roles.
func (s *Service) Roles(ctx context.Context) (roles []policy.Role, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		roles, err = tx.Roles()
		return err
	})
	return roles, err
}

func (s *Service) note(tx Tx, by, kind string, details map[string]string) error {
	return tx.Append(trail.Record{
		TimeMS: s.c.Now().UnixMilli(), Kind: kind, Actor: by, Details: details,
	})
}
