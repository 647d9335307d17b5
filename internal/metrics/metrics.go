// Package metrics counts what happens and writes it down for Prometheus, in the little of its text
// format that the root half needs. The root half links no HTTP server: Serve answers GET on a socket of
// its own. Whoever has net/http, which is everybody else, uses Prometheus' library.
package metrics

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Histogram counts durations by upper bounds. New it with NewHistogram; any goroutine may use it.
type Histogram struct {
	bounds []time.Duration
	counts []atomic.Uint64 // one more than bounds: what is over all of them
	sum    atomic.Int64
}

// NewHistogram wants its bounds ascending.
func NewHistogram(bounds ...time.Duration) *Histogram {
	if !slices.IsSorted(bounds) {
		panic("metrics: the bounds of a histogram do not ascend")
	}
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts one duration; one below zero, as clocks make them, is none.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i, _ := slices.BinarySearch(h.bounds, d)
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Page is what one question is answered with. Each of its methods writes one metric or one more series
// of the metric before.
type Page struct {
	text  strings.Builder
	names []string
}

// Counter writes a total. Labels are names and values in turn.
func (p *Page) Counter(name, help string, value uint64, labels ...string) {
	p.head(name, help, "counter")
	p.line(name, labels, strconv.FormatUint(value, 10))
}

// Gauge writes a value.
func (p *Page) Gauge(name, help string, value float64, labels ...string) {
	p.head(name, help, "gauge")
	p.line(name, labels, number(value))
}

// Histogram writes a histogram in seconds.
func (p *Page) Histogram(name, help string, h *Histogram, labels ...string) {
	p.head(name, help, "histogram")
	var count uint64
	for i, bound := range append(slices.Clone(h.bounds), math.MaxInt64) {
		count += h.counts[i].Load()
		le := "+Inf"
		if bound != math.MaxInt64 {
			le = number(bound.Seconds())
		}
		p.line(name+"_bucket", append(slices.Clone(labels), "le", le), strconv.FormatUint(count, 10))
	}
	p.line(name+"_sum", labels, number(time.Duration(h.sum.Load()).Seconds()))
	p.line(name+"_count", labels, strconv.FormatUint(count, 10))
}

func (p *Page) head(name, help, kind string) {
	if slices.Contains(p.names, name) {
		return
	}
	p.names = append(p.names, name)
	fmt.Fprintf(&p.text, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (p *Page) line(name string, labels []string, value string) {
	p.text.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		between := ","
		if i == 0 {
			between = "{"
		}
		fmt.Fprintf(&p.text, `%s%s="%s"`, between, labels[i], escape.Replace(labels[i+1]))
	}
	if len(labels) > 1 {
		p.text.WriteByte('}')
	}
	p.text.WriteString(" " + value + "\n")
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// Flag is 1 for true.
func Flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// String is the page.
func (p *Page) String() string { return p.text.String() }
