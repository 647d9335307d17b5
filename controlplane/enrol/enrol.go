// Package enrol makes machines hosts: join tokens, the CA, the hosts' certificates and their
// renewal.
//
// It may not decide what anybody may do on a host, and a certificate opens nothing by itself: it
// names a host, and the Store says whether that host is served. Data comes from an admin (tokens)
// and from machines (Enrol, Renew over gRPC), and goes to the Store and, as certificates, back to
// them.
package enrol

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/curfew-access/curfew/controlplane/enrol/cloud"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// TokenLife is how long a join token may be used.
const TokenLife = 30 * time.Minute

// Kinds of trail records that this package writes.
const (
	KindTokenCreated = "host.token_created"
	KindHostEnrolled = "host.enrolled"
)

// Config is what a Service needs.
type Config struct {
	Store        Store
	Authority    *Authority
	Organisation string
	Now          func() time.Time
	// Enrolled is told of each new host, for what names hosts; nil for nobody. It must not fail the
	// enrolment.
	Enrolled func(ctx context.Context, name string)
	// Cloud says which instances of clouds may join without a token; nil: none.
	Cloud *cloud.Verifier
	// Rand draws tokens; nil takes crypto/rand.
	Rand io.Reader
	Log  hclog.Logger
}

// Service answers curfew.api.v1.Enrolment and makes join tokens. Safe for concurrent use.
type Service struct {
	apiv1.UnimplementedEnrolmentServer
	store     Store
	authority *Authority
	cloud     *cloud.Verifier
	org       string
	now       func() time.Time
	rand      io.Reader
	log       hclog.Logger
	enrolled  func(ctx context.Context, name string)
	// tries counts failed enrolments by peer address, renewals and questions for the CAs by host id.
	tries, renewals, asking *limiter
}

// New checks the configuration.
func New(c Config) (*Service, error) {
	if c.Store == nil || c.Authority == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("enrolment: store, authority, clock or log is missing")
	}
	if err := grant.CheckOrganisation(c.Organisation); err != nil {
		return nil, fmt.Errorf("enrolment: %w", err)
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Enrolled == nil {
		c.Enrolled = func(context.Context, string) {}
	}
	return &Service{
		enrolled: c.Enrolled, store: c.Store, authority: c.Authority, org: c.Organisation, now: c.Now, rand: c.Rand,
		cloud: c.Cloud, log: c.Log, tries: newLimiter(maxTries, tryEvery), renewals: newLimiter(maxTries, tryEvery),
		asking: newLimiter(maxTries, tryEvery),
	}, nil
}

// Register adds the Enrolment service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) { apiv1.RegisterEnrolmentServer(r, s) }

// CreateToken makes a join token on behalf of the admin by. name is the host's name to be, or
// empty; labels are what the admin says of the host. The token is shown once: only its hash is
// stored. Bad input is a reason.Error.
func (s *Service) CreateToken(
	ctx context.Context, by, name string, labels map[string]string,
) (token string, expires time.Time, err error) {
	if name != "" {
		if err := grant.CheckHostName(name); err != nil {
			return "", time.Time{}, reason.Invalid("%v", err)
		}
	}
	if err := CheckLabels(labels); err != nil {
		return "", time.Time{}, reason.Invalid("%v", err)
	}
	t, err := join.NewToken(s.rand, s.authority.Pin())
	if err != nil {
		return "", time.Time{}, err
	}
	now := s.now()
	expires = now.Add(TokenLife)
	err = s.store.PutJoinToken(ctx, JoinToken{
		Hash: join.TokenHash(t.String()), Name: name, Labels: labels, CreatedBy: by,
		ExpiresAt: expires,
	}, trail.Record{
		TimeMS: now.UnixMilli(), Kind: KindTokenCreated, Actor: by, Host: name,
		Details: labelDetails(labels),
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("storing a join token: %w", err)
	}
	return t.String(), expires, nil
}
