package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// A timer of PID 1's that outlived its request, because PID 1 was too busy to answer, is taken away by
// the next rescan: it would end the person's next request. That of a live request stays.
func TestStaleBackstopIsTakenAway(t *testing.T) {
	s := tell(t, stage.Options{})
	_, _, id := s.openFor(10 * time.Minute)
	s.on("web1", `systemd-run --quiet --unit=curfew-end-00000000stal-01234567 --on-active=1h true`)
	s.within(45*time.Second, "the stale timer to go", func() (bool, string) {
		out := s.on("web1", "systemctl list-units --all --no-legend --plain 'curfew-end-*.timer'")
		return !strings.Contains(out, "00000000stal"), out
	})
	if out := s.on("web1", "systemctl list-units --no-legend --plain 'curfew-end-*.timer'"); !strings.Contains(out, id) {
		t.Errorf("the timer of the live request is gone too:\n%s", out)
	}
}
