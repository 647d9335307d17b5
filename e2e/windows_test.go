package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

const maintenance = `policy: 1
roles:
  night:
    login: true
    max: 24h
    sudo: [{all: true}]
rules:
  - name: windows
    roles: [night]
    then: {approvals: [sre], max_duration: 24h}
`

// Windows that recur are approved once: each opens by itself, everything of it dies at its end, and
// between two nothing is open.
func TestWindowsRecur(t *testing.T) {
	// Two minutes of it are the calendar's, whose windows are whole minutes.
	s := tellFor(t, storyLimit+2*time.Minute, stage.Options{
		Name: "windows", Agent: strings.Replace(stage.DefaultAgent, "8h", "24h", 1),
	})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.apply(maintenance, "web1")

	// A day's window that ends at the next full minute, and begins a minute later: the first of them
	// has begun already, and the second is the next day's. Neither waits for the calendar.
	const gap, enough = time.Minute, 25 * time.Second
	end := time.Now().Add(enough).Truncate(time.Minute).Add(time.Minute)
	next := end.Add(gap)
	clock := func(at time.Time) string { return at.UTC().Format("15:04") }
	id := s.asks(alice, "web1", "--role", "night", "--zone", "UTC", "--until", "1d",
		"--every", "daily "+clock(next)+"-"+clock(end))
	s.curfew(bob, 0, []string{"approve", id, "--yes"})
	s.ok(s.Applied(s.ctx, alice, id))
	if at := s.endOn("web1"); !at.Equal(end) {
		t.Fatalf("the first window ends %s, not %s", at, end)
	}
	s.ssh(alice, "web1", 0, "setsid "+mark+" >/dev/null 2>&1 </dev/null & sudo -n id -u", "0")
	tty := s.rootShell(alice)

	time.Sleep(time.Until(end))
	s.gone("web1", "alice", mark, purgeLimit)
	s.hangsUp(tty)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	open := "ls -A /run/curfew/keys /run/curfew/sudoers.d; getent passwd alice | grep -v nologin || true"
	shut := s.on("web1", open)
	for time.Now().Before(next.Add(-time.Second)) {
		if seen := s.on("web1", open); seen != shut && time.Now().Before(next) {
			t.Fatalf("%s before the second window something is open:\n%s", time.Until(next), seen)
		}
		time.Sleep(200 * time.Millisecond)
	}
	time.Sleep(time.Until(next))
	late := s.within(20*time.Second, "the second window to open", func() (bool, string) {
		return s.holds("web1", id), ""
	})
	t.Logf("the second window was open %s after its start", late.Round(time.Millisecond))
	if at, want := s.endOn("web1"), end.AddDate(0, 0, 1); !at.Equal(want) {
		t.Errorf("the second window ends %s, not %s", at, want)
	}
	s.ssh(alice, "web1", 0, "sudo -n id -u", "0")
	s.curfew(alice, 0, []string{"done", id})
	s.gone("web1", "alice", mark, purgeLimit)
}
