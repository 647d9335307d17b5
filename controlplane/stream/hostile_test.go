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
	"github.com/curfew-access/curfew/internal/pace"
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
		start := pace.Start()
		w.hub.Changed(slow.id, fast.id)
		if got := f.untilState(); len(got.grants) != 1 {
			t.Fatalf("%d grants", len(got.grants))
		}
		if d := start.Elapsed(); d > time.Second {
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
