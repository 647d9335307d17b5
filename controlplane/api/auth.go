package api

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
)

// caller is who the TLS client key speaks for.
type caller struct {
	person *identity.Person // nil for hosts and strangers
	roles  Role
	addr   string
}

type callerKey struct{}

// personOf is the signed-in caller; the interceptors put it there for every method that needs one.
func personOf(ctx context.Context) (identity.Person, error) {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok || c.person == nil {
		return identity.Person{}, errors.New("a method that needs a person was called without one")
	}
	return *c.person, nil
}

// identify reads who calls from the connection alone: nothing in a message or header counts.
func (s *Server) identify(ctx context.Context) (*caller, error) {
	c := &caller{roles: Everyone, addr: address(ctx)}
	cert := clientCertificate(ctx)
	if cert == nil {
		return c, nil
	}
	if _, err := s.c.HostOf(ctx); err == nil {
		c.roles |= Host
		return c, nil
	}
	pub, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok {
		return c, nil
	}
	p, err := s.c.Identity.Who(ctx, pub)
	if errors.Is(err, identity.ErrNone) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	c.person = &p
	if p.Auditor {
		c.roles |= Auditor // and nothing else: who audits changes nothing
		return c, nil
	}
	c.roles |= User
	if p.Approver {
		c.roles |= Approver
	}
	if p.Admin {
		c.roles |= Admin
	}
	return c, nil
}

func clientCertificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return nil
	}
	return info.State.PeerCertificates[0]
}

// address is the peer's, without port: what limits are counted by.
func address(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

// admit decides whether a call goes on to its handler.
func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	c, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	if !permits(method, c.roles) {
		if c.roles == Everyone {
			return nil, reason.SignIn("this needs a sign-in").WithHint("curfew login")
		}
		return nil, reason.Denied("this is not yours to call").
			WithHint("curfew whoami shows what you may")
	}
	if err := s.limits.take(c, method, s.c.Now()); err != nil {
		return nil, err
	}
	if c.person != nil {
		s.c.Identity.Touch(ctx, *c.person, c.addr)
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}

// Unary is the interceptor of single calls: admission before, one mapping of errors after.
func (s *Server) Unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (any, error) {
	ctx, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, s.status(info.FullMethod, err)
	}
	resp, err := next(ctx, req)
	if err != nil {
		return nil, s.status(info.FullMethod, err)
	}
	return resp, nil
}

// Stream is the interceptor of streams.
func (s *Server) Stream(
	srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler,
) error {
	ctx, err := s.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return s.status(info.FullMethod, err)
	}
	return s.status(info.FullMethod, next(srv, &admitted{ServerStream: ss, ctx: ctx}))
}

// admitted is a stream whose context says who calls.
type admitted struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream has one context for its whole life
}

// Context is the stream's, with the caller.
func (a *admitted) Context() context.Context { return a.ctx }
