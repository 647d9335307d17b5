package agent

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestSealedCodesAreOfferedUntilTheControlPlaneHasThem(t *testing.T) {
	m := newMachine(t)
	m.glass()
	set := m.codes(2)
	offered := func(p *plane) *curfewv1.BreakGlassSet {
		return p.next(func(m *curfewv1.HostMessage) bool { return m.GetBreakGlassSet() != nil }).GetBreakGlassSet()
	}
	for range 2 {
		got := offered(m.connect())
		if !proto.Equal(got, set.Sealed) {
			t.Fatalf("offered %v", got)
		}
		_ = m.plane.conn.Close()
	}
	fresh := m.codes(1)
	if got := offered(m.connect()); !proto.Equal(got, fresh.Sealed) {
		t.Errorf("after renew: %v", got)
	}
}

// The control plane's word has new codes made, once for each set, and not as often as it likes.
func TestRenewalIsAskedForAndBounded(t *testing.T) {
	m := newMachine(t)
	admin := m.glass()
	set := m.codes(2)
	p := m.connect()
	p.sendState(p.state(nil))
	p.ack()
	renew := func(id []byte) {
		t.Helper()
		p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_BreakGlassRenew{
			BreakGlassRenew: &curfewv1.BreakGlassRenew{SetId: id},
		}})
		p.sendState(p.state(nil)) // taken after it
		p.ack()
	}
	problems := func() string {
		t.Helper()
		s, err := AskStatus(t.Context(), admin)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s.Problems, "; ")
	}
	settle := func(want int32) {
		t.Helper()
		m.half.owner.beside.Wait()
		if n := m.renewals.Load(); n != want {
			t.Fatalf("%d renewals, want %d", n, want)
		}
	}
	renew([]byte("another set here"))
	renew(nil)
	settle(0)
	renew(set.ID[:])
	renew(set.ID[:])
	settle(1)
	m.ahead.Add(int64(2 * time.Minute))
	renew(set.ID[:])
	if s := problems(); !strings.Contains(s, "journalctl -u curfew-codes.service") {
		t.Errorf("problems %q", s)
	}
	next := m.codes(2)
	renew(set.ID[:]) // done already
	if s := problems(); s != "" {
		t.Errorf("problems %q", s)
	}
	renew(next.ID[:])
	settle(1)
	m.ahead.Add(int64(renewEvery))
	renew(next.ID[:])
	settle(2)
}
