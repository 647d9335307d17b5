package identity

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
)

// Kinds of trail records about SCIM.
const (
	KindSCIMToken   = "scim.token"
	KindSCIMRevoked = "scim.tokens_revoked"
	KindSCIMDeleted = "scim.user_deleted"
)

const (
	scimTokenPrefix = "cfs1."
)

// SCIMUser is a user resource of RFC 7643 as far as it is kept here.
type SCIMUser struct {
	ID       string
	User     string // login name; never changes
	UserName string // as the client wrote it
	Active   bool
	SCIMDetails
	Created, Changed time.Time
	Version          int64
}

// SCIMDetails are attributes that decide nothing but address and manager.
type SCIMDetails struct {
	ExternalID  string `json:"external_id,omitempty"`
	DisplayName string `json:"display_name,omitempty"`
	GivenName   string `json:"given_name,omitempty"`
	FamilyName  string `json:"family_name,omitempty"`
	Email       string `json:"email,omitempty"`
	ManagerID   string `json:"manager_id,omitempty"` // another resource
	// Deleted resources stay, so that their login name and uid go to nobody else.
	Deleted bool `json:"deleted,omitempty"`
}

// SCIMGroup is a group resource; its members are those of the directory's group.
type SCIMGroup struct {
	ID          string
	Group       string // name in the directory; never changes
	DisplayName string
	ExternalID  string
	// Members are ids of user resources, sorted; the store leaves them to the directory.
	Members          []string
	Created, Changed time.Time
	Version          int64
}

// NewSCIMToken draws the secret of a SCIM client; only its hash is kept.
func (s *Service) NewSCIMToken(ctx context.Context, by string) (string, error) {
	secret := make([]byte, 32)
	if _, err := io.ReadFull(s.c.Rand, secret); err != nil {
		return "", fmt.Errorf("drawing a SCIM token: %w", err)
	}
	token := scimTokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	return token, s.c.Store.Update(ctx, func(tx Tx) error {
		hash := sha256.Sum256([]byte(token))
		return errors.Join(tx.PutSCIMToken(hash, by, s.c.Now()),
			s.note(tx, by, KindSCIMToken, map[string]string{"token": hex.EncodeToString(hash[:4])}))
	})
}

// RevokeSCIMTokens ends every SCIM client's access.
func (s *Service) RevokeSCIMTokens(ctx context.Context, by string) (n int, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) (err error) {
		if n, err = tx.DeleteSCIMTokens(); err != nil {
			return err
		}
		return s.note(tx, by, KindSCIMRevoked, map[string]string{"count": fmt.Sprint(n)})
	})
	return n, err
}

// SCIMTokenHolds says whether a token is one that was drawn here. The look-up is by hash: its time
// says nothing about the secret.
func (s *Service) SCIMTokenHolds(ctx context.Context, token string) (ok bool, err error) {
	if !strings.HasPrefix(token, scimTokenPrefix) {
		return false, nil
	}
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		ok, err = tx.SCIMToken(sha256.Sum256([]byte(token)))
		return err
	})
	return ok, err
}

func (s *Service) newSCIMID() (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(s.c.Rand, b); err != nil {
		return "", fmt.Errorf("drawing a resource id: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// ProvisionUser writes a user resource and what it means for the user, in the caller's transaction:
// was is zero for a new one. Ending what a disabled user has is package access's.
func (s *Service) ProvisionUser(tx Tx, was, is SCIMUser) (SCIMUser, error) {
	now := s.c.Now()
	if err := checkSCIM(is); err != nil {
		return is, err
	}
	user, err := s.provisioned(tx, was, &is)
	if err != nil {
		return is, err
	}
	u := user
	u.Source, u.Email = SourceSCIM, ""
	if CheckEmail(is.Email) == nil {
		u.Email = is.Email
	}
	u.Manager = ""
	if is.ManagerID != "" {
		if m, err := tx.SCIMUser(is.ManagerID); err == nil {
			u.Manager = m.User
		} else if !errors.Is(err, ErrNone) {
			return is, err
		}
	}
	if is.Active && u.DisabledBy == SourceSCIM {
		u.Disabled, u.DisabledBy = false, ""
	}
	if user.Name == "" || u.Source != user.Source || u.Email != user.Email ||
		u.Manager != user.Manager || u.Disabled != user.Disabled {
		u.Name, u.Kind = is.User, KindPerson
		if _, err := s.putUser(tx, string(SourceSCIM), user, u); err != nil {
			return is, err
		}
		if err := s.refreshTrust(tx, string(SourceSCIM)); err != nil {
			return is, err
		}
	}
	if was.ID == "" {
		if is.ID == "" {
			if is.ID, err = s.newSCIMID(); err != nil {
				return is, err
			}
		}
		is.Created = now
	}
	is.Changed, is.Version = now, was.Version+1
	return is, tx.PutSCIMUser(is)
}

func checkSCIM(u SCIMUser) error {
	for _, v := range []string{
		u.UserName, u.ExternalID, u.DisplayName, u.GivenName, u.FamilyName, u.Email, u.ManagerID,
	} {
		if len(v) > 512 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return reason.Invalid("an attribute is too long or holds control characters")
		}
	}
	return nil
}

// provisioned is the user whom a resource stands for; zero for one that is to be made. A name that
// somebody has here is nobody else's.
func (s *Service) provisioned(tx Tx, was SCIMUser, is *SCIMUser) (User, error) {
	if was.ID != "" {
		is.ID, is.User = was.ID, was.User
		return tx.User(was.User)
	}
	name, err := s.c.Federation.Names.Map(is.UserName)
	if err != nil {
		return User{}, reason.Invalid("userName: %v", err)
	}
	is.User = name
	user, err := tx.User(name)
	if errors.Is(err, ErrNone) {
		return User{}, nil
	}
	if err != nil {
		return user, err
	}
	old, err := tx.SCIMUserOf(name)
	if err != nil && !errors.Is(err, ErrNone) {
		return user, err
	}
	switch {
	case err == nil && (!old.Deleted || old.ExternalID == "" || old.ExternalID != is.ExternalID):
		return user, reason.Conflict("user %s was provisioned before, for somebody else or still", name).
			WithHint("an admin lets go of them: curfew admin user unlink %s", name)
	case err == nil:
		is.ID = old.ID // the same person again
	case user.Kind != KindPerson, user.Source == SourceLocal:
		return user, reason.Conflict("user %s is kept here and not by SCIM", name).
			WithHint("an admin hands them over: curfew admin user link %s --scim", name)
	}
	return user, nil
}

// HandToSCIM lets SCIM adopt a user who was kept here.
func (s *Service) HandToSCIM(ctx context.Context, by, name string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		user, err := tx.User(name)
		if errors.Is(err, ErrNone) {
			return reason.NotFound("there is no user %s", grant.VisibleText(name))
		}
		if err != nil {
			return err
		}
		if user.Kind != KindPerson {
			return reason.Invalid("%s is a workload", name)
		}
		is := user
		is.Source = SourceSCIM
		_, err = s.putUser(tx, by, user, is)
		return err
	})
}

