package agent

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestGrantIsAppliedAcknowledgedAndRevoked(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	if p.hello.GetTrustVersion() != 1 || grant.HostID(p.hello.GetHostId()) != p.host {
		t.Errorf("hello %v", p.hello)
	}
	id, env := p.grant(p.terms(requestID("one"), "alice", withRule))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	ack := p.ack()
	r := resultOf(t, ack, id)
	if !ack.GetAccepted() || r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED ||
		r.GetStartMs() == 0 || r.GetEndMs() != r.GetStartMs()+time.Hour.Milliseconds() {
		t.Fatalf("ack %v", ack)
	}
	// The acknowledgement comes after the files.
	for _, f := range []string{m.dropin(id), enforce.KeysDir + "/alice", "run/curfew/nss.db"} {
		if !m.has(f) {
			t.Errorf("%s is missing after the ack", f)
		}
	}
	p.sendState(p.state([]*curfewv1.Ended{
		{GrantId: id[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "anna"},
	}))
	if ack := p.ack(); !ack.GetAccepted() || len(ack.GetGrants()) != 0 {
		t.Errorf("ack %v", ack)
	}
	if m.has(m.dropin(id)) || m.has(enforce.KeysDir+"/alice") {
		t.Error("files of the revoked grant are there after the ack")
	}
	if e := p.event(trail.KindGrantEnded); e.GetDetails()["cause"] != "revoked" ||
		e.GetDetails()["by"] != "anna" || e.GetRequestId() != requestID("one") {
		t.Errorf("event %v", e)
	}
	// An approval is not spent twice.
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r = resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED ||
		!strings.Contains(r.GetDetail(), "cannot be spent twice") {
		t.Errorf("the ended grant again: %v", r)
	}
	if m.has(m.dropin(id)) {
		t.Error("the ended grant is back")
	}
}

func TestExpiryOnTime(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	// A machine that is short of time takes seconds to apply it.
	id, env := p.grant(p.terms(requestID("short"), "alice", withRule, lasting(4*time.Second)))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r := resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Fatal(r)
	}
	end := time.UnixMilli(r.GetEndMs())
	for m.has(m.dropin(id)) && time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
	}
	if early := time.Until(end); early > 0 {
		t.Errorf("the drop-in went %v before the end", early)
	}
	watch := pace.Start()
	for m.has(m.dropin(id)) && watch.Elapsed() < 5*time.Second {
		time.Sleep(5 * time.Millisecond)
	}
	if late := watch.Elapsed(); late > time.Second {
		t.Errorf("the drop-in went %v after the end", late)
	}
	if e := p.event(trail.KindGrantEnded); e.GetDetails()["cause"] != "expired" {
		t.Errorf("event %v", e)
	}
}

// A4, A5 and what else a host refuses: nothing is applied, the host says why, and it is on the trail.
func TestRefusals(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	over := p.terms(requestID("over"), "alice")
	over.DurationMs = (48 * time.Hour).Milliseconds()
	over.HardEndMs = time.Now().Add(100 * time.Hour).UnixMilli()
	rootly := p.terms(requestID("rootly"), "alice", func(t *curfewv1.Terms) {
		t.SudoRules = []*curfewv1.SudoRule{{RunAs: "root", All: true}}
	})
	groups := p.terms(requestID("groups"), "alice", func(t *curfewv1.Terms) {
		t.Groups = []string{"web"}
	})
	own := p.terms(requestID("own"), "anna")
	for want, terms := range map[string]*curfewv1.Terms{
		"a duration of 48h": over, "root-equivalent": rootly, "group web": groups,
		"cannot approve their own": own,
	} {
		id, env := p.grant(terms)
		p.sendGrant(env)
		if e := p.event(trail.KindGrantRejected); !strings.Contains(e.GetDetails()["error"], want) {
			t.Errorf("event %v, want %q", e, want)
		}
		p.sendState(p.state(nil, id))
		r := resultOf(t, p.ack(), id)
		if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED ||
			!strings.Contains(r.GetDetail(), want) {
			t.Errorf("%v, want %q", r, want)
		}
	}
	// One that verifies, but that the host cannot enforce.
	local := p.terms(requestID("local"), "games", withRule)
	m.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\ngames:x:1005:1005::/:/bin/sh\n")
	id, env := p.grant(local)
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r := resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_FAILED ||
		!strings.Contains(r.GetDetail(), "list it in gated_users") {
		t.Errorf("%v", r)
	}
	// Not held.
	missing := grant.ID{1}
	p.sendState(p.state(nil, missing))
	if r := resultOf(t, p.ack(), missing); r.GetStatus() !=
		curfewv1.GrantStatus_GRANT_STATUS_MISSING {
		t.Errorf("%v", r)
	}
	// An older state.
	p.sequence -= 2
	p.sendState(p.state(nil))
	if ack := p.ack(); ack.GetAccepted() || !strings.Contains(ack.GetDetail(), "older") {
		t.Errorf("an older state: %v", ack)
	}
	p.event(trail.KindStateRejected)
}

