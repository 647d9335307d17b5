package faults

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/inject"
	"github.com/curfew-access/curfew/e2e/inject/power"
	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/grant"
)

// F2: the power goes before any change of the root half's store, in an apply and in a purge: what was
// not synced is lost, and so is all of /run. It comes back with what it had said, and to the state
// before or the state after.
func TestPowerLostAtEveryWrite(t *testing.T) {
	r := newRig(t, rigOptions{disk: true})
	r.script.Only = func(c inject.Call) bool { return strings.Contains(c.Path, storeDir) }
	points := make(map[string][]inject.Point)
	quick := []story{applying, {name: "purge", do: (*rig).revoke, ends: true}}
	for range 2 { // what only the first time does, the next ones would not come by
		grants := r.new()
		for _, s := range quick {
			list, err := r.window(nil, func() error { return s.do(r, grants) })
			r.ok(err)
			points[s.name] = list
		}
		r.ended = append(r.ended, grants...)
	}
	r.best = r.plane.Sequence
	r.script.Act = func(inject.Call) inject.Verdict {
		if err := power.Cut(r.disk.path()); err != nil {
			t.Error(err)
		}
		return inject.Kill()
	}
	t.Logf("an apply changes the store at %d points, a purge at %d", len(points["apply"]),
		len(points["purge"]))
	plan := map[string][]inject.Point{
		"apply": sample(t, points["apply"], 4), "purge": sample(t, points["purge"], 4),
	}
	cut, missed := 0, 0
	for len(plan["apply"])+len(plan["purge"]) > 0 {
		grants := r.new()
		for _, s := range quick {
			if len(plan[s.name]) == 0 {
				r.ok(s.do(r, grants))
			} else {
				at := plan[s.name][0]
				plan[s.name] = plan[s.name][1:]
				if r.blackout(s, grants, at) {
					cut++
				} else {
					missed++
				}
			}
			if s.ends {
				r.ended = append(r.ended, grants...)
			}
			r.best = r.plane.Sequence
			r.settles(convergence, s.name, r.live, false)
		}
	}
	r.revives()
	t.Logf("power lost at %d points; %d more did not come by", cut, missed)
	if missed > 1+(cut+missed)/5 {
		t.Errorf("%d points did not come by: the numbering does not hold", missed)
	}
	r.ok(r.plane.problem())
}

// blackout plays a story and takes the power at a point of it.
func (r *rig) blackout(s story, grants []*access, at inject.Point) bool {
	r.t.Helper()
	r.holdStart()
	defer r.release()
	_, err := r.window(&at, func() error { return s.do(r, grants) })
	if !r.script.Hit() {
		r.ok(err)
		return false
	}
	if err != nil && !errors.Is(err, errGone) {
		r.t.Fatalf("power lost at %s: %v", at, err)
	}
	// PID 1 starts anew what was killed, and that job may cancel this one.
	r.on("until systemctl stop curfew-gate.socket curfew-enforce.service; do sleep 0.1; done")
	r.release()
	// What a power loss takes beside: /run, and PID 1 with its timers.
	r.on(`systemctl stop 'curfew-end-*.timer'; find /run/curfew -mindepth 1 -delete
systemd-tmpfiles --create /usr/lib/tmpfiles.d/curfew-agent.conf`)
	r.disk.remount()
	r.dead(s, grants, err == nil)
	began := time.Now()
	r.on("systemctl start --no-block curfew-enforce.service")
	took := r.settles(convergence-time.Since(began), "power lost in "+s.name+" at "+at.String(), r.live, false)
	r.t.Logf("%s, power lost at %s: there again after %v", s.name, at,
		(time.Since(began) + took).Round(time.Millisecond))
	r.connect()
	live, ended := grants, []*access(nil)
	if s.ends {
		live, ended = nil, grants
	}
	r.heal(live, ended)
	return true
}

// F2, the whole host: it loses its power right behind an acknowledgement, once with access open and
// once with it ended, and boots with an empty /run and with what its disk has.
func TestHostLosesPower(t *testing.T) {
	r := newRig(t, rigOptions{host: world.HostOptions{Disk: true}, plain: true})
	grants := r.new()
	r.ok(r.apply(grants))
	r.reboot()
	if l := r.ledger(); l.Sequence() != r.plane.Sequence || len(l.Live(r.clock())) != len(grants) {
		t.Fatalf("acknowledged at sequence %d; after the power loss the ledger says %d with %d live",
			r.plane.Sequence, l.Sequence(), len(l.Live(r.clock())))
	}
	r.settles(convergence, "booted with live grants", r.live, false)
	r.use()
	r.settles(useLimit, "used", r.live, true)

	r.ok(r.plane.deliver(nil, grants...))
	_, err := r.plane.ack(r.limit(15 * time.Second))
	r.ok(err)
	r.ended = grants
	r.reboot()
	r.remembers(r.ledger())
	r.settles(convergence, "booted after the end", func() []grant.Live { return nil }, false)
	r.revives()
	r.ok(r.plane.problem())
}

// reboot takes the power from the host, boots it and connects.
func (r *rig) reboot() {
	r.t.Helper()
	r.best = r.plane.Sequence
	r.ok(r.host.PowerLoss(r.ctx))
	r.ok(r.host.Start(r.ctx))
	r.connect()
}
