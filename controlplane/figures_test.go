package controlplane_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/notify"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// measured serves metrics too.
func measured(c *controlplane.Config) { c.MetricsListen = "127.0.0.1:0" }

// page gets a page of the metrics port.
func (h *house) page(path string) string {
	client := http.Client{Timeout: time.Minute}
	defer client.CloseIdleConnections()
	r, err := client.Get("http://" + h.metricsAddr + path)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return fmt.Sprintln(r.StatusCode, string(body), err)
}

// shows waits until the metrics have all lines; each is an expression.
func (h *house) shows(lines ...string) {
	h.t.Helper()
	page, missing := "", ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		page, missing = h.page("/metrics"), ""
		for _, l := range lines {
			if !regexp.MustCompile(`(?m)^` + l + `$`).MatchString(page) {
				missing = l
			}
		}
		if missing == "" {
			return
		}
	}
	h.t.Fatalf("%q is missing in\n%s", missing, page)
}

// The figures of the control plane follow a request from its asking to its end, and the fleet.
func TestFiguresFollowARequest(t *testing.T) {
	h := build(t, measured)
	alice, bob, _, web1 := h.cast(1)
	if page := h.page("/healthz"); !strings.HasPrefix(page, "200 ok") {
		t.Errorf("healthz: %s", page)
	}
	if page := h.page("/readyz"); !strings.HasPrefix(page, "200 ok") {
		t.Errorf("readyz: %s", page)
	}
	h.shows(`curfew_requests_total{outcome="asked"} 0`, `curfew_hosts_connected 1`, `curfew_hosts_known 1`,
		`curfew_panics_total 0`, `curfew_store_up 1`, `curfew_trust_waiting 0`, `curfew_rollouts{state="paused"} 0`,
		`curfew_controlplane_info{version="test"} 1`, `curfew_store_failures_total{kind="write"} 0`)
	r := alice.ask("web1")
	h.shows(`curfew_requests_total{outcome="asked"} 1`, `curfew_requests_waiting 1`, `curfew_approvals_total 0`)
	_, err := bob.approve(r)
	must(t, err)
	web1.eventually(1)
	h.shows(`curfew_requests_total{outcome="approved"} 1`, `curfew_requests_total{outcome="granted"} 1`,
		`curfew_requests_waiting 0`, `curfew_requests_unissued 0`, `curfew_approvals_total 1`,
		`curfew_issued_grants_live{status="applied"} 1`, `curfew_issued_grants_live{status="unconfirmed"} 0`,
		`curfew_push_lag_seconds_count [1-9].*`, `curfew_states_answered_total{answer="accepted"} [1-9].*`,
		`curfew_grpc_calls_total{code="OK",method="/curfew.api.v1.Access/Approve"} 1`,
		`curfew_grpc_call_seconds_count{method="/curfew.api.v1.Access/Approve"} 1`,
		`curfew_grpc_calls_open{method="/curfew.api.v1.HostLink/Connect"} 1`,
		`curfew_store_transaction_seconds_count{kind="write"} [1-9].*`)
	_, err = alice.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
	must(t, err)
	h.shows(`curfew_requests_total{outcome="ended"} 1`, `curfew_issued_grants_live{status="applied"} 0`)
	_, err = alice.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	h.shows(`curfew_grpc_calls_total{code="FailedPrecondition",method="/curfew.api.v1.Access/Done"} 1`)

	web1.tell(&curfewv1.Event{Kind: trail.KindBreakGlassUsed, Login: "alice"})
	web1.tell(&curfewv1.Event{Kind: trail.KindDriftRepaired})
	web1.tell(&curfewv1.Event{Kind: "of.the.next.version"})
	h.shows(`curfew_break_glass_total{what="used"} 1`, `curfew_host_events_total{kind="drift.repaired"} 1`,
		`curfew_host_events_total{kind="host.other"} 1`)
	if page := h.page("/metrics"); strings.Contains(page, "alice") || strings.Contains(page, "web1") ||
		strings.Contains(page, "backup_timestamp") {
		t.Errorf("the figures name somebody, or a backup that is none:\n%s", page)
	}
	h.backup(filepath.Join(t.TempDir(), "backup"))
	h.shows(`curfew_backup_timestamp_seconds [1-9].*`)
	web1.disconnect()
	h.shows(`curfew_hosts_connected 0`, `curfew_hosts_known 1`, `curfew_hosts_stale 0`)
	h.ahead.Store(int64(h.config.Lease + time.Minute))
	h.shows(`curfew_hosts_stale 1`, `curfew_store_up 1`)
}

