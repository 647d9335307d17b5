package api

import (
	"context"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// PutUser implements curfew.api.v1.Directory.
func (s *Server) PutUser(
	ctx context.Context, req *apiv1.PutUserRequest,
) (*apiv1.PutUserResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	in := req.GetUser()
	if in == nil {
		return nil, reason.Invalid("no user is given")
	}
	u, err := s.c.Access.PutUser(ctx, p, identity.Edit{
		Name: in.GetName(), Admin: in.GetAdmin(), Auditor: in.GetAuditor(), Disabled: in.GetDisabled(),
		SSHKeys: in.GetSshKeys(), Email: in.Email, Manager: in.Manager,
		VerifyRequired: in.VerifyRequired,
	}, req.GetCreateOnly())
	return &apiv1.PutUserResponse{User: userOut(u)}, err
}

// DisableUser implements curfew.api.v1.Directory.
func (s *Server) DisableUser(
	ctx context.Context, req *apiv1.DisableUserRequest,
) (*apiv1.DisableUserResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	u, err := s.c.Access.DisableUser(ctx, p, req.GetName())
	return &apiv1.DisableUserResponse{User: userOut(u)}, err
}

// ListUsers implements curfew.api.v1.Directory.
func (s *Server) ListUsers(
	ctx context.Context, _ *apiv1.ListUsersRequest,
) (*apiv1.ListUsersResponse, error) {
	users, err := s.c.Identity.Users(ctx)
	resp := &apiv1.ListUsersResponse{}
	for _, u := range users {
		resp.Users = append(resp.Users, userOut(u))
	}
	return resp, err
}

// PutGroup implements curfew.api.v1.Directory.
func (s *Server) PutGroup(
	ctx context.Context, req *apiv1.PutGroupRequest,
) (*apiv1.PutGroupResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	g, err := s.c.Identity.PutGroup(ctx, p.Name, identity.Group{
		Name: req.GetGroup().GetName(), Members: req.GetGroup().GetMembers(),
		Source: identity.Source(req.GetGroup().GetSource()),
	})
	return &apiv1.PutGroupResponse{Group: groupOut(g)}, err
}

// DeleteGroup implements curfew.api.v1.Directory.
func (s *Server) DeleteGroup(
	ctx context.Context, req *apiv1.DeleteGroupRequest,
) (*apiv1.DeleteGroupResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	return &apiv1.DeleteGroupResponse{}, s.c.Identity.DeleteGroup(ctx, p.Name, req.GetName())
}

// ListGroups implements curfew.api.v1.Directory.
func (s *Server) ListGroups(
	ctx context.Context, _ *apiv1.ListGroupsRequest,
) (*apiv1.ListGroupsResponse, error) {
	groups, err := s.c.Identity.Groups(ctx)
	resp := &apiv1.ListGroupsResponse{}
	for _, g := range groups {
		resp.Groups = append(resp.Groups, groupOut(g))
	}
	return resp, err
}

// PutRole implements curfew.api.v1.Directory.
func (s *Server) PutRole(
	ctx context.Context, req *apiv1.PutRoleRequest,
) (*apiv1.PutRoleResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.c.Identity.PutRole(ctx, p.Name, roleIn(req.GetRole()))
	return &apiv1.PutRoleResponse{Role: roleOut(&r)}, err
}

// DeleteRole implements curfew.api.v1.Directory.
func (s *Server) DeleteRole(
	ctx context.Context, req *apiv1.DeleteRoleRequest,
) (*apiv1.DeleteRoleResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	return &apiv1.DeleteRoleResponse{}, s.c.Identity.DeleteRole(ctx, p.Name, req.GetName())
}

// CreateJoinToken implements curfew.api.v1.Directory.
func (s *Server) CreateJoinToken(
	ctx context.Context, req *apiv1.CreateJoinTokenRequest,
) (*apiv1.CreateJoinTokenResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	token, expires, err := s.c.Tokens.CreateToken(ctx, p.Name, req.GetName(), req.GetLabels())
	return &apiv1.CreateJoinTokenResponse{
		Token: token, ExpiresMs: msOf(expires),
		Command: "sudo curfew-agent join --server " + s.c.URL + " " + token,
	}, err
}

// RemoveHost implements curfew.api.v1.Directory.
func (s *Server) RemoveHost(
	ctx context.Context, req *apiv1.RemoveHostRequest,
) (*apiv1.RemoveHostResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	// Listening begins before the removal, so that nothing of the host's answer is missed.
	sub := s.c.Bell.Subscribe(watchDepth)
	defer sub.Close()
	r, err := s.c.Access.RemoveHost(ctx, p, req.GetName(), s.reach, req.GetForce())
	if err != nil {
		return nil, err
	}
	parting, err := s.awaitParting(ctx, sub, r.Host)
	if err != nil {
		return nil, err
	}
	out := &apiv1.RemoveHostResponse{
		Told: parting.Told, Ended: r.Ended, Left: parting.Left, CodesOut: uint32(r.CodesOut),
	}
	if !parting.Told {
		out.Left, out.OpensUntilMs, out.RunsUntilMs = r.Ended, msOf(r.OpensUntil), msOf(r.RunsUntil)
	}
	return out, nil
}

// partingWait is how long the removal of a connected host waits for the host to have ended everything;
// processes take two seconds, a look over large disks longer.
const partingWait = 15 * time.Second

// awaitParting waits until a removed host has ended everything, while it is there to do so.
func (s *Server) awaitParting(
	ctx context.Context, sub *watch.Subscription, id grant.HostID,
) (access.Parting, error) {
	limit := time.NewTimer(partingWait)
	defer limit.Stop()
	for {
		parting, err := s.c.Access.Parting(ctx, id)
		health, _ := s.c.Hub.Health(id)
		if err != nil || parting.Told && len(parting.Left) == 0 || !health.Connected {
			return parting, err
		}
		select {
		case <-ctx.Done():
			return parting, ctx.Err()
		case <-limit.C:
			return parting, nil
		case _, ok := <-sub.C:
			if !ok {
				return parting, nil // what is known is said; the host parts by itself
			}
		}
	}
}

// reach is what the hub knows of the way to a host.
func (s *Server) reach(id grant.HostID) access.Reach {
	health, seen := s.c.Hub.Health(id)
	heard := s.c.Now()
	if seen && !health.Connected {
		heard = health.LastSeen
	}
	return access.Reach{Connected: health.Connected, Lease: heard.Add(s.c.Lease)}
}

// LabelHost implements curfew.api.v1.Directory.
func (s *Server) LabelHost(
	ctx context.Context, req *apiv1.LabelHostRequest,
) (*apiv1.LabelHostResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	h, err := s.c.Access.LabelHost(ctx, p, req.GetName(), req.GetLabels())
	if err != nil {
		return nil, err
	}
	return &apiv1.LabelHostResponse{Host: s.host(h)}, nil
}
