package stream_test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/join"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestWrongCertificates(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	honest := w.machine("web1")
	foreign, err := enrol.CreateAuthority(t.TempDir(), "example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	link := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{join.HostURI(honest.id)},
	}
	self, err := x509.CreateCertificate(rand.Reader, template, template, link.Public(), link)
	if err != nil {
		t.Fatal(err)
	}
	other, err := foreign.SignHost(link.Public(), honest.id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ended, err := w.authority.SignHost(link.Public(), honest.id, time.Now().Add(-2*enrol.HostLife))
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"none": nil, "self-signed": self, "another CA's": other.Raw, "ended": ended.Raw,
	} {
		m := *honest
		m.cert = tls.Certificate{}
		if der != nil {
			m.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: link}
		}
		l := w.dial(&m)
		l.say(&curfewv1.HostMessage_Hello{Hello: m.hello()})
		if code, _ := l.end(); code != codes.Unauthenticated {
			t.Errorf("certificate %s: %s", name, code)
		}
	}
	w.connect(honest).untilState()
}

// One host's certificate carries no other host's messages.
func TestAnotherHostsMessages(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	mine, other := w.machine("web1"), w.machine("web2")

	l := w.dial(mine)
	l.m = other // signs with the other host's key, over my certificate
	l.say(&curfewv1.HostMessage_Hello{Hello: other.hello()})
	if code, _ := l.end(); code != codes.PermissionDenied {
		t.Errorf("the other host's Hello: %s", code)
	}
	eventually(t, "the trail says so", func() bool { return w.store.has(stream.KindHostForged) })

	l = w.dial(mine)
	l.say(&curfewv1.HostMessage_Hello{Hello: other.hello()}) // my key, the other's id
	if code, _ := l.end(); code != codes.InvalidArgument {
		t.Errorf("a Hello in the other host's name: %s", code)
	}

	l = w.connect(mine)
	l.untilState()
	l.m = other
	l.say(&curfewv1.Heartbeat{Nonce: nonce(1), Mode: "enforce"})
	if code, _ := l.end(); code != codes.PermissionDenied {
		t.Errorf("the other host's heartbeat: %s", code)
	}
	if h, ok := w.hub.Health(other.id); ok && h.Mode != "" {
		t.Errorf("it counted for the other host: %+v", h)
	}
	forged := 0
	for _, k := range w.store.kinds() {
		if k == stream.KindHostForged {
			forged++
		}
	}
	if forged != 1 {
		t.Errorf("%d records about one misbehaving host in a second", forged)
	}
}

func TestHostsThatAreNotServed(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	l := w.connect(m)
	l.untilState()
	w.hub.Drop(m.id, "host web1 was removed")
	if code, why := l.end(); code != codes.PermissionDenied || !strings.Contains(why, "removed") {
		t.Errorf("dropped: %s, %q", code, why)
	}
	w.store.mu.Lock()
	w.store.hosts[m.id].Refused = "a cloned image"
	w.store.mu.Unlock()
	if code, why := w.dial(m).end(); code != codes.PermissionDenied ||
		!strings.Contains(why, "a cloned image; enrol the host anew") {
		t.Errorf("refused: %s, %q", code, why)
	}
	w.store.mu.Lock()
	delete(w.store.hosts, m.id)
	w.store.mu.Unlock()
	if code, why := w.dial(m).end(); code != codes.PermissionDenied ||
		!strings.Contains(why, "not enrolled") {
		t.Errorf("unknown: %s, %q", code, why)
	}
}

func TestBadHellos(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	for name, change := range map[string]func(*curfewv1.Hello){
		"protocol":      func(h *curfewv1.Hello) { h.Protocol = 2 },
		"no nonce":      func(h *curfewv1.Hello) { h.Nonce = nil },
		"short id":      func(h *curfewv1.Hello) { h.GrantIds = [][]byte{{1, 2}} },
		"long boot id":  func(h *curfewv1.Hello) { h.BootId = strings.Repeat("x", 200) },
		"other host":    func(h *curfewv1.Hello) { h.HostId = bytes.Repeat([]byte{1}, 32) },
		"no host":       func(h *curfewv1.Hello) { h.HostId = nil },
		"long version":  func(h *curfewv1.Hello) { h.AgentVersion = strings.Repeat("x", 200) },
		"protocol zero": func(h *curfewv1.Hello) { h.Protocol = 0 },
	} {
		hello := m.hello()
		change(hello)
		l := w.dial(m)
		l.say(&curfewv1.HostMessage_Hello{Hello: hello})
		if code, _ := l.end(); code != codes.InvalidArgument {
			t.Errorf("%s: %s", name, code)
		}
	}
	l := w.dial(m)
	l.say(&curfewv1.Heartbeat{Nonce: nonce(1)})
	if code, _ := l.end(); code != codes.InvalidArgument {
		t.Errorf("a heartbeat first: %s", code)
	}
	l = w.connect(m)
	l.say(&curfewv1.HostMessage_Hello{Hello: m.hello()})
	if code, _ := l.end(); code != codes.InvalidArgument {
		t.Errorf("a second Hello: %s", code)
	}
	w.connect(m).untilState()
}

