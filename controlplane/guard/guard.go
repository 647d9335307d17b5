// Package guard stands around every gRPC handler: it counts calls and how long they take, and it turns
// a handler that panics into an internal error of that one call. One bad request must not take the
// control plane, and with it everybody's, down.
//
// It holds no rule and reads no message. What it counts goes to the metrics of package controlplane;
// its labels are methods of the services and gRPC's codes, so that no caller makes more of them.
package guard

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Guard is the outermost interceptor of a gRPC server.
type Guard struct {
	internal func(method string, err error) error
	calls    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	open     *prometheus.GaugeVec
	panics   prometheus.Counter
}

// New wants what makes of an error in the server the status that its caller sees, and logs the rest.
func New(internal func(method string, err error) error) *Guard {
	return &Guard{
		internal: internal,
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "curfew_grpc_calls_total", Help: "Calls that are over, by method and gRPC code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "curfew_grpc_call_seconds", Help: "How long single calls took; streams are not in it.",
			Buckets: []float64{0.005, 0.025, 0.1, 0.25, 1, 2.5, 10},
		}, []string{"method"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "curfew_grpc_calls_open", Help: "Calls that run now: of hosts and watchers, mostly.",
		}, []string{"method"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "curfew_panics_total", Help: "Handlers that panicked; the journal has each with its ref.",
		}),
	}
}

// Collectors are what the guard counts.
func (g *Guard) Collectors() []prometheus.Collector {
	return []prometheus.Collector{g.calls, g.seconds, g.open, g.panics}
}

// Unary is the interceptor of single calls.
func (g *Guard) Unary(
	ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler,
) (resp any, err error) {
	began := time.Now()
	err = g.call(info.FullMethod, func() (err error) {
		resp, err = next(ctx, req)
		return err
	})
	g.seconds.WithLabelValues(info.FullMethod).Observe(time.Since(began).Seconds())
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// Stream is the interceptor of streams.
func (g *Guard) Stream(
	srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler,
) error {
	return g.call(info.FullMethod, func() error { return next(srv, ss) })
}

func (g *Guard) call(method string, handle func() error) (err error) {
	open := g.open.WithLabelValues(method)
	open.Inc()
	defer func() {
		if p := recover(); p != nil {
			g.panics.Inc()
			err = g.internal(method, fmt.Errorf("the handler panicked: %v\n%s", p, debug.Stack()))
		}
		open.Dec()
		g.calls.WithLabelValues(method, status.Code(err).String()).Inc()
	}()
	return handle()
}
