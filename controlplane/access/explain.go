package access

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// Limits of a replay: it reads the store in pages, so that nobody waits for it.
const (
	replayPage      = 200
	maxReplayed     = 100000
	maxDifferences  = 1000
	maxReplayPeriod = 400 * 24 * time.Hour
)

// Explanation is how a policy came to its verdict.
type Explanation struct {
	Steps   []string
	Verdict string
}

// Explain says how a request's newest revision was decided, and, when another policy is in force now,
// what that one makes of the same facts.
func (s *Service) Explain(ctx context.Context, p identity.Person, id string) (
	then, now Explanation, err error,
) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		r, err := find(tx, p, id)
		if err != nil {
			return err
		}
		rev := r.Newest()
		kept, ok := policy.Kept(rev.Facts)
		if !ok {
			return reason.Conflict("request %s is older than what was kept to explain decisions", id)
		}
		inForce, err := s.c.Directory.Policy(tx)
		if err != nil {
			return err
		}
		if then, err = s.explainThen(tx, rev, kept); err != nil {
			return err
		}
		if inForce != nil && !inForce.SameText(rev.PolicyHash) {
			kept.Facts.Policy = inForce
			steps, v := policy.Explain(kept.Ask, kept.Facts)
			now = Explanation{Steps: steps, Verdict: v.Text}
		}
		return nil
	})
	return then, now, err
}

func (s *Service) explainThen(tx Tx, rev *request.Revision, kept policy.Record) (
	e Explanation, err error,
) {
	if len(rev.PolicyHash) == 32 {
		kept.Facts.Policy, err = s.c.Directory.PolicyOf(tx, [32]byte(rev.PolicyHash))
	}
	if err != nil && !errors.Is(err, identity.ErrNone) {
		return e, err
	}
	if kept.Facts.Policy == nil {
		return Explanation{
			Steps: []string{fmt.Sprintf("role %s of the directory: decides: %s", kept.Ask.Role,
				grant.NeedsText(rev.Needs))},
			Verdict: "needs " + grant.NeedsText(rev.Needs),
		}, nil
	}
	steps, v := policy.Explain(kept.Ask, kept.Facts)
	return Explanation{Steps: steps, Verdict: v.Text}, nil
}

// Difference is a request that another policy decides otherwise.
type Difference struct {
	Request, Requester, Role, Was, WouldBe string
}

// Replay decides the requests since a moment anew, each on the facts that it was decided on, with a
// policy file or, without one, with the policy in force.
func (s *Service) Replay(ctx context.Context, text []byte, since time.Time) (
	replayed int, out []Difference, err error,
) {
	if earliest := s.now().Add(-maxReplayPeriod); since.Before(earliest) {
		since = earliest
	}
	with, err := s.replayed(ctx, text)
	if err != nil {
		return 0, nil, err
	}
	after := ""
	for replayed < maxReplayed && len(out) < maxDifferences {
		var page []*request.Request
		err := s.c.Store.View(ctx, func(tx Tx) (err error) {
			page, err = tx.RequestsSince(since, after, replayPage)
			return err
		})
		if err != nil || len(page) == 0 {
			return replayed, out, err
		}
		for _, r := range page {
			rev := &r.Revisions[0]
			since, after = r.Created(), r.ID
			kept, ok := policy.Kept(rev.Facts)
			if !ok {
				continue
			}
			replayed++
			if d, differs := differs(r, rev, kept, with); differs && len(out) < maxDifferences {
				out = append(out, d)
			}
		}
	}
	return replayed, out, nil
}

func (s *Service) replayed(ctx context.Context, text []byte) (p *policy.Policy, err error) {
	if len(text) > 0 {
		if p, err = policy.Parse("policy.yaml", text); err != nil {
			return nil, reason.Invalid("%s", identity.FirstFault(err))
		}
		return p, nil
	}
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		p, err = s.c.Directory.Policy(tx)
		return err
	})
	if err == nil && p == nil {
		err = reason.Conflict("no policy file is in force").
			WithHint("name one: curfew admin policy replay FILE")
	}
	return p, err
}

func differs(r *request.Request, rev *request.Revision, kept policy.Record, with *policy.Policy) (
	Difference, bool,
) {
	was := "needs " + grant.NeedsText(rev.Needs)
	if rev.Standing != "" {
		was = "auto"
		if kept.Ask.Emergency {
			was = "emergency"
		}
	}
	kept.Facts.Policy = with
	_, v := policy.Explain(kept.Ask, kept.Facts)
	d := Difference{
		Request: r.ID, Requester: r.Requester, Role: r.Role, Was: was, WouldBe: v.Short(),
	}
	return d, d.WouldBe != d.Was
}