// Whatever the wire's kinds of records are, a host's count under labels that are known beforehand.
func TestKindsOfHostsAreListed(t *testing.T) {
	list := stream.Kinds()
	seen := make(map[string]bool)
	for _, kind := range list {
		if seen[kind] {
			t.Errorf("%s stands twice", kind)
		}
		seen[kind] = true
	}
	if !seen[trail.KindGrantApplied] || !seen[stream.KindHostForged] {
		t.Errorf("the list is %v", list)
	}
}

// Every message of the journal is of a kind that something writes, but for those that no trail has.
func TestMessagesAreOfKindsThatAre(t *testing.T) {
	known := append(stream.Kinds(), access.KindRequested, access.KindExtension, access.KindEdited,
		access.KindApproval, access.KindApproved, access.KindDenied, access.KindWithdrawn, access.KindLapsed,
		access.KindEnded, access.KindReviewed, access.KindHostGone, access.KindCodeFetched, access.KindRotation,
		issue.KindRequestGranted, enrol.KindTokenCreated, enrol.KindHostEnrolled, identity.KindNotSigned,
		identity.KindPolicyApplied, identity.KindPolicyCleared, identity.KindTrustSigned,
		identity.KindTrustWaiting, notify.KindUndeliverable, "store.restored",
		"session.elevated", "grant.issued", "host.joined", "host.left")
	for _, m := range journal.Messages {
		if !slices.Contains(known, m.Kind) {
			t.Errorf("nothing is of kind %s", m.Kind)
		}
	}
}

// A control plane is ready when its store answers and its listener serves, and not before. A socket that
// a killed server left is no obstacle; what is in the way of metrics keeps nobody out.
func TestReady(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	must(t, err)
	old.SetUnlinkOnClose(false)
	must(t, old.Close())
	h := build(t, func(c *controlplane.Config) { c.MetricsListen = "unix:" + path })
	info, err := os.Stat(path)
	must(t, err)
	if got := info.Mode().Perm(); got != 0o660 {
		t.Errorf("the socket has mode %o", got)
	}
	h.stop()

	s, err := controlplane.New(t.Context(), h.config, time.Now, "test", quietLog())
	must(t, err)
	ready := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return s.Ready(ctx)
	}
	if err := ready(); err == nil || !strings.Contains(err.Error(), "the listener does not answer") {
		t.Errorf("before it serves: %v", err)
	}
	must(t, s.Close())
	if err := ready(); err == nil || !strings.Contains(err.Error(), "the store does not answer") {
		t.Errorf("without its store: %v", err)
	}
	h.config.MetricsListen = "unix:" + filepath.Join(path, "no", "such.sock")
	h.start()
	if h.signIn("dana", h.admin.key) == nil {
		t.Error("nobody is served without metrics")
	}
}

// A panic in a handler costs its own call: a reference for its caller, and everybody else goes on, on
// the same connection too. A stream that panicked keeps no stopping server waiting.
func TestPanicsAreSurvived(t *testing.T) {
	h := build(t, measured)
	alice, _, _, web1 := h.cast(1)
	trap := func(at string) { h.trap.Store(&at) }

	trap("access.(*Service).Create")
	_, err := alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: time.Minute.Milliseconds(), Reason: "it hangs",
	})
	if r := refused(t, err, apiv1.Code_CODE_INTERNAL); !strings.Contains(r.GetText(), "internal error (ref ") {
		t.Errorf("the caller reads %q", r.GetText())
	}
	trap("api.(*Server).admit")
	_, err = alice.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_INTERNAL)
	trap("stream.(*conn).takeEvents")
	web1.say <- event(t, web1)
	<-web1.done // its stream ends
	h.shows(`curfew_panics_total 3`, `curfew_hosts_connected 0`,
		`curfew_grpc_calls_open{method="/curfew.api.v1.HostLink/Connect"} 0`)

	web1.connect()
	alice.ask("web1")
	h.shows(`curfew_hosts_connected 1`)
	stopped := make(chan struct{})
	go func() { h.stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(time.Minute):
		t.Fatal("the server does not stop")
	}
}

// event is one that is not yet on the host's chain for good: nobody acknowledges it.
func event(t *testing.T, m *host) *curfewv1.HostMessage {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := &curfewv1.Event{Kind: trail.KindProblem, TimeMs: time.Now().UnixMilli(), BootId: "boot"}
	chain := m.chain
	must(t, chain.Append(e))
	return &curfewv1.HostMessage{Body: &curfewv1.HostMessage_Event{Event: e}}
}
