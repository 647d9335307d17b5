package metrics

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPage(t *testing.T) {
	h := NewHistogram(time.Millisecond, time.Second)
	for _, d := range []time.Duration{-time.Second, time.Millisecond, 500 * time.Millisecond, time.Minute} {
		h.Observe(d)
	}
	var p Page
	p.Counter("a_total", "All.", 3, "who", "x\"\\\ny")
	p.Counter("a_total", "All.", 1<<60, "who", "z")
	p.Gauge("b", "Now.", 0.5)
	p.Histogram("c_seconds", "How long.", h, "k", "v")
	want := `# HELP a_total All.
# TYPE a_total counter
a_total{who="x\"\\\ny"} 3
a_total{who="z"} 1152921504606846976
# HELP b Now.
# TYPE b gauge
b 0.5
# HELP c_seconds How long.
# TYPE c_seconds histogram
c_seconds_bucket{k="v",le="0.001"} 2
c_seconds_bucket{k="v",le="1"} 3
c_seconds_bucket{k="v",le="+Inf"} 4
c_seconds_sum{k="v"} 60.501
c_seconds_count{k="v"} 4
`
	if got := p.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A real HTTP client understands the answers; whoever speaks no HTTP, or never ends, gets none of them.
func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, map[string]Answer{
			"/metrics": func(context.Context) (string, error) { return "b 1\n", nil },
			"/readyz":  func(context.Context) (string, error) { return "", errors.New("not yet") },
		})
	}()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 20 * time.Second}
	for url, want := range map[string]string{
		"http://x/metrics?y=1": "200 b 1\n", "http://x/readyz": "503 not yet\n", "http://x/": "404 there is",
	} {
		r, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if got := r.Status[:3] + " " + string(body); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, %v; want %q", url, got, err, want)
		}
	}
	for question, want := range map[string]string{
		"POST /metrics HTTP/1.1\r\n\r\n": "405", "GET /metrics\r\n\r\n": "400",
		"GET /metrics HTTP/1.1\r\n" + strings.Repeat("x", maxRequest): "400",
	} {
		conn, err := dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, question) // it may answer before it has read all
		got, _ := io.ReadAll(conn)
		_ = conn.Close()
		if !strings.HasPrefix(string(got), "HTTP/1.1 "+want) {
			t.Errorf("%.30q: %.40q, want %s", question, got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the end: %v", err)
	}
}