// F1 and step 9 in small: killed with a live grant, the agent finds it in place; with one that ended
// meanwhile, it is gone before anything is served.
func TestRestart(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	long, env := p.grant(p.terms(requestID("long"), "alice", withRule))
	p.sendGrant(env)
	short, env := p.grant(p.terms(requestID("short"), "bob", withRule, lasting(5*time.Second),
		func(t *curfewv1.Terms) { t.Uid = 1900000002 }))
	p.sendGrant(env)
	p.sendState(p.state(nil, long, short))
	ack := p.ack()
	end := time.UnixMilli(resultOf(t, ack, short).GetEndMs())
	for _, id := range []grant.ID{long, short} {
		if r := resultOf(t, ack, id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			t.Fatal(r)
		}
	}
	m.stop()
	time.Sleep(time.Until(end))
	if !m.has(m.dropin(long)) || !m.has(m.dropin(short)) {
		t.Fatal("stopping the agent changed access")
	}
	m.start()
	p = m.connect()
	if m.has(m.dropin(short)) || !m.has(m.dropin(long)) {
		t.Error("after the restart: the ended one stands or the live one is gone")
	}
	if p.hello.GetSequence() != p.sequence || p.hello.GetEventCount() == 0 {
		t.Errorf("hello %v", p.hello)
	}
	if e := p.event(trail.KindGrantEnded); grant.ID(e.GetGrantId()) != short {
		t.Errorf("event %v", e)
	}
}

func TestExtensionKeepsTheRequest(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	terms := p.terms(requestID("one"), "alice", withRule)
	first, env := p.grant(terms)
	p.sendGrant(env)
	p.sendState(p.state(nil, first))
	start := resultOf(t, p.ack(), first).GetStartMs()
	raw, err := grant.MarshalTerms(terms)
	if err != nil {
		t.Fatal(err)
	}
	digest := grant.TermsDigest(raw)
	second, env := p.grant(p.terms(requestID("one"), "alice", withRule, func(t *curfewv1.Terms) {
		t.Revision, t.Follows = 2, digest[:]
		t.DurationMs = (2 * time.Hour).Milliseconds()
	}))
	p.sendGrant(env)
	gaps := m.watchGaps()
	p.sendState(p.state(nil, first, second))
	ack := p.ack()
	r := resultOf(t, ack, second)
	if n := gaps(); n > 0 {
		t.Errorf("%d times during the extension, there was no key or no rule", n)
	}
	if len(ack.GetGrants()) != 1 {
		t.Errorf("ack %v", ack)
	}
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED || r.GetStartMs() != start ||
		r.GetEndMs() != start+(2*time.Hour).Milliseconds() {
		t.Errorf("%v", r)
	}
	if m.has(m.dropin(first)) || !m.has(m.dropin(second)) || !m.has(enforce.KeysDir+"/alice") {
		t.Error("the extension did not take the place of what it follows")
	}
	status, err := AskStatus(context.Background(), m.path("run/curfew/admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Grants) != 1 || status.Grants[0].Request != requestID("one") ||
		status.Grants[0].Status != "applied" || len(status.Ending) != 0 || !status.Connected {
		t.Errorf("%+v", status)
	}
}

// Silence, garbage and empty answers end nothing: an outage once deleted every user of a peer
// (aws-ec2-ssh#96). Only what is signed ends a grant.
func TestSilenceAndEmptyAnswersDeleteNothing(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	id, env := p.grant(p.terms(requestID("one"), "alice", withRule))
	p.sendGrant(env)
	local, env := p.grant(p.terms(requestID("two"), "bob", withRule))
	p.sendGrant(env)
	empty := p.state(nil) // signed, and older than the next
	p.sendState(p.state(nil, id, local))
	ack := p.ack()
	for _, id := range []grant.ID{id, local} {
		if r := resultOf(t, ack, id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			t.Fatalf("result %v", r)
		}
	}
	passwd, group := m.read("etc/passwd"), m.read("etc/group")
	send := func(body *curfewv1.ControlMessage) func() {
		return func() { m.connect().send(body) }
	}
	state := func(s *curfewv1.State) func() {
		return send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_State{State: s}})
	}
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"an empty state", state(&curfewv1.State{})},
		{"garbage for a state", state(&curfewv1.State{Envelope: []byte("{}")})},
		{"an old state that lists nobody", state(&curfewv1.State{Envelope: empty})},
		{"an empty trust file", send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Trust{
			Trust: &curfewv1.TrustUpdate{},
		}})},
		{"an empty passwd", func() { m.write("etc/passwd", "") }},
		{"a passwd without its first half", func() { m.write("etc/passwd", passwd[len(passwd)/2:]) }},
		{"an empty group file", func() { m.write("etc/group", "") }},
		{"no passwd at all", func() { _ = os.Remove(m.path("etc/passwd")) }},
		{"nothing any more", func() { _ = p.conn.Close() }},
	} {
		c.do()
		for range 3 { // it is delivered meanwhile, and the host is looked at again
			if err := m.half.owner.do(t.Context(), m.half.owner.reconcile); err != nil {
				t.Fatal(err)
			}
			time.Sleep(30 * time.Millisecond)
		}
		for _, f := range []string{m.dropin(id), m.dropin(local), enforce.KeysDir + "/alice"} {
			if !m.has(f) {
				t.Errorf("after %s %s is gone", c.what, f)
			}
		}
		m.write("etc/passwd", passwd)
		m.write("etc/group", group)
	}
}

// A clone is told so, and opens nothing more; it is no problem once it is served again.
func TestRefusedHostOpensNothing(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	id, env := p.grant(p.terms(requestID("one"), "alice"))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	p.ack()
	closed := func() string {
		t.Helper()
		s, err := AskStatus(context.Background(), m.path("run/curfew/admin.sock"))
		if err != nil {
			t.Fatal(err)
		}
		return s.MayOpen
	}
	if why := closed(); why != "" {
		t.Errorf("before: %s", why)
	}
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Refused{
		Refused: &curfewv1.Refused{Reason: "a clone"},
	}})
	for start := time.Now(); !strings.Contains(closed(), "a clone"); {
		if time.Since(start) > 5*time.Second {
			t.Fatal("a refused host still opens access")
		}
		time.Sleep(5 * time.Millisecond)
	}
	m.connect()
	for start := time.Now(); closed() != ""; {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("served again: %s", closed())
		}
		time.Sleep(5 * time.Millisecond)
	}
}
