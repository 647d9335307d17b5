package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestSettingsChangeAtOnce(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	gate := func() string {
		data, err := os.ReadFile(m.path("var/lib/curfew/gate.conf"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if !strings.Contains(gate(), "mode enforce\n") || !strings.Contains(gate(), "elevate 1001 bob\n") {
		t.Errorf("gate table\n%s", gate())
	}
	m.settings("mode: enforced\n")
	if e := p.event(trail.KindConfigRejected); !strings.Contains(e.GetDetails()["error"], "line 1: mode") {
		t.Errorf("event %v", e)
	}
	if !strings.Contains(gate(), "mode enforce\n") {
		t.Error("a broken file changed something")
	}
	for _, vanish := range []func() error{
		func() error { return os.Truncate(m.path(ConfigPath), 0) },
		func() error { return os.Remove(m.path(ConfigPath)) },
	} {
		if err := vanish(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond) // longer than a change takes to be seen
		if !strings.Contains(gate(), "mode enforce\n") {
			t.Error("an empty or missing file took the mode away")
		}
	}
	m.settings("mode: observe\ngated_users: [bob]\n")
	p.event(trail.KindConfigLoaded)
	for start := time.Now(); !strings.Contains(gate(), "mode observe\ngated 1001 bob\n"); {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("gate table\n%s", gate())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestEventsAreSentOnceAndGoWhenAcknowledged(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	var last uint64
	var chain trail.Chain
	for range 2 {
		id, env := p.grant(p.terms(requestID(fmt.Sprint("n", last)), "alice", withRule))
		p.sendGrant(env)
		p.sendState(p.state(nil, id))
		for kind := ""; kind != trail.KindGrantApplied; {
			e := p.next(func(m *curfewv1.HostMessage) bool { return m.GetEvent() != nil }).GetEvent()
			next, err := chain.Next(e)
			if err != nil {
				t.Fatal(err)
			}
			chain, last, kind = next, e.GetNumber(), e.GetKind()
		}
		p.sendState(p.state(nil))
	}
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_EventAck{
		EventAck: &curfewv1.EventAck{Count: last},
	}})
	m.stop()
	m.start()
	m.plane.conn.Close()
	m.connect()
	if got := p.hello.GetEventCount(); got < last {
		t.Errorf("hello counts %d events, %d were sent", got, last)
	}
}

// A10: the sockets are root's, and the link half's.
func TestSocketsAreClosedToOthers(t *testing.T) {
	m := newMachine(t)
	m.start()
	cmd := runAs(1001, "/bin/sh", "-c", "exec 3<>/dev/null; [ -w "+m.path("run/curfew/link.sock")+" ]")
	if err := cmd.Run(); err == nil {
		t.Error("an ordinary user may write to the link socket")
	}
	for _, sock := range []string{"link.sock", "admin.sock", "gate.sock"} {
		info, err := os.Stat(m.path("run/curfew/" + sock))
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o600)
		if sock == "link.sock" {
			want = 0o660
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", sock, info.Mode())
		}
	}
}

func TestCorruptStoreIsRefused(t *testing.T) {
	m := newMachine(t)
	for name, want := range map[string]error{
		"ledger.json": store.ErrCorrupt, "root.key": store.ErrCorrupt, "host.json": store.ErrCorrupt,
	} {
		good, err := os.ReadFile(m.path("var/lib/curfew/" + name))
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte("x"), good...)
		if err := os.WriteFile(m.path("var/lib/curfew/"+name), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		clock, err := expiry.SystemClock()
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewEnforce(EnforceConfig{
			Root: m.root, Program: "/x", Version: "test", Clock: clock, Log: hclog.NewNullLogger(),
		})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "join anew") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.WriteFile(m.path("var/lib/curfew/"+name), good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
