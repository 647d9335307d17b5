package stream_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestConnectSendsWhatTheHostLacks(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	w.store.addTrust(2)
	w.store.addTrust(3)
	w.store.grant(m.id, grant.ID{1}, grant.ID{2}, grant.ID{3})
	m.held, m.trust = []grant.ID{{2}}, 2

	l := w.connect(m)
	s := l.untilState()
	slices.Sort(s.grants)
	if diff := cmp.Diff([]string{"grant 1 0", "grant 3 0"}, s.grants); diff != "" {
		t.Errorf("grants:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"trust 3"}, s.trust); diff != "" {
		t.Errorf("trust:\n%s", diff)
	}
	if len(s.state.GetLive()) != 3 || string(s.state.GetNonce()) != string(nonce(0)) {
		t.Errorf("state %v", s.state)
	}
}

func TestReconnectSendsOnlyWhatIsMissing(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	var all []grant.ID
	for i := range 50 {
		all = append(all, grant.ID{1, byte(i)})
	}
	w.store.grant(m.id, all...)
	l := w.connect(m)
	if s := l.untilState(); len(s.grants) != 50 {
		t.Fatalf("%d of 50 grants came", len(s.grants))
	}
	if err := l.conn.Close(); err != nil {
		t.Fatal(err)
	}
	m.held = all
	w.store.grant(m.id, grant.ID{9})
	if s := w.connect(m).untilState(); len(s.grants) != 1 || len(s.state.GetLive()) != 51 {
		t.Errorf("%d grants came again, %d are live", len(s.grants), len(s.state.GetLive()))
	}
	if n := look(w.store, m.id, func(h *hostRow) int { return h.reads }); n != 51 {
		t.Errorf("%d sealed grants were read for 51", n)
	}
}

func TestChangeIsPushedAtOnce(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	var worst time.Duration
	for i := range 20 {
		g := grant.ID{2, byte(i)}
		time.Sleep(60 * time.Millisecond) // beyond the gap between two states
		start := time.Now()
		w.store.grant(m.id, g)
		w.hub.Changed(m.id)
		s := l.untilState()
		worst = max(worst, time.Since(start))
		if len(s.grants) != 1 || len(s.state.GetLive()) != i+1 {
			t.Fatalf("change %d: %d grants, %d live", i, len(s.grants), len(s.state.GetLive()))
		}
	}
	t.Logf("slowest of 20 pushes: %s", worst)
	start := pace.Start()
	w.store.revoke(m.id, grant.ID{2, 7})
	w.hub.Changed(m.id)
	if s := l.untilState(); len(s.state.GetLive()) != 19 || len(s.grants) != 0 {
		t.Errorf("after a revocation %d are live", len(s.state.GetLive()))
	}
	if d := start.Elapsed(); d > 2*time.Second {
		t.Errorf("the revocation took %s", d)
	}
}

// A thousand changes are a few states, and the last one says everything.
func TestChangesAreCoalesced(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	start := pace.Start()
	for i := range 1000 {
		w.store.grant(m.id, grant.ID{3, byte(i), byte(i >> 8)})
		w.hub.Changed(m.id)
	}
	if d := start.Elapsed(); d > 2*time.Second {
		t.Errorf("a thousand calls of Changed took %s: they wait for the host", d)
	}
	states, grants := 0, 0
	for live := 0; live < 1000; states++ {
		s := l.untilState()
		live, grants = len(s.state.GetLive()), grants+len(s.grants)
	}
	if grants != 1000 || states > 100 {
		t.Errorf("%d grants came with %d states", grants, states)
	}
}

func TestHeartbeatIsAnsweredWithItsNonce(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	g := grant.ID{4}
	l.say(&curfewv1.Heartbeat{
		Nonce: nonce(7), Mode: "enforce", Problems: []string{"disk \x1b[31mfull"}, DriftRepaired: 3,
		Sessions: []*curfewv1.Session{{
			RequestId: "0123456789ab", GrantId: g[:], Login: "alice", Service: "sshd",
			Commands: []string{"vi\n\x07"},
		}},
	})
	if s := l.untilState(); string(s.state.GetNonce()) != string(nonce(7)) {
		t.Errorf("the state carries nonce %x", s.state.GetNonce())
	}
	h, ok := w.hub.Health(m.id)
	if !ok || !h.Connected || h.Mode != "enforce" || h.DriftRepaired != 3 {
		t.Errorf("health %+v", h)
	}
	if strings.ContainsAny(strings.Join(h.Problems, ""), "\x1b") {
		t.Errorf("a problem steers the terminal: %q", h.Problems)
	}
	sessions := w.hub.Sessions("0123456789ab", m.id)
	if len(sessions) != 1 || sessions[0].Host != m.id ||
		sessions[0].Session.GetCommands()[0] != `vi\n\x07` {
		t.Errorf("sessions %v", sessions)
	}
	// A host's word counts for itself alone.
	if got := w.hub.Sessions("0123456789ab", grant.HostID{9}); got != nil {
		t.Errorf("sessions of another host: %v", got)
	}
	if err := l.conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host is seen to be gone", func() bool {
		h, _ := w.hub.Health(m.id)
		return !h.Connected && len(h.Sessions) == 0
	})
	eventually(t, "the store hears when it was last seen", func() bool {
		return look(w.store, m.id, func(h *hostRow) string { return h.seen.Mode }) == "enforce"
	})
}

