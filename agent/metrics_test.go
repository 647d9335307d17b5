package agent

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// page gets a page of the metrics socket as a real HTTP client does.
func (m *machine) page(path string) (status int, page string) {
	m.t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", m.path(enforce.RunDir+"/"+MetricsSocket))
		},
	}}
	r, err := client.Get("http://host" + path)
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// shows waits until the metrics have all lines.
func (m *machine) shows(lines ...string) {
	m.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, page := m.page("/metrics")
		missing := ""
		for _, l := range lines {
			if !strings.Contains("\n"+page, "\n"+l+"\n") {
				missing = l
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%q is missing in\n%s", missing, page)
		}
	}
}

func TestMetricsFollowAGrant(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	m.shows(`curfew_grants_live{status="applied"} 0`, "curfew_link_connected 1", "curfew_may_open 0",
		"curfew_expiry_lag_seconds_count 0", "curfew_lease_half_gone 0", "curfew_clock_jumped 0",
		"curfew_residue_reports_total 0")
	if status, page := m.page("/healthz"); status != http.StatusOK {
		t.Errorf("healthz: %d %s", status, page)
	}
	if status, page := m.page("/readyz"); status != http.StatusServiceUnavailable || page == "" {
		t.Errorf("readyz before the first state: %d %s", status, page)
	}
	short, env := p.grant(p.terms(requestID("short"), "alice", withRule, lasting(6*time.Second)))
	p.sendGrant(env)
	long, env := p.grant(p.terms(requestID("long"), "bob", withRule, func(t *curfewv1.Terms) { t.Uid = 1900000002 }))
	p.sendGrant(env)
	p.sendState(p.state(nil, short, long))
	p.ack()
	m.shows("curfew_grant_apply_seconds_count 2", "curfew_may_open 1", "curfew_state_sequence 1")
	m.shows("curfew_expiry_lag_seconds_count 1", "curfew_revocation_lag_seconds_count 0",
		`curfew_grants_live{status="applied"} 1`)
	p.sendState(p.state([]*curfewv1.Ended{
		{GrantId: long[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "anna"},
	}))
	m.shows("curfew_revocation_lag_seconds_count 1", `curfew_grants_live{status="applied"} 0`, "curfew_endings 0")
	_ = p.conn.Close()
	m.shows("curfew_link_connected 0")
	m.wrong.Store(int64(time.Hour))
	m.shows("curfew_clock_jumped 1", "curfew_may_open 0")
	m.wrong.Store(0)

	over := make(chan struct{})
	defer close(over)
	m.half.owner.post(t.Context(), func(context.Context) { <-over })
	if status, page := m.page("/healthz"); status != http.StatusServiceUnavailable {
		t.Errorf("healthz of an owner that hangs: %d %s", status, page)
	}
}
