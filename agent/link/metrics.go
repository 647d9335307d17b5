package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/curfew-access/curfew/internal/scrape"
)

// DefaultMetricsSocket is where the root half says how it is.
const DefaultMetricsSocket = "/run/curfew/metrics.sock"

const (
	maxPage     = 1 << 20
	askRootHalf = 5 * time.Second
)

// gauges are what this half measures, and the way to what the root half does.
type gauges struct {
	registry  *prometheus.Registry
	connected prometheus.Gauge
	rootUp    prometheus.Gauge
	attempts  prometheus.Counter
	messages  *prometheus.CounterVec
	rootHalf  http.Client
}

func newGauges(id *identity, socket string) *gauges {
	g := &gauges{
		registry: scrape.NewRegistry(),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "curfew_stream_connected", Help: "Whether the control plane is heard over the stream.",
		}),
		rootUp: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "curfew_root_half_up", Help: "Whether the root half answers; without it its metrics are missing.",
		}),
		attempts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "curfew_stream_attempts_total", Help: "Attempts to connect to the control plane.",
		}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "curfew_stream_messages_total", Help: "Messages carried: up to the control plane, down to the host.",
		}, []string{"way"}),
		rootHalf: http.Client{
			Timeout: askRootHalf,
			Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "unix", socket)
				},
			},
		},
	}
	g.messages.WithLabelValues("up")
	g.messages.WithLabelValues("down")
	g.registry.MustRegister(g.connected, g.rootUp, g.attempts, g.messages,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "curfew_link_certificate_end_timestamp_seconds",
			Help: "When the host's certificate ends; it is renewed after two thirds of its time.",
		}, func() float64 { return float64(id.certificate().Leaf.NotAfter.Unix()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "curfew_ca_certificate_end_timestamp_seconds", Help: "When the CA that this host knows ends.",
		}, func() float64 { return float64(id.authorities()[0].NotAfter.Unix()) }))
	return g
}

// Gather is all of this host's metrics. A root half that does not answer is told by curfew_root_half_up.
func (g *gauges) Gather() ([]*dto.MetricFamily, error) {
	root, err := g.ofRootHalf()
	up := 1.0
	if err != nil {
		up = 0
	}
	g.rootUp.Set(up)
	return prometheus.Gatherers{
		g.registry,
		prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return root, nil }),
	}.Gather()
}

func (g *gauges) ofRootHalf() ([]*dto.MetricFamily, error) {
	page, err := g.ask(context.Background(), "/metrics") // the client has a limit of its own
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		return nil, fmt.Errorf("reading the root half's metrics: %w", err)
	}
	list := make([]*dto.MetricFamily, 0, len(families))
	for _, f := range families {
		list = append(list, f)
	}
	return list, nil
}

func (g *gauges) ask(ctx context.Context, path string) (string, error) {
	question, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://root-half"+path, nil)
	if err != nil {
		return "", err
	}
	r, err := g.rootHalf.Do(question)
	if err != nil {
		return "", fmt.Errorf("reaching the root half: %w", err)
	}
	defer r.Body.Close()
	page, err := io.ReadAll(io.LimitReader(r.Body, maxPage))
	if err != nil {
		return "", fmt.Errorf("reading the root half's answer: %w", err)
	}
	if r.StatusCode != http.StatusOK {
		return "", errors.New(strings.TrimSpace(string(page)))
	}
	return string(page), nil
}

// ready says why access does not come and go here as it should.
func (g *gauges) ready(ctx context.Context) error {
	_, err := g.ask(ctx, "/readyz")
	var m dto.Metric
	if errWrite := g.connected.Write(&m); errWrite != nil || m.GetGauge().GetValue() == 0 {
		err = errors.Join(err, errors.New("the control plane is not heard"), errWrite)
	}
	return err
}

// serveMetrics serves both halves' metrics and health at an address, until ctx ends.
func (l *Link) serveMetrics(ctx context.Context) error {
	if l.metrics == "" {
		return nil
	}
	listener, err := net.Listen("tcp", l.metrics)
	if err != nil {
		// The host's connection is worth more than its figures.
		l.log.Error("no metrics are served; mend metrics_listen in agent.yaml", "error", err)
		return nil
	}
	l.log.Info("serving metrics", "listen", listener.Addr().String())
	return scrape.Serve(ctx, listener, l.gauges, func(context.Context) error { return nil }, l.gauges.ready)
}
