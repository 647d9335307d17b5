package controlplane_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// What nobody decides lapses; a grant whose end is past ends here even when its host says nothing.
func TestTimeEndsThings(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	waiting, open := alice.ask("web1"), alice.ask("web1")
	_, err := bob.approve(open)
	must(t, err)
	web1.eventually(1)
	bob.until(open.GetId(), "applied", applied)
	web1.disconnect()
	h.ahead.Store(int64(10*time.Minute + 40*time.Second))
	got := bob.until(open.GetId(), "ended", func(r *apiv1.Request) bool {
		return r.GetState() == apiv1.RequestState_REQUEST_STATE_ENDED
	})
	if got.GetEndCause() != curfewv1.EndCause_END_CAUSE_EXPIRED || got.GetEndedBy() != "" {
		t.Errorf("it ended by %q: %v", got.GetEndedBy(), got.GetEndCause())
	}
	if got := bob.get(waiting.GetId()); got.GetState() != apiv1.RequestState_REQUEST_STATE_PENDING {
		t.Errorf("after 11 minutes the other request is %v", got.GetState())
	}
	h.ahead.Store(int64(24*time.Hour + time.Second))
	_, err = bob.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN) // sessions ended long ago
	bob = h.signIn("bob", bob.key)
	got = bob.until(waiting.GetId(), "lapsed", func(r *apiv1.Request) bool {
		return r.GetState() == apiv1.RequestState_REQUEST_STATE_LAPSED
	})
	_, err = bob.approve(got)
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}

// An extension that reaches its host after the end of what it extends opens nothing there, so the
// request ends: it would stand as granted until its hard end otherwise.
func TestExtensionThatComesTooLate(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	r := alice.holds(bob, web1)
	web1.disconnect()
	ext, err := alice.Extend(t.Context(), &apiv1.ExtendRequest{
		Id: r.GetId(), MoreMs: (20 * time.Minute).Milliseconds(), Reason: "not yet done",
	})
	must(t, err)
	_, err = bob.approve(ext.GetRequest())
	must(t, err)

	past := clock()
	past.Wall, past.Boot = past.Wall.Add(11*time.Minute), past.Boot+11*time.Minute
	web1.mu.Lock()
	web1.ledger.Tick(past)
	web1.mu.Unlock()
	web1.late.Store(true)
	web1.connect()
	defer web1.disconnect()
	alice.until(r.GetId(), "refused by the host", func(r *apiv1.Request) bool {
		return len(r.GetGrants()) == 2 &&
			r.GetGrants()[1].GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_REJECTED
	})
	if got := alice.get(r.GetId()); !granted(got) {
		t.Errorf("before the first window's end it is %v", got.GetState())
	}
	h.ahead.Store(int64(10*time.Minute + 40*time.Second))
	got := alice.until(r.GetId(), "ended", func(r *apiv1.Request) bool {
		return r.GetState() == apiv1.RequestState_REQUEST_STATE_ENDED
	})
	if got.GetEndCause() != curfewv1.EndCause_END_CAUSE_EXPIRED {
		t.Errorf("it ended by %v", got.GetEndCause())
	}
	if refused := got.GetGrants()[1]; refused.GetEndedMs() == 0 {
		t.Errorf("the extension that the host refused has no end: %v", refused)
	}
}

// Approvers hear by a signed webhook, in the transaction of the request: also after a restart.
func TestWebhookHearsOfRequests(t *testing.T) {
	heard := make(chan map[string]any, 16)
	var mu sync.Mutex
	broken := true
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		body, _ := io.ReadAll(r.Body)
		if broken || r.Header.Get("Curfew-Signature") == "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var msg map[string]any
		if err := json.Unmarshal(body, &msg); err == nil {
			heard <- msg
		}
	}))
	defer hook.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("0123456789abcdef"), 0o600))
	h := build(t, func(c *controlplane.Config) {
		c.Webhooks = []controlplane.Webhook{{URL: hook.URL, SecretFile: secret}}
	})
	alice, _, _, web1 := h.cast(1)
	r := alice.ask("web1")
	time.Sleep(100 * time.Millisecond)
	web1.disconnect()
	h.stop()
	mu.Lock()
	broken = false
	mu.Unlock()
	h.start()
	select {
	case msg := <-heard:
		for field, want := range map[string]any{
			"event": "request.pending", "request_id": r.GetId(), "requester": "alice", "role": "ops",
			"command": "curfew approve " + r.GetId(), "id": r.GetId() + ".1.request.pending",
			"reason": "it hangs", "organisation": "acme",
		} {
			if msg[field] != want {
				t.Errorf("the message's %s is %v, want %v", field, msg[field], want)
			}
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the webhook heard nothing after a restart")
	}
	web1.connect()
}

