package controlplane_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func newPrivate(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return key
}

func (p *person) sessions() []*apiv1.SignedInSession {
	p.t.Helper()
	resp, err := p.identity().ListSessions(p.t.Context(), &apiv1.ListSessionsRequest{})
	must(p.t, err)
	return resp.GetSessions()
}

// A16: sessions are listed with what tells them apart, end at once when they are ended, and open
// nothing from a device that has not the key.
func TestSessionsAreListedAndEnded(t *testing.T) {
	h := build(t, nil)
	alice := h.add("alice")
	bob := h.add("bob")
	second := h.signIn("alice", alice.key)
	all := second.sessions()
	if len(all) != 2 || all[0].GetCurrent() || !all[1].GetCurrent() {
		t.Fatalf("alice has %v", all)
	}
	s := all[0]
	if s.GetMethod() != "ssh" || s.GetAddress() != "127.0.0.1" || s.GetSshKey() == "" ||
		s.GetUsedMs() < s.GetCreatedMs() || s.GetUser() != "alice" {
		t.Errorf("a session is %v", s)
	}
	// A watcher that runs under the session ends with it.
	watch, err := alice.WatchRequests(t.Context(), &apiv1.WatchRequestsRequest{})
	must(t, err)
	for _, id := range []string{s.GetId(), "0000000000000000", ""} {
		if _, err := bob.identity().EndSession(t.Context(), &apiv1.EndSessionRequest{Id: id}); err == nil {
			t.Errorf("bob ended %q", id)
		}
	}
	_, err = second.identity().EndSession(t.Context(), &apiv1.EndSessionRequest{Id: s.GetId()})
	must(t, err)
	_, err = alice.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := watch.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		refused(t, err, apiv1.Code_CODE_SIGN_IN)
	case <-time.After(5 * time.Second):
		t.Error("a watcher outlives its session")
	}
	// What another device may know of a session is its certificate: without the key it opens nothing.
	_, err = h.person("alice", nil, h.dial(&tls.Certificate{
		Certificate: second.cert.Certificate, PrivateKey: newPrivate(t),
	})).WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	if err == nil {
		t.Error("a certificate without its key was let in")
	}
	// Admins see and end everybody's.
	resp, err := h.admin.identity().ListAllSessions(t.Context(), &apiv1.ListAllSessionsRequest{})
	must(t, err)
	if len(resp.GetSessions()) != 3 {
		t.Errorf("there are sessions %v", resp.GetSessions())
	}
	gone, err := h.admin.identity().EndAnySession(t.Context(), &apiv1.EndAnySessionRequest{User: "alice"})
	must(t, err)
	if len(gone.GetSessions()) != 1 {
		t.Errorf("%v ended", gone.GetSessions())
	}
	_, err = second.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	if !h.onTrail(`"kind":"signin.ended"`, `"actor":"dana"`, `"user":"alice"`) ||
		!h.onTrail(`"kind":"signin.ended"`, `"actor":"alice"`, s.GetId()) {
		t.Error("the trail does not tell")
	}
}

// Use is noted, with where from, but not at every call.
func TestSessionUseIsNoted(t *testing.T) {
	h := build(t, nil)
	alice := h.add("alice")
	first := alice.sessions()[0].GetUsedMs()
	if again := alice.sessions()[0].GetUsedMs(); again != first {
		t.Error("every call is written down")
	}
	h.ahead.Store(int64(2 * time.Minute))
	alice.me()
	if later := alice.sessions()[0].GetUsedMs(); later-first < time.Minute.Milliseconds() {
		t.Errorf("used at %d, then at %d", first, later)
	}
}

// Where policy wants a fresh sign-in, an older session asks in vain until its owner signs in again.
func TestOldSignInIsNotEnough(t *testing.T) {
	a := buildAcme(t, nil)
	a.apply(strings.Replace(acmePolicy, "max_duration: 30m, justification",
		"fresh_sign_in: 10m, max_duration: 30m, justification", 1))
	_, err := a.alice.want("ops", "restart the queue", "prod1")
	must(t, err)
	a.test1.disconnect() // their clocks stay behind
	a.prod1.disconnect()
	a.ahead.Store(int64(11 * time.Minute))
	_, err = a.alice.want("ops", "restart the queue", "prod1")
	got := refused(t, err, apiv1.Code_CODE_DENIED)
	if !strings.Contains(got.GetText(), "a sign-in that is at most 10m0s old") ||
		!strings.Contains(got.GetHint(), "curfew login") {
		t.Errorf("it says %q, hint %q", got.GetText(), got.GetHint())
	}
	_, err = a.alice.want("ops", "look at the logs", "test1")
	must(t, err)
	_, err = a.signIn("alice", a.alice.key).want("ops", "restart the queue", "prod1")
	must(t, err)
}
