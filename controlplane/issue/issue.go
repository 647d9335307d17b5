// Package issue turns approved requests into sealed grants and says to each host which grants are
// live. It is the only holder of the grant key. It decides nothing: what it seals was approved
// over the exact bytes of the terms, and every host checks those approvals again.
//
// Data comes from the request's accepted revision (Store), and goes to the Store as sealed grants
// and to package stream as sealed host states.
package issue

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// KindRequestGranted is the trail record of an approved request whose grants were sealed.
const KindRequestGranted = "request.granted"

// DefaultLease is how long a host opens new access after its last heartbeat was answered.
const DefaultLease = 15 * time.Minute

// Config is what an Issuer needs.
type Config struct {
	Store Store
	// Key is the grant key; see CreateKey and LoadKey.
	Key ed25519.PrivateKey
	// Lease is a host state's valid_for, whole milliseconds, up to grant.MaxLease; 0 takes
	// DefaultLease.
	Lease time.Duration
	Now   func() time.Time
	Log   hclog.Logger
}

// Issuer seals grants and host states. Safe for concurrent use.
type Issuer struct {
	store Store
	key   ed25519.PrivateKey
	lease time.Duration
	now   func() time.Time
	log   hclog.Logger
}

// New checks the configuration.
func New(c Config) (*Issuer, error) {
	if c.Lease == 0 {
		c.Lease = DefaultLease
	}
	switch {
	case c.Store == nil || c.Now == nil || c.Log == nil:
		return nil, errors.New("issuer: store, clock or log is missing")
	case len(c.Key) != ed25519.PrivateKeySize:
		return nil, errors.New("issuer: the grant key is missing")
	case c.Lease < time.Second || c.Lease > grant.MaxLease:
		return nil, fmt.Errorf("issuer: lease of %s: want 1s to %s", c.Lease, grant.MaxLease)
	}
	return &Issuer{store: c.Store, key: c.Key, lease: c.Lease, now: c.Now, log: c.Log}, nil
}

// PublicKey is the key that stands as issuer in the trust file.
func (i *Issuer) PublicKey() ed25519.PublicKey {
	return ed25519.PublicKey(append([]byte(nil), i.key[ed25519.SeedSize:]...))
}

// Issue turns a request whose newest revision is approved into one sealed grant per host, stores
// them in one transaction and returns the hosts, so that the caller can tell the Hub. It is
// idempotent: grants that exist already are left as they are and their hosts are returned again.
// ErrNotApproved when the revision is not, or no longer, approved.
func (i *Issuer) Issue(ctx context.Context, requestID string) ([]grant.HostID, error) {
	a, err := i.store.ApprovedRequest(ctx, requestID)
	if err != nil {
		return nil, fmt.Errorf("issuing request %s: %w", requestID, err)
	}
	terms, err := i.check(requestID, a)
	if err != nil {
		return nil, fmt.Errorf("issuing request %s: %w", requestID, err)
	}
	hosts, err := hostsOf(terms)
	if err != nil || a.Issued {
		return hosts, err
	}
	sealed, err := i.seal(a, terms, hosts)
	if err != nil {
		return nil, fmt.Errorf("issuing request %s: %w", requestID, err)
	}
	err = i.store.PutGrants(ctx, requestID, a.Revision, sealed, i.record(a, terms))
	if errors.Is(err, ErrIssued) {
		return hosts, nil
	}
	if err != nil {
		return nil, fmt.Errorf("storing the grants of request %s: %w", requestID, err)
	}
	i.log.Info("granted", "request", requestID, "revision", a.Revision, "hosts", len(hosts))
	return hosts, nil
}

// check refuses what no honest host would accept, before anything is stored. Hosts check all of it
// again, with signatures.
func (i *Issuer) check(requestID string, a Approved) (*curfewv1.Terms, error) {
	terms, err := grant.ParseTerms(a.Terms)
	if err != nil {
		return nil, err
	}
	if a.RequestID != requestID || terms.GetRequestId() != requestID ||
		terms.GetRevision() != a.Revision {
		return nil, fmt.Errorf("the terms are of request %s revision %d, not of revision %d",
			terms.GetRequestId(), terms.GetRevision(), a.Revision)
	}
	people := make(map[string]bool)
	for _, p := range a.Approvals {
		if p.GetApprover() == terms.GetRequester() {
			return nil, fmt.Errorf("%s approved their own request", p.GetApprover())
		}
		people[p.GetApprover()] = true
	}
	if len(people) < int(terms.GetApprovalsNeeded()) {
		return nil, fmt.Errorf("%w: %d of %d approvals", ErrNotApproved, len(people),
			terms.GetApprovalsNeeded())
	}
	if !a.Issued && !i.now().Before(time.UnixMilli(terms.GetStartLatestMs())) {
		return nil, fmt.Errorf("%w: it could have started until %s", ErrNotApproved,
			time.UnixMilli(terms.GetStartLatestMs()).UTC().Format(time.RFC3339))
	}
	return terms, nil
}

func hostsOf(terms *curfewv1.Terms) ([]grant.HostID, error) {
	hosts := make([]grant.HostID, 0, len(terms.GetHosts()))
	for _, h := range terms.GetHosts() {
		id, err := grant.HostIDFromBytes(h.GetId())
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, id)
	}
	return hosts, nil
}

func (i *Issuer) seal(
	a Approved, terms *curfewv1.Terms, hosts []grant.HostID,
) ([]SealedGrant, error) {
	out := make([]SealedGrant, 0, len(hosts))
	for _, host := range hosts {
		env, err := grant.SealGrant(&curfewv1.Grant{
			Version: grant.Version, HostId: host[:], Terms: a.Terms, Approvals: a.Approvals,
			IssuedAtMs: i.now().UnixMilli(),
		}, i.key)
		if err != nil {
			return nil, fmt.Errorf("sealing the grant for host %s: %w", host, err)
		}
		g := SealedGrant{
			ID: grant.IDOf(a.Terms, host), Host: host, RequestID: a.RequestID,
			Revision: a.Revision, Envelope: env, HardEnd: grant.HardEnd(terms),
		}
		if len(a.Follows) > 0 {
			g.Extends = grant.IDOf(a.Follows, host)
		}
		out = append(out, g)
	}
	return out, nil
}

func (i *Issuer) record(a Approved, terms *curfewv1.Terms) trail.Record {
	digest := grant.TermsDigest(a.Terms)
	return trail.Record{
		TimeMS: i.now().UnixMilli(), Kind: KindRequestGranted, Actor: "curfew",
		RequestID: a.RequestID,
		Details: map[string]string{
			"revision":     fmt.Sprint(a.Revision),
			"terms_digest": fmt.Sprintf("%x", digest),
			"approvers":    approvers(a.Approvals),
			"role":         terms.GetRole(),
			"login":        terms.GetLogin(),
		},
	}
}
