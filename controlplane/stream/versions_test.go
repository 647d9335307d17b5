package stream_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// ofNextVersion gives a message a field that this version does not know.
func ofNextVersion(m proto.Message) {
	field := protowire.AppendTag(nil, 900, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendString(field, "what the next version says"))
}

// F16: a host of the next version is served. What it says beyond is ignored, and kept in events.
func TestANewerHostIsServed(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.dial(m)
	hello := m.hello()
	ofNextVersion(hello)
	l.say(&curfewv1.HostMessage_Hello{Hello: hello})
	if l.next().GetWelcome() == nil {
		t.Fatal("no Welcome")
	}
	l.untilState()
	another := new(curfewv1.HostMessage)
	ofNextVersion(another)
	l.sendRaw(l.sign(another))

	e := &curfewv1.Event{TimeMs: 1, BootId: m.boot, Kind: trail.KindSessionOpened}
	ofNextVersion(e)
	if err := m.chain.Append(e); err != nil {
		t.Fatal(err)
	}
	l.say(e)
	l.say(m.event(t, trail.KindSessionClosed)) // chained to the one before
	l.untilEventAck(2)

	beat := &curfewv1.Heartbeat{Nonce: nonce(7), Mode: "enforce"}
	ofNextVersion(beat)
	l.say(beat)
	for {
		if s := l.readState(); bytes.Equal(s.state.GetNonce(), nonce(7)) {
			break
		}
	}
}

// F16: a host of an earlier version leaves out what is new since; only what identifies it is needed.
func TestAnOlderHostIsServed(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.dial(m)
	l.say(&curfewv1.HostMessage_Hello{Hello: &curfewv1.Hello{
		Protocol: 1, HostId: m.id[:], Nonce: nonce(0),
	}})
	if l.next().GetWelcome() == nil {
		t.Fatal("no Welcome")
	}
	l.untilState()
}
