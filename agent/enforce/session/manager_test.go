package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
)

// The machine's other processes are at stake here: uids in a range of these tests' own, so that the
// sweep spares the accounts of stories which run at the same time.
const (
	uidMin = 1987000000
	uidKim = uidMin + 321
	uidGus = 54321
	uidMax = uidMin + 999
)

func newManager(t *testing.T, dir string) (*Manager, *memory) {
	t.Helper()
	events := &memory{}
	cfg := testConfig(dir, events)
	cfg.UIDMin, cfg.UIDMax, cfg.Log = uidMin, uidMax, hclog.NewNullLogger()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, events
}

func recordsDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "sessions")
}

func kimLive() Live {
	now := systemClock()
	return Live{
		RequestID: request, GrantID: grant.ID{1}, Login: "kim", UID: uidKim,
		Class: account.ClassAccount, Role: role, Start: now.Wall, End: now.Wall.Add(time.Hour),
		BootDeadline: now.Boot + time.Hour,
	}
}

func kimTarget() Target {
	return Target{
		RequestID: request, Login: "kim", UID: uidKim, Class: account.ClassAccount, Whole: true,
	}
}

// spawn starts a shell script as a user.
func spawn(t *testing.T, uid uint32, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// count returns how many processes live whose command line contains a text.
func count(t *testing.T, text string) (n int) {
	t.Helper()
	all, err := process.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		line, err := process.Arguments(p.PID, 4096)
		if err == nil && !p.Dead() && strings.Contains(line, text) && p.PID != os.Getpid() {
			n++
		}
	}
	return n
}

// nap is a command line of this run only: what another run left must not count.
func nap(n int) string { return fmt.Sprintf("sleep 9%d.%d", n, os.Getpid()) }

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("never: %s", what)
		}
	}
}

func sessionOf(t *testing.T, cmd *exec.Cmd) Session {
	t.Helper()
	p, err := process.Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return Session{
		RequestID: request, GrantID: grant.ID{1}, Login: "kim", UID: uidKim, Service: "sshd",
		PID: p.PID, StartTicks: p.StartTicks, LoginUID: NoAudit, AuditSession: NoAudit,
		TTY: "ssh", RHost: "10.0.0.9",
	}
}

func TestRestartKnowsItsSessions(t *testing.T) {
	dir := recordsDir(t)
	m, _ := newManager(t, dir)
	m.Publish([]Live{kimLive()})
	monitor := spawn(t, 0, "exec "+nap(7))
	s := sessionOf(t, monitor)
	s.LoginUID, s.AuditSession = uidKim, 77
	s.CGroup = fmt.Sprintf("/user.slice/user-%d.slice/session-77.scope", uidKim)
	if _, _, err := m.Open(t.Context(), s); err != nil {
		t.Fatal(err)
	}

	again, events := newManager(t, dir)
	again.Publish([]Live{kimLive()})
	list := again.Sessions()
	if len(list) != 1 || list[0].GetRequestId() != request || list[0].GetPid() != int32(s.PID) ||
		list[0].GetRemoteHost() != "10.0.0.9" || list[0].GetGrantId()[0] != 1 {
		t.Fatalf("after a restart: %v", list)
	}
	for name, p := range map[string]process.Process{
		"audit": {LoginUID: uidKim, AuditSession: 77},
		"scope": {LoginUID: NoAudit, AuditSession: NoAudit, CGroup: s.CGroup + "/child"},
		"own":   {CGroup: "/user.slice/user-1000.slice/curfew-" + request + "-1-0123abcd.scope"},
	} {
		if owner, ok := again.Owner(p); !ok || owner != request {
			t.Errorf("by %s it belongs to %q", name, owner)
		}
	}
	for name, p := range map[string]process.Process{
		"unset audit":    {LoginUID: NoAudit, AuditSession: NoAudit},
		"other audit":    {LoginUID: uidKim, AuditSession: 78},
		"other login":    {LoginUID: uidGus, AuditSession: 77},
		"longer scope":   {LoginUID: NoAudit, CGroup: s.CGroup + "x"},
		"user's forgery": {LoginUID: NoAudit, CGroup: "/user.slice/user-1.slice/user@1.service/curfew-" + request + "-1-0123abcd.scope"},
	} {
		if owner, ok := again.Owner(p); ok {
			t.Errorf("%s belongs to %q", name, owner)
		}
		if again.InCage(p, request) {
			t.Errorf("%s is a cage", name)
		}
	}
	// The session ends while this agent runs, though no connection is left to say so.
	if err := monitor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = monitor.Wait()
	again.poll()
	if kinds := events.kinds(); !slices.Equal(kinds, []string{"session.closed"}) {
		t.Errorf("the trail says %v", kinds)
	}
	// What it left running, by its audit session, is still the request's until nothing is left.
	if _, ok := again.Owner(process.Process{LoginUID: uidKim, AuditSession: 77}); !ok {
		t.Error("the audit session was forgotten with its login")
	}
	again.sweep(t.Context())
	if _, ok := again.Owner(process.Process{LoginUID: uidKim, AuditSession: 77}); ok {
		t.Error("a session that left nothing is remembered")
	}
}

