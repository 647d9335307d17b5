package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	pollEvery   = 30 * time.Second // a stream that died silently is noticed by then
	giveUpAfter = 2 * time.Minute  // of silence from the control plane
	retryFirst  = 500 * time.Millisecond
	retryMost   = 5 * time.Second
)

// wait is a person waiting for one revision of a request.
type wait struct {
	a         *app
	c         *client
	id        string
	revision  uint32
	extension bool
	timeout   time.Duration // 0: until it is decided or lapses
}

// standing is what the revision has come to: what to say while it is open, and how it ended.
type standing struct {
	text string
	done bool
	err  error
}

// startsSoon is how far ahead a start may lie for which waiting goes on.
const startsSoon = time.Minute

// judge reads the standing of one revision from a request. It decides nothing: it says in words
// what the control plane and the hosts said.
func (w *wait) judge(r *apiv1.Request) standing {
	switch r.GetState() {
	case apiv1.RequestState_REQUEST_STATE_PENDING:
		return standing{text: w.id + " pending · " + needs(r)}
	case apiv1.RequestState_REQUEST_STATE_DENIED:
		return standing{done: true, err: w.denied(r)}
	case apiv1.RequestState_REQUEST_STATE_WITHDRAWN:
		return standing{done: true, err: fail(exitFailed, "%s was withdrawn", w.what())}
	case apiv1.RequestState_REQUEST_STATE_LAPSED:
		return standing{done: true, err: w.lapsed(r)}
	}
	if w.extension && r.GetExtensionPending() {
		return standing{text: w.id + " extension pending · " + needs(r)}
	}
	if start := ms(r.GetStartEarliestMs()); !w.extension && time.Until(start) > startsSoon {
		return standing{done: true, text: w.id + " approved · starts " + w.a.when(r.GetStartEarliestMs()).text}
	}
	grants := grantsOf(r, w.revision)
	if len(grants) == 0 {
		return w.judgeUnissued(r)
	}
	return w.judgeHosts(r, grants)
}

// judgeUnissued is a decided revision of which no grant is known: approved a moment ago, refused,
// or overtaken by the request's end.
func (w *wait) judgeUnissued(r *apiv1.Request) standing {
	approved := false
	for _, d := range r.GetDecisions() {
		if d.GetRevision() != w.revision {
			continue
		}
		if denial(d) {
			return standing{done: true, err: w.denied(r)}
		}
		approved = approved || d.GetApproved()
	}
	switch {
	case r.GetState() == apiv1.RequestState_REQUEST_STATE_ENDED:
		return standing{done: true, err: fail(exitFailed, "%s ended: %s", w.id, endText(r))}
	case w.extension && !approved:
		return standing{done: true, err: w.lapsed(r)}
	}
	return standing{text: w.id + " approved · waiting for " + strings.Join(r.GetHosts(), ", ")}
}

func (w *wait) judgeHosts(r *apiv1.Request, grants []*apiv1.HostGrant) standing {
	var open, bad []string
	for _, g := range grants {
		switch {
		case g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_FAILED,
			g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_REJECTED:
			bad = append(bad, fmt.Sprintf("%s %s it: %s", g.GetHostName(), statusVerb(g),
				g.GetDetail()))
		case g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_APPLIED, g.GetEndedMs() != 0:
		default:
			open = append(open, g.GetHostName())
		}
	}
	switch {
	case len(open) > 0 && r.GetState() != apiv1.RequestState_REQUEST_STATE_ENDED:
		return standing{text: w.id + " approved · waiting for " + strings.Join(open, ", ") +
			" to confirm"}
	case len(bad) > 0:
		return standing{done: true, err: fail(exitFailed, "%s", strings.Join(bad, "; ")).
			hint("the whole story: curfew show %s", w.id)}
	case len(open) > 0:
		return standing{done: true, err: fail(exitFailed, "%s ended before %s confirmed: %s", w.id,
			strings.Join(open, ", "), endText(r))}
	}
	return standing{done: true}
}

func statusVerb(g *apiv1.HostGrant) string {
	if g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_REJECTED {
		return "refused"
	}
	return "could not enforce"
}

func (w *wait) what() string {
	if w.extension {
		return "the extension of " + w.id
	}
	return w.id
}

func (w *wait) denied(r *apiv1.Request) error {
	for _, d := range r.GetDecisions() {
		if denial(d) && d.GetRevision() == w.revision {
			return fail(exitDenied, "%s was denied by %s: %s", w.what(), d.GetApprover(),
				d.GetReason())
		}
	}
	return fail(exitDenied, "%s was denied: %s", w.what(), r.GetVerdict())
}