// A host's word ends its own grant at once, and no other host's.
func TestHostReportsTheEnd(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	web2 := h.join("web2")
	r := alice.ask("web1", "web2")
	_, err := bob.approve(r)
	must(t, err)
	one, two := web1.eventually(1)[0], web2.eventually(1)[0]
	web2.tell(&curfewv1.Event{
		Kind: trail.KindGrantEnded, GrantId: one.ID[:], RequestId: r.GetId(),
		Details: map[string]string{"cause": "expired"},
	})
	web1.tell(&curfewv1.Event{
		Kind: trail.KindGrantEnded, GrantId: one.ID[:], RequestId: r.GetId(),
		Details: map[string]string{"cause": "expired"},
	})
	got := alice.get(r.GetId())
	if !granted(got) {
		t.Fatalf("with one of two hosts still open it is %v", got.GetState())
	}
	ended := 0
	for _, g := range got.GetGrants() {
		if g.GetEndCause() != curfewv1.EndCause_END_CAUSE_UNSPECIFIED {
			ended++
			if g.GetHostName() != "web1" || g.GetEndedMs() == 0 {
				t.Errorf("ended is %v", g)
			}
		}
	}
	if ended != 1 {
		t.Errorf("%d grants ended", ended)
	}
	web2.tell(&curfewv1.Event{
		Kind: trail.KindGrantEnded, GrantId: two.ID[:], RequestId: r.GetId(),
		Details: map[string]string{"cause": "expired"},
	})
	got = alice.get(r.GetId())
	if got.GetState() != apiv1.RequestState_REQUEST_STATE_ENDED ||
		got.GetEndCause() != curfewv1.EndCause_END_CAUSE_EXPIRED {
		t.Errorf("after both it is %v, %v", got.GetState(), got.GetEndCause())
	}
}

const (
	childEnv = "CURFEW_TEST_CONTROLPLANE"
	rounds   = 12
)

// TestMain lets the test binary be a control plane that a test can kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(dir string) error {
	c := controlplane.DefaultConfig()
	c.DataDir, c.Listen = dir, "127.0.0.1:0"
	s, err := controlplane.New(context.Background(), c, time.Now, "test", quietLog())
	if err != nil {
		return err
	}
	fmt.Println(s.Addr())
	return s.Run(context.Background())
}

// spawn runs the control plane as a process of its own.
func (h *house) spawn() *exec.Cmd {
	h.t.Helper()
	self, err := os.Executable()
	must(h.t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+h.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(h.t, err)
	must(h.t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(h.t, err)
	h.addr = strings.TrimSpace(line)
	return cmd
}

// F13: killed in mid-approve, there is exactly one grant for what was approved, and nothing that was
// acknowledged is lost.
func TestKilledInMidApprove(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	web1.disconnect()
	h.stop()
	for round := range rounds {
		cmd := h.spawn()
		alice, bob = h.signIn("alice", alice.key), h.signIn("bob", bob.key)
		r := alice.ask("web1")
		acked := make(chan bool, 1)
		go func() {
			_, err := bob.approve(r)
			acked <- err == nil
		}()
		time.Sleep(time.Duration(rand.IntN(8000)) * time.Microsecond)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		wasAcked := <-acked
		cmd = h.spawn()
		alice = h.signIn("alice", alice.key)
		got := alice.until(r.GetId(), "settled by the first sweep", func(r *apiv1.Request) bool {
			return r.GetState() != apiv1.RequestState_REQUEST_STATE_APPROVED
		})
		switch {
		case granted(got):
			if len(got.GetGrants()) != 1 || len(got.GetDecisions()) != 1 {
				t.Errorf("round %d: %d grants of %d decisions", round, len(got.GetGrants()),
					len(got.GetDecisions()))
			}
			_, err := alice.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
			must(t, err)
		case got.GetState() == apiv1.RequestState_REQUEST_STATE_PENDING && len(got.GetDecisions()) == 0:
			if wasAcked {
				t.Errorf("round %d: an acknowledged approval is lost", round)
			}
			_, err := alice.Withdraw(t.Context(), &apiv1.WithdrawRequest{Id: r.GetId()})
			must(t, err)
		default:
			t.Errorf("round %d: after the kill it is %v with %d decisions and %d grants", round,
				got.GetState(), len(got.GetDecisions()), len(got.GetGrants()))
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
}
