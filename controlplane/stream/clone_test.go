package stream_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Two machines with one key and one chain: the second is refused, the first goes on.
func TestACloneIsRefusedWhileTheFirstLives(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	first := w.connect(m)
	first.untilState()
	first.say(m.event(t, trail.KindAgentStarted))
	first.untilEventAck(1)
	clone := m.clone("boot 2")

	answered := make(chan seen, 1)
	go func() { answered <- first.untilState() }() // the first machine's root half is alive
	l := w.dial(clone)
	l.say(&curfewv1.HostMessage_Hello{Hello: clone.hello()})
	code, why := l.end()
	if code != codes.PermissionDenied || !strings.Contains(why, "cloned image") {
		t.Errorf("the clone hears %s, %q", code, why)
	}
	<-answered
	if !w.store.has(stream.KindHostClone) {
		t.Error("the trail does not tell of the clone")
	}
	// Even after the first has moved on, the clone harms nobody but itself.
	first.say(m.event(t, trail.KindSessionOpened))
	first.untilEventAck(2)
	go func() { answered <- first.untilState() }()
	l = w.dial(clone)
	l.say(&curfewv1.HostMessage_Hello{Hello: clone.hello()})
	if code, _ := l.end(); code != codes.PermissionDenied {
		t.Errorf("the clone, once behind, hears %s", code)
	}
	<-answered
	w.store.grant(m.id, grant.ID{1})
	w.hub.Changed(m.id)
	if s := first.untilState(); len(s.grants) != 1 {
		t.Error("the first machine is no longer served")
	}
	h, _ := w.hub.Health(m.id)
	if !strings.Contains(strings.Join(h.Problems, " "), "another machine") {
		t.Errorf("people do not see the clone: %q", h.Problems)
	}
	if r := look(w.store, m.id, func(h *hostRow) string { return h.Refused }); r != "" {
		t.Errorf("the host was marked refused: %s", r)
	}
}

// A disk that was set back has fewer events than were acknowledged.
func TestARestoredHostIsRefusedForGood(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	backup := m.clone("boot 2")
	l.say(m.event(t, trail.KindAgentStarted))
	l.untilEventAck(1)
	l.conn.Close()
	eventually(t, "the first stream is gone", func() bool {
		h, _ := w.hub.Health(m.id)
		return !h.Connected
	})
	for range 2 {
		l = w.dial(backup)
		l.say(&curfewv1.HostMessage_Hello{Hello: backup.hello()})
		if code, why := l.end(); code != codes.PermissionDenied ||
			!strings.Contains(why, "restored disk") {
			t.Errorf("the restored host hears %s, %q", code, why)
		}
	}
	if !w.store.has(stream.KindHostRefused) {
		t.Error("the trail does not say so")
	}
	// Refused means both: nobody can tell which one is the machine that was enrolled.
	l = w.dial(m)
	l.say(&curfewv1.HostMessage_Hello{Hello: m.hello()})
	if code, _ := l.end(); code != codes.PermissionDenied {
		t.Errorf("the other one hears %s", code)
	}
}

func TestAForkIsRefused(t *testing.T) {
	for name, fork := range map[string]func(t *testing.T, w *world, m, twin *machine) *line{
		"in Hello": func(t *testing.T, w *world, _, twin *machine) *line {
			twin.event(t, trail.KindProblem)
			l := w.dial(twin)
			l.say(&curfewv1.HostMessage_Hello{Hello: twin.hello()})
			return l
		},
		"in the next event": func(t *testing.T, w *world, _, twin *machine) *line {
			twin.event(t, trail.KindProblem)
			twin.event(t, trail.KindProblem)
			l := w.connect(twin)
			l.say(twin.events[1])
			return l
		},
		"in a repeated event": func(t *testing.T, w *world, m, twin *machine) *line {
			twin.event(t, trail.KindProblem)
			l := w.connect(m)
			l.say(m.event(t, trail.KindSessionOpened))
			l.untilEventAck(2)
			l.say(twin.events[0])
			return l
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, stream.Timing{})
			m := w.machine("web1")
			twin := m.clone("boot 2")
			l := w.connect(m)
			l.say(m.event(t, trail.KindAgentStarted))
			l.untilEventAck(1)
			l.conn.Close()
			eventually(t, "the first stream is gone", func() bool {
				h, _ := w.hub.Health(m.id)
				return !h.Connected
			})
			if code, why := fork(t, w, m, twin).end(); code != codes.PermissionDenied ||
				!strings.Contains(why, "cloned image") {
				t.Errorf("%s, %q", code, why)
			}
			if look(w.store, m.id, func(h *hostRow) string { return h.Refused }) == "" {
				t.Error("the host is not marked refused")
			}
		})
	}
}

// A gap is a link that dropped something, not another machine: connect again and all is well.
func TestAGapHealsByConnectingAgain(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	first, second := m.event(t, trail.KindAgentStarted), m.event(t, trail.KindSessionOpened)
	l.say(second)
	if code, _ := l.end(); code != codes.FailedPrecondition {
		t.Errorf("a gap: %s", code)
	}
	l = w.connect(m)
	l.say(first)
	l.say(second)
	l.untilEventAck(2)
}

// A host whose old connection nobody closed comes back at once; the old stream ends.
func TestAReconnectReplacesWhatIsLeft(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	old := w.connect(m)
	old.untilState()
	l := w.connect(m)
	l.untilState()
	if code, _ := old.end(); code != codes.Aborted {
		t.Errorf("the old stream ends with %s", code)
	}
	if h, _ := w.hub.Health(m.id); !h.Connected {
		t.Error("the end of the old stream counts for the new one")
	}
	w.store.grant(m.id, grant.ID{1})
	w.hub.Changed(m.id)
	if s := l.untilState(); len(s.grants) != 1 {
		t.Error("the new stream is not served")
	}
}

// A host that lost power comes back under another boot id, while its old stream still looks open.
func TestARebootReplacesADeadStream(t *testing.T) {
	w := newWorld(t, stream.Timing{Probe: 300 * time.Millisecond})
	m := w.machine("web1")
	dead := w.connect(m)
	dead.untilState() // from here on nobody answers on it
	m.boot = "boot 2"
	l := w.connect(m)
	l.untilState()
	if w.store.has(stream.KindHostClone) {
		t.Error("a reboot was taken for a clone")
	}
}

// Whatever a host says first, it says it alone: a thousand newcomers of one host are judged one by
// one, and the one that is served stays.
func TestNewcomersAreJudgedOneByOne(t *testing.T) {
	// A machine that is short of time takes seconds over twenty newcomers.
	w := newWorld(t, stream.Timing{Probe: time.Minute})
	m := w.machine("web1")
	first := w.connect(m)
	first.untilState()
	clone := m.clone("boot 2")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 20 {
			w.dialAndHello(clone)
		}
	}()
	<-done
	// The first answers the probe and goes on.
	first.untilState()
	w.store.grant(m.id, grant.ID{1})
	w.hub.Changed(m.id)
	for s := first.untilState(); len(s.grants) == 0; s = first.untilState() {
	}
}
