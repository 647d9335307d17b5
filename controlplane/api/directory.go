package api

import (
	"context"

	"github.com/curfew-access/curfew/controlplane/identity"
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
	u, err := s.c.Access.PutUser(ctx, p, identity.User{
		Name: req.GetUser().GetName(), Admin: req.GetUser().GetAdmin(),
		Disabled: req.GetUser().GetDisabled(), SSHKeys: req.GetUser().GetSshKeys(),
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
	})
	return &apiv1.PutGroupResponse{Group: &apiv1.Group{Name: g.Name, Members: g.Members}}, err
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
		resp.Groups = append(resp.Groups, &apiv1.Group{Name: g.Name, Members: g.Members})
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
	h, err := s.c.Access.RemoveHost(ctx, p, req.GetName())
	if err == nil {
		s.c.Hub.Drop(h.ID, "this host was removed by an admin")
	}
	return &apiv1.RemoveHostResponse{}, err
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

// GetTrust implements curfew.api.v1.Directory.
func (s *Server) GetTrust(
	ctx context.Context, _ *apiv1.GetTrustRequest,
) (*apiv1.GetTrustResponse, error) {
	row, unsigned, err := s.c.Identity.TrustNow(ctx)
	return &apiv1.GetTrustResponse{Envelope: row.Envelope, Unsigned: unsigned}, err
}