// However often a host asks, it gets a bounded number of states.
func TestHeartbeatsAreAnsweredAtABoundedRate(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	for i := range 500 {
		l.say(&curfewv1.Heartbeat{Nonce: nonce(byte(i))})
	}
	last := nonce(byte(499 % 256))
	for s := l.untilState(); string(s.state.GetNonce()) != string(last); s = l.untilState() {
	}
	if n := look(w.store, m.id, func(h *hostRow) uint64 { return h.sequence }); n > 10 {
		t.Errorf("500 heartbeats took %d states", n)
	}
}

func TestAcksAreStored(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	g := grant.ID{5}
	w.store.grant(m.id, g)
	l := w.connect(m)
	s := l.readState()
	start := time.Now().Truncate(time.Millisecond)
	result := &curfewv1.GrantResult{
		GrantId: g[:], Status: curfewv1.GrantStatus_GRANT_STATUS_APPLIED,
		StartMs: start.UnixMilli(), EndMs: start.Add(time.Hour).UnixMilli(),
	}
	l.ack(s.state, result)
	acks := func() []stream.Ack {
		return look(w.store, m.id, func(h *hostRow) []stream.Ack { return slices.Clone(h.acks) })
	}
	eventually(t, "the ack is stored", func() bool { return len(acks()) == 1 })
	r := acks()[0].Results[0]
	if r.ID != g || r.Status != curfewv1.GrantStatus_GRANT_STATUS_APPLIED ||
		!r.Start.Equal(start) || !r.End.Equal(start.Add(time.Hour)) {
		t.Errorf("stored %+v", r)
	}
	// The same word again, with the next states, costs no write; another word does.
	for i := range 3 {
		l.say(&curfewv1.Heartbeat{Nonce: nonce(byte(i + 1))})
		l.ack(l.readState().state, result)
	}
	result.Status, result.Detail = curfewv1.GrantStatus_GRANT_STATUS_FAILED, "visudo\x1b"
	l.say(&curfewv1.Heartbeat{Nonce: nonce(9)})
	l.ack(l.readState().state, result)
	eventually(t, "the other word is stored", func() bool { return len(acks()) == 2 })
	if d := acks()[1].Results[0].Detail; d != `visudo\x1b` {
		t.Errorf("detail %q", d)
	}
	if h, _ := w.hub.Health(m.id); h.Sequence != m.seq {
		t.Errorf("health says sequence %d, the host has %d", h.Sequence, m.seq)
	}
}

// A lost grant is sent again at once, but a host that loses it forever gets no endless stream.
func TestMissingGrantsAreSentAgain(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	g := grant.ID{6}
	w.store.grant(m.id, g)
	l := w.connect(m)
	missing := &curfewv1.GrantResult{
		GrantId: g[:], Status: curfewv1.GrantStatus_GRANT_STATUS_MISSING,
	}
	s := l.readState()
	l.ack(s.state, missing)
	s = l.readState()
	if len(s.grants) != 1 {
		t.Fatalf("the lost grant is not sent again")
	}
	l.ack(s.state, missing)
	l.say(&curfewv1.Heartbeat{Nonce: nonce(1)})
	s = l.readState()
	if string(s.state.GetNonce()) != string(nonce(1)) {
		t.Errorf("a third state came before the heartbeat")
	}
	if len(s.grants) != 1 {
		t.Errorf("with the heartbeat's state came %d grants, want the lost one", len(s.grants))
	}
}

func TestTrustIsPushed(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	if s := l.untilState(); len(s.trust) != 0 {
		t.Errorf("trust %v came to a host that has it", s.trust)
	}
	w.store.addTrust(2)
	w.hub.TrustChanged()
	if s := l.untilState(); !slices.Equal(s.trust, []string{"trust 2"}) {
		t.Errorf("trust %v", s.trust)
	}
	w.store.addTrust(3)
	w.hub.TrustChanged()
	if s := l.untilState(); !slices.Equal(s.trust, []string{"trust 3"}) {
		t.Errorf("trust %v", s.trust)
	}
}