// ForgetUser marks a resource as deleted; its login name and uid stay taken.
func (s *Service) ForgetUser(tx Tx, u SCIMUser) error {
	u.Deleted, u.Active, u.Changed, u.Version = true, false, s.c.Now(), u.Version+1
	return errors.Join(tx.PutSCIMUser(u), s.note(tx, string(SourceSCIM), KindSCIMDeleted,
		map[string]string{"user": u.User}))
}

// ProvisionGroup writes a group resource and makes the directory's group say the same.
func (s *Service) ProvisionGroup(tx Tx, was, is SCIMGroup) (SCIMGroup, error) {
	name, ok := strings.CutPrefix(is.DisplayName, s.c.Federation.GroupPrefix)
	if err := grant.CheckGroupName(name); err != nil || !ok {
		return is, reason.Invalid("displayName %q is no group here: want %s followed by a name of "+
			"a-z, 0-9 and -", grant.VisibleText(is.DisplayName), s.c.Federation.GroupPrefix)
	}
	if len(is.ExternalID) > 512 {
		return is, reason.Invalid("externalId is too long")
	}
	is.Group = name
	if was.ID != "" && name != was.Group {
		return is, reason.Invalid("a group keeps its name: roles are given to %s", was.Group)
	}
	if was.ID == "" {
		group, err := tx.Group(name)
		if err != nil && !errors.Is(err, ErrNone) {
			return is, err
		}
		if err == nil && group.Source != SourceSCIM {
			return is, reason.Conflict("group %s is kept by %s and not by SCIM", name, group.Source).
				WithHint("an admin hands it over: curfew admin group set %s --source scim", name)
		}
		if is.ID, err = s.newSCIMID(); err != nil {
			return is, err
		}
		is.Created = s.c.Now()
	}
	members := make([]string, 0, len(is.Members))
	for _, id := range is.Members {
		u, err := tx.SCIMUser(id)
		if errors.Is(err, ErrNone) || err == nil && u.Deleted {
			return is, reason.Invalid("member %s is no user", grant.VisibleText(id))
		}
		if err != nil {
			return is, err
		}
		members = append(members, u.User)
	}
	slices.Sort(members)
	err := s.putGroup(tx, string(SourceSCIM),
		Group{Name: name, Source: SourceSCIM, Members: slices.Compact(members)})
	if err != nil {
		return is, err
	}
	is.Changed, is.Version = s.c.Now(), was.Version+1
	return is, errors.Join(tx.PutSCIMGroup(is), s.refreshTrust(tx, string(SourceSCIM)))
}

// ForgetGroup deletes a group resource. The directory's group is emptied, and stays while a role
// names it: a deletion elsewhere takes access away and breaks nothing.
func (s *Service) ForgetGroup(tx Tx, g SCIMGroup) error {
	roles, err := tx.Roles()
	if err != nil {
		return err
	}
	by := string(SourceSCIM)
	if err := tx.DeleteSCIMGroup(g.ID); err != nil {
		return err
	}
	named := false
	for _, r := range roles {
		named = named || r.ApproverGroup == g.Group || slices.Contains(r.RequesterGroups, g.Group)
	}
	if named {
		err = s.putGroup(tx, by, Group{Name: g.Group, Source: SourceSCIM})
	} else {
		err = errors.Join(tx.DeleteGroup(g.Group),
			s.note(tx, by, KindGroupDeleted, map[string]string{"group": g.Group}))
	}
	return errors.Join(err, s.refreshTrust(tx, by))
}

// SCIMMembers fills in the members of group resources from the directory.
func (s *Service) SCIMMembers(tx Tx, groups ...*SCIMGroup) error {
	all, err := tx.SCIMUsers()
	if err != nil {
		return err
	}
	ids := make(map[string]string, len(all))
	for _, u := range all {
		ids[u.User] = u.ID
	}
	for _, g := range groups {
		group, err := tx.Group(g.Group)
		if err != nil {
			return err
		}
		g.Members = make([]string, 0, len(group.Members))
		for _, name := range group.Members {
			if id, ok := ids[name]; ok {
				g.Members = append(g.Members, id)
			}
		}
		slices.Sort(g.Members)
	}
	return nil
}
