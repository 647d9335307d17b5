package controlplane_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// whoMay is the contract, written a second time: a change of the server's table must be made here
// too. u: user, p: approver, a: admin (who is a user), d: auditor (who is nothing else), h: host, e: everyone.
var whoMay = map[string]string{
	"SignIn/Challenge": "e", "SignIn/Login": "e", "SignIn/Logout": "ud", "SignIn/WhoAmI": "ud",
	"Access/CreateRequest": "u", "Access/GetRequest": "ud", "Access/ListRequests": "ud",
	"Access/WatchRequests": "ud", "Access/Withdraw": "u", "Access/Extend": "u", "Access/Done": "u",
	"Access/Approve": "p", "Access/Deny": "p", "Access/Revoke": "pa", "Access/ListHosts": "ud",
	"Access/ListRoles": "ud", "Access/ListRecords": "ud", "Access/Edit": "u",
	"Access/ReviewEmergency": "pa",
	"Directory/PutUser":      "a", "Directory/DisableUser": "a", "Directory/ListUsers": "ad",
	"Directory/PutGroup": "a", "Directory/DeleteGroup": "a", "Directory/ListGroups": "ad",
	"Directory/PutRole": "a", "Directory/DeleteRole": "a", "Directory/CreateJoinToken": "a",
	"Directory/RemoveHost": "a", "Directory/LabelHost": "a", "Directory/GetTrust": "ad",
	"Directory/ProposeTrust": "a", "Directory/SignTrust": "a",
	"BreakGlass/ListCodes": "pad", "BreakGlass/FetchCode": "pa", "BreakGlass/RotateCodes": "pa",
	"Rollouts/StartRollout": "a", "Rollouts/GetRollout": "ad", "Rollouts/ListRollouts": "ad",
	"Rollouts/SteerRollout": "a",
	"Policy/ApplyPolicy":    "a", "Policy/ClearPolicy": "a", "Policy/GetPolicy": "pad", "Policy/ListPolicies": "pad",
	"Policy/ExplainRequest": "ud", "Policy/ReplayPolicy": "ad",
	"Identity/Methods": "e", "Identity/LoginOIDC": "e", "Identity/StartDevice": "e",
	"Identity/FinishDevice": "e", "Identity/LoginWorkload": "e", "Identity/ListSessions": "ud",
	"Identity/EndSession": "ud", "Identity/ListKeys": "ud", "Identity/AddKey": "u",
	"Identity/RemoveKey": "u", "Identity/ListAllSessions": "ad", "Identity/EndAnySession": "a",
	"Identity/LinkUser": "a", "Identity/UnlinkUser": "a", "Identity/PutWorkload": "a",
	"Identity/DeleteWorkload": "a", "Identity/ListWorkloads": "ad", "Identity/CreateSCIMToken": "a",
	"Identity/DeleteSCIMTokens": "a",
	"HostLink/Connect":          "h", "Enrolment/Enrol": "e", "Enrolment/Renew": "e",
	"Enrolment/Authorities": "h",
}

// Every RPC of the protos × every API role and none: default deny.
func TestEveryMethodForEveryRole(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	web1.disconnect()
	callers := []struct {
		name, is string
		conn     *grpc.ClientConn
	}{
		{"a stranger", "e", h.dial(nil)},
		{"a user", "eu", alice.conn},
		{"an approver", "eup", bob.conn},
		{"an admin", "eua", h.admin.conn},
		{"an auditor", "ed", h.auditor("otto").conn},
		{"a host", "eh", h.dial(web1.cert)},
	}
	methods := 0
	for _, file := range []protoreflect.FileDescriptor{
		apiv1.File_curfew_api_v1_access_proto, apiv1.File_curfew_api_v1_admin_proto,
		apiv1.File_curfew_api_v1_host_proto, apiv1.File_curfew_api_v1_identity_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for k := range service.Methods().Len() {
				m := service.Methods().Get(k)
				if m.Name() == "Logout" {
					continue // it would end the callers' sessions; TestSessionIsItsKey calls it
				}
				methods++
				key := string(service.Name()) + "/" + string(m.Name())
				may, known := whoMay[key]
				if !known {
					t.Errorf("%s is new: say who may call it", key)
				}
				for _, c := range callers {
					got := invoke(t, c.conn, "/"+string(service.FullName())+"/"+string(m.Name()), m)
					if want := strings.ContainsAny(c.is, may); admitted(got) != want {
						t.Errorf("%s calls %s: admitted %v, want %v (%v)", c.name, key, !want, want, got)
					}
				}
			}
		}
	}
	if methods+1 != len(whoMay) {
		t.Errorf("the protos have %d methods, the contract %d", methods+1, len(whoMay))
	}
}

// admitted says whether a call got as far as its handler.
func admitted(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*apiv1.Reason); ok {
			return r.GetText() != "this needs a sign-in" && r.GetText() != "this is not yours to call"
		}
	}
	return true
}

func invoke(t *testing.T, conn *grpc.ClientConn, path string, m protoreflect.MethodDescriptor) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() && !m.IsStreamingClient() {
		return conn.Invoke(ctx, path, in, out)
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{
		ServerStreams: m.IsStreamingServer(), ClientStreams: m.IsStreamingClient(),
	}, path)
	if err != nil {
		return err
	}
	if err := s.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return s.RecvMsg(out)
}

// A method that nobody knows is no way in either.
func TestUnknownMethodIsDenied(t *testing.T) {
	h := build(t, nil)
	in := &apiv1.ChallengeRequest{}
	for _, path := range []string{"/curfew.api.v1.Directory/Everything", "/x.y/Z"} {
		if err := h.admin.conn.Invoke(t.Context(), path, in, &apiv1.ChallengeResponse{}); err == nil {
			t.Errorf("%s answered", path)
		}
	}
}
