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

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/journal"
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
	terms, _, err := i.issue(ctx, requestID, a)
	if err != nil {
		return nil, err
	}
	return grant.HostsOf(terms)
}

// IssueOf is Issue for a caller that holds the request as it committed it, approved: nothing is read
// again, and r becomes what is stored of it then, unless its grants were there already. The store still
// checks that this revision waits for its grants, and terms never change once they are stored.
func (i *Issuer) IssueOf(ctx context.Context, r *request.Request) error {
	a, err := Of(r)
	if err != nil {
		return fmt.Errorf("issuing request %s: %w", r.ID, err)
	}
	_, at, err := i.issue(ctx, r.ID, a)
	if err != nil || at.IsZero() {
		return err
	}
	return r.Grant(at)
}

// issue seals and stores the grants of what is approved, and says when; zero when they were there.
func (i *Issuer) issue(ctx context.Context, requestID string, a Approved) (
	terms *curfewv1.Terms, at time.Time, err error,
) {
	if terms, err = i.check(requestID, a); err != nil {
		return nil, at, fmt.Errorf("issuing request %s: %w", requestID, err)
	}
	if a.Issued {
		return terms, at, nil
	}
	hosts, err := grant.HostsOf(terms)
	if err != nil {
		return nil, at, fmt.Errorf("issuing request %s: %w", requestID, err)
	}
	sealed, err := i.seal(a, terms, hosts)
	if err != nil {
		return nil, at, fmt.Errorf("issuing request %s: %w", requestID, err)
	}
	record := i.record(a, terms)
	err = i.store.PutGrants(ctx, requestID, a.Revision, sealed, record)
	if errors.Is(err, ErrIssued) {
		return terms, at, nil
	}
	if err != nil {
		return nil, at, fmt.Errorf("storing the grants of request %s: %w", requestID, err)
	}
	for _, g := range sealed {
		journal.Tell(i.log, "grant.issued", "grant", g.ID, "request", requestID, "host_id", g.Host,
			"revision", a.Revision, "ends_by", g.HardEnd.UTC().Format(time.RFC3339))
	}
	return terms, time.UnixMilli(record.TimeMS), nil
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
	var needed uint32
	for _, n := range grant.NeedsOf(terms) {
		needed += n.Approvals
	}
	if len(people) < int(needed) || needed == 0 && len(people) > 0 {
		return nil, fmt.Errorf("%w: %d of %d approvals", ErrNotApproved, len(people), needed)
	}
	if !a.Issued && !i.now().Before(time.UnixMilli(terms.GetStartLatestMs())) {
		return nil, fmt.Errorf("%w: it could have started until %s", ErrNotApproved,
			time.UnixMilli(terms.GetStartLatestMs()).UTC().Format(time.RFC3339))
	}
	return terms, nil
}

func (i *Issuer) seal(
	a Approved, terms *curfewv1.Terms, hosts []grant.HostID,
) ([]SealedGrant, error) {
	whole := SealedGrant{
		HardEnd: grant.HardEnd(terms), Release: time.UnixMilli(terms.GetStartEarliestMs()),
	}
	windows := []SealedGrant{whole}
	if len(terms.GetWindows()) > 0 {
		windows = nil
	}
	for k, w := range terms.GetWindows() {
		if end := time.UnixMilli(w.GetEndMs()); i.now().Before(end) {
			windows = append(windows, SealedGrant{
				Window: uint32(k + 1), HardEnd: end, Release: time.UnixMilli(w.GetStartMs()),
			})
		}
	}
	out := make([]SealedGrant, 0, len(hosts)*len(windows))
	for _, host := range hosts {
		for _, g := range windows {
			if err := i.sealOne(a, host, &g); err != nil {
				return nil, fmt.Errorf("sealing the grant for host %s: %w", host, err)
			}
			out = append(out, g)
		}
	}
	return out, nil
}

// sealOne fills in what one host's grant for one window needs.
func (i *Issuer) sealOne(a Approved, host grant.HostID, g *SealedGrant) (err error) {
	g.ID, g.Host = grant.IDOfWindow(a.Terms, host, g.Window), host
	g.RequestID, g.Revision = a.RequestID, a.Revision
	if len(a.Follows) > 0 {
		g.Extends = grant.IDOf(a.Follows, host)
	}
	g.Envelope, err = grant.SealGrant(&curfewv1.Grant{
		Version: grant.Version, HostId: host[:], Terms: a.Terms, Approvals: a.Approvals,
		IssuedAtMs: i.now().UnixMilli(), Window: g.Window,
	}, i.key)
	return err
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
