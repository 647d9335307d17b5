package cli

import (
	"context"
	"crypto/ed25519"
	"maps"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func (f *fake) ListHosts(
	context.Context, *apiv1.ListHostsRequest,
) (*apiv1.ListHostsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &apiv1.ListHostsResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.hosts)) {
		answer.Hosts = append(answer.Hosts, f.hosts[name].Host)
	}
	return answer, nil
}

func (f *fake) ListRoles(
	context.Context, *apiv1.ListRolesRequest,
) (*apiv1.ListRolesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &apiv1.ListRolesResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.roles)) {
		answer.Roles = append(answer.Roles, f.roles[name])
	}
	return answer, nil
}

// adminOnly refuses others; the caller holds mu.
func (f *fake) adminOnly(ctx context.Context) error {
	if f.users[me(ctx)].GetAdmin() {
		return nil
	}
	return refuse(apiv1.Code_CODE_DENIED, "only admins may do this")
}

func (f *fake) PutUser(ctx context.Context, in *apiv1.PutUserRequest) (*apiv1.PutUserResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	u := in.GetUser()
	if old := f.users[u.GetName()]; old != nil && in.GetCreateOnly() {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "user %s exists", u.GetName())
	}
	u.Uid = 1900000000 + uint32(len(f.users)) + 1
	f.users[u.GetName()] = u
	return &apiv1.PutUserResponse{User: u}, nil
}

func (f *fake) DisableUser(
	ctx context.Context, in *apiv1.DisableUserRequest,
) (*apiv1.DisableUserResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	u := f.users[in.GetName()]
	if u == nil {
		return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "there is no user %q", in.GetName())
	}
	u.Disabled = true
	maps.DeleteFunc(f.sessions, func(_ [32]byte, user string) bool { return user == in.GetName() })
	return &apiv1.DisableUserResponse{User: u}, nil
}

func (f *fake) ListUsers(
	context.Context, *apiv1.ListUsersRequest,
) (*apiv1.ListUsersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &apiv1.ListUsersResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.users)) {
		f.users[name].Groups = f.groupsOf(name)
		answer.Users = append(answer.Users, f.users[name])
	}
	return answer, nil
}

func (f *fake) PutGroup(
	ctx context.Context, in *apiv1.PutGroupRequest,
) (*apiv1.PutGroupResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	f.groups[in.GetGroup().GetName()] = in.GetGroup().GetMembers()
	return &apiv1.PutGroupResponse{Group: in.GetGroup()}, nil
}

func (f *fake) DeleteGroup(
	ctx context.Context, in *apiv1.DeleteGroupRequest,
) (*apiv1.DeleteGroupResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.groups, in.GetName())
	return &apiv1.DeleteGroupResponse{}, f.adminOnly(ctx)
}

func (f *fake) ListGroups(
	context.Context, *apiv1.ListGroupsRequest,
) (*apiv1.ListGroupsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &apiv1.ListGroupsResponse{}
	for _, name := range slices.Sorted(maps.Keys(f.groups)) {
		answer.Groups = append(answer.Groups, &apiv1.Group{Name: name, Members: f.groups[name]})
	}
	return answer, nil
}

func (f *fake) PutRole(ctx context.Context, in *apiv1.PutRoleRequest) (*apiv1.PutRoleResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	f.roles[in.GetRole().GetName()] = in.GetRole()
	return &apiv1.PutRoleResponse{Role: in.GetRole()}, nil
}

func (f *fake) DeleteRole(
	ctx context.Context, in *apiv1.DeleteRoleRequest,
) (*apiv1.DeleteRoleResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.roles, in.GetName())
	return &apiv1.DeleteRoleResponse{}, f.adminOnly(ctx)
}

func (f *fake) CreateJoinToken(
	ctx context.Context, in *apiv1.CreateJoinTokenRequest,
) (*apiv1.CreateJoinTokenResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	token := "cft1.AAAAAAAAAAAAAAAAAAAAAA." + pinOf(f.ca)
	return &apiv1.CreateJoinTokenResponse{
		Token: token, ExpiresMs: time.Now().Add(30 * time.Minute).UnixMilli(),
		Command: "sudo curfew-agent join --server " + f.address + " " + token,
	}, f.adminOnly(ctx)
}

func (f *fake) RemoveHost(
	ctx context.Context, in *apiv1.RemoveHostRequest,
) (*apiv1.RemoveHostResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[in.GetName()]
	if h == nil {
		return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "there is no host %q", in.GetName())
	}
	if !h.GetConnected() && !in.GetForce() {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "host %s is not connected", in.GetName())
	}
	delete(f.hosts, in.GetName())
	if h.GetConnected() {
		return &apiv1.RemoveHostResponse{Told: true, Ended: []string{"0123456789ab"}, CodesOut: 2},
			f.adminOnly(ctx)
	}
	return &apiv1.RemoveHostResponse{
		Ended: []string{"0123456789ab"}, Left: []string{"0123456789ab"},
		OpensUntilMs: time.Now().Add(10 * time.Minute).UnixMilli(),
		RunsUntilMs:  time.Now().Add(time.Hour).UnixMilli(),
	}, f.adminOnly(ctx)
}

func (f *fake) LabelHost(
	ctx context.Context, in *apiv1.LabelHostRequest,
) (*apiv1.LabelHostResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[in.GetName()]
	if h == nil {
		return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "there is no host %q", in.GetName())
	}
	h.Labels = in.GetLabels()
	return &apiv1.LabelHostResponse{Host: h.Host}, f.adminOnly(ctx)
}

func (f *fake) GetTrust(
	ctx context.Context, _ *apiv1.GetTrustRequest,
) (*apiv1.GetTrustResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.adminOnly(ctx); err != nil {
		return nil, err
	}
	key := grant.Key(f.root.Public().(ed25519.PublicKey))
	env, err := grant.SealTrust(&grant.Trust{
		Version: 3, Organisation: "acme", Epoch: 1, RootThreshold: 1,
		RootKeys: []grant.Key{key}, IssuerKeys: []grant.Key{key},
		Approvers: []grant.Approver{{
			Name: "bob", Groups: []string{"sre"}, SSHKeys: f.users["bob"].GetSshKeys(),
		}},
		Quorums: []grant.Quorum{{Role: "ops", Group: "sre", Approvals: 1}},
	}, f.root)
	answer := &apiv1.GetTrustResponse{Envelope: env}
	if f.tamper["unsigned"] {
		answer.Unsigned = []byte("{}")
	}
	return answer, err
}
