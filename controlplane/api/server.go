package api

import (
	"context"
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/rollout"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Hub is what api reads from the streams of hosts; *stream.Hub is the one.
type Hub interface {
	Health(id grant.HostID) (stream.Health, bool)
	Sessions(requestID string, hosts ...grant.HostID) []stream.HostSession
	RenewCodes(id grant.HostID)
}

// Tokens makes join tokens; *enrol.Service is the one.
type Tokens interface {
	CreateToken(ctx context.Context, by, name string, labels map[string]string) (
		token string, expires time.Time, err error)
}

// Config is what a Server needs.
type Config struct {
	Identity *identity.Service
	Access   *access.Service
	Rollouts *rollout.Service
	Hub      Hub
	Tokens   Tokens
	// HostOf returns the host that the call's client certificate names; an error for people.
	HostOf func(ctx context.Context) (grant.HostID, error)
	Bell   *watch.Bell
	// URL is the HOST:PORT that hosts and people dial.
	URL string
	// Lease is how long a host opens something new after it was last heard.
	Lease time.Duration
	// Authorities are the CAs that people shall accept the control plane by, in DER.
	Authorities [][]byte
	Version     string
	Now         func() time.Time
	Log         hclog.Logger
}

// Server answers SignIn, Access, Directory, BreakGlass, Rollouts, Policy and Identity.
type Server struct {
	apiv1.UnimplementedSignInServer
	apiv1.UnimplementedAccessServer
	apiv1.UnimplementedDirectoryServer
	apiv1.UnimplementedPolicyServer
	apiv1.UnimplementedIdentityServer
	apiv1.UnimplementedBreakGlassServer
	apiv1.UnimplementedRolloutsServer
	c      Config
	limits *limits
}

// New checks the configuration.
func New(c Config) (*Server, error) {
	if c.Identity == nil || c.Access == nil || c.Rollouts == nil || c.Hub == nil || c.Tokens == nil || c.HostOf == nil ||
		c.Bell == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("api: a part is missing")
	}
	return &Server{c: c, limits: newLimits()}, nil
}

// Register adds the services to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	apiv1.RegisterSignInServer(r, s)
	apiv1.RegisterAccessServer(r, s)
	apiv1.RegisterDirectoryServer(r, s)
	apiv1.RegisterPolicyServer(r, s)
	apiv1.RegisterIdentityServer(r, s)
	apiv1.RegisterBreakGlassServer(r, s)
	apiv1.RegisterRolloutsServer(r, s)
}

// Challenge implements curfew.api.v1.SignIn.
func (s *Server) Challenge(
	ctx context.Context, _ *apiv1.ChallengeRequest,
) (*apiv1.ChallengeResponse, error) {
	challenge, err := s.c.Identity.Challenge(ctx)
	return &apiv1.ChallengeResponse{
		Challenge: challenge, Organisation: s.c.Identity.Organisation(),
	}, err
}

// Login implements curfew.api.v1.SignIn.
func (s *Server) Login(ctx context.Context, req *apiv1.LoginRequest) (*apiv1.LoginResponse, error) {
	session, err := s.c.Identity.Login(ctx, identity.Login{
		User: req.GetUser(), Challenge: req.GetChallenge(), SessionKey: req.GetSessionPublicKey(),
		SSHSig: req.GetSshsig(), Device: req.GetDevice(), Address: address(ctx),
	})
	return &apiv1.LoginResponse{ExpiresMs: msOf(session.Expires)}, err
}

// Logout implements curfew.api.v1.SignIn.
func (s *Server) Logout(ctx context.Context, _ *apiv1.LogoutRequest) (*apiv1.LogoutResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	return &apiv1.LogoutResponse{}, s.c.Identity.Logout(ctx, p)
}

// WhoAmI implements curfew.api.v1.SignIn.
func (s *Server) WhoAmI(ctx context.Context, _ *apiv1.WhoAmIRequest) (*apiv1.WhoAmIResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	roles := []string{"user"}
	if p.Auditor {
		roles = []string{"auditor"}
	}
	if p.Approver {
		roles = append(roles, "approver")
	}
	if p.Admin {
		roles = append(roles, "admin")
	}
	return &apiv1.WhoAmIResponse{
		User: p.Name, Organisation: s.c.Identity.Organisation(), ApiRoles: roles, Groups: p.Groups,
		SessionExpiresMs: msOf(p.Session.Expires), Version: s.c.Version, Authorities: s.c.Authorities,
	}, nil
}

// still checks that a long call's session still speaks for somebody, and reads them afresh.
func (s *Server) still(ctx context.Context) (identity.Person, error) {
	cert := clientCertificate(ctx)
	if cert != nil {
		if pub, ok := cert.PublicKey.(ed25519.PublicKey); ok {
			p, err := s.c.Identity.Who(ctx, pub)
			if !errors.Is(err, identity.ErrNone) {
				return p, err
			}
		}
	}
	return identity.Person{}, reason.SignIn("the session has ended").WithHint("curfew login")
}

func msOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// timeOf is msOf's reverse.
func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func durationOf(ms int64) time.Duration {
	const limit = int64(1<<63-1) / int64(time.Millisecond)
	return time.Duration(min(max(ms, -limit), limit)) * time.Millisecond
}
