package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// What a provider's answer means. An error that is neither is an outage: it changes nothing.
var (
	// ErrRefused means that the provider, or a check of its answer, refused this sign-in.
	ErrRefused = errors.New("the identity provider refuses this sign-in")
	// ErrGone means that the provider no longer vouches for somebody.
	ErrGone = errors.New("the identity provider no longer vouches for this person")
)

// Proof is what an OpenID provider says of a person: verified, and for this sign-in.
type Proof struct {
	Issuer  string
	Subject string
	// Name is the configured claim as it came; NameUnverified is set when it is an e-mail address
	// that the provider does not vouch for.
	Name           string
	NameUnverified bool
	Email          string
	// Groups and Manager count only when the claims were there.
	Groups     []string
	HasGroups  bool
	Manager    string
	HasManager bool
	// Refresh asks the provider about this person again; empty for none.
	Refresh string
}

// Method is how the CLI begins a sign-in at the provider.
type OIDCMethod struct {
	Issuer, AuthorizationEndpoint, ClientID string
	Scopes                                  []string
	Device                                  bool
	RedirectPort                            int
}

// DeviceCode is a device flow that the provider began (RFC 8628).
type DeviceCode struct {
	Code     string // secret
	UserCode string
	URI      string
	Complete string // the URI with the user code in it; may be empty
	Expires  time.Time
	Interval time.Duration
}

// Provider is the OpenID provider for people; package oidc is the one.
type Provider interface {
	Issuer() string
	Method(ctx context.Context) (OIDCMethod, error)
	// RedeemCode demands an ID token with this nonce.
	RedeemCode(ctx context.Context, code, verifier, redirect, nonce string) (Proof, error)
	StartDevice(ctx context.Context) (DeviceCode, error)
	// PollDevice says pending while the person has not decided. slower is set when the provider asks
	// to be polled less often.
	PollDevice(ctx context.Context, code string) (p Proof, pending, slower bool, err error)
	// Refresh is ErrGone only when the provider says so in so many words.
	Refresh(ctx context.Context, token string) (Proof, error)
}

// WorkloadToken is a pipeline's ID token whose signature, issuer, audience and times hold.
type WorkloadToken struct {
	Issuer, Subject string
	Expires         time.Time
	// Once is the same for every copy of the token.
	Once   [32]byte
	Claims map[string]string
}

// Pipelines verifies the tokens of workloads; package oidc is the one.
type Pipelines interface {
	// Peek reads a token's issuer without believing it.
	Peek(token string) (issuer string, err error)
	// Verify demands one of the audiences.
	Verify(ctx context.Context, issuer, token string, audiences ...string) (WorkloadToken, error)
}

// Sealer keeps refresh tokens secret at rest. about binds what is sealed to whose it is.
type Sealer interface {
	Seal(plain []byte, about string) ([]byte, error)
	Open(sealed []byte, about string) ([]byte, error)
}

// LoginNames turns what a provider calls somebody into a login name.
type LoginNames struct {
	// Domains are stripped: of alice@acme.org, alice is left. A name of another domain, or one
	// without, is refused. Without domains the name is taken as it is.
	Domains []string
	// LowerCase lowers A to Z first.
	LowerCase bool
}

// Map refuses whatever is not plain ASCII: two names that look alike are never one.
func (l LoginNames) Map(raw string) (string, error) {
	name := raw
	if l.LowerCase {
		name = strings.Map(func(r rune) rune {
			if r >= 'A' && r <= 'Z' {
				r += 'a' - 'A'
			}
			return r
		}, name)
	}
	if len(l.Domains) > 0 {
		local, domain, ok := strings.Cut(name, "@")
		known := false
		for _, d := range l.Domains {
			known = known || domain == d
		}
		if !ok || !known {
			return "", fmt.Errorf("%q is not a name @%s", grant.VisibleText(raw),
				strings.Join(l.Domains, " or @"))
		}
		name = local
	}
	return name, grant.CheckUserName(name)
}

// Federation is how sign-ins at a provider become users. Its zero value knows no provider.
type Federation struct {
	Provider Provider // nil for none
	Sealer   Sealer
	Names    LoginNames
	// GroupPrefix is what a group's name must begin with to count; it is dropped.
	GroupPrefix string
	CreateUsers bool
	// DeprovisionAfter is how long after the provider disabled somebody their access is over at the
	// latest; 0 when SCIM sees to it.
	DeprovisionAfter time.Duration
}

// Link says which subject of which issuer a user is.
type Link struct {
	Issuer, Subject, User string
	Refresh               []byte // sealed; empty for none
	Checked               time.Time
}

func (l *Link) about() string { return l.Issuer + "\x00" + l.Subject }
