package identity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

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

// reserved are names that mean something else: root, and the trail's words for who is no person.
var reserved = []string{"root", Actor, string(SourceOIDC), string(SourceSCIM)}

// Actor is the trail's word for what the program does by itself.
const Actor = "curfew"

// Edit is what an admin says of a user.
type Edit struct {
	Name           string
	Admin, Auditor bool
	Disabled       bool
	SSHKeys        []string
	// Email, Manager and VerifyRequired stay as they are when nil.
	Email, Manager *string
	VerifyRequired *bool
}

// PutUser creates a user, or replaces keys and flags, in the caller's transaction, and enables one
// whom an admin disabled. It returns the user as it was (zero for a new one) and as it is. Ending what
// rested on keys that are gone is package access's.
func (s *Service) PutUser(tx Tx, by string, e Edit, createOnly bool) (was, is User, err error) {
	was, err = tx.User(e.Name)
	isNew := errors.Is(err, ErrNone)
	switch {
	case err != nil && !isNew:
		return was, is, err
	case !isNew && createOnly:
		return was, is, reason.Conflict("user %s exists", e.Name)
	case e.Disabled && !was.Disabled:
		return was, is, reason.Invalid("a user is disabled with its own command").
			WithHint("curfew admin user disable %s", e.Name)
	case was.Disabled && was.DisabledBy != SourceAdmin:
		return was, is, reason.Conflict("user %s is disabled by %s", e.Name, was.DisabledBy).
			WithHint("enable them there, or let go of the provider: curfew admin user unlink %s", e.Name)
	}
	u, err := was.edited(e)
	if err != nil {
		return was, is, err
	}
	if is, err = s.putUser(tx, by, was, u); err != nil {
		return was, is, err
	}
	return was, is, s.refreshTrust(tx, by)
}

// edited applies what an admin says. What a provider keeps is not for admins to change.
func (u User) edited(e Edit) (User, error) {
	kept := u.Source != "" && u.Source != SourceLocal
	u.Name, u.Admin, u.Auditor, u.SSHKeys = e.Name, e.Admin, e.Auditor, e.SSHKeys
	u.Disabled, u.DisabledBy = false, ""
	if e.VerifyRequired != nil {
		u.VerifyRequired = *e.VerifyRequired
	}
	if u.VerifyRequired && !slices.ContainsFunc(u.SSHKeys, grant.IsSecurityKey) {
		return u, reason.Invalid("user %s has no security key, so nothing they sign could count", u.Name).
			WithHint("add a key of type sk-ssh-ed25519@openssh.com first, made with -O verify-required")
	}
	for _, f := range []struct {
		name string
		to   *string
		from *string
	}{{"email", &u.Email, e.Email}, {"manager", &u.Manager, e.Manager}} {
		if f.from == nil || *f.from == *f.to {
			continue
		}
		if kept {
			return u, reason.Conflict("the %s of user %s is kept by %s", f.name, u.Name, u.Source).
				WithHint("change it there")
		}
		*f.to = *f.from
	}
	return u, nil
}

// putUser checks and writes a user, ends sessions whose footing is gone and puts it on the trail. The
// caller refreshes the trust file.
func (s *Service) putUser(tx Tx, by string, was, u User) (is User, err error) {
	if err := checkUser(&u); err != nil {
		return is, err
	}
	if err := keysFree(tx, u); err != nil {
		return is, err
	}
	if was.Admin && (!u.Admin || len(u.SSHKeys) == 0) {
		if err := otherAdmin(tx, u.Name); err != nil {
			return is, err
		}
	}
	u.UID = was.UID
	if is, err = tx.PutUser(u, s.c.Now()); err != nil {
		return is, err
	}
	if err := endSessions(tx, is); err != nil {
		return is, err
	}
	details := map[string]string{
		"user": is.Name, "uid": fmt.Sprint(is.UID), "admin": fmt.Sprint(is.Admin),
		"new": fmt.Sprint(was.Name == ""), "enabled_again": fmt.Sprint(was.Disabled && !is.Disabled),
		"ssh_keys": fingerprints(is.SSHKeys),
	}
	for name, value := range map[string]string{
		"source": string(is.Source), "email": is.Email, "manager": is.Manager,
	} {
		if value != "" && value != string(SourceLocal) {
			details[name] = value
		}
	}
	if is.Auditor {
		details["auditor"] = "true"
	}
	if is.VerifyRequired {
		details["verify_required"] = "true"
	}
	if is.Kind == KindWorkload {
		details["kind"] = string(is.Kind)
	}
	return is, s.note(tx, by, KindUserPut, details)
}

