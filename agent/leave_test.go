package agent

import (
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/expiry"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func (m *machine) leave() error {
	m.t.Helper()
	clock, err := expiry.SystemClock()
	if err != nil {
		m.t.Fatal(err)
	}
	left, err := Leave(m.t.Context(), EnforceConfig{
		Root: m.root, Program: "/usr/bin/curfew-agent", Version: "test", Log: hclog.NewNullLogger(),
		Clock: clock, Look: m.look,
	})
	if len(left) > 0 {
		m.t.Errorf("not looked over: %v", left)
	}
	return err
}

// TestLeaveEndsEverythingForGood: what runs dies, what was opened closes, and the control plane's next
// word, which still lists the grant, opens nothing again.
func TestLeaveEndsEverythingForGood(t *testing.T) {
	m := newMachine(t)
	m.look = m.worker(make(chan struct{}, 1))
	if err := m.leave(); err != nil {
		t.Errorf("without any grant: %v", err)
	}
	m.start()
	p := m.connect()
	const uid = 1900000079
	id, env := p.grant(p.terms(requestID("live"), "alice", withRule, func(t *curfewv1.Terms) { t.Uid = uid }))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	p.ack()
	lives := m.napping(uid)
	if !m.has(m.dropin(id)) || !m.has(enforce.KeysDir+"/alice") {
		t.Fatal("the grant is not open")
	}
	if err := m.leave(); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("beside a root half that serves: %v", err)
	}
	if !m.has(m.dropin(id)) || !lives() {
		t.Error("beside a root half that serves, access ended")
	}
	m.stop()
	if err := m.leave(); err != nil {
		t.Fatal(err)
	}
	if lives() || m.has(m.dropin(id)) || m.has(enforce.KeysDir+"/alice") {
		t.Errorf("after it: alice's process lives: %v, rule: %v, key: %v", lives(), m.has(m.dropin(id)),
			m.has(enforce.KeysDir+"/alice"))
	}
	if err := m.leave(); err != nil {
		t.Errorf("twice: %v", err)
	}

	m.start()
	p = m.connect()
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	if r := resultOf(t, p.ack(), id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED {
		t.Errorf("the grant comes back: %v", r)
	}
	if m.has(m.dropin(id)) {
		t.Error("the rule is there again")
	}
}