// A host on which nobody is logged in is not looked over each second; the first session wakes whoever watches.
func TestTheFirstSessionIsWatched(t *testing.T) {
	m, events := newManager(t, recordsDir(t))
	m.Publish([]Live{kimLive()})
	watched, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { m.watch(watched) })
	defer watch.Wait()
	defer stop()
	eventually(t, "it looks", func() bool { return len(m.looks) == 0 })
	monitor := spawn(t, 0, "exec "+nap(8))
	if _, _, err := m.Open(t.Context(), sessionOf(t, monitor)); err != nil {
		t.Fatal(err)
	}
	if err := monitor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = monitor.Wait()
	eventually(t, "the end of a session is noticed", func() bool {
		return slices.Equal(events.kinds(), []string{"session.opened", "session.closed"})
	})
}

func TestRecordsOfAnotherBootAndBrokenOnesAreNotSessions(t *testing.T) {
	dir := recordsDir(t)
	m, _ := newManager(t, dir)
	old := Session{
		ID: "00112233445566aa", RequestID: request, Login: "kim", UID: uidKim, PID: 4711, StartTicks: 9,
	}
	if err := writeRecord(m.dir, old, "another boot"); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(dir, "00112233445566bb.json")
	if err := os.WriteFile(bad, []byte(`{"version":1,"boot`), 0o600); err != nil {
		t.Fatal(err)
	}
	again, _ := newManager(t, dir)
	if n := len(again.registered()); n != 0 {
		t.Errorf("%d sessions", n)
	}
	if _, err := os.Stat(filepath.Join(dir, old.ID+recordSuffix)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the record of another boot stays")
	}
	if p := again.Problems(); len(p) != 1 || !strings.Contains(p[0], "00112233445566bb") {
		t.Errorf("problems %q", p)
	}
}