func (w *wait) lapsed(r *apiv1.Request) error {
	why := "nobody decided in time"
	if r.GetVerdict() != "" {
		why = r.GetVerdict()
	}
	return fail(exitTimeout, "%s came to nothing: %s", w.what(), why).
		hint("tell an approver, then ask again")
}

// needs says who can approve.
func needs(r *apiv1.Request) string {
	if r.GetVerdict() != "" {
		return strings.TrimPrefix(r.GetVerdict(), "extension: ")
	}
	terms, err := grant.ParseTerms(r.GetTerms())
	if err != nil {
		return "waiting for approval"
	}
	return "needs " + grant.NeedsText(grant.NeedsOf(terms))
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func grantsOf(r *apiv1.Request, revision uint32) []*apiv1.HostGrant {
	var out []*apiv1.HostGrant
	for _, g := range r.GetGrants() {
		if g.GetRevision() == revision {
			out = append(out, g)
		}
	}
	return out
}

func endText(r *apiv1.Request) string {
	words := causeWord(r.GetEndCause())
	if words == "" {
		words = "ended"
	}
	if by := r.GetEndedBy(); by != "" {
		words += " by " + by
	}
	return words
}

// run waits and keeps the live line. The request outlives the wait in every case.
func (w *wait) run(ctx context.Context, r *apiv1.Request) (*apiv1.Request, error) {
	line := w.a.live()
	defer line.clear()
	feedCtx, stop := context.WithCancel(ctx)
	defer stop()
	updates := feed(feedCtx, w.c, &apiv1.WatchRequestsRequest{Id: w.id})
	var deadline <-chan time.Time
	if w.timeout > 0 {
		timer := time.NewTimer(w.timeout)
		defer timer.Stop()
		deadline = timer.C
	}
	second, poll := time.NewTicker(time.Second), time.NewTicker(pollEvery)
	defer second.Stop()
	defer poll.Stop()
	began := w.a.now()
	silence := ""
	for {
		s := w.judge(r)
		if s.done {
			return r, s.err
		}
		line.set(s.text+silence, showDuration(w.a.now().Sub(began)))
		select {
		case <-ctx.Done():
			return r, w.stays(exitUsage, "stopped waiting")
		case <-deadline:
			return r, w.stays(exitTimeout, "not there after "+showDuration(w.timeout))
		case <-second.C:
		case <-poll.C:
			// The stream tells of changes; this tells of a stream that died.
			if now, err := w.c.request(ctx, w.id); err == nil {
				r, silence = now, ""
			}
		case u := <-updates:
			switch {
			case u.fatal:
				return r, u.err
			case u.err != nil:
				silence = " · control plane out of reach, trying again"
			case u.request.GetId() == w.id:
				r, silence = u.request, ""
			}
		}
	}
}

func (w *wait) stays(code int, why string) error {
	return fail(code, "%s; %s stays as it is", why, w.what()).
		hint("look: curfew show %s", w.id).hint("take it back: curfew withdraw %s", w.id)
}

// update is one thing that a feed tells: a changed request, or that the stream broke.
type update struct {
	request *apiv1.Request
	err     error
	fatal   bool
}

// feed follows requests until ctx ends, and reconnects when the stream breaks: every change since
// comes with the new stream's first answers. It gives up after giveUpAfter without one answer.
func feed(ctx context.Context, c *client, question *apiv1.WatchRequestsRequest) <-chan update {
	updates := make(chan update)
	send := func(u update) bool {
		select {
		case updates <- u:
			return true
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		now := c.transport.now
		pause, heard := retryFirst, now()
		for ctx.Err() == nil {
			err := follow(ctx, c, question, func(r *apiv1.Request) bool {
				pause, heard = retryFirst, now()
				return send(update{request: r})
			})
			if ctx.Err() != nil {
				return
			}
			if !retryable(err) || now().Sub(heard) > giveUpAfter {
				send(update{err: err, fatal: true})
				return
			}
			if !send(update{err: err}) {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(pause*2, retryMost)
		}
	}()
	return updates
}

func follow(
	ctx context.Context, c *client, question *apiv1.WatchRequestsRequest,
	each func(*apiv1.Request) bool,
) error {
	stream, err := c.access.WatchRequests(ctx, question)
	if err != nil {
		return c.explain(err)
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return c.explain(streamEnd(err))
		}
		if !each(answer.GetRequest()) {
			return nil
		}
	}
}

// retryable is what passes by itself: an unreachable or restarting control plane.
func retryable(err error) bool {
	var f *failure
	return err == nil || errors.As(err, &f) && f.code == exitUnreachable
}