func checkUser(u *User) error {
	if err := grant.CheckUserName(u.Name); err != nil {
		return reason.Invalid("%v", err)
	}
	if slices.Contains(reserved, u.Name) {
		return reason.Invalid("%s is reserved and cannot be a user", u.Name)
	}
	if err := checkStanding(u); err != nil {
		return err
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

// checkStanding refuses what contradicts itself: who watches does not act, and a pipeline decides
// nothing.
func checkStanding(u *User) error {
	switch {
	case u.Admin && u.Auditor:
		return reason.Invalid("user %s cannot be admin and auditor: an auditor changes nothing", u.Name)
	case u.Kind == KindWorkload && (u.Admin || u.Auditor):
		return reason.Invalid("%s is a workload; it only asks", u.Name)
	}
	if u.Email != "" {
		if err := CheckEmail(u.Email); err != nil {
			return reason.Invalid("user %s: %v", u.Name, err)
		}
	}
	if u.Manager != "" {
		if err := grant.CheckUserName(u.Manager); err != nil {
			return reason.Invalid("the manager of %s: %v", u.Name, err)
		}
	}
	return nil
}

// CheckEmail accepts a plain ASCII mailbox, local@domain: nothing in it can become a second header or
// a second recipient.
func CheckEmail(s string) error {
	local, domain, ok := strings.Cut(s, "@")
	bad := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			strings.ContainsRune(".!#$%&'*+/=?^_`{|}~-", c))
	}
	if !ok || local == "" || len(local) > 64 || len(s) > 254 || strings.ContainsFunc(local, bad) ||
		grant.CheckHostName(strings.ToLower(domain)) != nil {
		return fmt.Errorf("%q is not an e-mail address", grant.VisibleText(s))
	}
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
		if !session.stands(u) {
			if err := tx.DeleteSession(session.Key); err != nil {
				return err
			}
		}
	}
	return nil
}

// weight orders whose word disables: a weaker one neither replaces nor takes back a stronger one.
var weight = map[Source]int{SourceOIDC: 1, SourceSCIM: 2, SourceAdmin: 3}

// DisableUser ends sign-in and sessions on somebody's word, in the caller's transaction. Ending the
// live grants is package access's.
func (s *Service) DisableUser(tx Tx, by, name string, word Source) (User, error) {
	user, err := tx.User(name)
	if errors.Is(err, ErrNone) {
		return user, reason.NotFound("there is no user %s", grant.VisibleText(name))
	}
	if err != nil || weight[user.DisabledBy] >= weight[word] {
		return user, err
	}
	if user.Admin {
		if err := otherAdmin(tx, name); err != nil {
			return user, err
		}
	}
	user.Disabled, user.DisabledBy = true, word
	if user, err = tx.PutUser(user, s.c.Now()); err != nil {
		return user, err
	}
	return user, errors.Join(
		endSessions(tx, user),
		s.note(tx, by, KindUserDisabled, map[string]string{"user": name, "word": string(word)}),
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

// PutGroup creates a group or replaces its members. A group that a provider keeps is not edited by
// hand; naming a Source hands it over, with the members given.
func (s *Service) PutGroup(ctx context.Context, by string, g Group) (Group, error) {
	if err := grant.CheckGroupName(g.Name); err != nil {
		return g, reason.Invalid("%v", err)
	}
	slices.Sort(g.Members)
	g.Members = slices.Compact(g.Members)
	if len(g.Members) > maxMembers {
		return g, reason.Limit("%d members; at most %d", len(g.Members), maxMembers)
	}
	if !slices.Contains([]Source{"", SourceLocal, SourceOIDC, SourceSCIM}, g.Source) {
		return g, reason.Invalid("a group is kept by local, oidc or scim, not by %s",
			grant.VisibleText(string(g.Source)))
	}
	return g, s.c.Store.Update(ctx, func(tx Tx) error {
		was, err := tx.Group(g.Name)
		if err != nil && !errors.Is(err, ErrNone) {
			return err
		}
		if g.Source == "" {
			g.Source = cmp.Or(was.Source, SourceLocal)
			if g.Source != SourceLocal {
				return reason.Conflict("the members of group %s are kept by %s", g.Name, g.Source).
					WithHint("change them there, or take it over: curfew admin group set %s --source local …",
						g.Name)
			}
		}
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
			"group": g.Name, "members": strings.Join(g.Members, " "), "source": string(g.Source),
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
		inForce, err := s.Policy(tx)
		if err != nil {
			return err
		}
		if inForce != nil && inForce.Names(name) {
			return reason.Conflict("the policy file names group %s", name).
				WithHint("apply one that does not first: curfew admin policy apply FILE")
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

func (s *Service) note(tx Tx, by, kind string, details map[string]string) error {
	return tx.Append(trail.Record{
		TimeMS: s.c.Now().UnixMilli(), Kind: kind, Actor: by, Details: details,
	})
}
