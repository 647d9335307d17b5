package pam_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/gatewire"
)

const soon, notYet = 2 * time.Second, 150 * time.Millisecond

func TestTheConnectionIsTheSession(t *testing.T) {
	w := newWorld(t)
	a := w.agent(say(gatewire.Allow, ""))
	open := func() *login {
		t.Helper()
		l := w.start("sshd", "alice")
		l.expect("account", l.AcctMgmt, success)
		if !a.ended(soon) {
			t.Fatal("account keeps its connection")
		}
		l.expect("open_session", l.OpenSession, success)
		if a.ended(notYet) {
			t.Fatal("open_session does not keep its connection")
		}
		return l
	}

	l := open()
	l.expect("close_session", l.CloseSession, success)
	if !a.ended(soon) {
		t.Error("close_session keeps the connection")
	}
	_ = l.End()
	if a.ended(notYet) {
		t.Error("more than one connection ended")
	}

	l = open()
	_ = l.End()
	if !a.ended(soon) {
		t.Error("pam_end keeps the connection")
	}

	l = open()
	l.expect("open_session again", l.OpenSession, success)
	if !a.ended(soon) {
		t.Error("a second open_session keeps the first connection")
	}
	if a.ended(notYet) {
		t.Error("a second open_session does not keep its own connection")
	}
	_ = l.End()
	if !a.ended(soon) {
		t.Error("pam_end keeps the second connection")
	}
}

func TestADeniedSessionKeepsNothing(t *testing.T) {
	for _, v := range []gatewire.Verdict{gatewire.Deny, gatewire.Ignore, gatewire.TryAgain} {
		w := newWorld(t)
		a := w.agent(say(v, ""))
		l := w.start("sshd", "alice")
		_ = l.OpenSession(0)
		if !a.ended(soon) {
			t.Errorf("%v: the connection stays open", v)
		}
	}
}

// host starts the C host program and returns its output, line by line.
func (w *world) host(program, user, mode string, args ...string) (*exec.Cmd, *bufio.Scanner) {
	w.t.Helper()
	args = append([]string{w.services, "sshd", user, mode}, args...)
	cmd := exec.Command(bin+"/"+program, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

// run runs the host program to its end and returns its lines without the person's messages.
func (w *world) run(program, user, mode string, args ...string) string {
	w.t.Helper()
	cmd, lines := w.host(program, user, mode, args...)
	var kept []string
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "message ") {
			kept = append(kept, lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		w.t.Errorf("%s %s: %v", program, mode, err)
	}
	return strings.Join(kept, "; ")
}

func next(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatal("the host program ended")
	}
	return lines.Text()
}

func TestDeathEndsTheSession(t *testing.T) {
	modes := map[string]bool{"hold": false, "hold-fork": true, "hold-exec": false}
	for mode, childEnds := range modes {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			a := w.agent(say(gatewire.Allow, ""))
			cmd, lines := w.host("pam_host", "alice", mode)
			if got := next(t, lines); got != "session 0" {
				t.Fatal(got)
			}
			child, err := strconv.Atoi(strings.TrimPrefix(next(t, lines), "child "))
			if err != nil {
				t.Fatal(err)
			}
			if child != 0 {
				defer syscall.Kill(child, syscall.SIGKILL)
			}
			time.Sleep(50 * time.Millisecond) // the child's exec
			if a.ended(0) {
				t.Fatal("the session ended before anything died")
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if !childEnds {
				if !a.ended(soon) {
					t.Error("SIGKILL does not end the session")
				}
				return
			}
			// A fork that does not exec holds a copy: why the agent watches the process too.
			if a.ended(notYet) {
				t.Error("the forked child holds no copy; the comment in pam_curfew.c is wrong")
			}
			_ = syscall.Kill(child, syscall.SIGKILL)
			if !a.ended(soon) {
				t.Error("the last copy's end is not the session's")
			}
		})
	}
}

// TestACopyClosesOnlyTheSession: a forked child that closed everything must not have its own files
// closed by pam_end.
func TestACopyClosesOnlyTheSession(t *testing.T) {
	w := newWorld(t)
	a := w.agent(say(gatewire.Allow, ""))
	if got, want := w.run("pam_host", "alice", "reuse"), "session 0; child 0; close 0"; got != want {
		t.Errorf("host: %q, want %q", got, want)
	}
	if !a.ended(soon) {
		t.Error("the session did not end")
	}
}

func TestTenThousandLoginsLeaveNothing(t *testing.T) {
	for _, program := range []string{"pam_host", "pam_host.asan"} {
		w := newWorld(t)
		n := 10_000
		if program == "pam_host.asan" {
			n, w.module = 500, bin+"/pam_curfew.asan.so"
			w.service("sshd")
		}
		w.agent(say(gatewire.Allow, ""))
		got := w.run(program, "alice", "repeat", strconv.Itoa(n))
		want := fmt.Sprintf("allowed %d; denied 0; descriptors 0; tasks 1; signals same", n)
		if got != want {
			t.Errorf("%s: %q, want %q", program, got, want)
		}
	}
}

