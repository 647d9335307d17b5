package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/scrape"
	"github.com/curfew-access/curfew/internal/trail"
)

// maxSocketPath is what the kernel takes as the name of a socket.
const maxSocketPath = 107

// checkMetricsListen accepts a socket file, or a port that only this machine reaches.
func checkMetricsListen(v string) error {
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		if len(path) > maxSocketPath {
			return fmt.Errorf("%q is too long for a socket", grant.VisibleText(v))
		}
		return checkDir(path)
	}
	host, port, err := net.SplitHostPort(v)
	if err == nil {
		err = checkPort(port, 0)
	}
	if ip := net.ParseIP(host); err != nil || host != "localhost" && !ip.IsLoopback() {
		return fmt.Errorf("%q is neither unix:/PATH nor a loopback address, such as 127.0.0.1:9471",
			grant.VisibleText(v))
	}
	return nil
}

// watch has the figures tell how this server stands.
func (f *figures) watch(s *Server, authority *enrol.Authority, now func() time.Time) {
	f.registry.MustRegister(standing{
		store: s.store, hub: s.hub, stale: s.config.Lease, clock: now, dataDir: s.config.DataDir,
		certificates: func() (ca, server time.Time) {
			return authority.Certificate().NotAfter, authority.ServerCertificateEnd()
		},
	})
}

// recorded is told of every record that is on the trail for good: it is counted, and told to the journal.
func (s *Server) recorded(r trail.Record) {
	s.figures.recorded(r)
	journal.Event(s.log, r.Kind, r.Details, "grant", r.GrantID, "request", r.RequestID, "host", r.Host,
		"by", r.Actor)
}

// listenMetrics opens where metrics are served. Access is worth more than its figures: what is in the
// way is told, and keeps nobody out.
func (s *Server) listenMetrics() {
	at := s.config.MetricsListen
	if at == "" {
		return
	}
	var err error
	if path, ok := strings.CutPrefix(at, "unix:"); ok {
		s.metricsListener, err = listenSocket(path)
	} else {
		s.metricsListener, err = net.Listen("tcp", at)
	}
	if err != nil {
		s.log.Error("no metrics are served; mend metrics_listen in controlplane.yaml", "error", err)
		return
	}
	s.log.Info("serving metrics", "listen", at)
}

// listenSocket makes a socket that the server's group may use, in place of one that a killed server left.
func listenSocket(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// MetricsAddr is where metrics are served; nil when they are not.
func (s *Server) MetricsAddr() net.Addr {
	if s.metricsListener == nil {
		return nil
	}
	return s.metricsListener.Addr()
}

// serveMetrics serves metrics and health until ctx ends.
func (s *Server) serveMetrics(ctx context.Context) error {
	if s.metricsListener == nil {
		return nil
	}
	live := func(context.Context) error { return nil }
	if err := scrape.Serve(ctx, s.metricsListener, s.figures.registry, live, s.Ready); err != nil {
		s.log.Error("metrics are served no more", "error", err)
	}
	return nil
}

// Ready says why people and hosts are not served: it reads the store, and calls the server as they do.
func (s *Server) Ready(ctx context.Context) error {
	if _, err := trustVersion(ctx, s.store); err != nil {
		return fmt.Errorf("the store does not answer: %w", err)
	}
	conn, err := grpc.NewClient(s.listener.Addr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(s.self)))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		return fmt.Errorf("the listener does not answer: %w", err)
	}
	if answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return errors.New("the server is stopping")
	}
	return nil
}
