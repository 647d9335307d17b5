package session

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/pace"
)

// Whatever a process did to get away from its parents, its uid stays.
func TestKillFindsWhatHides(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	spawn(t, uidKim, strings.ReplaceAll(`trap "" TERM HUP INT
setsid NAP & (setsid sh -c 'NAP & exec NAP' &) ; nohup NAP >/dev/null & wait`, "NAP", nap(1)))
	other := spawn(t, uidGus, "exec "+nap(2))
	eventually(t, "it runs", func() bool { return count(t, nap(1)) >= 4 })
	begun := pace.Start()
	left := m.Kill(t.Context(), []Target{kimTarget()})
	if took := begun.Elapsed(); took > killLimit+500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	if len(left) != 1 || len(left[0].Processes) != 0 {
		t.Errorf("left %+v", left)
	}
	if n := count(t, nap(1)); n != 0 {
		t.Errorf("%d outlived it", n)
	}
	if p, err := process.Read(other.Process.Pid); err != nil || p.Dead() {
		t.Errorf("somebody else's process died: %+v %v", p, err)
	}
}

// A bomb that forks faster than one pass looks must not win.
func TestKillBeatsAForkBomb(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	spawn(t, uidKim, "i=0; while [ $i -lt 400 ]; do (exec "+nap(3)+") & i=$((i+1)); done; wait")
	eventually(t, "it has begun", func() bool { return count(t, nap(3)) > 5 })
	left := m.Kill(t.Context(), []Target{kimTarget()})
	if len(left[0].Processes) != 0 || count(t, nap(3)) != 0 {
		t.Errorf("left %+v", left)
	}
}

// Promise 2: up to 50 ends at once within 2 s.
func TestFiftyEndsAtOnce(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	var targets []Target
	for i := range uint32(50) {
		uid := uidKim + 1 + i
		spawn(t, uid, "for i in 1 2 3 4 5 6 7 8; do setsid "+nap(13)+" & done; wait")
		targets = append(targets, Target{
			RequestID: fmt.Sprintf("fifty%07d", i), Login: fmt.Sprintf("kim%d", i), UID: uid,
			Class: account.ClassAccount, Whole: true,
		})
	}
	eventually(t, "all run", func() bool { return count(t, nap(13)) >= 400 })
	begun := pace.Start()
	left := m.Kill(t.Context(), targets)
	if took := begun.Elapsed(); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, r := range left {
		if !r.Clean() {
			t.Errorf("left %+v", r)
		}
	}
	if n := count(t, nap(13)); n != 0 {
		t.Errorf("%d outlived it", n)
	}
}

// Nobody but the class that a target has is at risk: a part never takes a whole uid, an elevate-only
// person never dies by uid, a system uid never at all.
func TestKillSparesWhatIsNotTheTargets(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	kim := spawn(t, uidKim, "exec "+nap(4))
	gus := spawn(t, uidGus, "exec "+nap(4))
	daemon := spawn(t, 2, "exec "+nap(4))
	for _, target := range []Target{
		{RequestID: request, Login: "kim", UID: uidKim, Class: account.ClassAccount},
		{RequestID: request, Login: "gus", UID: uidGus, Class: account.ClassElevate, Whole: true},
		{RequestID: request, Login: "gus", UID: uidGus, Class: account.ClassAccount, Whole: true},
		{RequestID: request, Login: "bin", UID: 2, Class: account.ClassGated, Whole: true},
		{RequestID: request, Login: "root", UID: 0, Class: account.ClassGated, Whole: true},
	} {
		m.Kill(t.Context(), []Target{target})
	}
	for _, cmd := range []*exec.Cmd{kim, gus, daemon} {
		if p, err := process.Read(cmd.Process.Pid); err != nil || p.Dead() {
			t.Errorf("%v died: %v", cmd, err)
		}
	}
	m.Kill(t.Context(), []Target{
		{RequestID: request, Login: "gus", UID: uidGus, Class: account.ClassGated, Whole: true},
	})
	if p, err := process.Read(gus.Process.Pid); err == nil && !p.Dead() {
		t.Error("a gated local user outlived his grant")
	}
	if left := m.Kill(t.Context(), nil); left != nil {
		t.Errorf("no target left %+v", left)
	}
}

// The holder of a session dies though it is root's: sshd's monitor of the connection.
func TestKillTakesTheHolder(t *testing.T) {
	m, events := newManager(t, recordsDir(t))
	m.Publish([]Live{kimLive()})
	monitor := spawn(t, 0, "exec "+nap(5))
	s, ended, err := m.Open(t.Context(), sessionOf(t, monitor))
	if err != nil {
		t.Fatal(err)
	}
	target := kimTarget()
	target.Whole = false
	m.Publish(nil)
	m.Kill(t.Context(), []Target{target})
	if p, err := process.Read(monitor.Process.Pid); err == nil && !p.Dead() {
		t.Error("the connection outlived its grant")
	}
	select {
	case <-ended.Done():
	default:
		t.Error("the session's context lives on")
	}
	if kinds := events.kinds(); !slices.Equal(kinds, []string{"session.opened", "session.killed"}) {
		t.Errorf("the trail says %v", kinds)
	}
	if _, err := os.Stat(filepath.Join(m.cfg.Dir, s.ID+recordSuffix)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record is left: %v", err)
	}
}

// A number that another process has by now is not killed.
func TestReusedPIDIsSpared(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	m.Publish([]Live{kimLive()})
	innocent := spawn(t, 0, "exec "+nap(6))
	s := sessionOf(t, innocent)
	s.StartTicks++
	if _, _, err := m.Open(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	target := kimTarget()
	m.Kill(t.Context(), []Target{target})
	if p, err := process.Read(innocent.Process.Pid); err != nil || p.Dead() {
		t.Error("another process of the same number died")
	}
	p, err := process.Read(innocent.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	p.StartTicks++
	if err := process.Kill(p); err != nil {
		t.Error(err)
	}
	if now, err := process.Read(p.PID); err != nil || now.Dead() {
		t.Error("Kill mistook one process for another")
	}
}
