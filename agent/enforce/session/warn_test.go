package session

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/grant"
)

const request = "abcdefghjkmn"

// bubble runs a warner in a synctest bubble and notes what it told, and when after the start.
type bubble struct {
	warner *warner
	begun  time.Time
	told   []string
}

func (b *bubble) now() grant.Clock {
	return grant.Clock{Wall: time.Now(), Boot: time.Since(b.begun), BootID: "b"}
}

func (b *bubble) grant(lasts time.Duration) Live {
	return Live{
		RequestID: request, Login: "alice", Class: account.ClassAccount, Role: "ops", Start: b.begun,
		End: b.begun.Add(lasts), BootDeadline: lasts,
	}
}

func inBubble(t *testing.T, story func(b *bubble)) []string {
	t.Helper()
	var told []string
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{begun: time.Now()}
		b.warner = newWarner("web1", b.now, func(id, text string) {
			b.told = append(b.told, fmt.Sprintf("%v %s %s", time.Since(b.begun), id, text))
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.warner.run(ctx) }()
		synctest.Wait()
		story(b)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		told = b.told
	})
	return told
}

func starts(t *testing.T, told []string, want ...string) {
	t.Helper()
	if !slices.EqualFunc(told, want, strings.HasPrefix) {
		t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
}

func TestWarningsComeTenAndTwoMinutesBefore(t *testing.T) {
	told := inBubble(t, func(b *bubble) {
		b.warner.publish(byRequest(b.grant(time.Hour)))
		time.Sleep(2 * time.Hour)
	})
	starts(t, told,
		"50m0s "+request+" Curfew: access as ops on web1 ends at 01:00 UTC (in 10m). "+
			"To keep it: curfew extend "+request+" --for 30m",
		"58m0s "+request+" Curfew: access as ops on web1 ends at 01:00 UTC (in 2m). ")
}

func TestWarningsScaleWithShortGrants(t *testing.T) {
	for lasts, want := range map[time.Duration][]string{
		10 * time.Minute: {"6m40s ", "9m0s "},
		time.Minute:      {"40s ", "54s "},
		25 * time.Minute: {"16m40s ", "23m0s "},
		8 * time.Hour:    {"7h50m0s ", "7h58m0s "},
	} {
		told := inBubble(t, func(b *bubble) {
			b.warner.publish(byRequest(b.grant(lasts)))
			time.Sleep(lasts + time.Minute)
		})
		starts(t, told, want...)
	}
}

func TestExtensionTellsTheNewEndAndWarnsAnew(t *testing.T) {
	told := inBubble(t, func(b *bubble) {
		b.warner.publish(byRequest(b.grant(time.Hour)))
		time.Sleep(55 * time.Minute)
		b.warner.publish(byRequest(b.grant(2 * time.Hour)))
		b.warner.publish(byRequest(b.grant(2 * time.Hour)))
		time.Sleep(2 * time.Hour)
	})
	starts(t, told, "50m0s ",
		"55m0s "+request+" Curfew: access as ops on web1 now ends at 02:00 UTC (in 1h05m)",
		"1h50m0s ", "1h58m0s ")
}

// A restarted agent neither repeats a warning nor gives one late.
func TestRestartDoesNotRepeat(t *testing.T) {
	told := inBubble(t, func(b *bubble) {
		time.Sleep(55 * time.Minute)
		b.warner.publish(byRequest(b.grant(time.Hour)))
		time.Sleep(time.Hour)
	})
	starts(t, told, "58m0s ")
}

func TestEndedGrantIsNotWarned(t *testing.T) {
	told := inBubble(t, func(b *bubble) {
		b.warner.publish(byRequest(b.grant(time.Hour)))
		time.Sleep(49 * time.Minute)
		b.warner.publish(nil)
		time.Sleep(time.Hour)
	})
	starts(t, told)
}

// The boot-time clock counts as well: a wall clock that was set back does not delay the warning.
func TestWarningFollowsTheEarlierClock(t *testing.T) {
	told := inBubble(t, func(b *bubble) {
		l := b.grant(time.Hour)
		l.BootDeadline = 30 * time.Minute
		b.warner.publish(byRequest(l))
		time.Sleep(time.Hour)
	})
	starts(t, told, "20m0s ", "28m0s ")
}

func TestUntil(t *testing.T) {
	end := time.Date(2026, 11, 24, 14, 5, 0, 0, time.UTC)
	for left, want := range map[time.Duration]string{
		59*time.Minute + 3*time.Second: "14:05 UTC (in 59m)",
		time.Hour:                      "14:05 UTC (in 1h)",
		90*time.Minute - time.Second:   "14:05 UTC (in 1h30m)",
		45 * time.Second:               "14:05:00 UTC (in 45s)",
		-time.Second:                   "14:05:00 UTC (in 0s)",
		25 * time.Hour:                 "2026-11-24 14:05 UTC (in 25h)",
	} {
		if got := Until(end, left); got != want {
			t.Errorf("%v before: %q, want %q", left, got, want)
		}
	}
}

func byRequest(l Live) map[string]Live { return map[string]Live{l.RequestID: l} }
