package main

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// samples are durations in the order in which they were taken.
type samples []time.Duration

// at is a quantile: the smallest sample that at least that part of them does not exceed.
func (s samples) at(part float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	i := int(part*float64(len(sorted))+0.9999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

func (s samples) median() time.Duration { return s.at(0.5) }

// Line is one printed result. Value and Peer are in Unit; a Peer of 0 is none.
type Line struct {
	Name    string
	Value   float64
	Unit    string
	Peer    float64
	Against string
	// Ratio overrides Value/Peer, for rows whose bar compares something else.
	Ratio float64
	// Bar is the most that Ratio may be; or Value, when BarUnit names its unit. 0 is none. With
	// AtLeast it is the least.
	Bar     float64
	BarUnit string
	AtLeast bool
	N       int
}

// String is the line as it is printed.
func (l Line) String() string {
	ratio := l.Ratio
	if ratio == 0 && l.Peer != 0 {
		ratio = l.Value / l.Peer
	}
	text := fmt.Sprintf("bench %s %.3f %s", l.Name, l.Value, l.Unit)
	if l.Against != "" {
		text += fmt.Sprintf(" ratio=%.3f against=%s", ratio, l.Against)
		if l.Peer != 0 {
			text += fmt.Sprintf("(%.3f%s)", l.Peer, l.Unit)
		}
	}
	if l.Bar != 0 {
		judged, sign := ratio, "<="
		if l.BarUnit != "" {
			judged = l.Value
		}
		good := judged <= l.Bar
		if l.AtLeast {
			good, sign = judged >= l.Bar, ">="
		}
		word := "over"
		if good {
			word = "ok"
		}
		text += fmt.Sprintf(" bar%s%g%s %s", sign, l.Bar, l.BarUnit, word)
	}
	if l.N > 0 {
		text += fmt.Sprintf(" n=%d", l.N)
	}
	return text
}

// Print writes a result.
func (b *Bench) Print(l Line) { fmt.Fprintln(b.out, l) }

// Bench is one run.
type Bench struct {
	out io.Writer
	lab *lab // the hosts, once a row needed them
}

// A side is one of the two that are compared. It does the thing once and says how long it took.
type side func() (time.Duration, error)

// Pairs takes n samples of each side in turns, the first one alternating, after one of each that
// counts for nothing.
func Pairs(n int, ours, peer side) (mine, theirs samples, err error) {
	for i := range n + 1 {
		order := []side{ours, peer}
		into := []*samples{&mine, &theirs}
		if i%2 == 1 {
			slices.Reverse(order)
			slices.Reverse(into)
		}
		for k, f := range order {
			d, err := f()
			if err != nil {
				return nil, nil, fmt.Errorf("sample %d: %w", i, err)
			}
			if i > 0 {
				*into[k] = append(*into[k], d)
			}
		}
	}
	return mine, theirs, nil
}

// rest is how long the machine is left alone before a sample that programs on hosts give.
const rest = 200 * time.Millisecond

// rested has the machine left alone before each sample: what a sample leaves to be done, as the events
// that go to the control plane, does not count for the next one, which may be the peer's.
func rested(f side) side {
	return func() (time.Duration, error) {
		time.Sleep(rest)
		return f()
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