func TestOpenRefuses(t *testing.T) {
	m, events := newManager(t, recordsDir(t))
	monitor := spawn(t, 0, "exec "+nap(8))
	good := sessionOf(t, monitor)
	if _, _, err := m.Open(t.Context(), good); !errors.Is(err, ErrNotLive) {
		t.Errorf("before anything is live: %v", err)
	}
	m.Publish([]Live{kimLive()})
	for name, edit := range map[string]func(*Session){
		"system uid": func(s *Session) { s.UID = 33 }, "no process": func(s *Session) { s.PID = 0 },
		"init": func(s *Session) { s.PID = 1 }, "path in the login": func(s *Session) { s.Login = "../kim" },
		"other request": func(s *Session) { s.RequestID = "zzzzzzzzzzzz" },
	} {
		s := good
		edit(&s)
		if _, _, err := m.Open(t.Context(), s); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	// Without its event on the trail nothing opens, and nothing of it stays.
	events.fail = errors.New("disk full")
	if _, _, err := m.Open(t.Context(), good); err == nil {
		t.Error("opened without an event")
	}
	events.fail = nil
	if left, _ := os.ReadDir(m.cfg.Dir); len(m.registered()) != 0 || len(left) != 0 {
		t.Errorf("left %v %v", m.registered(), left)
	}
}

func TestSweepWaitsForWord(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	kim := spawn(t, uidKim, "exec "+nap(9))
	m.sweep(t.Context())
	if p, err := process.Read(kim.Process.Pid); err != nil || p.Dead() {
		t.Fatal("swept before anybody said what is live")
	}
	m.Publish([]Live{kimLive()})
	m.sweep(t.Context())
	if p, err := process.Read(kim.Process.Pid); err != nil || p.Dead() {
		t.Fatal("swept though its grant is live")
	}
	m.Publish([]Live{})
	m.sweep(t.Context())
	if p, err := process.Read(kim.Process.Pid); err == nil && !p.Dead() {
		t.Error("a process of a dead grant's uid outlives the sweep")
	}
}

func TestRunSweepsAndEnds(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	kim := spawn(t, uidKim, "exec "+nap(10))
	m.Publish([]Live{})
	eventually(t, "the first word sweeps", func() bool {
		p, err := process.Read(kim.Process.Pid)
		return err != nil || p.Dead()
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestTellWritesOnTerminalsAndNeverWaits: one terminal listens, one is full and stopped.
func TestTellWritesOnTerminalsAndNeverWaits(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	m.Publish([]Live{kimLive()})
	start := func() (*os.File, *exec.Cmd) {
		cmd := exec.Command("/bin/sh", "-c", "stty raw -echo; exec "+nap(11))
		cmd.Dir = "/"
		f, err := pty.Start(cmd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait(); _ = f.Close() })
		if _, _, err := m.Open(t.Context(), sessionOf(t, cmd)); err != nil {
			t.Fatal(err)
		}
		return f, cmd
	}
	good, _ := start()
	_, cmd := start()
	eventually(t, "both sit at terminals", func() bool { return count(t, nap(11)) == 2 })
	p, err := process.Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		if writeTerminal(p.TTY, strings.Repeat("x", 1000)) != nil {
			break // full
		}
	}
	begun := pace.Start()
	m.Tell(request, "Curfew: \x1b[31mgoodbye")
	if took := begun.Elapsed(); took > time.Second {
		t.Errorf("it took %v", took)
	}
	want := "\r\nCurfew: \\x1b[31mgoodbye\r\n"
	heard := make(chan string, 1)
	go func() {
		b := make([]byte, len(want))
		n, _ := io.ReadFull(good, b) // ends with the process at the terminal
		heard <- string(b[:n])
	}()
	select {
	case got := <-heard:
		if got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	case <-time.After(2 * time.Second):
		t.Error("nothing was heard")
	}
	m.Tell("zzzzzzzzzzzz", "nobody")
}

func TestSessionsTellWhatRuns(t *testing.T) {
	m, _ := newManager(t, recordsDir(t))
	m.Publish([]Live{kimLive()})
	cmd := spawn(t, 0, nap(12)+" & "+nap(12)+" & (tail -f /dev/null) & wait")
	if _, _, err := m.Open(t.Context(), sessionOf(t, cmd)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "heartbeats name the commands", func() bool {
		list := m.Sessions()
		if len(list) != 1 {
			return false
		}
		names := list[0].GetCommands()
		slices.Sort(names)
		return slices.Equal(names, []string{"sleep", "tail"})
	})
	m.Kill(t.Context(), []Target{{RequestID: request, Login: "kim", UID: uidKim}})
	if n := count(t, nap(12)); n != 0 {
		t.Errorf("%d descendants of the holder live", n)
	}
}

func TestCagesAreOnlyWherePID1MakesThem(t *testing.T) {
	for path, want := range map[string]string{
		"/user.slice/user-1000.slice/curfew-abcdefghjkmn-12-0123abcd.scope":                  "abcdefghjkmn",
		"/user.slice/user-1000.slice/curfew-abcdefghjkmn-12-0123abcd.scope/sub":              "abcdefghjkmn",
		"/user.slice/user-1000.slice/curfew-abcdefghjkmn-12-0123abcd.scopeX":                 "",
		"/user.slice/user-1000.slice/curfew-abcdefghjkm-12-0123abcd.scope":                   "",
		"/user.slice/user-1000.slice/user@1000.service/curfew-abcdefghjkmn-1-0123abcd.scope": "",
		"/system.slice/curfew-abcdefghjkmn-12-0123abcd.scope":                                "",
		"": "",
	} {
		if got, _ := scopeOf(path); got != want {
			t.Errorf("%s is request %q's, want %q", path, got, want)
		}
	}
	login := "/user.slice/user-1000.slice/session-c2.scope"
	if got, ok := loginScopeOf(login+"/x", 1000); !ok || got != login {
		t.Errorf("login scope %q", got)
	}
	for path, uid := range map[string]uint32{
		login: 1001, "/system.slice/ssh.service": 0, "/user.slice/user-1000.slice": 1000, "/": 0,
	} {
		if got, ok := loginScopeOf(path, uid); ok {
			t.Errorf("%s of %d is the login scope %q", path, uid, got)
		}
	}
	runtime := "/user.slice/user-1000.slice/user-runtime-dir@1000.service"
	if !ofSystem(runtime) || ofSystem(login) || ofSystem("/user.slice/user-1000.slice") {
		t.Error("PID 1's own service in a user's slice is not told from a person's")
	}
}

// Files go by descriptor: links are unlinked, never followed, and other people's stay.
func TestJobsAndTicketsAreUnlinkedNotFollowed(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	spool := filepath.Join(dir, "spool")
	if err := errors.Join(os.Mkdir(spool, 0o755), os.WriteFile(victim, []byte("x"), 0o600),
		os.Symlink(victim, filepath.Join(spool, "kim")), os.Mkdir(filepath.Join(spool, "dir"), 0o755),
		os.WriteFile(filepath.Join(spool, "a1"), nil, 0o600), os.Chown(filepath.Join(spool, "a1"), uidKim, 0),
		os.WriteFile(filepath.Join(spool, "a2"), nil, 0o600), os.Chown(filepath.Join(spool, "a2"), uidGus, 0),
		os.Symlink(victim, filepath.Join(spool, "a3")), os.Lchown(filepath.Join(spool, "a3"), uidKim, 0),
	); err != nil {
		t.Fatal(err)
	}
	if err := unlinkIn(spool, "kim", "dir", strconv.Itoa(uidKim)); err != nil {
		t.Error(err)
	}
	if err := unlinkOwned(spool, uidKim); err != nil {
		t.Error(err)
	}
	var names []string
	entries, _ := os.ReadDir(spool)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"a2", "a3", "dir"}; !slices.Equal(names, want) {
		t.Errorf("left %v, want %v", names, want)
	}
	if _, err := os.Stat(victim); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(spool, link); err != nil {
		t.Fatal(err)
	}
	_ = unlinkIn(link, "a2")
	if _, err := os.Lstat(filepath.Join(spool, "a2")); err != nil {
		t.Error("a linked folder was entered")
	}
	if err := unlinkIn(filepath.Join(dir, "absent"), "x"); err != nil {
		t.Errorf("a missing folder: %v", err)
	}
}
