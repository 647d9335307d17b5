package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
)

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
		if err := s.rolesAreOurs(tx); err != nil {
			return err
		}
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
		if err := s.rolesAreOurs(tx); err != nil {
			return err
		}
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
		inForce, err := s.Policy(tx)
		if err != nil || inForce != nil {
			if err == nil {
				roles = inForce.Roles()
			}
			return err
		}
		roles, err = tx.Roles()
		return err
	})
	return roles, err
}
