// Package cloud verifies what a cloud says of one of its instances: who signed it, for which key it
// was made, how old it is and whether the account is one of ours.
//
// It admits nobody by itself and stores nothing: package enrol asks it, and sees to it that an instance
// joins once. Nothing is configured by default, and what is not configured is refused. The documents
// come from strangers: they are bounded before they are parsed, and nothing in them is believed before
// the signature is checked.
package cloud

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	oidclib "github.com/coreos/go-oidc/v3/oidc"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Where Google publishes its keys, and the name that it signs under.
const (
	GoogleIssuer = "https://accounts.google.com"
	GoogleKeys   = "https://www.googleapis.com/oauth2/v3/certs"
)

// Bounds of how old a document may be.
const (
	DefaultMaxAge = 10 * time.Minute
	MinMaxAge     = time.Minute
	MaxMaxAge     = time.Hour
	// slack is how far ahead of ours a cloud's clock may be.
	slack = 2 * time.Minute
)

// TokenHint says what remains to a machine that is not admitted by its cloud.
const TokenHint = "ask an admin for a join token: curfew admin host add"

// Config says whose instances may join. A provider that is nil admits nobody.
type Config struct {
	AWS   *AWS
	GCP   *GCP
	Azure *Azure
	// HTTP fetches Google's keys; needed for GCP only.
	HTTP *http.Client
}

// AWS admits instances of these accounts, by the certificates that AWS publishes for its regions.
type AWS struct {
	Accounts []string
	// Regions may be empty: then all whose certificates are here.
	Regions      []string
	Certificates []*x509.Certificate
	MaxAge       time.Duration
}

// GCP admits instances of these projects.
type GCP struct {
	Projects []string
	// Issuer and KeysURL are Google's when they are empty.
	Issuer, KeysURL string
	MaxAge          time.Duration
}

// Azure admits virtual machines of these subscriptions.
type Azure struct {
	Subscriptions []string
	// Intermediates complete the chain: Azure sends the leaf alone.
	Intermediates []*x509.Certificate
	// Roots nil: the system's.
	Roots  *x509.CertPool
	MaxAge time.Duration
}

// Instance is what a cloud said of a machine.
type Instance struct {
	Provider, Account, ID string
	// Name is empty where the cloud does not sign one, Region and Zone likewise.
	Name, Region, Zone string
}

// Reserved are the labels that only the control plane sets on a host that joined by its cloud's word.
var Reserved = []string{"cloud", "account", "region", "zone", "instance"}

// Labels are what the host gets.
func (i Instance) Labels() map[string]string {
	out := map[string]string{"cloud": i.Provider, "account": i.Account, "instance": i.ID}
	if i.Region != "" {
		out["region"] = i.Region
	}
	if i.Zone != "" {
		out["zone"] = i.Zone
	}
	return out
}

// Key identifies the instance for good: it joins once.
func (i Instance) Key() [sha256.Size]byte {
	return sha256.Sum256(bytes.Join([][]byte{
		[]byte("curfew cloud instance v1"), []byte(i.Provider), []byte(i.Account), []byte(i.ID),
	}, []byte{0}))
}

// Verifier checks identity documents. Safe for concurrent use. Nil admits nobody.
type Verifier struct {
	c    Config
	keys oidclib.KeySet // Google's
}

// New checks the configuration.
func New(c Config) (*Verifier, error) {
	v := &Verifier{c: c}
	if a := c.AWS; a != nil {
		if len(a.Accounts) == 0 || len(a.Certificates) == 0 || a.MaxAge <= 0 {
			return nil, errors.New("cloud join: aws needs accounts, certificates and an age")
		}
	}
	if g := c.GCP; g != nil {
		if len(g.Projects) == 0 || g.MaxAge <= 0 || c.HTTP == nil {
			return nil, errors.New("cloud join: gcp needs projects, an age and an HTTP client")
		}
		google := *g
		if google.Issuer == "" {
			google.Issuer = GoogleIssuer
		}
		if google.KeysURL == "" {
			google.KeysURL = GoogleKeys
		}
		v.c.GCP = &google
		v.keys = oidclib.NewRemoteKeySet(oidclib.ClientContext(context.Background(), c.HTTP),
			google.KeysURL)
	}
	if a := c.Azure; a != nil && (len(a.Subscriptions) == 0 || a.MaxAge <= 0) {
		return nil, errors.New("cloud join: azure needs subscriptions and an age")
	}
	return v, nil
}

