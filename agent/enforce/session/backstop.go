package session

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"github.com/curfew-access/curfew/internal/grant"
)

// backstopDelay leaves the end of a grant to the agent, which is quicker and says why; PID 1 comes
// only when the agent did not.
const backstopDelay = 5 * time.Second

// systemctls is where systemctl is: the second on hosts whose /bin is a folder of its own.
var systemctls = []string{"/usr/bin/systemctl", "/bin/systemctl"}

// Arm makes PID 1 end a target without the agent: 5 s after end on the wall clock, or 5 s after left
// has run, whichever comes first. It replaces the request's timer; there is none for an instant only
// in the order new, then old, so that a crash in between leaves too many and never too few.
func (m *Manager) Arm(ctx context.Context, t Target, end time.Time, left time.Duration) error {
	if problems := t.check(); len(problems) > 0 {
		return fmt.Errorf("arming the backstop: %s", problems[0])
	}
	name := fmt.Sprintf("curfew-end-%s-%s", t.RequestID, newID()[:8])
	err := askWithin(ctx, stopLimit, func(ctx context.Context, conn *dbus.Conn) error {
		err := startTimer(ctx, conn, timer{
			name: name, description: "End of Curfew request " + t.RequestID,
			at: end.Add(backstopDelay), after: max(left, 0) + backstopDelay,
			commands: m.backstop(t),
		})
		if err != nil {
			return err
		}
		return stopMatching(ctx, conn, timerPattern(t.RequestID), func(unit string) bool {
			return unit != name+".timer"
		})
	})
	m.problem("backstop "+t.RequestID, err)
	if err != nil {
		return fmt.Errorf("arming the backstop of request %s: %w", t.RequestID, err)
	}
	return nil
}

// backstop is what PID 1 runs: the agent's own command, which knows the sessions, and then the same
// by systemd alone, should that command be gone or broken.
func (m *Manager) backstop(t Target) [][]string {
	own := append(append([]string{}, m.cfg.Backstop...), t.RequestID)
	commands := [][]string{own, killUnits("curfew-" + t.RequestID + "-*.scope")}
	if t.Whole && m.wholly(t) {
		commands = append(commands, killUnits(fmt.Sprintf("user-%d.slice", t.UID)))
	}
	return commands
}

func killUnits(pattern string) []string {
	program := systemctls[0]
	if _, err := os.Stat(program); err != nil {
		program = systemctls[1]
	}
	return []string{program, "--no-ask-password", "--signal=SIGKILL", "kill", pattern}
}

// Disarm removes PID 1's timers of requests, all at once: a thousand that were removed one after the
// other would go off meanwhile.
func (m *Manager) Disarm(ctx context.Context, requests ...string) error {
	ended := make(map[string]bool, len(requests))
	for _, request := range requests {
		if err := grant.CheckRequestID(request); err != nil {
			return fmt.Errorf("disarming the backstop: %w", err)
		}
		ended[request] = true
	}
	err := askWithin(ctx, stopLimit, func(ctx context.Context, conn *dbus.Conn) error {
		return stopMatching(ctx, conn, timerPattern("*"), func(unit string) bool {
			match := timerName.FindStringSubmatch(unit)
			return match != nil && ended[match[1]]
		})
	})
	for _, request := range requests {
		m.problem("backstop "+request, err)
	}
	if err != nil {
		return fmt.Errorf("disarming the backstop of %d requests: %w", len(requests), err)
	}
	return nil
}

// Backstops lists the requests that PID 1 has a timer for, and those whose timer gave trouble.
func (m *Manager) Backstops(ctx context.Context) ([]string, error) {
	found := make(map[string]bool)
	err := ask(ctx, func(ctx context.Context, conn *dbus.Conn) error {
		units, err := conn.ListUnitsByPatternsContext(ctx, nil, []string{timerPattern("*")})
		for _, u := range units {
			if match := timerName.FindStringSubmatch(u.Name); match != nil {
				found[match[1]] = true
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the backstops: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.problems {
		if request, ok := strings.CutPrefix(key, "backstop "); ok {
			found[request] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

func timerPattern(request string) string { return "curfew-end-" + request + "-*.timer" }

var timerName = regexp.MustCompile(`^curfew-end-([0-9a-z]{12})-[0-9a-f]{8}\.timer$`)
