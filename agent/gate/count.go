package gate

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/metrics"
)

// Stats counts what happened since the start. Refused are connections that got no answer: garbage,
// silence, or too many at once.
type Stats struct {
	Allowed, Denied, Ignored, TryAgain, Refused uint64
	// WouldDeny counts the answers that observe mode turned into ignore.
	WouldDeny uint64
}

// verdicts are what an answer can be, with the word for it.
var verdicts = []struct {
	verdict gatewire.Verdict
	word    string
}{
	{gatewire.Allow, "allow"},
	{gatewire.Deny, "deny"},
	{gatewire.Ignore, "ignore"},
	{gatewire.TryAgain, "try_again"},
}

type stats struct {
	// answers are by PAM service and verdict. Its keys are the services of the table, so that nobody who
	// asks makes more of them.
	answers            map[string]map[gatewire.Verdict]*atomic.Uint64
	refused, wouldDeny atomic.Uint64
	took               *metrics.Histogram
}

func newStats() *stats {
	s := &stats{
		answers: make(map[string]map[gatewire.Verdict]*atomic.Uint64),
		took: metrics.NewHistogram(time.Millisecond, 5*time.Millisecond, 25*time.Millisecond,
			100*time.Millisecond, 500*time.Millisecond, budget),
	}
	for service := range rules {
		s.answers[service] = make(map[gatewire.Verdict]*atomic.Uint64)
		for _, v := range verdicts {
			s.answers[service][v.verdict] = new(atomic.Uint64)
		}
	}
	return s
}

func (s *stats) count(service string, v gatewire.Verdict) {
	row, ok := s.answers[service]
	if !ok {
		row = s.answers[others]
	}
	if n := row[v]; n != nil {
		n.Add(1)
	}
}

func (s *stats) total(v gatewire.Verdict) (n uint64) {
	for _, row := range s.answers {
		n += row[v].Load()
	}
	return n
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{
		Allowed: s.stats.total(gatewire.Allow), Denied: s.stats.total(gatewire.Deny),
		Ignored: s.stats.total(gatewire.Ignore), TryAgain: s.stats.total(gatewire.TryAgain),
		Refused: s.stats.refused.Load(), WouldDeny: s.stats.wouldDeny.Load(),
	}
}

// Report writes the counts down.
func (s *Server) Report(p *metrics.Page) {
	for _, service := range slices.Sorted(maps.Keys(s.stats.answers)) {
		label := service
		if service == others {
			label = "other"
		}
		for _, v := range verdicts {
			p.Counter("curfew_gate_answers_total", "Answers to PAM, by service.",
				s.stats.answers[service][v.verdict].Load(), "answer", v.word, "service", label)
		}
	}
	p.Counter("curfew_gate_would_deny_total", "Answers that observe mode turned into ignore.",
		s.stats.wouldDeny.Load())
	p.Counter("curfew_gate_refused_total", "Connections that got no answer.", s.stats.refused.Load())
	p.Histogram("curfew_gate_answer_seconds", "From a question's connection to its answer.", s.stats.took)
}