func TestASilentHostIsDropped(t *testing.T) {
	w := newWorld(t, stream.Timing{Hello: 100 * time.Millisecond})
	if code, _ := w.dial(w.machine("web1")).end(); code != codes.DeadlineExceeded {
		t.Errorf("silence: %s", code)
	}
}

func TestGarbageEndsTheStreamAndNothingElse(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m, neighbour := w.machine("web1"), w.machine("web2")
	n := w.connect(neighbour)
	n.untilState()
	random := make([]byte, 1000)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	tooLong := bytes.Repeat([]byte("x"), 300<<10)
	for name, msg := range map[string]*curfewv1.SignedHostMessage{
		"empty": {}, "random": {Body: random, Signature: random[:64]}, "long": {Body: tooLong},
	} {
		l := w.connect(m)
		l.sendRaw(msg)
		if code, _ := l.end(); code != codes.PermissionDenied {
			t.Errorf("%s: %s", name, code)
		}
	}
	l := w.dial(m, grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(8<<20)))
	l.sendRaw(&curfewv1.SignedHostMessage{Body: bytes.Repeat([]byte("x"), 2<<20)})
	if code, _ := l.end(); code != codes.ResourceExhausted {
		t.Errorf("two megabytes: %s", code)
	}
	for name, body := range map[string]any{
		"short nonce": &curfewv1.Heartbeat{Nonce: []byte{1}},
		"crowd":       &curfewv1.Heartbeat{Nonce: nonce(1), Sessions: make257()},
		"bad id":      &curfewv1.Ack{Grants: []*curfewv1.GrantResult{{GrantId: []byte("x")}}},
		"number zero": &curfewv1.Event{},
		"long detail": &curfewv1.Ack{Detail: strings.Repeat("x", 2000)},
	} {
		l := w.connect(m)
		l.say(body)
		if code, _ := l.end(); code != codes.InvalidArgument {
			t.Errorf("%s: %s", name, code)
		}
	}
	w.store.grant(neighbour.id, grant.ID{1})
	w.hub.Changed(neighbour.id)
	if s := n.untilState(); len(s.grants) != 1 {
		t.Error("the neighbour's stream suffered")
	}
	if h := look(w.store, m.id, func(h *hostRow) string { return h.Refused }); h != "" {
		t.Errorf("garbage made the host refused: %s", h)
	}
}

func make257() []*curfewv1.Session {
	out := make([]*curfewv1.Session, 257)
	for i := range out {
		out[i] = &curfewv1.Session{Pid: int32(i)}
	}
	return out
}

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

// A host that takes nothing blocks nobody, and is dropped.
func TestASlowHostBlocksNobody(t *testing.T) {
	w := newWorld(t, stream.Timing{Send: 500 * time.Millisecond})
	slow, fast := w.machine("slow"), w.machine("fast")
	s, f := w.connect(slow), w.connect(fast)
	s.untilState()
	f.untilState()
	big := make(map[grant.ID][]byte)
	for i := range 200 {
		big[grant.ID{1, byte(i)}] = bytes.Repeat([]byte("x"), 60<<10)
	}
	w.store.mu.Lock()
	w.store.hosts[slow.id].live = big
	w.store.mu.Unlock()
	w.hub.Changed(slow.id)
	for i := range 10 {
		w.store.grant(fast.id, grant.ID{2, byte(i)})
		start := time.Now()
		w.hub.Changed(slow.id, fast.id)
		if got := f.untilState(); len(got.grants) != 1 {
			t.Fatalf("%d grants", len(got.grants))
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the fast host waited %s", d)
		}
	}
	eventually(t, "the slow host is dropped", func() bool {
		h, _ := w.hub.Health(slow.id)
		return !h.Connected
	})
	if h, _ := w.hub.Health(fast.id); !h.Connected {
		t.Error("the fast host was dropped too")
	}
}

// A control plane that was set back says so, where people look.
func TestARestoredControlPlaneSaysSo(t *testing.T) {
	w := newWorld(t, stream.Timing{})
	m := w.machine("web1")
	m.epoch, m.seq = 1, 1000
	w.dialAndHello(m)
	eventually(t, "health says it", func() bool {
		h, _ := w.hub.Health(m.id)
		return strings.Contains(strings.Join(h.Problems, " "), "restored")
	})
}

func (w *world) dialAndHello(m *machine) {
	w.t.Helper()
	w.dial(m).say(&curfewv1.HostMessage_Hello{Hello: m.hello()})
}

// Whatever a host says first, it says it alone: a thousand newcomers of one host are judged one by
// one, and the one that is served stays.
func TestNewcomersAreJudgedOneByOne(t *testing.T) {
	w := newWorld(t, stream.Timing{Probe: time.Second})
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
