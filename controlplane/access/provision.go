package access

import (
	"context"
	"errors"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const codeConflict = apiv1.Code_CODE_CONFLICT

// What SCIM clients do. Each is one transaction: the resource, the user, what they lose, the records.

// SCIMTokenHolds says whether a bearer token is a SCIM client's.
func (s *Service) SCIMTokenHolds(ctx context.Context, token string) (bool, error) {
	return s.c.Directory.SCIMTokenHolds(ctx, token)
}

// SCIMUsers lists the user resources that are not deleted.
func (s *Service) SCIMUsers(ctx context.Context) (out []identity.SCIMUser, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		all, err := tx.SCIMUsers()
		out = out[:0]
		for _, u := range all {
			if !u.Deleted {
				out = append(out, u)
			}
		}
		return err
	})
	return out, err
}

// SCIMUser reads a user resource.
func (s *Service) SCIMUser(ctx context.Context, id string) (u identity.SCIMUser, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		u, err = scimUser(tx, id)
		return err
	})
	return u, err
}

func scimUser(tx Tx, id string) (identity.SCIMUser, error) {
	u, err := tx.SCIMUser(id)
	if errors.Is(err, identity.ErrNone) || err == nil && u.Deleted {
		return u, reason.NotFound("there is no such user")
	}
	return u, err
}

// PutSCIMUser makes a user resource, or changes the one of the id. Who becomes inactive loses
// sign-in, sessions and live access in the same moment.
func (s *Service) PutSCIMUser(
	ctx context.Context, id string, edit func(*identity.SCIMUser) error,
) (is identity.SCIMUser, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) (err error) {
		was := identity.SCIMUser{}
		if id != "" {
			if was, err = scimUser(tx, id); err != nil {
				return err
			}
		}
		is = was
		if err := edit(&is); err != nil {
			return err
		}
		named, err := tx.SCIMUserNamed(is.UserName)
		if err == nil && named.ID != was.ID && !named.Deleted {
			return reason.Conflict("there is a user with this userName")
		}
		if err != nil && !errors.Is(err, identity.ErrNone) {
			return err
		}
		if is, err = s.c.Directory.ProvisionUser(tx, was, is); err != nil {
			return err
		}
		if is.Active {
			return nil
		}
		return s.gone(tx, is.User, identity.SourceSCIM)
	})
	return is, err
}

// DeleteSCIMUser ends everything of the user; the login name and the uid stay taken.
func (s *Service) DeleteSCIMUser(ctx context.Context, id string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		u, err := scimUser(tx, id)
		if err != nil {
			return err
		}
		return errors.Join(s.gone(tx, u.User, identity.SourceSCIM), s.c.Directory.ForgetUser(tx, u))
	})
}

// SCIMGroups lists the group resources with their members.
func (s *Service) SCIMGroups(ctx context.Context) (out []identity.SCIMGroup, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		if out, err = tx.SCIMGroups(); err != nil {
			return err
		}
		all := make([]*identity.SCIMGroup, len(out))
		for i := range out {
			all[i] = &out[i]
		}
		return s.c.Directory.SCIMMembers(tx, all...)
	})
	return out, err
}

// SCIMGroup reads a group resource.
func (s *Service) SCIMGroup(ctx context.Context, id string) (g identity.SCIMGroup, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		g, err = s.scimGroup(tx, id)
		return err
	})
	return g, err
}

func (s *Service) scimGroup(tx Tx, id string) (identity.SCIMGroup, error) {
	g, err := tx.SCIMGroup(id)
	if errors.Is(err, identity.ErrNone) {
		return g, reason.NotFound("there is no such group")
	}
	if err != nil {
		return g, err
	}
	return g, s.c.Directory.SCIMMembers(tx, &g)
}

// PutSCIMGroup makes a group resource, or changes the one of the id.
func (s *Service) PutSCIMGroup(
	ctx context.Context, id string, edit func(*identity.SCIMGroup) error,
) (is identity.SCIMGroup, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) (err error) {
		was := identity.SCIMGroup{}
		if id != "" {
			if was, err = s.scimGroup(tx, id); err != nil {
				return err
			}
		}
		is = was
		if err := edit(&is); err != nil {
			return err
		}
		if id == "" {
			all, err := tx.SCIMGroups()
			if err != nil {
				return err
			}
			for _, g := range all {
				if g.DisplayName == is.DisplayName {
					return reason.Conflict("there is a group with this displayName")
				}
			}
		}
		if is, err = s.c.Directory.ProvisionGroup(tx, was, is); err != nil {
			return err
		}
		return s.c.Directory.SCIMMembers(tx, &is)
	})
	return is, err
}

// DeleteSCIMGroup takes a group resource and everybody out of its group.
func (s *Service) DeleteSCIMGroup(ctx context.Context, id string) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		g, err := s.scimGroup(tx, id)
		if err != nil {
			return err
		}
		return s.c.Directory.ForgetGroup(tx, g)
	})
}
