package agent

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// ofNextVersion gives a message a field that this version does not know.
func ofNextVersion[M proto.Message](m M) M {
	field := protowire.AppendTag(nil, 900, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendString(field, "what the next version says"))
	return m
}

// F16: a control plane of the next version is understood as far as it speaks this one's language.
// What is new around sealed objects is ignored; inside of them it is refused, with words, and the
// connection and what is open stay.
func TestANewerControlPlane(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	p.send(ofNextVersion(&curfewv1.ControlMessage{})) // of a kind that is not known
	id, env := p.grant(p.terms(requestID("one"), "alice", withRule))
	p.send(ofNextVersion(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Grant{
		Grant: ofNextVersion(&curfewv1.GrantEnvelope{Envelope: env}),
	}}))
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_State{
		State: ofNextVersion(&curfewv1.State{Envelope: p.state(nil, id)}),
	}})
	if r := resultOf(t, p.ack(), id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Fatalf("%v", r)
	}

	p.sequence++
	env, err := grant.SealState(ofNextVersion(&curfewv1.HostState{
		Version: 1, HostId: p.host[:], Epoch: 1, Sequence: p.sequence, IssuedAtMs: 1, ValidForMs: 1000,
	}), p.issuer)
	if err != nil {
		t.Fatal(err)
	}
	p.sendState(env)
	if ack := p.ack(); ack.GetAccepted() || !strings.Contains(ack.GetDetail(), "unknown") {
		t.Errorf("a state that is not understood: %v", ack)
	}
	if !m.has(m.dropin(id)) {
		t.Error("a state that is not understood took access away")
	}
	p.sendState(p.state(nil, id))
	if ack := p.ack(); !ack.GetAccepted() {
		t.Errorf("%v", ack)
	}
}
