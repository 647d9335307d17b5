package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

const (
	hour = time.Hour
	year = 365 * 24 * hour
)

// agentStatus is what curfew-agent status --json says, as far as stories ask.
type agentStatus struct {
	Connected bool      `json:"connected"`
	MayOpen   string    `json:"may_open"`
	LeaseEnd  time.Time `json:"lease_end"`
	Grants    []struct {
		Request string    `json:"request"`
		Status  string    `json:"status"`
		End     time.Time `json:"end"`
	} `json:"grants"`
	Ending []string `json:"ending"`
}

func (s *story) status(host string) (a agentStatus) {
	s.t.Helper()
	s.ok(json.Unmarshal([]byte(s.on(host, "curfew-agent status --json")), &a))
	return a
}

// endOn is the end of the one grant that a host holds, by its own wall clock.
func (s *story) endOn(host string) time.Time {
	s.t.Helper()
	a := s.status(host)
	if len(a.Grants) != 1 || a.Grants[0].Status != "applied" {
		s.t.Fatalf("%s does not hold one applied grant: %+v", host, a)
	}
	return a.Grants[0].End
}

// cpu is the processor time that a host's root half has used since it started.
func (s *story) cpu(host string) time.Duration {
	s.t.Helper()
	text := s.on(host, "systemctl show --value -p CPUUsageNSec curfew-enforce.service")
	ns, err := strconv.ParseInt(text, 10, 64)
	s.ok(err)
	return time.Duration(ns)
}

// runs tells whether the marked process of a session is there.
func (s *story) runs(host string) bool {
	s.t.Helper()
	return s.on(host, "pgrep -f '[s]leep 86413' || true") != ""
}

// session opens a shell of alice's on a host that runs the marked process, and waits for that.
func (s *story) session(alice *stage.Person, host string) {
	s.t.Helper()
	tty, err := alice.StartPTY(s.ctx, "ssh", "-tt", "alice@"+host, mark)
	s.ok(err)
	s.t.Cleanup(func() { tty.Close() })
	s.within(5*time.Second, "the session to run", func() (bool, string) { return s.runs(host), "" })
}

// denied demands that neither a login nor sudo opens on a host.
func (s *story) denied(alice *stage.Person, host, when string) {
	s.t.Helper()
	r, err := alice.SSH(s.ctx, host, "true")
	s.ok(err)
	if r.Exit != 255 {
		s.t.Errorf("%s, alice logs in on %s: %s", when, host, r)
	}
	out := s.on(host, `runuser -u alice -- sudo -n /usr/bin/systemctl restart nginx.service 2>&1 &&
echo "sudo works" || true`)
	if strings.Contains(out, "sudo works") {
		s.t.Errorf("%s, sudo works for alice on %s: %s", when, host, out)
	}
}

// F4: while a grant is live, the wall clock is set. The window never gets longer; it closes on the
// earlier of both clocks, with everything that runs in it; and a jump opens nothing.
func TestClockStepsNeverExtend(t *testing.T) {
	steps := []struct {
		name string
		step time.Duration
		// early is how much sooner than on the boot-time clock the window closes.
		early time.Duration
	}{
		{"ahead1s", time.Second, time.Second},
		{"back1s", -time.Second, 0},
		{"ahead1h", hour, 0},
		{"back1h", -hour, 0},
		{"ahead10y", 10 * year, 0},
		{"epoch", -time.Duration(time.Now().Unix()) * time.Second, 0},
	}
	var hosts []string
	for _, c := range steps {
		hosts = append(hosts, c.name)
	}
	// The steps wait for a place among all stories; each has its time from when it has one.
	whole := tellFor(t, 5*storyLimit, stage.Options{Hosts: hosts})
	alice, bob, err := whole.Cast(whole.ctx)
	whole.ok(err)
	t.Run("step", func(t *testing.T) {
		for _, c := range steps {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				ctx, cancel := context.WithTimeout(t.Context(), storyLimit)
				t.Cleanup(cancel)
				s := &story{Stage: whole.Stage, t: t, ctx: ctx, began: time.Now()}
				s.ok(s.FakeClocks(s.ctx, s.Hosts[c.name]))
				s.stepClock(alice, bob, c.name, c.step, c.early)
			})
		}
	})
}

func (s *story) stepClock(alice, bob *stage.Person, host string, step, early time.Duration) {
	s.t.Helper()
	_, err := s.Grant(s.ctx, alice, bob, host, "ops", s.lasting(14*time.Second))
	s.ok(err)
	end := s.endOn(host) // no clock was moved yet: it is the true end, too
	s.session(alice, host)
	// The host's own clocks are to end it, not the control plane's word.
	s.on(host, "systemctl stop curfew-link.service")
	s.ok(s.SetClocks(s.ctx, s.Hosts[host], step, 0))
	spent, stepped := s.cpu(host), time.Now()
	if step.Abs() > 5*time.Minute {
		s.denied(alice, host, "with the clock "+step.String()+" off")
		if why := s.status(host).MayOpen; !strings.Contains(why, "clock jumped") {
			s.t.Errorf("with the clock %s off the host says: %q", step, why)
		}
	}
	// What was opened rightly lives on: silence and forged dates end nothing.
	time.Sleep(time.Until(end.Add(-early - 2*time.Second)))
	if !s.runs(host) && time.Until(end.Add(-early)) > 0 {
		s.t.Errorf("the session died before its end, with the clock %s off", step)
	}
	if busy := s.cpu(host) - spent; busy > time.Since(stepped)/5 {
		s.t.Errorf("with the clock %s off, the root half was busy for %s of %s", step, busy,
			time.Since(stepped))
	}
	time.Sleep(time.Until(end.Add(-early)))
	s.gone(host, "alice", mark, purgeLimit)
	s.denied(alice, host, "past the end, with the clock "+step.String()+" off")
}

