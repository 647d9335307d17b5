package api

import (
	"context"
	"crypto/ed25519"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// sessionKey is the Ed25519 key that the connection proved; nil for none.
func sessionKey(ctx context.Context) ed25519.PublicKey {
	cert := clientCertificate(ctx)
	if cert == nil {
		return nil
	}
	pub, _ := cert.PublicKey.(ed25519.PublicKey)
	return pub
}

// Methods implements curfew.api.v1.Identity.
func (s *Server) Methods(
	ctx context.Context, _ *apiv1.MethodsRequest,
) (*apiv1.MethodsResponse, error) {
	m, ok, err := s.c.Identity.Methods(ctx)
	resp := &apiv1.MethodsResponse{WorkloadAudience: s.c.Identity.Audience()}
	if err != nil {
		resp.Oidc = &apiv1.OIDCMethod{Unreachable: true} // pipelines do not need the people's provider
		return resp, nil
	}
	if ok {
		resp.Oidc = &apiv1.OIDCMethod{
			Issuer: m.Issuer, AuthorizationEndpoint: m.AuthorizationEndpoint, ClientId: m.ClientID,
			Scopes: m.Scopes, Device: m.Device, RedirectPort: uint32(m.RedirectPort),
		}
	}
	return resp, nil
}

// LoginOIDC implements curfew.api.v1.Identity.
func (s *Server) LoginOIDC(
	ctx context.Context, req *apiv1.LoginOIDCRequest,
) (*apiv1.LoginOIDCResponse, error) {
	session, err := s.c.Identity.LoginOIDC(ctx, identity.OIDCLogin{
		Challenge: req.GetChallenge(), SessionKey: req.GetSessionPublicKey(), Code: req.GetCode(),
		Verifier: req.GetCodeVerifier(), Redirect: req.GetRedirectUri(), Device: req.GetDevice(),
		Address: address(ctx),
	})
	return &apiv1.LoginOIDCResponse{ExpiresMs: msOf(session.Expires), User: session.User}, err
}

// StartDevice implements curfew.api.v1.Identity.
func (s *Server) StartDevice(
	ctx context.Context, req *apiv1.StartDeviceRequest,
) (*apiv1.StartDeviceResponse, error) {
	id, code, err := s.c.Identity.StartDevice(ctx, req.GetChallenge(), req.GetSessionPublicKey(),
		req.GetDevice(), address(ctx))
	return &apiv1.StartDeviceResponse{
		Flow: id, UserCode: code.UserCode, VerificationUri: code.URI,
		VerificationUriComplete: code.Complete, ExpiresMs: msOf(code.Expires),
	}, err
}

// FinishDevice implements curfew.api.v1.Identity.
func (s *Server) FinishDevice(
	ctx context.Context, req *apiv1.FinishDeviceRequest,
) (*apiv1.FinishDeviceResponse, error) {
	session, done, err := s.c.Identity.FinishDevice(ctx, req.GetFlow(), sessionKey(ctx))
	resp := &apiv1.FinishDeviceResponse{Done: done}
	if done {
		resp.ExpiresMs, resp.User = msOf(session.Expires), session.User
	}
	return resp, err
}

// LoginWorkload implements curfew.api.v1.Identity.
func (s *Server) LoginWorkload(
	ctx context.Context, req *apiv1.LoginWorkloadRequest,
) (*apiv1.LoginWorkloadResponse, error) {
	session, err := s.c.Identity.LoginWorkload(ctx, identity.WorkloadLogin{
		Challenge: req.GetChallenge(), SessionKey: req.GetSessionPublicKey(), Token: req.GetToken(),
		User: req.GetUser(), Device: req.GetDevice(), Address: address(ctx),
	})
	return &apiv1.LoginWorkloadResponse{ExpiresMs: msOf(session.Expires), User: session.User}, err
}

func sessionsOut(sessions []identity.Session, current [32]byte) []*apiv1.SignedInSession {
	out := make([]*apiv1.SignedInSession, 0, len(sessions))
	for i := range sessions {
		x := &sessions[i]
		out = append(out, &apiv1.SignedInSession{
			Id: x.ID(), User: x.User, Method: string(x.Method),
			SshKey: identity.Fingerprint(x.SSHKey), Device: x.Device, Address: x.Address,
			CreatedMs: msOf(x.Created), ExpiresMs: msOf(x.Expires), UsedMs: msOf(x.Used),
			UsedAddress: x.UsedFrom, Current: x.Key == current,
		})
	}
	return out
}

// ListSessions implements curfew.api.v1.Identity.
func (s *Server) ListSessions(
	ctx context.Context, _ *apiv1.ListSessionsRequest,
) (*apiv1.ListSessionsResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.c.Identity.Sessions(ctx, p.Name)
	return &apiv1.ListSessionsResponse{Sessions: sessionsOut(found, p.Session.Key)}, err
}

// EndSession implements curfew.api.v1.Identity.
func (s *Server) EndSession(
	ctx context.Context, req *apiv1.EndSessionRequest,
) (*apiv1.EndSessionResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetId() == "" {
		return nil, reason.Invalid("which session?").WithHint("curfew sessions lists yours")
	}
	ended, err := s.c.Identity.EndSessions(ctx, p.Name, p.Name, req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.EndSessionResponse{Session: sessionsOut(ended, p.Session.Key)[0]}, nil
}

// ListAllSessions implements curfew.api.v1.Identity.
func (s *Server) ListAllSessions(
	ctx context.Context, req *apiv1.ListAllSessionsRequest,
) (*apiv1.ListAllSessionsResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.c.Identity.Sessions(ctx, req.GetUser())
	return &apiv1.ListAllSessionsResponse{Sessions: sessionsOut(found, p.Session.Key)}, err
}

// EndAnySession implements curfew.api.v1.Identity.
func (s *Server) EndAnySession(
	ctx context.Context, req *apiv1.EndAnySessionRequest,
) (*apiv1.EndAnySessionResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	ended, err := s.c.Identity.EndSessions(ctx, p.Name, req.GetUser(), req.GetId())
	return &apiv1.EndAnySessionResponse{Sessions: sessionsOut(ended, p.Session.Key)}, err
}

// ListKeys implements curfew.api.v1.Identity.
func (s *Server) ListKeys(
	ctx context.Context, _ *apiv1.ListKeysRequest,
) (*apiv1.ListKeysResponse, error) {
	p, err := personOf(ctx)
	return &apiv1.ListKeysResponse{SshKeys: p.SSHKeys}, err
}

// AddKey implements curfew.api.v1.Identity.
func (s *Server) AddKey(ctx context.Context, req *apiv1.AddKeyRequest) (*apiv1.AddKeyResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	key, err := s.c.Access.AddKey(ctx, p, sessionKey(ctx), req.GetChallenge(), req.GetSshsig())
	return &apiv1.AddKeyResponse{SshKey: key}, err
}

// RemoveKey implements curfew.api.v1.Identity.
func (s *Server) RemoveKey(
	ctx context.Context, req *apiv1.RemoveKeyRequest,
) (*apiv1.RemoveKeyResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	key, err := s.c.Access.RemoveKey(ctx, p, req.GetFingerprint())
	return &apiv1.RemoveKeyResponse{SshKey: key}, err
}

// LinkUser implements curfew.api.v1.Identity.
func (s *Server) LinkUser(
	ctx context.Context, req *apiv1.LinkUserRequest,
) (*apiv1.LinkUserResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetSubject() == "" {
		return &apiv1.LinkUserResponse{}, s.c.Identity.HandToSCIM(ctx, p.Name, req.GetUser())
	}
	return &apiv1.LinkUserResponse{},
		s.c.Identity.LinkUser(ctx, p.Name, req.GetUser(), req.GetSubject())
}

// UnlinkUser implements curfew.api.v1.Identity.
func (s *Server) UnlinkUser(
	ctx context.Context, req *apiv1.UnlinkUserRequest,
) (*apiv1.UnlinkUserResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	return &apiv1.UnlinkUserResponse{}, s.c.Identity.UnlinkUser(ctx, p.Name, req.GetUser())
}

func workloadOut(w identity.Workload, u identity.User) *apiv1.Workload {
	return &apiv1.Workload{
		Name: w.Name, Issuer: w.Issuer, Subject: w.Subject, Claims: w.Claims, Uid: u.UID,
		Disabled: u.Disabled,
	}
}

// PutWorkload implements curfew.api.v1.Identity.
func (s *Server) PutWorkload(
	ctx context.Context, req *apiv1.PutWorkloadRequest,
) (*apiv1.PutWorkloadResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	w := identity.Workload{
		Name: req.GetWorkload().GetName(), Issuer: req.GetWorkload().GetIssuer(),
		Subject: req.GetWorkload().GetSubject(), Claims: req.GetWorkload().GetClaims(),
	}
	u, err := s.c.Identity.PutWorkload(ctx, p.Name, w)
	return &apiv1.PutWorkloadResponse{Workload: workloadOut(w, u)}, err
}

// DeleteWorkload implements curfew.api.v1.Identity.
func (s *Server) DeleteWorkload(
	ctx context.Context, req *apiv1.DeleteWorkloadRequest,
) (*apiv1.DeleteWorkloadResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	return &apiv1.DeleteWorkloadResponse{}, s.c.Access.DeleteWorkload(ctx, p, req.GetName())
}

// ListWorkloads implements curfew.api.v1.Identity.
func (s *Server) ListWorkloads(
	ctx context.Context, _ *apiv1.ListWorkloadsRequest,
) (*apiv1.ListWorkloadsResponse, error) {
	all, users, err := s.c.Identity.Workloads(ctx)
	resp := &apiv1.ListWorkloadsResponse{}
	for _, w := range all {
		resp.Workloads = append(resp.Workloads, workloadOut(w, users[w.Name]))
	}
	return resp, err
}

// CreateSCIMToken implements curfew.api.v1.Identity.
func (s *Server) CreateSCIMToken(
	ctx context.Context, _ *apiv1.CreateSCIMTokenRequest,
) (*apiv1.CreateSCIMTokenResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	token, err := s.c.Identity.NewSCIMToken(ctx, p.Name)
	return &apiv1.CreateSCIMTokenResponse{Token: token}, err
}

// DeleteSCIMTokens implements curfew.api.v1.Identity.
func (s *Server) DeleteSCIMTokens(
	ctx context.Context, _ *apiv1.DeleteSCIMTokensRequest,
) (*apiv1.DeleteSCIMTokensResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	n, err := s.c.Identity.RevokeSCIMTokens(ctx, p.Name)
	return &apiv1.DeleteSCIMTokensResponse{Deleted: uint32(n)}, err
}
