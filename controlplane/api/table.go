// Package api is the thin gRPC layer: it knows who calls, whether they may call at all, and how
// errors and times look on the wire. It holds no rules; packages identity and access do.
//
// Everything is denied until the table below permits it. Data comes from people and hosts over TLS,
// and goes to identity, access, enrol and stream.
package api

import (
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Role is what a caller is; a caller can be several. A method lists whom it admits.
type Role uint8

// The API roles.
const (
	Everyone Role = 1 << iota
	User
	Approver
	Admin
	Host
	// Auditor is somebody who sees everything and changes nothing; they have no other role.
	Auditor
)

// required is the one table of who may call what. A method without an entry is denied.
var required = map[string]Role{
	apiv1.SignIn_Challenge_FullMethodName: Everyone,
	apiv1.SignIn_Login_FullMethodName:     Everyone,
	apiv1.SignIn_Logout_FullMethodName:    User | Auditor,
	apiv1.SignIn_WhoAmI_FullMethodName:    User | Auditor,

	apiv1.Access_CreateRequest_FullMethodName:   User,
	apiv1.Access_GetRequest_FullMethodName:      User | Auditor,
	apiv1.Access_ListRequests_FullMethodName:    User | Auditor,
	apiv1.Access_WatchRequests_FullMethodName:   User | Auditor,
	apiv1.Access_Withdraw_FullMethodName:        User,
	apiv1.Access_Extend_FullMethodName:          User,
	apiv1.Access_Done_FullMethodName:            User,
	apiv1.Access_Approve_FullMethodName:         Approver,
	apiv1.Access_Deny_FullMethodName:            Approver,
	apiv1.Access_Edit_FullMethodName:            User,
	apiv1.Access_ReviewEmergency_FullMethodName: Approver | Admin,
	apiv1.Access_Revoke_FullMethodName:          Approver | Admin,
	apiv1.Access_ListHosts_FullMethodName:       User | Auditor,
	apiv1.Access_ListRoles_FullMethodName:       User | Auditor,
	apiv1.Access_ListRecords_FullMethodName:     User | Auditor,

	apiv1.Directory_PutUser_FullMethodName:         Admin,
	apiv1.Directory_DisableUser_FullMethodName:     Admin,
	apiv1.Directory_ListUsers_FullMethodName:       Admin | Auditor,
	apiv1.Directory_PutGroup_FullMethodName:        Admin,
	apiv1.Directory_DeleteGroup_FullMethodName:     Admin,
	apiv1.Directory_ListGroups_FullMethodName:      Admin | Auditor,
	apiv1.Directory_PutRole_FullMethodName:         Admin,
	apiv1.Directory_DeleteRole_FullMethodName:      Admin,
	apiv1.Directory_CreateJoinToken_FullMethodName: Admin,
	apiv1.Directory_RemoveHost_FullMethodName:      Admin,
	apiv1.Directory_LabelHost_FullMethodName:       Admin,
	apiv1.Directory_GetTrust_FullMethodName:        Admin | Auditor,
	apiv1.Directory_ProposeTrust_FullMethodName:    Admin,
	apiv1.Directory_SignTrust_FullMethodName:       Admin,

	apiv1.BreakGlass_ListCodes_FullMethodName: Approver | Admin | Auditor,
	apiv1.BreakGlass_FetchCode_FullMethodName: Approver | Admin, // and one of those whom it is sealed to

	apiv1.BreakGlass_RotateCodes_FullMethodName: Approver | Admin, // who is an admin or one of those

	apiv1.Rollouts_StartRollout_FullMethodName: Admin,
	apiv1.Rollouts_GetRollout_FullMethodName:   Admin | Auditor,
	apiv1.Rollouts_ListRollouts_FullMethodName: Admin | Auditor,
	apiv1.Rollouts_SteerRollout_FullMethodName: Admin,

	apiv1.Policy_ApplyPolicy_FullMethodName:    Admin,
	apiv1.Policy_ClearPolicy_FullMethodName:    Admin,
	apiv1.Policy_GetPolicy_FullMethodName:      Approver | Admin | Auditor,
	apiv1.Policy_ListPolicies_FullMethodName:   Approver | Admin | Auditor,
	apiv1.Policy_ExplainRequest_FullMethodName: User | Auditor,
	apiv1.Policy_ReplayPolicy_FullMethodName:   Admin | Auditor,

	apiv1.Identity_Methods_FullMethodName:       Everyone,
	apiv1.Identity_LoginOIDC_FullMethodName:     Everyone,
	apiv1.Identity_StartDevice_FullMethodName:   Everyone,
	apiv1.Identity_FinishDevice_FullMethodName:  Everyone,
	apiv1.Identity_LoginWorkload_FullMethodName: Everyone,

	apiv1.Identity_ListSessions_FullMethodName: User | Auditor,
	apiv1.Identity_EndSession_FullMethodName:   User | Auditor,
	apiv1.Identity_ListKeys_FullMethodName:     User | Auditor,
	apiv1.Identity_AddKey_FullMethodName:       User,
	apiv1.Identity_RemoveKey_FullMethodName:    User,

	apiv1.Identity_ListAllSessions_FullMethodName:  Admin | Auditor,
	apiv1.Identity_EndAnySession_FullMethodName:    Admin,
	apiv1.Identity_LinkUser_FullMethodName:         Admin,
	apiv1.Identity_UnlinkUser_FullMethodName:       Admin,
	apiv1.Identity_PutWorkload_FullMethodName:      Admin,
	apiv1.Identity_DeleteWorkload_FullMethodName:   Admin,
	apiv1.Identity_ListWorkloads_FullMethodName:    Admin | Auditor,
	apiv1.Identity_CreateSCIMToken_FullMethodName:  Admin,
	apiv1.Identity_DeleteSCIMTokens_FullMethodName: Admin,

	apiv1.HostLink_Connect_FullMethodName: Host,
	// A join token speaks for a machine that is no host yet.
	apiv1.Enrolment_Enrol_FullMethodName: Everyone,
	// Checks the certificate itself: one that ended lately is good for this call alone.
	apiv1.Enrolment_Renew_FullMethodName:       Everyone,
	apiv1.Enrolment_Authorities_FullMethodName: Host,

	// Says only "serving".
	"/grpc.health.v1.Health/Check": Everyone,
	"/grpc.health.v1.Health/Watch": Everyone,
}

// permits says whether a caller with these roles may call a method.
func permits(method string, roles Role) bool {
	want, known := required[method]
	return known && want&(roles|Everyone) != 0
}