// F4: a date ten years ahead opens nothing, is told, and is not kept: over a restart of the root half
// with that date, the right date brings the grant's access back.
func TestForgedDateBricksNothing(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	web := s.Hosts["web1"]
	s.ok(s.FakeClocks(s.ctx, web))
	s.works(alice, 5*time.Second)
	s.ok(s.SetClocks(s.ctx, web, 10*year, 0))
	s.denied(alice, "web1", "ten years ahead")
	s.within(10*time.Second, "the trail to tell of the jump", func() (bool, string) {
		r, err := s.Admin.Curfew(s.ctx, "log", "--json")
		return err == nil && strings.Contains(r.Out, "clock.jumped") &&
			strings.Contains(r.Out, `"by":"87`), r.Out
	})
	s.on("web1", "systemctl restart curfew-enforce.service")
	s.ok(s.Connected(s.ctx, "web1")) // signed states come, and do not make the date a right one
	s.denied(alice, "web1", "ten years ahead, restarted and with word from the control plane")
	s.ok(s.SetClocks(s.ctx, web, 0, 0))
	s.works(alice, 5*time.Second)
}

// F4: a host whose clock comes up at the epoch opens nothing, also with the control plane's word;
// when the clock is put right, it heals.
func TestClockAtTheEpochAtBoot(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(10 * time.Minute)
	web := s.Hosts["web1"]
	s.ok(s.FakeClocks(s.ctx, web))
	s.ok(web.PowerOff(s.ctx))
	s.ok(s.SetClocks(s.ctx, web, -time.Duration(time.Now().Unix())*time.Second, 0))
	s.ok(web.Start(s.ctx))
	s.denied(alice, "web1", "at the epoch")
	s.ok(s.Connected(s.ctx, "web1"))
	s.within(10*time.Second, "the host to distrust its clock", func() (bool, string) {
		why := s.status("web1").MayOpen
		return strings.Contains(why, "clock jumped"), why
	})
	s.denied(alice, "web1", "at the epoch, with word from the control plane")
	s.ok(s.SetClocks(s.ctx, web, 0, 0))
	s.works(alice, 5*time.Second)
}

// F4: a machine that slept past the end of a window purges within 2 s of waking; one that slept for a
// part of it goes on with what is left.
func TestSuspend(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(hour)
	web := s.Hosts["web1"]
	s.ok(s.FakeClocks(s.ctx, web))
	end := s.endOn("web1")
	s.session(alice, "web1")
	// Only this host's clocks go on; the control plane's word on the time would not fit to them.
	s.on("web1", "systemctl stop curfew-link.service")
	sleep := func(total time.Duration) {
		t.Helper()
		s.ok(web.Freeze(s.ctx))
		// While everything stands still, the hours pass: on both clocks, and not on the monotonic one.
		s.ok(web.Replace("/etc/story-clock", fmt.Appendf(nil, "%d %[1]d\n", total/time.Second), 0o644))
		s.ok(web.Thaw(s.ctx))
		s.ok(s.SetClocks(s.ctx, web, total, total))
	}
	sleep(10 * time.Minute) // less than the lease
	s.works(alice, 5*time.Second)
	if !s.runs("web1") || !s.endOn("web1").Equal(end) {
		t.Error("a sleep that ends before the window does has changed it")
	}
	sleep(70 * time.Minute) // an hour more
	woke := time.Now()
	s.gone("web1", "alice", mark, purgeLimit)
	t.Logf("everything was gone %s after waking", time.Since(woke).Round(time.Millisecond))
	s.denied(alice, "web1", "after waking")
}

// Promise 3: with the agent dead, the control plane gone and the clock set back, expired access does
// not open again, and PID 1's timer ends what runs.
func TestDeadAgentAndAClockSetBack(t *testing.T) {
	s := tell(t, stage.Options{})
	alice, _, _ := s.openFor(25 * time.Second)
	web := s.Hosts["web1"]
	s.ok(s.FakeClocks(s.ctx, web))
	end := s.endOn("web1")
	s.session(alice, "web1")
	_, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane.service")
	s.ok(err)
	s.on("web1", "systemctl stop curfew-agent.target curfew-enforce.service curfew-link.service")
	time.Sleep(time.Until(end.Add(time.Second)))
	for _, back := range []time.Duration{0, -hour, -10 * year} {
		s.ok(s.SetClocks(s.ctx, web, back, 0))
		s.denied(alice, "web1", "past the end with the agent dead and the clock "+back.String()+" off")
		if out := s.on("web1", "getent passwd alice || true"); out != "" && !strings.HasSuffix(out, "nologin") {
			t.Errorf("past the end, with the clock %s off, alice is %s", back, out)
		}
	}
	time.Sleep(time.Until(end.Add(28 * time.Second)))
	s.within(4*time.Second, "PID 1's timer to end the session", func() (bool, string) {
		return !s.runs("web1"), ""
	})
	s.on("web1", "systemctl start curfew-agent.target curfew-enforce.service curfew-link.service")
	s.gone("web1", "alice", mark, 5*time.Second)
	s.denied(alice, "web1", "with the agent back and the clock years behind")
}
