package controlplane

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/guard"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/scrape"
	"github.com/curfew-access/curfew/internal/trail"
)

// Kinds of records that are counted, with the label that each counts under. What is on the trail has
// happened, durably, and nothing else is counted.
var (
	requestOutcomes = map[string]string{
		access.KindRequested: "asked", access.KindExtension: "extension_asked", access.KindEdited: "edited",
		access.KindApproved: "approved", issue.KindRequestGranted: "granted", access.KindDenied: "denied",
		access.KindWithdrawn: "withdrawn", access.KindLapsed: "lapsed", access.KindEnded: "ended",
	}
	signInOutcomes = map[string]string{
		identity.KindSignedIn: "accepted", identity.KindNotSigned: "refused",
	}
	breakGlass = map[string]string{
		access.KindCodeFetched: "fetched", trail.KindBreakGlassUsed: "used",
		trail.KindBreakGlassRefused: "refused",
	}
)

// figures are what the control plane counts for its operators. Labels come from closed lists: nobody
// who calls makes more of them, and none names a person, a request or a host.
type figures struct {
	registry     *prometheus.Registry
	requests     *prometheus.CounterVec
	approvals    prometheus.Counter
	signIns      *prometheus.CounterVec
	breakGlass   *prometheus.CounterVec
	events       *prometheus.CounterVec
	givenUp      prometheus.Counter
	pushLag      prometheus.Histogram
	states       *prometheus.CounterVec
	transactions *prometheus.HistogramVec
	storeFailed  *prometheus.CounterVec

	hostKinds map[string]bool
}

func newFigures(version string) *figures {
	f := &figures{
		registry: scrape.NewRegistry(), hostKinds: make(map[string]bool),
		requests: counters("curfew_requests_total", "Requests, by what became of them.", "outcome"),
		approvals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "curfew_approvals_total", Help: "Approvals that people gave.",
		}),
		signIns:    counters("curfew_sign_ins_total", "Sign-ins of people and pipelines.", "outcome"),
		breakGlass: counters("curfew_break_glass_total", "What was done with break-glass codes.", "what"),
		events: counters("curfew_host_events_total",
			"What hosts reported, and what was noticed of them, by kind of record.", "kind"),
		givenUp: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "curfew_notifications_given_up_total", Help: "Messages that their receiver will not get.",
		}),
		pushLag: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "curfew_push_lag_seconds",
			Help:    "From a change of grants or trust to its acceptance by a connected host.",
			Buckets: []float64{0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30},
		}),
		states: counters("curfew_states_answered_total", "Host states that hosts answered.", "answer"),
		transactions: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "curfew_store_transaction_seconds",
			Help:    "How long whoever asked for a transaction waited for it.",
			Buckets: []float64{0.001, 0.005, 0.025, 0.1, 0.5, 1, 5},
		}, []string{"kind"}),
		storeFailed: counters("curfew_store_failures_total", "Transactions that the store failed.", "kind"),
	}
	f.registry.MustRegister(f.requests, f.approvals, f.signIns, f.breakGlass, f.events, f.givenUp,
		f.pushLag, f.states, f.transactions, f.storeFailed,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "curfew_controlplane_info", Help: "Always 1; the label says what runs.",
			ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }))
	f.zero()
	return f
}

func counters(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
}

// zero shows what has not happened yet: a rate over a counter that appears with its first 1 misses it.
func (f *figures) zero() {
	for vec, labels := range map[*prometheus.CounterVec]map[string]string{
		f.requests: requestOutcomes, f.signIns: signInOutcomes, f.breakGlass: breakGlass,
	} {
		for _, label := range labels {
			vec.WithLabelValues(label)
		}
	}
	for _, kind := range stream.Kinds() {
		f.hostKinds[kind] = true
		f.events.WithLabelValues(kind)
	}
	for _, answer := range []string{"accepted", "refused"} {
		f.states.WithLabelValues(answer)
	}
	for _, kind := range []string{"read", "write"} {
		f.transactions.WithLabelValues(kind)
		f.storeFailed.WithLabelValues(kind)
	}
}

// guard makes the interceptors, whose figures are among these.
func (f *figures) guard(internal func(method string, err error) error) *guard.Guard {
	g := guard.New(internal)
	f.registry.MustRegister(g.Collectors()...)
	return g
}

// recorded counts a record of the trail.
func (f *figures) recorded(r trail.Record) {
	if label, ok := requestOutcomes[r.Kind]; ok {
		f.requests.WithLabelValues(label).Inc()
	}
	if label, ok := signInOutcomes[r.Kind]; ok {
		f.signIns.WithLabelValues(label).Inc()
	}
	if label, ok := breakGlass[r.Kind]; ok {
		f.breakGlass.WithLabelValues(label).Inc()
	}
	if f.hostKinds[r.Kind] {
		f.events.WithLabelValues(r.Kind).Inc()
	}
	switch r.Kind {
	case access.KindApproval:
		f.approvals.Inc()
	case notify.KindUndeliverable:
		f.givenUp.Inc()
	}
}

// took counts a transaction of the store.
func (f *figures) took(write bool, took time.Duration, failed bool) {
	kind := "read"
	if write {
		kind = "write"
	}
	f.transactions.WithLabelValues(kind).Observe(took.Seconds())
	if failed {
		f.storeFailed.WithLabelValues(kind).Inc()
	}
}

// acked counts a host's answer to a state.
func (f *figures) acked(accepted bool) {
	answer := "refused"
	if accepted {
		answer = "accepted"
	}
	f.states.WithLabelValues(answer).Inc()
}

func (f *figures) pushed(lag time.Duration) { f.pushLag.Observe(lag.Seconds()) }
