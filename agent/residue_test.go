package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/residue"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// worker does what PID 1 does with curfew-residue.service, in this process.
func (m *machine) worker(runs chan<- struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case runs <- struct{}{}:
		default:
		}
		store, err := residue.OpenStore(m.path(enforce.StateDir), nil)
		if err != nil {
			return err
		}
		clock, err := expiry.SystemClock()
		if err != nil {
			return err
		}
		job := residue.Job{Root: m.root, Store: store, Clock: clock, Log: hclog.NewNullLogger()}
		return errors.Join(job.Work(ctx), store.Close())
	}
}

func allOfRoot(t *curfewv1.Terms) {
	t.SudoRules, t.RootEquivalent = []*curfewv1.SudoRule{{RunAs: "root", All: true}}, true
}

// A root-equivalent grant of a Curfew account, with the agent dead at its end: its setuid copy is cleared
// all the same, what root left is told, and until then it has ended with residue.
func TestResidueIsLookedForAcrossARestart(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\nceiling: {allow_root_equivalent: true}\n")
	runs := make(chan struct{}, 1)
	m.look = m.worker(runs)
	m.start()
	p := m.connect()
	terms := p.terms(requestID("rootly"), "alice", allOfRoot, lasting(8*time.Second))
	id, env := p.grant(terms)
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r := resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Fatal(r)
	}
	base := m.path(enforce.StateDir + "/residue/" + requestID("rootly") + ".base.json")
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(base); err == nil {
			break
		} else if time.Since(begun) > 10*time.Second {
			t.Fatal("the state at the start is not taken")
		}
	}
	m.stop()
	time.Sleep(20 * time.Millisecond)
	m.write("etc/sudoers.d/evil", "# x\n")
	copied := m.path("usr/bin/copy")
	m.write("usr/bin/copy", "")
	for _, err := range []error{
		os.Chown(copied, int(terms.GetUid()), 0), unix.Chmod(copied, 0o4755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Until(time.UnixMilli(r.GetEndMs()))) // the agent is dead at the end: that is the story
	m.start()
	p = m.connect()
	if e := p.event(trail.KindGrantResidue); !strings.Contains(e.GetDetails()["left"], "looked for") {
		t.Errorf("%v", e)
	}
	e := p.event(trail.KindGrantLeft)
	if e.GetRequestId() != requestID("rootly") || e.GetDetails()["root_equivalent"] != "true" ||
		!strings.Contains(e.GetDetails()["sudo"], "new /etc/sudoers.d/evil") ||
		strings.Contains(e.GetDetails()["sudo"], "curfew") || e.GetDetails()["count"] == "0" {
		t.Errorf("%v", e)
	}
	if e := p.event(trail.KindGrantPurged); !strings.Contains(e.GetDetails()["cleared"], "/usr/bin/copy") {
		t.Errorf("%v", e)
	}
	var st unix.Stat_t
	if err := unix.Stat(copied, &st); err != nil || st.Mode&0o7777 != 0o755 {
		t.Errorf("mode %o, %v", st.Mode&0o7777, err)
	}
	m.shows("curfew_residue_reports_total 1")
	for begun := time.Now(); m.has(enforce.StateDir + "/residue/" + requestID("rootly") + ".record.json"); {
		if time.Sleep(10 * time.Millisecond); time.Since(begun) > 5*time.Second {
			t.Fatal("the record of a purged request stays")
		}
	}
	select {
	case <-runs:
	default:
		t.Error("the worker was never asked")
	}
}

// Who never came has left nothing: no disk is looked at for a grant that was not used.
func TestUnusedGrantsCostNoWalk(t *testing.T) {
	m := newMachine(t)
	runs := make(chan struct{}, 1)
	m.look = m.worker(runs)
	m.start()
	p := m.connect()
	id, env := p.grant(p.terms(requestID("unused"), "alice", withRule))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	p.ack()
	p.sendState(p.state(nil))
	p.event(trail.KindGrantPurged)
	select {
	case <-runs:
		t.Error("the disks were looked at")
	default:
	}
}

// A window that ends while an earlier one of its request is still being looked after is ended like any
// other, at once, and both are told to be gone.
func TestALaterWindowEndsWhileAnEarlierIsLookedAfter(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\nceiling: {allow_root_equivalent: true}\n")
	work := m.worker(make(chan struct{}))
	var through atomic.Bool
	m.look = func(ctx context.Context) error {
		if !through.Load() {
			return nil // it was killed, and brought nothing
		}
		return work(ctx)
	}
	m.start()
	p := m.connect()
	ids := make(map[grant.ID]bool)
	for _, d := range []time.Duration{time.Hour, 2 * time.Hour} {
		id, env := p.grant(p.terms(requestID("weekly"), "alice", withRule, lasting(d)))
		ids[id] = true
		p.sendGrant(env)
		p.sendState(p.state(nil, id))
		if r := resultOf(t, p.ack(), id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			t.Fatal(r)
		}
		through.Store(d > time.Hour)
		p.sendState(p.state(nil))
		p.ack()
		if e := p.event(trail.KindGrantResidue); !strings.Contains(e.GetDetails()["left"], "no process") {
			t.Errorf("after the window of %s: %v", d, e)
		}
	}
	for range 2 {
		delete(ids, grant.ID(p.event(trail.KindGrantPurged).GetGrantId()))
	}
	if len(ids) > 0 {
		t.Errorf("nobody says that %v are gone", ids)
	}
}
