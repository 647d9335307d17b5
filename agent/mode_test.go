package agent

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/agent/modeswitch"
	"github.com/curfew-access/curfew/internal/trail"
)

func (m *machine) socket() string { return m.path("run/curfew/admin.sock") }

// tableSays waits until the module's table has a mode.
func (m *machine) tableSays(mode string) {
	m.t.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		table, _ := os.ReadFile(m.path("var/lib/curfew/gate.conf")) // not there before the start is through
		if strings.HasPrefix(string(table), "curfew-gate 1\nmode "+mode) {
			return
		}
		if time.Since(start) > 20*time.Second {
			m.t.Fatalf("want mode %s: %s", mode, table)
		}
	}
}

func (m *machine) enforceOn(want string) {
	m.t.Helper()
	s, err := EnforceOn(context.Background(), m.socket(), 10*time.Minute)
	if want == "" {
		if err != nil || s.Mode != "enforce, on trial" || s.TrialEnd.IsZero() {
			m.t.Fatalf("%+v, %v", s, err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		m.t.Fatalf("enforce-on: %v, want %q", err, want)
	}
}

// A trial is in the module's own table, and the root half takes it back at the deadline.
func TestTrialEndsByItself(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\ngated_users: [bob]\n")
	m.start()
	p := m.connect()
	m.tableSays("observe\n")
	m.enforceOn("")
	m.tableSays("trial ")
	m.shows(`curfew_agent_info{version="test",mode="enforce, on trial"} 1`)
	if !m.has("run/curfew/trial") {
		t.Error("no mark of the trial")
	}
	m.enforceOn("on trial until")
	if e := p.event(trail.KindModeChanged); e.GetDetails()["mode"] != "enforce, on trial" {
		t.Errorf("event %v", e)
	}
	if _, err := ConfirmEnforcing(context.Background(), m.socket()); err == nil ||
		!strings.Contains(err.Error(), "log in anew") {
		t.Errorf("this process began before the trial and confirms it: %v", err)
	}
	m.ahead.Store(int64(11 * time.Minute))
	m.tableSays("observe\n")
	if e := p.event(trail.KindModeChanged); !strings.Contains(e.GetDetails()["why"], "nobody confirmed") {
		t.Errorf("event %v", e)
	}
	for start := time.Now(); m.has("run/curfew/trial"); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("the mark of the trial stays")
		}
	}
}

// A boot takes the mark of a trial away, and with it the trial.
func TestTrialDoesNotOutliveABoot(t *testing.T) {
	m := newMachine(t)
	m.settings("mode: observe\n")
	m.start()
	m.enforceOn("")
	m.stop()
	if err := os.Remove(m.path("run/curfew/trial")); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.tableSays("observe\n")
	m.enforceOn("") // and another may begin
	m.stop()
	m.start()
	m.tableSays("trial ") // which a mere restart does not end
}

// enforce-off holds over agent.yaml until that is edited, and the mark that closes the gap goes.
func TestSwitchHoldsOverTheFileUntilItIsEdited(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.tableSays("enforce\n")
	m.enforceOn("enforces already")
	if err := SwitchDir(m.root).Off("enforce", "root", false, time.Now()); err != nil {
		t.Fatal(err)
	}
	if s, err := EnforceOff(context.Background(), m.socket()); err != nil || s.Mode != "observe" {
		t.Fatalf("%+v, %v", s, err)
	}
	m.tableSays("observe\n")
	if m.has("run/curfew/observe") {
		t.Error("the mark stays behind a switch that is kept")
	}
	m.stop()
	m.start()
	m.tableSays("observe\n")
	m.settings("mode: observe\n")
	for start := time.Now(); m.has("var/lib/curfew/mode.json"); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatal("a switch over what the file says no more stays, and would hold again one day")
		}
	}
	m.settings("mode: enforce\n")
	m.tableSays("enforce\n")
}

// A mark that root makes by hand is obeyed from the next second on, and said.
func TestMarkOfRootsIsObeyed(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.tableSays("enforce\n")
	if err := SwitchDir(m.root).Mark(modeswitch.MarkObserve); err != nil {
		t.Fatal(err)
	}
	m.tableSays("observe\n")
	s, err := AskStatus(context.Background(), m.socket())
	if err != nil || s.Mode != "observe" || !strings.Contains(strings.Join(s.Problems, "\n"), "until it boots") {
		t.Errorf("%+v, %v", s, err)
	}
	m.enforceOn("")
	m.tableSays("trial ")
	if m.has("run/curfew/observe") {
		t.Error("the mark stays behind enforce-on")
	}
}

func TestOnlyANewLoginConfirms(t *testing.T) {
	me, err := process.Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	none, some := me, me
	none.AuditSession = process.NoAudit
	some.AuditSession = 1 << 30 // of no other process
	before := &modeswitch.Trial{NewestSession: 1<<30 - 1, NewestStart: me.StartTicks - 1}
	if err := isNewLogin(before, some); err != nil {
		t.Errorf("a new login: %v", err)
	}
	for what, bad := range map[string]struct {
		p process.Process
		t modeswitch.Trial
	}{
		"no session":               {none, *before},
		"a session that was there": {some, modeswitch.Trial{NewestSession: 1 << 30, NewestStart: me.StartTicks - 1}},
		"a process that was there": {some, modeswitch.Trial{NewestSession: 1<<30 - 1, NewestStart: me.StartTicks}},
	} {
		if err := isNewLogin(&bad.t, bad.p); err == nil || !strings.Contains(err.Error(), "log in anew") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
