package controlplane_test

import (
	"slices"
	"testing"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// auditor makes an auditor, who is also put into the approver group: it must not help them.
func (h *house) auditor(name string) *person {
	h.t.Helper()
	key := newKey(h.t)
	_, err := h.admin.PutUser(h.t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: name, SshKeys: []string{grant.SSHKeyText(key.PublicKey())}, Auditor: true,
	}})
	must(h.t, err)
	h.group("watchers", name)
	return h.signIn(name, key)
}

// An auditor sees what everybody did and changes nothing, whatever groups hold them.
func TestAuditorSeesAllAndChangesNothing(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	otto := h.auditor("otto")
	h.group("sre", "bob", "otto")
	r := alice.ask("web1")
	if got := otto.get(r.GetId()); got.GetRequester() != "alice" {
		t.Errorf("the auditor sees %v", got)
	}
	listed, err := otto.ListRequests(t.Context(), &apiv1.ListRequestsRequest{})
	must(t, err)
	if len(listed.GetRequests()) != 1 || len(otto.records()) < 5 {
		t.Errorf("the auditor sees %d requests", len(listed.GetRequests()))
	}
	me, err := otto.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	must(t, err)
	if !slices.Equal(me.GetApiRoles(), []string{"auditor"}) {
		t.Errorf("an auditor in an approver group is %v", me.GetApiRoles())
	}
	_, err = otto.approve(r)
	refused(t, err, apiv1.Code_CODE_DENIED)
	// Nor do hosts count their signature.
	trust, err := otto.GetTrust(t.Context(), &apiv1.GetTrustRequest{})
	must(t, err)
	opened, err := grant.OpenTrust(trust.GetEnvelope(), nil)
	must(t, err)
	if opened.Approver("otto") != nil || opened.Approver("bob") == nil {
		t.Errorf("the trust file names approvers %v", opened.Approvers)
	}
	_, err = h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "otto", SshKeys: []string{grant.SSHKeyText(otto.key.PublicKey())}, Auditor: true, Admin: true,
	}})
	refused(t, err, apiv1.Code_CODE_INVALID)
	_, err = bob.approve(r)
	must(t, err)
	web1.eventually(1)
}

// What an admin leaves out stays, what providers keep is not for hands, addresses are plain.
func TestUserDetails(t *testing.T) {
	h := build(t, nil)
	put := func(name string, email, manager *string) (*apiv1.User, error) {
		resp, err := h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{
			User: &apiv1.User{Name: name, Email: email, Manager: manager},
		})
		return resp.GetUser(), err
	}
	text := func(s string) *string { return &s }
	u, err := put("alice", text("Alice@acme.org"), text("bob"))
	must(t, err)
	u, err = put(u.GetName(), nil, nil)
	must(t, err)
	if u.GetEmail() != "Alice@acme.org" || u.GetManager() != "bob" || u.GetSource() != "local" ||
		u.GetKind() != "person" {
		t.Errorf("it became %v", u)
	}
	for _, bad := range []string{
		"alice", "@acme.org", "a b@acme.org", "a@acme.org\nBcc: x@y.z", "a@b@c", "ä@acme.org",
		"a,b@acme.org", "<a@acme.org>", "a@-acme.org", "a@",
	} {
		_, err := put("alice", text(bad), nil)
		refused(t, err, apiv1.Code_CODE_INVALID)
	}
	_, err = put("alice", nil, text("Bob"))
	refused(t, err, apiv1.Code_CODE_INVALID)
	_, err = h.admin.PutGroup(t.Context(), &apiv1.PutGroupRequest{
		Group: &apiv1.Group{Name: "sre", Members: []string{"alice"}, Source: "oidc"},
	})
	must(t, err)
	_, err = h.admin.PutGroup(t.Context(), &apiv1.PutGroupRequest{
		Group: &apiv1.Group{Name: "sre", Members: []string{"dana"}},
	})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	h.group("ops", "alice")
	_, err = h.admin.PutGroup(t.Context(), &apiv1.PutGroupRequest{
		Group: &apiv1.Group{Name: "sre", Members: []string{"dana"}, Source: "local"},
	})
	must(t, err)
	h.group("sre", "alice", "dana")
}
