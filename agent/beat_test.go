package agent

import (
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/pace"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// A loop of sudo opens and ends sessions by the dozen: the control plane hears of them soon, and not of each
// by itself, which would cost both sides a signed and synced state.
func TestSessionsAreToldSoonAndTogether(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	beats := func(h *curfewv1.HostMessage) bool { return h.GetHeartbeat() != nil }
	m.half.beat()
	p.next(beats)
	time.Sleep(2 * tellAfter) // what the connection's beginning is told with is told
	for len(p.in) > 0 {
		p.earlier = append(p.earlier, <-p.in)
	}
	p.earlier = nil
	watch := pace.Start()
	for range 20 {
		m.half.beat()
		time.Sleep(tellAfter / 50)
	}
	p.next(beats)
	if took := watch.Elapsed(); took > time.Second {
		t.Errorf("the control plane hears of a session after %s, and is promised 1 s", took)
	}
	time.Sleep(2 * tellAfter)
	more := 0
	for len(p.in) > 0 {
		if beats(<-p.in) {
			more++
		}
	}
	if more > 1 { // the one of every half minute may come by
		t.Errorf("twenty changes at once were told in %d messages", 1+more)
	}
}
