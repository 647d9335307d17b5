package agent

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/metrics"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// MetricsSocket is where the root half says how it is, in RunDir: HTTP, for root and the link half.
const MetricsSocket = "metrics.sock"

// counts are what the owner measures. They belong to its goroutine.
type counts struct {
	apply, expiry, revocation *metrics.Histogram

	residue uint64
}

func newCounts() counts {
	lag := func() *metrics.Histogram {
		return metrics.NewHistogram(100*time.Millisecond, 250*time.Millisecond, 500*time.Millisecond,
			time.Second, 2*time.Second, 5*time.Second, 30*time.Second, 5*time.Minute)
	}
	return counts{
		apply: metrics.NewHistogram(10*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond,
			250*time.Millisecond, 500*time.Millisecond, time.Second, 5*time.Second, 30*time.Second),
		expiry: lag(), revocation: lag(),
	}
}

// stands measures how long a listed grant took until its files were in place.
func (o *owner) stands(r enforce.Result) {
	since, ok := o.listed[r.Live.ID]
	if !ok {
		return
	}
	delete(o.listed, r.Live.ID)
	if r.Applied() {
		o.counts.apply.Observe(o.cfg.Clock().Boot - since)
	}
}

// over is when a request should have been over, on the boot-time clock, while nobody has measured how
// late its last process went.
type over struct {
	cause curfewv1.EndCause
	since time.Duration
}

// overSince is called when a grant has ended. What ended while no agent ran is measured from when this
// one saw it.
func (o *owner) overSince(e grant.EndedGrant) over {
	now := o.cfg.Clock()
	since := now.Boot
	for _, r := range o.results {
		if r.Live.ID == e.ID && e.Cause == curfewv1.EndCause_END_CAUSE_EXPIRED {
			since -= max(now.Wall.Sub(r.Live.End), now.Boot-r.Live.BootDeadline, 0)
		}
	}
	return over{cause: e.Cause, since: since}
}

// ended measures, once, when the last process of a request is dead.
func (c counts) ended(e *over, now time.Duration) {
	switch e.cause {
	case curfewv1.EndCause_END_CAUSE_UNSPECIFIED:
		return
	case curfewv1.EndCause_END_CAUSE_EXPIRED:
		c.expiry.Observe(now - e.since)
	default:
		c.revocation.Observe(now - e.since)
	}
	*e = over{}
}

// serveMetrics answers on the metrics socket until ctx ends.
func (o *owner) serveMetrics(ctx context.Context, l *net.UnixListener) error {
	return metrics.Serve(ctx, l, map[string]metrics.Answer{
		"/metrics": func(ctx context.Context) (string, error) {
			var p metrics.Page
			err := o.do(ctx, func(context.Context) { o.report(&p) })
			return p.String(), err
		},
		// It turns: what ends access runs.
		"/healthz": func(ctx context.Context) (string, error) {
			return "ok\n", o.do(ctx, func(context.Context) {})
		},
		// It does all that it should.
		"/readyz": func(ctx context.Context) (string, error) {
			var list []string
			if err := o.do(ctx, func(context.Context) { list = o.allProblems() }); err != nil {
				return "", err
			}
			if len(list) > 0 {
				return "", errors.New(strings.Join(list, "\n"))
			}
			return "ready\n", nil
		},
	})
}

func (o *owner) report(p *metrics.Page) {
	p.Gauge("curfew_agent_info", "Always 1; the labels say what runs.", 1,
		"version", o.cfg.Version, "mode", o.word())
	states := map[string]int{"applied": 0, "failed": 0, "pending": 0}
	for _, r := range o.results {
		states[statusText(r.Status)]++
	}
	for _, status := range []string{"applied", "failed", "pending"} {
		p.Gauge("curfew_grants_live", "Grants inside their window, by how they stand.",
			float64(states[status]), "status", status)
	}
	p.Histogram("curfew_grant_apply_seconds", "From the state that lists a grant to its files.", o.counts.apply)
	p.Histogram("curfew_expiry_lag_seconds", "From a grant's end to its last process's.", o.counts.expiry)
	p.Histogram("curfew_revocation_lag_seconds", "From the state that ends a grant early to its last process's.",
		o.counts.revocation)
	p.Gauge("curfew_endings", "Requests that are over, and of which something may be left.",
		float64(len(o.ending)))
	kinds := map[string]int{"login": 0, "elevation": 0}
	for _, s := range o.sessions.Sessions() {
		if strings.HasPrefix(s.GetService(), "sudo") {
			kinds["elevation"]++
		} else {
			kinds["login"]++
		}
	}
	for _, kind := range []string{"login", "elevation"} {
		p.Gauge("curfew_sessions", "Sessions under grants.", float64(kinds[kind]), "kind", kind)
	}
	p.Counter("curfew_reconcile_drift_total", "Files that somebody else changed and that were put right.",
		o.recon.DriftRepaired())
	p.Gauge("curfew_problems", "What is wrong on this host: curfew-agent status.",
		float64(len(o.allProblems())))
	p.Gauge("curfew_may_open", "Whether new access may open: the control plane is heard, the clock is sure.",
		metrics.Flag(o.mayOpen() == nil))
	now := o.cfg.Clock()
	p.Gauge("curfew_lease_seconds", "How long new access opens without another word from the control plane.",
		max(o.ledger.LeaseEnd(now)-now.Boot, 0).Seconds())
	p.Gauge("curfew_lease_half_gone", "Whether half of that time, or all, is over without a word.",
		metrics.Flag(o.leaseWarned || o.leaseOver))
	p.Gauge("curfew_clock_jumped", "Whether the wall clock disagrees with the time since boot.",
		metrics.Flag(errors.Is(o.ledger.MayOpen(now), grant.ErrClock)))
	p.Counter("curfew_residue_reports_total", "Ended grants that left something behind for somebody to read.",
		o.counts.residue)
	p.Gauge("curfew_link_connected", "Whether the link half is connected to the root half.",
		metrics.Flag(o.up.connected()))
	p.Gauge("curfew_state_sequence", "The number of the newest host state.", float64(o.ledger.Sequence()))
	p.Counter("curfew_events_total", "Events on the host's chain.", o.rec.chain().Count)
	p.Gauge("curfew_events_unsent", "Events that the control plane does not hold yet.", float64(o.rec.unsent()))
	o.gate.Report(p)
}
