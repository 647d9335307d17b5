package faults

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/inject"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// convergence is what a restart may take.
const convergence = 5 * time.Second

// trailLimit is how soon what happened is on the trail. That everything is gone is said after the walk
// over the disks, which has no limit but the test's patience.
const (
	trailLimit = 10 * time.Second
	walkLimit  = 90 * time.Second
)

// useLimit is how long a login may take on a machine that has other things to do; no promise.
const useLimit = 30 * time.Second

// quiet is how long no call may come before a window counts as over.
const quiet = 250 * time.Millisecond

// apply delivers new grants and waits until the host says that they stand.
func (r *rig) apply(grants []*access) error {
	if err := r.plane.deliver(grants); err != nil {
		return err
	}
	ack, err := r.plane.ack(r.limit(15 * time.Second))
	if err != nil {
		return err
	}
	if !ack.GetAccepted() {
		return errors.New("refused: " + ack.GetDetail())
	}
	for _, a := range ack.GetGrants() {
		if a.GetStatus().String() != "GRANT_STATUS_APPLIED" {
			return errors.New(a.GetStatus().String() + ": " + a.GetDetail())
		}
	}
	return nil
}

// revoke ends grants and waits until the host says that everything of them is gone.
func (r *rig) revoke(grants []*access) error {
	if err := r.plane.deliver(nil, grants...); err != nil {
		return err
	}
	for _, a := range grants {
		if err := r.plane.until(r.limit(walkLimit), told(trail.KindGrantPurged, a)); err != nil {
			return err
		}
	}
	return nil
}

// use opens what runs under the grants: alice's login with an orphan and a root command, and carol's
// elevation, which gets a scope.
func (r *rig) use() {
	r.t.Helper()
	login := r.laptop.Cmd(r.ctx, "ssh", "-o", "BatchMode=yes", "alice@web1",
		"setsid -f /usr/bin/sleep "+orphanNap+" </dev/null >/dev/null 2>&1; sudo -n /usr/bin/sleep "+nap("alice"))
	r.ok(login.Start())
	go login.Wait()
	elevation := r.host.Cmd(r.ctx, "runuser", "-u", "carol", "--", "sudo", "-n", "/usr/bin/sleep", nap("carol"))
	r.ok(elevation.Start())
	go elevation.Wait()
}

func (r *rig) live() []grant.Live { return r.ledger().Live(r.clock()) }

// window plays one piece of work with the script's window open, and returns what passed through it.
func (r *rig) window(target *inject.Point, work func() error) ([]inject.Point, error) {
	r.script.Begin(target)
	err := work()
	for n := -1; err == nil && !r.script.Hit(); {
		if have := r.script.Count(); have == n {
			break
		} else {
			n = have
		}
		time.Sleep(quiet)
	}
	return r.script.End(), err
}

// story is one kind of work that is killed: it begins from a host where start has been, and do is
// what is killed in.
type story struct {
	name string
	used bool // grants are in use before
	do   func(r *rig, grants []*access) error
	ends bool // what do does, ends the grants
}

var (
	applying = story{name: "apply", do: (*rig).apply}
	revoking = story{name: "purge", used: true, do: (*rig).revoke, ends: true}
)

// record plays applies and purges undisturbed, twice, and returns the points of each.
func (r *rig) record() map[string][]inject.Point {
	r.t.Helper()
	points := make(map[string][]inject.Point)
	for range 2 {
		grants := r.new()
		for _, s := range []story{applying, revoking} {
			if s.used {
				r.use()
				r.settles(useLimit, "used", r.live, true)
			}
			list, err := r.window(nil, func() error { return s.do(r, grants) })
			r.ok(err)
			r.settles(convergence, s.name, r.live, false)
			for _, p := range list {
				if !slices.Contains(points[s.name], p) {
					points[s.name] = append(points[s.name], p)
				}
			}
		}
		r.ended = append(r.ended, grants...)
	}
	return points
}

// strike plays a story and kills the root half at a point of it. It returns false when the story
// ended without coming by.
func (r *rig) strike(s story, grants []*access, p inject.Point) bool {
	r.t.Helper()
	r.holdStart()
	defer r.release()
	_, err := r.window(&p, func() error { return s.do(r, grants) })
	if !r.script.Hit() {
		r.ok(err)
		return false
	}
	if err != nil && !errors.Is(err, errGone) {
		r.t.Fatalf("killed at %s: %v", p, err)
	}
	r.dead(s, grants, err == nil)
	r.release()
	took := r.settles(convergence, "killed in "+s.name+" at "+p.String(), r.live,
		s.used && len(r.live()) > 0)
	r.t.Logf("%s, killed at %s: converged %v after the restart", s.name, p, took.Round(time.Millisecond))
	r.connect()
	return true
}

