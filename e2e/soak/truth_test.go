package soak

import (
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func after(seconds float64) time.Time {
	return noon.Add(time.Duration(seconds * float64(time.Second)))
}

// The deadline is the promise's limit, moved only by what the promises except.
func TestDeadline(t *testing.T) {
	at := place{"web1", "ada"}
	for name, c := range map[string]struct {
		closed    float64 // seconds after noon, 0: never
		trouble   []disturbance
		stalls    []stall
		want      float64
		unlimited bool
	}{
		"the end at noon":   {want: 2},
		"revoked before":    {closed: -60, want: -58},
		"revoked too late":  {closed: 60, want: 2},
		"agent dead before": {trouble: []disturbance{{agentDown, after(-60), after(-50)}}, want: 2},
		"agent dead at the end": {
			trouble: []disturbance{{agentDown, after(-1), after(8)}}, want: 13,
		},
		"agent dead for good": {trouble: []disturbance{{kind: agentDown, from: after(-1)}}, want: 30},
		"agent dead for long": {trouble: []disturbance{{agentDown, after(-1), after(70)}}, want: 30},
		"host off for long":   {trouble: []disturbance{{hostDown, after(-1), after(70)}}, want: 75},
		"two in a row": {
			trouble: []disturbance{{agentDown, after(1), after(4)}, {hostDown, after(8), after(12)}},
			want:    17,
		},
		"a partition does not move an end":  {trouble: []disturbance{{cut, after(-9), after(9)}}, want: 2},
		"a partition moves a revocation":    {closed: -60, trouble: []disturbance{{cut, after(-61), after(-50)}}, want: -25},
		"a partition ends with the grant":   {closed: -9, trouble: []disturbance{{kind: cut, from: after(-10)}}, want: 2},
		"somebody else's host":              {trouble: nil, want: 2},
		"a machine that stalls":             {stalls: []stall{{after(1), 500 * time.Millisecond}}, want: 4},
		"a machine that stalled long ago":   {stalls: []stall{{after(-9), 500 * time.Millisecond}}, want: 2},
		"a machine that stalls much later":  {stalls: []stall{{after(9), 500 * time.Millisecond}}, want: 2},
		"a request whose end nobody knows":  {unlimited: true},
		"an unknown end, but it was closed": {closed: 3, unlimited: true, want: 5},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTruth()
			k.open(at, "r1")
			if !c.unlimited {
				k.until(at, "r1", noon)
			}
			if c.closed != 0 {
				k.close(at, "r1", after(c.closed))
			}
			k.trouble["web1"], k.stalls = c.trouble, c.stalls
			got, open := k.deadline(at)
			if open != (c.unlimited && c.closed == 0) || !open && !got.Equal(after(c.want)) {
				t.Errorf("deadline is noon + %s (open: %t), want noon + %gs", got.Sub(noon), open, c.want)
			}
		})
	}
	if limit, open := newTruth().deadline(at); open || !limit.IsZero() {
		t.Error("somebody without a request has a deadline")
	}
}

// A trace that stays is told once; one in time, and one of an open request, never.
func TestJudge(t *testing.T) {
	k := &Soak{truth: newTruth(), o: Options{Log: t.Logf}}
	told := make(map[trace]bool)
	at := place{"web1", "ada"}
	k.truth.open(at, "r1")
	k.judge("web1", trace{"ada", "process 1"}, noon, told)
	k.truth.until(at, "r1", noon)
	k.judge("web1", trace{"ada", "process 1"}, after(1.9), told)
	if len(k.findings) != 0 {
		t.Fatalf("findings: %v", k.findings)
	}
	for range 2 {
		k.judge("web1", trace{"ada", "process 1"}, after(2.1), told)
		k.judge("web1", trace{"eve", "rule x"}, after(2.1), told)
	}
	if len(k.findings) != 2 {
		t.Fatalf("want a finding of ada and one of eve, got %v", k.findings)
	}
}
