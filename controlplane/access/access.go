package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Limits and times.
const (
	MaxWaiting    = 16 // requests of one user
	MaxListed     = 1000
	MinPendingTTL = time.Minute
	MaxPendingTTL = 14 * 24 * time.Hour
	// expiryGrace lets a host report an end of its own before the sweep notes it.
	expiryGrace = 30 * time.Second
	sweepEvery  = time.Second
)

// Actor is the trail's word for what the program does by itself.
const Actor = "curfew"

// Kinds of trail records about requests.
const (
	KindRequested  = "request.created"
	KindExtension  = "request.extension"
	KindApproval   = "request.approval"
	KindApproved   = "request.approved"
	KindDenied     = "request.denied"
	KindWithdrawn  = "request.withdrawn"
	KindLapsed     = "request.lapsed"
	KindEnded      = "request.ended"
	KindHostLabels = "host.labelled"
	KindHostGone   = "host.removed"
)

// Issuer turns an approved request into sealed grants, durably and idempotently.
type Issuer interface {
	Issue(ctx context.Context, requestID string) ([]grant.HostID, error)
	// IssueOf does it for who holds the request as it is stored, approved: it is not read again, and
	// becomes what is stored of it then. It stays as it was when that failed, or somebody was faster.
	IssueOf(ctx context.Context, r *request.Request) error
}

// Config is what a Service needs.
type Config struct {
	Store     Store
	Directory *identity.Service
	Issuer    Issuer
	// Tickets asks ticket systems; nil when no check is configured.
	Tickets    TicketSystem
	PendingTTL time.Duration
	Now        func() time.Time
	Rand       io.Reader
	Log        hclog.Logger
}

// Service is the main job. Safe for concurrent use.
type Service struct{ c Config }

// New checks the configuration.
func New(c Config) (*Service, error) {
	if c.Store == nil || c.Directory == nil || c.Issuer == nil || c.Now == nil || c.Rand == nil ||
		c.Log == nil {
		return nil, errors.New("access: store, directory, issuer, clock, randomness or log is missing")
	}
	if c.PendingTTL < MinPendingTTL || c.PendingTTL > MaxPendingTTL {
		return nil, fmt.Errorf("access: requests wait %s: want %s to %s", c.PendingTTL, MinPendingTTL,
			MaxPendingTTL)
	}
	return &Service{c: c}, nil
}

// now is in whole milliseconds, as times are stored and sent.
func (s *Service) now() time.Time { return s.c.Now().Truncate(time.Millisecond) }

func (s *Service) underQuota(tx Tx, name string) error {
	waiting, err := tx.WaitingOf(name)
	if err == nil && waiting >= MaxWaiting {
		return reason.Limit("%d requests of %s wait already; at most %d may", waiting, name,
			MaxWaiting).WithHint("withdraw one: curfew withdraw ID")
	}
	return err
}

func (s *Service) newID(tx Tx) (string, error) {
	for range 8 {
		id, err := grant.NewRequestID(s.c.Rand)
		if err != nil {
			return "", err
		}
		if taken, err := tx.HasRequest(id); err != nil || !taken {
			return id, err
		}
	}
	return "", errors.New("drew eight request ids that exist already: the randomness is broken")
}

// moved turns a refusal of the state machine into words for people.
func moved(err error) error {
	switch {
	case errors.Is(err, request.ErrStale):
		return reason.Conflict("%v", err).WithHint("curfew show ID, then decide on what it shows")
	case errors.Is(err, request.ErrTwice), errors.Is(err, request.ErrState):
		return reason.Conflict("%v", err)
	}
	return err
}

// put writes a request, its record and what approvers are told, in one transaction.
func (s *Service) put(tx Tx, r *request.Request, record trail.Record, m Message) error {
	if err := tx.PutRequest(r); err != nil {
		return err
	}
	if err := tx.Append(record); err != nil {
		return err
	}
	if m.Event == "" {
		return nil
	}
	var err error
	if m.To, err = s.addresses(tx, r, m.Event); err != nil {
		return err
	}
	return tx.Notify(m)
}

// find reads a request that the person may see; others do not exist for them.
func find(tx Tx, p identity.Person, id string) (*request.Request, error) {
	missing := reason.NotFound("there is no request %s", grant.VisibleText(id)).
		WithHint("curfew ls shows yours")
	if grant.CheckRequestID(id) != nil {
		return nil, missing
	}
	r, err := tx.Request(id)
	if errors.Is(err, identity.ErrNone) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	if !MaySee(p, r) {
		return nil, missing
	}
	return r, nil
}

// MaySee says whether a person may look at a request: their own, or any for who sees all.
func MaySee(p identity.Person, r *request.Request) bool {
	return r.Requester == p.Name || seesAll(p)
}

// seesAll are approvers, admins and auditors.
func seesAll(p identity.Person) bool { return p.Approver || p.Admin || p.Auditor }
