package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/trail"
)

// Half a lease without a word is a warning, told once and in time to do something about it; the end of
// it closes, and the next word opens.
func TestSilenceIsToldAtHalfTheLease(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	p.lease = 6 * time.Second
	p.sendState(p.state(nil))
	p.ack()
	begun := time.Now()
	e := p.event(trail.KindLeaseWarning)
	if took := time.Since(begun); took < 2*time.Second || took > 5*time.Second {
		t.Errorf("warned after %v of a lease of %v", took, p.lease)
	}
	if e.GetDetails()["then"] != "nothing new opens" || e.GetDetails()["left"] == "" {
		t.Errorf("%v", e)
	}
	if _, page := m.page("/metrics"); !strings.Contains(page, "\ncurfew_lease_half_gone 1\n") {
		t.Errorf("warned, and yet\n%s", page)
	}
	status, err := AskStatus(t.Context(), m.path("run/curfew/admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if said := strings.Join(status.Problems, "\n"); !strings.Contains(said, "no word from the control plane") {
		t.Errorf("problems: %s", said)
	}
	if e := p.next(isEvent(trail.KindLeaseWarning, trail.KindLeaseExpired)).GetEvent(); e.GetKind() !=
		trail.KindLeaseExpired {
		t.Errorf("warned twice: %v", e)
	}
}
