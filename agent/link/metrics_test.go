package link_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/metrics"
)

// free is a port that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The link half serves both halves' metrics; without the root half it serves its own and says so. It is
// ready when both the root half and the control plane are there.
func TestBothHalvesMetrics(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	socket, address := filepath.Join(t.TempDir(), "metrics.sock"), free(t)
	c.run(c.joined(), r, func(config *link.Config) {
		config.Metrics, config.MetricsSocket = address, socket
	})
	get := func(path string) string {
		client := http.Client{Timeout: patience}
		answer, err := client.Get("http://" + address + path)
		if err != nil {
			return err.Error()
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return fmt.Sprintln(answer.StatusCode, string(body), err)
	}
	shows := func(path string, lines ...string) {
		t.Helper()
		var page string
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			page = get(path)
			ok := true
			for _, l := range lines {
				ok = ok && strings.Contains(page, l)
			}
			if ok {
				return
			}
		}
		t.Fatalf("never all of %q on %s:\n%s", lines, path, page)
	}
	shows("/metrics", "curfew_root_half_up 0\n", "curfew_stream_connected 0\n", "go_goroutines ")
	shows("/healthz", "200 ok")
	shows("/readyz", "503 ", "reaching the root half", "the control plane is not heard")

	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- metrics.Serve(ctx, l, map[string]metrics.Answer{
			"/metrics": func(context.Context) (string, error) {
				var p metrics.Page
				p.Gauge("curfew_grants_live", "Grants.", 3, "status", "applied")
				p.Histogram("curfew_expiry_lag_seconds", "Lag.", metrics.NewHistogram(time.Second))
				return p.String(), nil
			},
			"/readyz": func(context.Context) (string, error) { return "ready\n", nil },
		})
	}()
	root := r.accept()
	stream := c.accept()
	if err := stream.Send(downMessage(1)); err != nil {
		t.Fatal(err)
	}
	readFrame(t, root)
	shows("/metrics", "curfew_root_half_up 1\n", `curfew_grants_live{status="applied"} 3`,
		`curfew_expiry_lag_seconds_bucket{le="+Inf"} 0`, "curfew_stream_connected 1\n",
		`curfew_stream_messages_total{way="down"} 1`, "curfew_link_certificate_end_timestamp_seconds ")
	shows("/readyz", "200 ok")
	_ = root.Close()
	shows("/metrics", "curfew_stream_connected 0\n")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