// dead looks at the host while the root half is dead: nothing may be open that the ledger on disk does
// not hold, nothing half-written, and nothing forgotten.
func (r *rig) dead(s story, grants []*access, acknowledged bool) {
	r.t.Helper()
	l := r.ledger()
	if l.Sequence() < r.best || l.Sequence() > r.plane.Sequence || l.Epoch() != 1 {
		r.t.Fatalf("the ledger says (%d, %d); it was at sequence %d", l.Epoch(), l.Sequence(), r.best)
	}
	if acknowledged && l.Sequence() != r.plane.Sequence {
		r.t.Fatalf("sequence %d was acknowledged, the ledger says %d", r.plane.Sequence, l.Sequence())
	}
	r.best = l.Sequence()
	r.remembers(l)
	live := l.Live(r.clock())
	if len(live) != 0 && len(live) != len(grants) {
		r.t.Fatalf("%d of %d grants of one state are live", len(live), len(grants))
	}
	if s.ends {
		return // what has ended goes with the restart
	}
	want := r.expected(live, s.used)
	for _, line := range r.survey() {
		if !slices.Contains(want, line) && !strings.Contains(line, ".new") {
			r.t.Fatalf("without a live grant: %.90s", line)
		}
	}
}

// remembers demands that everything that ever ended is still tombstoned.
func (r *rig) remembers(l *grant.Ledger) {
	r.t.Helper()
	for _, a := range r.ended {
		if _, ended := l.Ended(a.id); !ended {
			r.t.Fatalf("the tombstone of grant %s is lost", a.id.Short())
		}
	}
}

// heal is what the control plane does when the host is back: it tells it the newest state again.
func (r *rig) heal(live, ended []*access) {
	r.t.Helper()
	r.ok(r.plane.deliver(live, ended...))
	ack, err := r.plane.ack(r.limit(15 * time.Second))
	r.ok(err)
	if !ack.GetAccepted() || len(ack.GetGrants()) != len(live) {
		r.t.Fatalf("healing: %v", ack)
	}
	for _, g := range ack.GetGrants() {
		if g.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			r.t.Fatalf("healing: %v", g)
		}
	}
	r.best = r.plane.Sequence
	r.settles(convergence, "healed", r.live, false)
}

// onTheTrail demands that an end is on the trail, whenever the root half died.
func (r *rig) onTheTrail(grants []*access, kinds ...string) {
	r.t.Helper()
	for _, a := range grants {
		for _, kind := range kinds {
			limit := trailLimit
			if kind == trail.KindGrantPurged {
				limit = walkLimit
			}
			if err := r.plane.until(r.limit(limit), told(kind, a)); err != nil {
				r.t.Fatalf("%s of request %s is not on the trail: %v", kind, a.request, err)
			}
		}
	}
}

// F1: killed before any changing call of an apply or of a purge, the root half comes back to the state
// before or the state after; what is open while it is dead is what its ledger holds; and nothing that
// it has said or seen is forgotten.
func TestKilledAtEveryCall(t *testing.T) {
	r := newRig(t, rigOptions{})
	points := r.record()
	t.Logf("an apply has %d points, a purge %d", len(points["apply"]), len(points["purge"]))
	applies := sample(t, points["apply"], 8)
	purges := sample(t, points["purge"], 8)
	missed := 0
	for i := range max(len(applies), len(purges)) {
		grants := r.new()
		r.killed(applying, grants, applies, i, &missed)
		if i < len(purges) {
			r.use()
			r.settles(useLimit, "used", r.live, true)
		}
		r.killed(revoking, grants, purges, i, &missed)
		r.onTheTrail(grants, trail.KindGrantApplied, trail.KindGrantEnded, trail.KindGrantPurged)
		r.ended = append(r.ended, grants...)
		r.ok(r.plane.problem())
	}
	r.revives()
	t.Logf("killed at %d points of an apply and %d of a purge; %d more did not come by",
		len(applies), len(purges), missed)
	if missed > 1+(len(applies)+len(purges))/5 {
		t.Errorf("%d points did not come by: the numbering does not hold", missed)
	}
}

// killed plays a story, killed at its i-th point or undisturbed when there are no more.
func (r *rig) killed(s story, grants []*access, points []inject.Point, i int, missed *int) {
	r.t.Helper()
	live, ended := grants, []*access(nil)
	if s.ends {
		live, ended = nil, grants
	}
	switch {
	case i >= len(points):
		r.ok(s.do(r, grants))
	case r.strike(s, grants, points[i]):
		r.heal(live, ended)
	default:
		*missed++
	}
	r.best = r.plane.Sequence
	r.settles(convergence, s.name, r.live, false)
}

// revives demands that nothing that ended comes back, whatever the control plane says.
func (r *rig) revives() {
	r.t.Helper()
	r.remembers(r.ledger())
	r.ok(r.plane.deliver(r.ended[:2]))
	ack, err := r.plane.ack(r.limit(15 * time.Second))
	r.ok(err)
	for _, g := range ack.GetGrants() {
		if g.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED {
			r.t.Errorf("an ended grant again: %v", g)
		}
	}
	r.settles(convergence, "asked to revive", r.live, false)
}
