package controlplane_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// remove removes a host beside, and returns what comes of it.
func (h *house) remove(name string, force bool) <-chan *apiv1.RemoveHostResponse {
	out := make(chan *apiv1.RemoveHostResponse, 1)
	go func() {
		defer close(out)
		r, err := h.admin.RemoveHost(h.t.Context(), &apiv1.RemoveHostRequest{Name: name, Force: force})
		if err != nil {
			h.t.Errorf("removing %s: %v", name, err)
			return
		}
		out <- r
	}()
	return out
}

// purge says that nothing is left of a request's grant.
func (m *host) purge(r *apiv1.Request) {
	m.h.t.Helper()
	id := grant.IDOf(r.GetTerms(), m.ledger.Host())
	m.tell(&curfewv1.Event{Kind: trail.KindGrantPurged, GrantId: id[:], RequestId: r.GetId()})
}

// parted counts the records of hosts that have parted.
func (h *house) parted(host string) (n int) {
	for _, r := range h.admin.records() {
		if leaf := string(r.GetLeaf()); strings.Contains(leaf, "host.parted") && strings.Contains(leaf, host) {
			n++
		}
	}
	return n
}

// served says whether a host is still served when it connects anew.
func (m *host) served() bool {
	m.disconnect()
	before := m.welcomes.Load()
	m.connect()
	for range 100 {
		if m.welcomes.Load() > before {
			return true
		}
		select {
		case <-m.done:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return false
}

// A host that is removed gets one last state, which ends everything there, and is served until it has
// said that nothing is left; from then on it is refused.
func TestRemovedHostGetsALastState(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	r := alice.holds(bob, web1)
	answer := h.remove("web1", false)
	web1.eventually(0)
	select {
	case got := <-answer:
		t.Fatalf("the removal did not wait for the host: %v", got)
	case <-time.After(300 * time.Millisecond):
	}
	if n := h.parted("web1"); n != 0 {
		t.Errorf("%d hosts have parted with something left", n)
	}
	web1.purge(r)
	got := <-answer
	if !got.GetTold() || len(got.GetLeft()) != 0 || len(got.GetEnded()) != 1 || got.GetEnded()[0] != r.GetId() {
		t.Errorf("the removal came to %v", got)
	}
	if n := h.parted("web1"); n != 1 {
		t.Errorf("%d hosts have parted", n)
	}
	if web1.served() {
		t.Error("a host that has parted is served")
	}
	if len(web1.grants()) != 0 {
		t.Error("something is live on a removed host")
	}
	h.join("web1") // the name is free
}

// A grant that is sealed while its host is being removed, of a request that was approved before, is listed
// by no state.
func TestLastStateListsNothing(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	_, err := bob.approve(alice.ask("web1"))
	must(t, err)
	web1.eventually(1)
	web1.disconnect()
	h.stop()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(h.dir, "curfew.db"), Now: time.Now})
	must(t, err)
	id := web1.ledger.Host()
	for _, removed := range []bool{false, true} {
		if removed {
			must(t, s.Update(t.Context(), func(tx *store.Tx) error { return tx.RemoveHost(id, time.Now()) }))
		}
		facts, err := s.NextState(t.Context(), id, time.Now(), 8)
		must(t, err)
		if facts.Last != removed || (len(facts.Live) == 0) != removed {
			t.Errorf("removed %v: last %v, %d live", removed, facts.Last, len(facts.Live))
		}
	}
	must(t, s.Close())
}

// A host that is away is removed by force only, with what it still holds said; it is told when it is
// back.
func TestHostThatCannotBeTold(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	r := alice.holds(bob, web1)
	web1.disconnect()
	if h.stays(func() bool { return h.connected("web1") }) {
		t.Fatal("the host stays connected")
	}
	_, err := h.admin.RemoveHost(t.Context(), &apiv1.RemoveHostRequest{Name: "web1"})
	why := refused(t, err, apiv1.Code_CODE_CONFLICT)
	for _, word := range []string{"1 of its grants", "at most until", "when its lease is over"} {
		if !strings.Contains(why.GetText(), word) {
			t.Errorf("the refusal lacks %q: %s", word, why.GetText())
		}
	}
	if !strings.Contains(why.GetHint(), "--force") {
		t.Errorf("the hint is %q", why.GetHint())
	}
	alice.until(r.GetId(), "still granted", func(r *apiv1.Request) bool {
		return r.GetState() == apiv1.RequestState_REQUEST_STATE_GRANTED
	})
	got := <-h.remove("web1", true)
	end := time.UnixMilli(got.GetRunsUntilMs())
	if got.GetTold() || len(got.GetLeft()) != 1 || time.Until(end) < 5*time.Minute ||
		time.Until(end) > 10*time.Minute || got.GetOpensUntilMs() > got.GetRunsUntilMs() ||
		got.GetOpensUntilMs() < time.Now().UnixMilli() {
		t.Errorf("the removal by force came to %v", got)
	}
	if len(web1.grants()) != 1 {
		t.Error("a host that was not told has ended something")
	}
	web1.connect()
	web1.eventually(0)
	web1.purge(r)
	if h.stays(func() bool { return h.parted("web1") == 0 }) {
		t.Error("the host does not part when it is back")
	}
	if web1.served() {
		t.Error("a host that has parted is served")
	}
}

// A grant that a break-glass code opened is ended by name.
func TestRemovalEndsWhatCodesOpened(t *testing.T) {
	h := build(t, nil)
	_, _, _, web1 := h.cast(1)
	local := grant.ID{7}
	web1.tell(&curfewv1.Event{
		Kind: trail.KindBreakGlassUsed, Login: "alice", RequestId: "0123456789ab", GrantId: local[:],
		Details: map[string]string{
			"code": "1", "reason": "INC-7", "until": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		},
	})
	answer := h.remove("web1", false)
	if h.stays(func() bool { return !web1.endedID(local) }) {
		t.Error("the last state does not name the local grant")
	}
	web1.tell(&curfewv1.Event{Kind: trail.KindGrantPurged, GrantId: local[:], RequestId: "0123456789ab"})
	if got := <-answer; !got.GetTold() || len(got.GetLeft()) != 0 {
		t.Errorf("the removal came to %v", got)
	}
}

func (m *host) endedID(id grant.ID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, over := m.ledger.Ended(id)
	return over
}

func (h *house) connected(name string) bool {
	h.t.Helper()
	hosts, err := h.admin.ListHosts(h.t.Context(), &apiv1.ListHostsRequest{})
	must(h.t, err)
	for _, one := range hosts.GetHosts() {
		if one.GetName() == name {
			return one.GetConnected()
		}
	}
	return false
}