func TestEventsAreStoredInOrderThenAcknowledged(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	const n = 500
	for range n {
		l.say(m.event(t, trail.KindSessionOpened))
	}
	l.untilEventAck(n)
	stored, batches := look(w.store, m.id, func(h *hostRow) []stream.HostEvent {
		return slices.Clone(h.events)
	}), look(w.store, m.id, func(h *hostRow) int { return h.batches })
	if len(stored) != n {
		t.Fatalf("%d of %d events are stored", len(stored), n)
	}
	for i, e := range stored {
		if e.Event.GetNumber() != uint64(i+1) || e.Record.Kind != trail.KindSessionOpened ||
			e.Record.Actor != "host web1" || len(e.Record.HostEvent) == 0 {
			t.Fatalf("event %d is stored as %+v", i+1, e.Record)
		}
	}
	t.Logf("%d events in %d transactions", n, batches)
}

func TestRepeatedEventsAreAcknowledgedAgain(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	first, second := m.event(t, trail.KindAgentStarted), m.event(t, trail.KindSessionOpened)
	l.say(first)
	l.say(second)
	l.untilEventAck(2)
	// The acknowledgement was lost: the host sends both again, then goes on.
	l.say(first)
	l.untilEventAck(2)
	l.say(second)
	l.untilEventAck(2)
	l.say(m.event(t, trail.KindSessionClosed))
	l.untilEventAck(3)
	if n := look(w.store, m.id, func(h *hostRow) int { return len(h.events) }); n != 3 {
		t.Errorf("%d events are stored, want 3", n)
	}
}

func TestWelcomeSaysWhatIsDurable(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.say(m.event(t, trail.KindAgentStarted))
	l.untilEventAck(1)
	l.conn.Close()
	m.event(t, trail.KindSessionOpened) // recorded while cut off
	l = w.dial(m)
	l.say(&curfewv1.HostMessage_Hello{Hello: m.hello()})
	if c := l.next().GetWelcome().GetEventCount(); c != 1 {
		t.Errorf("Welcome says %d events, want 1", c)
	}
	l.say(m.events[1])
	l.untilEventAck(2)
}

func TestEndOfAGrantIsRead(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	g := grant.ID{7}
	e := &curfewv1.Event{
		Kind: trail.KindGrantEnded, TimeMs: time.Now().Add(-time.Hour).UnixMilli(), GrantId: g[:],
		RequestId: "0123456789ab", Login: "alice",
		Details: map[string]string{"cause": "revoked", "by": "bob"},
	}
	if err := m.chain.Append(e); err != nil {
		t.Fatal(err)
	}
	l.say(e)
	l.untilEventAck(1)
	got := look(w.store, m.id, func(h *hostRow) stream.HostEvent { return h.events[0] })
	if got.Ended == nil || got.Ended.ID != g || got.Ended.By != "bob" ||
		got.Ended.Cause != curfewv1.EndCause_END_CAUSE_REVOKED {
		t.Errorf("the end is read as %+v", got.Ended)
	}
	r := got.Record
	if r.RequestID != "0123456789ab" || r.GrantID != g.String() || r.Details["login"] != "alice" ||
		r.Details["happened"] == "" {
		t.Errorf("record %+v", r)
	}
}

// A host cannot write a record that looks like the control plane's, and no event is too big to be
// kept: it would block all that follow.
func TestAHostileEventIsKeptAsWhatItIs(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.say(m.event(t, "request.granted"))
	big := make(map[string]string)
	for i := range trail.MaxDetails {
		big[fmt.Sprint("key", i)] = strings.Repeat("\x01", trail.MaxDetail)
	}
	e := &curfewv1.Event{
		Kind: trail.KindProblem, Details: big, Login: "x\x1b[2J", RequestId: "../../x",
	}
	if err := m.chain.Append(e); err != nil {
		t.Fatal(err)
	}
	l.say(e)
	l.untilEventAck(2)
	events := look(w.store, m.id, func(h *hostRow) []stream.HostEvent { return h.events })
	r := events[0].Record
	if r.Kind != stream.KindHostOther || r.Details["kind"] != "request.granted" {
		t.Errorf("record %+v", r)
	}
	if r := events[1].Record; r.RequestID != "" || len(r.HostEvent) == 0 {
		t.Errorf("record %+v", r)
	}
}

// A failure of the store that passes is bridged: the stream lives, and the state comes late.
func TestAStoreThatFailsForAMoment(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	w.store.setBroken(errors.New("disk full"))
	w.hub.Changed(m.id)
	time.Sleep(200 * time.Millisecond)
	w.store.setBroken(nil)
	w.store.grant(m.id, grant.ID{8})
	if s := l.untilState(); len(s.grants) != 1 {
		t.Errorf("%d grants after the failure", len(s.grants))
	}
}