// TestHangUpsKillNobody: the agent drops connections before and after it reads, and SIGPIPE has
// its default action in the host program. Nothing leaks either.
func TestHangUpsKillNobody(t *testing.T) {
	w := newWorld(t)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: w.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	got := w.run("pam_host", "alice", "repeat-slowly", "100")
	got = got[max(0, strings.LastIndex(got, "allowed")):]
	if want := "allowed 0; denied 100; descriptors 0; tasks 1; signals same"; got != want {
		t.Errorf("host: %q, want %q", got, want)
	}
}

// TestTheAgentRestartsUnderLogins: the socket unit keeps listening while the agent is replaced, so
// no login is denied. (kanidm#3227, kanidm#4061)
func TestTheAgentRestartsUnderLogins(t *testing.T) {
	w := newWorld(t)
	dropped := 0
	w.agent(func(n int, r gatewire.Request) []byte {
		if n%100 == 50 { // the request that the old process had taken
			dropped++
			time.Sleep(5 * time.Millisecond)
			return nil
		}
		return say(gatewire.Allow, "")(n, r)
	})
	got := w.run("pam_host", "alice", "repeat", "1000")
	if want := "allowed 1000; denied 0; descriptors 0; tasks 1; signals same"; got != want {
		t.Errorf("host: %q, want %q", got, want)
	}
	if dropped < 10 {
		t.Errorf("only %d requests were dropped: the test tried nothing", dropped)
	}
}

// TestChildrenMayAskAgain: a Go module hung here (golang/go#16855, authd#91).
func TestChildrenMayAskAgain(t *testing.T) {
	w := newWorld(t)
	w.agent(say(gatewire.Allow, ""))
	// setcred is ignored by the module, which the stack shows as PAM_CRED_EXPIRED.
	stack, err := os.ReadFile(w.services + "/sshd")
	if err != nil {
		t.Fatal(err)
	}
	quiet := strings.ReplaceAll(string(stack), "cred=cred_expired", "cred=success")
	if err := os.WriteFile(w.services+"/sshd", []byte(quiet), 0o644); err != nil {
		t.Fatal(err)
	}
	got := w.run("pam_host", "alice", "forks", "200")
	if want := "account 0; children 200; session 0"; got != want {
		t.Errorf("host: %q, want %q", got, want)
	}
}

func TestThreadsShareNothing(t *testing.T) {
	for _, program := range []string{"pam_host", "pam_host.asan"} {
		w := newWorld(t)
		if program == "pam_host.asan" {
			w.module = bin + "/pam_curfew.asan.so"
			w.service("sshd")
		}
		w.agent(say(gatewire.Allow, ""))
		if got, want := w.run(program, "alice", "threads", "50"), "bad 0"; got != want {
			t.Errorf("%s: %q, want %q", program, got, want)
		}
	}
}

// TestClosedDescriptors: a session kept as fd 1 would take in what somebody prints.
func TestClosedDescriptors(t *testing.T) {
	w := newWorld(t)
	w.agent(say(gatewire.Allow, ""))
	got := w.run("pam_host", "alice", "closed")
	if want := "account 0 session 0; fd 0 closed; fd 1 closed; fd 2 closed"; got != want {
		t.Errorf("host: %q, want %q", got, want)
	}
}

func TestWhatIsLogged(t *testing.T) {
	const gone = `log 3 pam_curfew(sshd:%s): no answer from the agent at %s: No such file`
	w := newWorld(t)
	got := w.run("pam_host", "alice", "login")
	for _, kind := range []string{"account", "session"} {
		if want := fmt.Sprintf(gone, kind, w.socket); !strings.Contains(got, want) {
			t.Errorf("an absent agent logs %q; want %q", got, want)
		}
	}
	if got := w.run("pam_host", "mallory", "login"); strings.Contains(got, "pam_curfew") {
		t.Errorf("an unmanaged login logs %q", got)
	}

	w.setTable("broken")
	got = w.run("pam_host", "mallory", "login")
	want := fmt.Sprintf("log 1 pam_curfew(sshd:account): %s is unreadable and the agent does not "+
		"answer: not checking this", w.table)
	if !strings.Contains(got, want) {
		t.Errorf("an unreadable table logs %q; want %q", got, want)
	}

	w.setTable(enforce)
	w.service("sshd", "debug", "socket=relative")
	got = w.run("pam_host", "mallory", "login")
	for _, arg := range []string{"debug", "socket=relative"} {
		want := "log 3 pam_curfew(sshd:account): ignoring unknown argument " + arg
		if !strings.Contains(got, want) {
			t.Errorf("argument %s logs %q; want %q", arg, got, want)
		}
	}
}
