// Package pam_test drives the real pam_curfew.so, through the real libpam, against a fake agent.
package pam_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	libpam "github.com/msteinert/pam/v2"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/gatewire"
)

var bin = func() string {
	dir, err := filepath.Abs("../bin")
	if err != nil {
		panic(err)
	}
	return dir
}()

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "pam: these tests play sshd and sudo: run them as root")
		os.Exit(1)
	}
	// Reading the sources here tells the test cache what the result depends on.
	sources, _ := filepath.Glob("*/*.[ch]")
	for _, name := range append(sources, "Makefile") {
		if _, err := os.ReadFile(name); err != nil {
			fmt.Fprintln(os.Stderr, "pam:", err)
			os.Exit(1)
		}
	}
	if out, err := exec.Command("make", "-s", "all", "asan").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "pam: make all asan: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const cannot = "Curfew cannot check this right now; try again"

// world is one host as the module sees it: a gate table, a socket, and PAM services.
type world struct {
	t        testing.TB
	dir      string
	module   string
	table    string
	socket   string
	services string
}

const enforce = `curfew-gate 1
mode enforce
account 1900000001 alice
gated 1001 bob
elevate 1002 carol
exempt 1003 rescue
gated 999 system
end
`

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		t: t, dir: dir, module: bin + "/pam_curfew.so",
		table: dir + "/gate.conf", socket: dir + "/gate.sock", services: dir + "/services",
	}
	if err := os.Mkdir(w.services, 0o755); err != nil {
		t.Fatal(err)
	}
	w.setTable(enforce)
	w.service("sshd")
	// Without one libpam complains in the log on every start.
	other := "auth required pam_deny.so\naccount required pam_deny.so\n"
	if err := os.WriteFile(w.services+"/other", []byte(other), 0o644); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) setTable(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.table, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// service writes a stack that tells the module's answers apart: success ends it with success,
// PAM_IGNORE goes on to a module that says "ignored" in a code of its own.
func (w *world) service(name string, args ...string) {
	w.t.Helper()
	args = append([]string{"socket=" + w.socket, "conf=" + w.table, "marks=" + w.dir}, args...)
	stack := ""
	for _, kind := range []string{"auth", "account", "session"} {
		stack += fmt.Sprintf("%s [success=done ignore=ignore default=die] %s %s\n"+
			"%s required pam_debug.so auth=cred_expired cred=cred_expired acct=cred_expired "+
			"open_session=cred_expired close_session=cred_expired\n",
			kind, w.module, strings.Join(args, " "), kind)
	}
	if err := os.WriteFile(w.services+"/"+name, []byte(stack), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// The three outcomes, as service's stack shows them.
var (
	success error
	denied  error = libpam.ErrPermDenied
	ignored error = libpam.ErrCredExpired
)

// login is one PAM handle and what was said to the person over it.
type login struct {
	*libpam.Transaction
	w    *world
	said []string
}

func (w *world) start(service, user string) *login {
	w.t.Helper()
	l := &login{w: w}
	tx, err := libpam.StartConfDir(service, user, libpam.ConversationFunc(
		func(s libpam.Style, msg string) (string, error) {
			if !strings.HasSuffix(msg, "=cred_expired") { // pam_debug's own
				l.said = append(l.said, fmt.Sprintf("%d:%s", s, msg))
			}
			return "", nil
		}), w.services)
	if err != nil {
		w.t.Fatalf("starting %s for %s: %v", service, user, err)
	}
	l.Transaction = tx
	w.t.Cleanup(func() { _ = tx.End() })
	return l
}

// expect calls one PAM function and compares its outcome and what was said during it.
func (l *login) expect(what string, f func(libpam.Flags) error, want error, said ...string) {
	l.w.t.Helper()
	l.said = nil
	if err := f(0); !errors.Is(err, want) {
		l.w.t.Errorf("%s: %v; want %v", what, err, want)
	}
	if strings.Join(l.said, "|") != strings.Join(said, "|") {
		l.w.t.Errorf("%s: the person read %q; want %q", what, l.said, said)
	}
}

// text and oops are what the person reads as information and as an error.
func text(s string) string { return fmt.Sprintf("%d:%s", libpam.TextInfo, s) }
func oops(s string) string { return fmt.Sprintf("%d:%s", libpam.ErrorMsg, s) }

// agent plays the root half on a gate socket.
type agent struct {
	t        testing.TB
	listener *net.UnixListener

	mu       sync.Mutex
	requests []gatewire.Request
	asked    int
	ends     chan string // the user of each kept connection that ended
}

// answer gets the number of the connection, from 1 on, and returns the packet to send. nil hangs
// up at once; silence keeps the connection without a word.
type answer func(n int, r gatewire.Request) []byte

var silence = []byte("silence")

func (w *world) agent(f answer) *agent {
	w.t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: w.socket, Net: "unixpacket"})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.serve(l, f)
}

func (w *world) serve(l *net.UnixListener, f answer) *agent {
	a := &agent{t: w.t, listener: l, ends: make(chan string, 20000)}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go a.one(c, f)
		}
	}()
	return a
}

func (a *agent) one(c *net.UnixConn, f answer) {
	defer c.Close()
	buf := make([]byte, gatewire.MaxRequest+1)
	n, err := c.Read(buf)
	if err != nil {
		return
	}
	r, err := gatewire.DecodeRequest(buf[:n])
	if err != nil {
		a.t.Errorf("the module sent %q: %v", buf[:n], err)
		return
	}
	a.mu.Lock()
	a.requests = append(a.requests, r)
	a.asked++
	number := a.asked
	a.mu.Unlock()
	reply := f(number, r)
	if reply == nil {
		return
	}
	if string(reply) != string(silence) {
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
	if n, err := c.Read(buf); n > 0 || err == nil && n != 0 {
		a.t.Errorf("the module said more: %q, %v", buf[:n], err)
	}
	a.ends <- r.User
}

// asks returns how often the agent was asked, and forgets it.
func (a *agent) asks() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.asked
	a.asked, a.requests = 0, nil
	return n
}

// last returns the newest request.
func (a *agent) last() gatewire.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.requests) == 0 {
		a.t.Error("the agent was not asked")
		return gatewire.Request{}
	}
	return a.requests[len(a.requests)-1]
}

// ended waits for the end of a connection and reports whether it came in time.
func (a *agent) ended(within time.Duration) bool {
	select {
	case <-a.ends:
		return true
	case <-time.After(within):
		return false
	}
}

func say(v gatewire.Verdict, text string) answer {
	b, err := gatewire.Reply{Verdict: v, Text: text}.Encode()
	if err != nil {
		panic(err)
	}
	return func(int, gatewire.Request) []byte { return b }
}

// asCaller runs f on a thread whose real uid is the caller's and whose effective uid is root's, as
// sudo and su call PAM. The thread is thrown away.
func asCaller(t *testing.T, uid int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread dies with its uids
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), 0, 0); e != 0 {
			t.Errorf("becoming uid %d: %v", uid, e)
			return
		}
		f()
	}()
	<-done
}
