package access

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
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
}

// Config is what a Service needs.
type Config struct {
	Store      Store
	Directory  *identity.Service
	Issuer     Issuer
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

// Create asks for access.
func (s *Service) Create(
	ctx context.Context, p identity.Person, hosts []string, role string, d time.Duration, why string,
) (r *request.Request, err error) {
	ask := request.Ask{Requester: p.Name, Role: role, Hosts: hosts, Duration: d, Reason: why}
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		facts, err := s.facts(tx, ask)
		if err != nil {
			return err
		}
		verdict := policy.Decide(ask, facts)
		if !verdict.Accepted() {
			return refusal(verdict)
		}
		if err := s.underQuota(tx, p.Name); err != nil {
			return err
		}
		now := s.now()
		id, err := s.newID(tx)
		if err != nil {
			return err
		}
		lapses := now.Add(s.c.PendingTTL)
		terms, err := policy.Terms(ask, facts,
			policy.Draft{RequestID: id, Revision: 1, Now: now, Lapses: lapses})
		if err != nil {
			return reason.Invalid("%v", err)
		}
		r = request.New(id, p.Name, role, hostsOf(ask, facts), facts.Role.RootEquivalent(),
			request.Revision{
				Terms: terms, Duration: d, Reason: why, Created: now, Lapses: lapses,
				Needed: verdict.Approvals, Group: verdict.Group,
			})
		return s.put(tx, r, s.asked(r, KindRequested), Notice(r, s.c.Directory.Organisation(),
			"request.pending", ""))
	})
	if err == nil {
		s.c.Log.Info("requested", "request", r.ID, "by", p.Name, "role", role)
	}
	return r, err
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
		if _, err := tx.Request(id); errors.Is(err, identity.ErrNone) {
			return id, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", errors.New("drew eight request ids that exist already: the randomness is broken")
}

// facts reads everything that policy needs.
func (s *Service) facts(tx Tx, ask request.Ask) (policy.Facts, error) {
	f := policy.Facts{Hosts: make(map[string]policy.Host), Disabled: make(map[string]bool)}
	row, err := tx.NewestTrust()
	if err != nil {
		return f, err
	}
	if f.Trust, err = identity.Trust(row); err != nil {
		return f, err
	}
	users, err := tx.Users()
	if err != nil {
		return f, err
	}
	for _, u := range users {
		f.Disabled[u.Name] = u.Disabled
		if u.Name == ask.Requester {
			f.Requester = policy.Person{
				Name: u.Name, UID: u.UID, Disabled: u.Disabled, Groups: u.Groups, SSHKeys: u.SSHKeys,
			}
		}
	}
	role, err := tx.Role(ask.Role)
	if err == nil {
		f.Role = &role
	} else if !errors.Is(err, identity.ErrNone) {
		return f, err
	}
	for _, name := range ask.Hosts[:min(len(ask.Hosts), grant.MaxHosts+1)] {
		h, err := tx.HostNamed(name)
		if errors.Is(err, identity.ErrNone) {
			continue
		}
		if err != nil {
			return f, err
		}
		f.Hosts[name] = policy.Host{ID: h.ID, Name: h.Name, Labels: h.Labels, Refused: h.Refused}
	}
	return f, nil
}

func hostsOf(a request.Ask, f policy.Facts) []request.Host {
	out := make([]request.Host, 0, len(a.Hosts))
	for _, name := range a.Hosts {
		out = append(out, request.Host{ID: f.Hosts[name].ID, Name: name})
	}
	return out
}

func refusal(v policy.Verdict) error {
	var e *reason.Error
	switch v.Fault {
	case policy.BadAsk:
		e = reason.Invalid("%s", v.Text)
	case policy.Unknown:
		e = reason.NotFound("%s", v.Text)
	case policy.NotYet:
		e = reason.Conflict("%s", v.Text)
	default:
		e = reason.Denied("%s", v.Text)
	}
	e.Hint = v.Hint
	return e
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

// MaySee says whether a person may look at a request: their own, or any for approvers and admins.
func MaySee(p identity.Person, r *request.Request) bool {
	return r.Requester == p.Name || p.Approver || p.Admin
}