// Verify says which instance the document is of. Every error that is a reason is a refusal; no other
// error admits either.
func (v *Verifier) Verify(
	ctx context.Context, provider string, document []byte, binding join.Binding, now time.Time,
) (i Instance, err error) {
	if !slices.Contains([]string{join.AWS, join.GCP, join.Azure}, provider) {
		return i, reason.Invalid("cloud %q: want aws, gcp or azure", grant.VisibleText(provider))
	}
	if len(document) > join.MaxDocument {
		return i, reason.Invalid("identity document of %d bytes; at most %d", len(document),
			join.MaxDocument)
	}
	switch {
	case v != nil && provider == join.AWS && v.c.AWS != nil:
		i, err = v.c.AWS.verify(document, now)
	case v != nil && provider == join.GCP && v.c.GCP != nil:
		i, err = v.google(ctx, document, binding, now)
	case v != nil && provider == join.Azure && v.c.Azure != nil:
		i, err = v.c.Azure.verify(document, binding, now)
	default:
		return i, reason.Denied("this control plane admits no machines of %s by their identity",
			provider).WithHint("an admin lists the accounts under cloud_join.%s in the control plane's "+
			"configuration; or %s", provider, TokenHint)
	}
	if err != nil {
		if _, ok := reason.Of(err); ok {
			return Instance{}, err
		}
		return Instance{}, reason.Denied("the identity document from %s does not hold: %v", provider,
			err).WithHint(TokenHint)
	}
	return i, i.check()
}

// check holds what a cloud signed against what a label may be: nobody reads more into it later.
func (i Instance) check() error {
	for _, text := range []string{i.Account, i.ID} {
		if text == "" {
			return reason.Denied("the identity document from %s names no account or no instance", i.Provider)
		}
	}
	for _, text := range i.Labels() {
		if len(text) > 63 || grant.VisibleText(text) != text {
			return reason.Denied("the identity document from %s has %q in it", i.Provider,
				grant.VisibleText(text))
		}
	}
	return nil
}

// fresh refuses what is older than maxAge or of the future.
func fresh(at, now time.Time, maxAge time.Duration) error {
	switch age := now.Sub(at); {
	case at.IsZero() || at.Unix() <= 0:
		return errors.New("it does not say when it is of")
	case age < -slack:
		return fmt.Errorf("it is of %s, which is still to come: the clock of this control plane is behind",
			at.UTC().Format(time.RFC3339))
	case age > maxAge:
		return fmt.Errorf("it is of %s and too old: a machine joins within %s of that",
			at.UTC().Format(time.RFC3339), maxAge)
	}
	return nil
}

func listed(what, value string, list []string) error {
	if !slices.Contains(list, value) {
		return fmt.Errorf("%s %q is not among those whose machines may join", what,
			grant.VisibleText(value[:min(len(value), 64)]))
	}
	return nil
}

// outage is not the machine's fault; it may try again.
func outage(err error) error {
	return &reason.Error{
		Code: apiv1.Code_CODE_INTERNAL,
		Text: fmt.Sprintf("the control plane cannot fetch the keys to check the identity document with: %v",
			err),
		Hint: "try again in a minute",
	}
}

// ParseCertificates reads a file of certificates in PEM, at least one.
func ParseCertificates(data []byte) (out []*x509.Certificate, err error) {
	for len(bytes.TrimSpace(data)) > 0 {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a block of type %q is among the certificates",
				grant.VisibleText(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return out, nil
}
