package access

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/controlplane/approval"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Get returns a request that the person may see.
func (s *Service) Get(ctx context.Context, p identity.Person, id string) (
	r *request.Request, err error,
) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		r, err = find(tx, p, id)
		return err
	})
	return r, err
}

// Grants returns the grants of a request.
func (s *Service) Grants(ctx context.Context, id string) (grants []Grant, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		grants, err = tx.Grants(id)
		return err
	})
	return grants, err
}

// Query chooses requests for one person.
type Query struct {
	Mine, PendingForMe, Open bool
	Host, User               string
	Limit                    uint32
}

// List returns the requests that the person may see and asked for, newest first.
func (s *Service) List(ctx context.Context, p identity.Person, q Query) (
	out []*request.Request, err error,
) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	f := Filter{
		Requester: q.User, Host: q.Host, Open: q.Open, Waiting: q.PendingForMe,
		Limit: int(min(q.Limit, MaxListed)),
	}
	if q.Mine || !seesAll(p) {
		if f.Requester != "" && f.Requester != p.Name {
			return nil, nil
		}
		f.Requester = p.Name
	}
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		out, err = tx.Requests(f)
		return err
	})
	if q.PendingForMe {
		out = slices.DeleteFunc(out, func(r *request.Request) bool { return !Waits(p, r) })
	}
	return out, err
}

// Waits says whether the request waits for this person's word.
func Waits(p identity.Person, r *request.Request) bool {
	rev := r.Waiting()
	return rev != nil && approval.MayDecide(p.User, r, rev, p.ManagerOf(r.Requester)) == nil &&
		r.CheckDecision(rev.Number, p.Name) == nil
}

// Matches says whether a request that the person may see is one that the query chooses.
func Matches(p identity.Person, q Query, r *request.Request) bool {
	switch {
	case !MaySee(p, r),
		q.Mine && r.Requester != p.Name,
		q.User != "" && r.Requester != q.User,
		q.Open && r.State.Final(),
		q.PendingForMe && !Waits(p, r),
		q.Host != "" && !slices.Contains(hostNames(r), q.Host):
		return false
	}
	return true
}

// Records returns records of the trail from a number on, at most limit. all, which needs somebody
// who sees everything, returns every record; without it only what concerns the person, or the request.
func (s *Service) Records(
	ctx context.Context, p identity.Person, from uint64, requestID string, all bool, limit int,
) (out []Record, count uint64, head []byte, err error) {
	if all && !seesAll(p) {
		return nil, 0, nil, reason.Denied("the whole trail is for approvers, admins and auditors")
	}
	about := p.Name
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		if requestID != "" {
			if _, err := find(tx, p, requestID); err != nil {
				return err
			}
		}
		if all || requestID != "" {
			about = ""
		}
		if out, err = tx.Records(from, requestID, about, limit); err != nil {
			return err
		}
		count, head, err = tx.TrailHead()
		return err
	})
	return out, count, head, err
}

// Hosts lists all hosts.
func (s *Service) Hosts(ctx context.Context) (hosts []Host, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		hosts, err = tx.Hosts()
		return err
	})
	return hosts, err
}

// LabelHost replaces a host's labels. Grants that exist are untouched.
func (s *Service) LabelHost(
	ctx context.Context, p identity.Person, name string, labels map[string]string,
) (h Host, err error) {
	if err := policy.CheckLabels(labels); err != nil {
		return h, reason.Invalid("%v", err)
	}
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		if h, err = hostNamed(tx, name); err != nil {
			return err
		}
		h.Labels = labels
		pairs := make([]string, 0, len(labels))
		for _, k := range slices.Sorted(maps.Keys(labels)) {
			pairs = append(pairs, k+"="+labels[k])
		}
		return errors.Join(tx.PutHostLabels(h.ID, labels), tx.Append(trail.Record{
			TimeMS: s.now().UnixMilli(), Kind: KindHostLabels, Actor: p.Name, Host: name,
			HostID: h.ID.String(), Details: map[string]string{"labels": strings.Join(pairs, " ")},
		}), s.c.Directory.RefreshTrust(tx, p.Name))
	})
	return h, err
}

func hostNamed(tx Tx, name string) (Host, error) {
	h, err := tx.HostNamed(name)
	if errors.Is(err, identity.ErrNone) {
		return h, reason.NotFound("there is no host %s", grant.VisibleText(name)).
			WithHint("curfew hosts shows the hosts")
	}
	return h, err
}

// PutUser creates or changes a user. Live grants that carry a key which is no longer theirs end.
func (s *Service) PutUser(
	ctx context.Context, p identity.Person, e identity.Edit, createOnly bool,
) (is identity.User, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		was, now, err := s.c.Directory.PutUser(tx, p.Name, e, createOnly)
		if err != nil {
			return err
		}
		is = now
		gone := slices.DeleteFunc(was.SSHKeys,
			func(k string) bool { return slices.Contains(is.SSHKeys, k) })
		if len(gone) == 0 {
			return nil
		}
		return s.endOf(tx, e.Name, p.Name, "an SSH key of this grant was removed",
			func(r *request.Request) bool { return carries(r, gone) })
	})
	return is, err
}

func carries(r *request.Request, keys []string) bool {
	live := r.Live()
	if live == nil {
		return false
	}
	terms, err := grant.ParseTerms(live.Terms)
	return err != nil || slices.ContainsFunc(terms.GetAuthorizedKeys(),
		func(k string) bool { return slices.Contains(keys, k) })
}

// DisableUser ends a user's sign-in, sessions, waiting requests and live grants, at once.
func (s *Service) DisableUser(ctx context.Context, p identity.Person, name string) (
	u identity.User, err error,
) {
	err = s.c.Store.Update(ctx, func(tx Tx) (err error) {
		if u, err = s.c.Directory.DisableUser(tx, p.Name, name, identity.SourceAdmin); err != nil {
			return err
		}
		return s.endOf(tx, name, p.Name, "the user was disabled",
			func(*request.Request) bool { return true })
	})
	return u, err
}

// endOf ends those of a user's open requests that which chooses.
func (s *Service) endOf(
	tx Tx, name, by, why string, which func(*request.Request) bool,
) error {
	open, err := tx.Requests(Filter{Requester: name, Open: true, Limit: MaxListed})
	if err != nil {
		return err
	}
	for _, r := range open {
		if !which(r) {
			continue
		}
		if err := s.endOne(tx, r, by, why); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) endOne(tx Tx, r *request.Request, by, why string) error {
	if r.State == request.Granted {
		return s.endAll(tx, r, curfewv1.EndCause_END_CAUSE_REVOKED, by, why)
	}
	now := s.now()
	kind, err := KindWithdrawn, error(nil)
	if r.State == request.Approved {
		kind, err = KindLapsed, r.Lapse(now)
	} else {
		err = r.Withdraw(now)
	}
	if err != nil {
		return moved(err)
	}
	return s.put(tx, r, noteOn(r, kind, by, now, map[string]string{"reason": why}), Message{})
}
