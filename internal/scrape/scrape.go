// Package scrape serves metrics and health over HTTP, for those who have an HTTP server anyway.
//
// It asks nobody who he is: what is shown names no person and no request, and the address is the
// admin's to choose. It has no other page.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	perQuestion = 10 * time.Second
	maxAtATime  = 8
	maxHeader   = 16 << 10
)

// Check says why something is not well, or nil.
type Check func(context.Context) error

// NewRegistry is a registry that knows the process and Go's runtime.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Serve answers /metrics, /healthz (whether it lives) and /readyz (whether it does its work) until ctx
// ends. It closes the listener.
func Serve(ctx context.Context, l net.Listener, g prometheus.Gatherer, live, ready Check) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxAtATime, Timeout: perQuestion,
	}))
	mux.Handle("GET /healthz", health(live))
	mux.Handle("GET /readyz", health(ready))
	server := http.Server{
		Handler: mux, ReadTimeout: perQuestion, WriteTimeout: 2 * perQuestion, IdleTimeout: time.Minute,
		MaxHeaderBytes: maxHeader,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}

func health(check Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), perQuestion)
		defer cancel()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		text := "ok\n"
		if err := check(ctx); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			text = err.Error() + "\n"
		}
		_, _ = io.WriteString(w, text) // who asked is gone, or not
	})
}
