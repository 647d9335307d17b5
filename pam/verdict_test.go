package pam_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	libpam "github.com/msteinert/pam/v2"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/gatewire"
)

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		verdict gatewire.Verdict
		text    string
		want    error
		said    []string
	}{
		{gatewire.Allow, "", success, nil},
		{gatewire.Allow, "to 14:00; é\U0001f511", success, []string{text("to 14:00; é\U0001f511")}},
		{gatewire.Deny, "type: curfew request", denied, []string{oops("type: curfew request")}},
		{gatewire.Deny, "%s%n", denied, []string{oops("%s%n")}},
		{gatewire.Deny, "", denied, []string{oops("Curfew denies this")}},
		{gatewire.Ignore, "", ignored, nil},
		{gatewire.Ignore, "not shown", ignored, nil},
		{gatewire.TryAgain, "not shown", denied, []string{oops(cannot)}},
	} {
		t.Run(fmt.Sprintf("%v %q", c.verdict, c.text), func(t *testing.T) {
			w := newWorld(t)
			w.agent(say(c.verdict, c.text))
			l := w.start("sshd", "alice")
			l.expect("account", l.AcctMgmt, c.want, c.said...)
			l.expect("open_session", l.OpenSession, c.want, c.said...)
		})
	}
}

func TestSilentMeansSilent(t *testing.T) {
	for _, v := range []gatewire.Verdict{gatewire.Allow, gatewire.Deny, gatewire.TryAgain} {
		w := newWorld(t)
		w.agent(say(v, "words"))
		l := w.start("sshd", "alice")
		_ = l.AcctMgmt(libpam.Silent)
		_ = l.OpenSession(libpam.Silent)
		if len(l.said) != 0 {
			t.Errorf("%v under PAM_SILENT: the person read %q", v, l.said)
		}
	}
}

func TestGarbageDenies(t *testing.T) {
	for name, reply := range map[string]string{
		"one byte":       "\x01",
		"no text":        "CFA1\x01\x00\x01\x00",
		"old magic":      "CFA0\x01\x00\x00\x00",
		"verdict 0":      "CFA1\x00\x00\x00\x00",
		"verdict 5":      "CFA1\x05\x00\x00\x00",
		"flags":          "CFA1\x01\x80\x00\x00",
		"trailing bytes": "CFA1\x01\x00\x00\x00\x00",
		"long text":      "CFA1\x01\x00\x01\x02" + strings.Repeat("a", 513),
		"oversize":       "CFA1\x01\x00\x00\x00" + strings.Repeat("\x00", 4096),
		// Cut at the module's 1024 bytes it would be an allow.
		"oversize prefix": "CFA1\x01\x00\xf8\x03" + strings.Repeat("a", 1016+8192),
		"escape":          "CFA1\x01\x00\x04\x00\x1b[2J",
		"newline":         "CFA1\x02\x00\x03\x00a\nb",
		"C1":              "CFA1\x01\x00\x02\x00\xc2\x9b",
		"not UTF-8":       "CFA1\x01\x00\x01\x00\xff",
		"request":         "CFQ1\x01\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.agent(func(int, gatewire.Request) []byte { return []byte(reply) })
			l := w.start("sshd", "alice")
			l.expect("account", l.AcctMgmt, denied, oops(cannot))
			l.expect("open_session", l.OpenSession, denied, oops(cannot))
			if n := a.asks(); n != 2 {
				t.Errorf("asked %d times, want 2: garbage is not worth a second try", n)
			}
		})
	}
}

// took returns how long f runs.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func TestOneBudgetForAllExchanges(t *testing.T) {
	w := newWorld(t)
	w.agent(func(n int, _ gatewire.Request) []byte {
		if n == 1 {
			time.Sleep(1200 * time.Millisecond)
			return say(gatewire.Allow, "")(n, gatewire.Request{})
		}
		return silence
	})
	l := w.start("sshd", "alice")
	first := took(func() { l.expect("slow account", l.AcctMgmt, success) })
	rest := took(func() { l.expect("hung session", l.OpenSession, denied, oops(cannot)) })
	if sum := first + rest; sum < 1900*time.Millisecond || sum > 2300*time.Millisecond {
		t.Errorf("both exchanges took %v + %v; want 2 s together", first, rest)
	}
	past := took(func() { l.expect("after the budget", l.AcctMgmt, denied, oops(cannot)) })
	if past > 100*time.Millisecond {
		t.Errorf("an exchange past the budget took %v", past)
	}
	// Another login has a budget of its own.
	other := w.start("sshd", "alice")
	d := took(func() { other.expect("another handle", other.AcctMgmt, denied, oops(cannot)) })
	if d < 1900*time.Millisecond || d > 2300*time.Millisecond {
		t.Errorf("another handle's exchange took %v; want 2 s", d)
	}
}

// TestFullBacklogIsBounded: an agent that was stopped accepts nothing, and connect itself waits.
func TestFullBacklogIsBounded(t *testing.T) {
	w := newWorld(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	addr := &unix.SockaddrUnix{Name: w.socket}
	if err := unix.Bind(fd, addr); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for full := false; !full; {
		const kind = unix.SOCK_SEQPACKET | unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
		c, err := unix.Socket(unix.AF_UNIX, kind, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		full = unix.Connect(c, addr) == unix.EAGAIN
	}
	l := w.start("sshd", "alice")
	d := took(func() { l.expect("account", l.AcctMgmt, denied, oops(cannot)) })
	if d < 1900*time.Millisecond || d > 2300*time.Millisecond {
		t.Errorf("a full backlog took %v; want 2 s", d)
	}
}

func TestAbsentAgentDeniesAtOnce(t *testing.T) {
	for name, spoil := range map[string]func(w *world) error{
		"no socket": func(*world) error { return nil },
		"no listener": func(w *world) error {
			l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: w.socket, Net: "unixpacket"})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		},
		"a stream socket": func(w *world) error {
			_, err := net.Listen("unix", w.socket)
			return err
		},
		"a file":   func(w *world) error { return os.WriteFile(w.socket, nil, 0o600) },
		"a folder": func(w *world) error { return os.Mkdir(w.socket, 0o700) },
		"a path too long": func(w *world) error {
			w.socket = w.dir + "/" + strings.Repeat("s", 108)
			w.service("sshd")
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := spoil(w); err != nil {
				t.Fatal(err)
			}
			d := took(func() {
				l := w.start("sshd", "alice")
				l.expect("account", l.AcctMgmt, denied, oops(cannot))
				l.expect("open_session", l.OpenSession, denied, oops(cannot))
				root := w.start("sshd", "root")
				root.expect("root's account", root.AcctMgmt, ignored)
				other := w.start("sshd", "mallory")
				other.expect("an unmanaged account", other.AcctMgmt, ignored)
			})
			if d > 200*time.Millisecond {
				t.Errorf("five calls without an agent took %v", d)
			}
		})
	}
}

// TestPeerMustBeRoot: whoever squats on the socket's path must not be believed.
func TestPeerMustBeRoot(t *testing.T) {
	w := newWorld(t)
	// Not in the test's own folder, whose parents only root may enter.
	dir, err := os.MkdirTemp("", "squat")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.socket = dir + "/gate.sock"
	w.service("sshd")
	type result struct {
		l   *net.UnixListener
		err error
	}
	squatting := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with its uid
		unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534)
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: w.socket, Net: "unixpacket"})
		squatting <- result{l, err}
	}()
	r := <-squatting
	if r.err != nil {
		t.Fatal(r.err)
	}
	a := w.serve(r.l, say(gatewire.Allow, "come in"))
	l := w.start("sshd", "alice")
	l.expect("account", l.AcctMgmt, denied, oops(cannot))
	l.expect("open_session", l.OpenSession, denied, oops(cannot))
	if n := a.asks(); n != 0 {
		t.Errorf("the squatter was told of %d logins", n)
	}
}

func TestAHangUpIsTriedOnceMore(t *testing.T) {
	t.Run("once", func(t *testing.T) {
		w := newWorld(t)
		a := w.agent(func(n int, _ gatewire.Request) []byte {
			if n%2 == 1 {
				return nil
			}
			return say(gatewire.Allow, "")(n, gatewire.Request{})
		})
		l := w.start("sshd", "alice")
		l.expect("account", l.AcctMgmt, success)
		l.expect("open_session", l.OpenSession, success)
		if n := a.asks(); n != 4 {
			t.Errorf("asked %d times, want 4", n)
		}
	})
	t.Run("always", func(t *testing.T) {
		w := newWorld(t)
		a := w.agent(func(int, gatewire.Request) []byte { return nil })
		l := w.start("sshd", "alice")
		l.expect("account", l.AcctMgmt, denied, oops(cannot))
		if n := a.asks(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
	t.Run("empty packet", func(t *testing.T) {
		w := newWorld(t)
		w.agent(func(int, gatewire.Request) []byte { return []byte{} })
		l := w.start("sshd", "alice")
		l.expect("account", l.AcctMgmt, denied, oops(cannot))
	})
}

func TestWhatTheAgentIsTold(t *testing.T) {
	w := newWorld(t)
	a := w.agent(say(gatewire.Allow, ""))
	l := w.start("sshd", "alice")
	ask := func(edit map[libpam.Item]string, auth string) gatewire.Request {
		t.Helper()
		for item, value := range edit {
			if err := l.SetItem(item, value); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.PutEnv("SSH_AUTH_INFO_0=" + auth); err != nil {
			t.Fatal(err)
		}
		l.expect("open_session", l.OpenSession, success)
		return a.last()
	}
	want := gatewire.Request{Op: gatewire.OpOpenSession, Service: "sshd", User: "alice", UID: 0}
	got := ask(nil, "")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("least request:\n%s", diff)
	}
	items := map[libpam.Item]string{
		libpam.Ruser: "root", libpam.Rhost: "192.0.2.7", libpam.Tty: "ssh",
	}
	want.RUser, want.RHost, want.TTY = "root", "192.0.2.7", "ssh"
	want.AuthInfo = "publickey ssh-ed25519 AAAA\n"
	if diff := cmp.Diff(want, ask(items, want.AuthInfo)); diff != "" {
		t.Errorf("full request:\n%s", diff)
	}
	// What others choose is left out when it does not fit, and decides nothing.
	odd := map[libpam.Item]string{
		libpam.Ruser: strings.Repeat("r", 65), libpam.Rhost: "a\nb", libpam.Tty: "\x1b[2J",
	}
	want.RUser, want.RHost, want.TTY, want.AuthInfo = "", "", "", ""
	if diff := cmp.Diff(want, ask(odd, "a\x01b")); diff != "" {
		t.Errorf("odd request:\n%s", diff)
	}
	caps := map[libpam.Item]string{
		libpam.Ruser: strings.Repeat("r", 64), libpam.Rhost: strings.Repeat("h", 255),
		libpam.Tty: strings.Repeat("t", 64),
	}
	want.RUser, want.RHost, want.TTY = caps[libpam.Ruser], caps[libpam.Rhost], caps[libpam.Tty]
	want.AuthInfo = strings.Repeat("k", 2048)
	if diff := cmp.Diff(want, ask(caps, strings.Repeat("k", 5000))); diff != "" {
		t.Errorf("request at its caps:\n%s", diff)
	}
	l.expect("account", l.AcctMgmt, success)
	if op := a.last().Op; op != gatewire.OpAccount {
		t.Errorf("account was asked as %v", op)
	}
}

func TestAuthenticateAndSetcredAreNotOurs(t *testing.T) {
	w := newWorld(t)
	a := w.agent(say(gatewire.Allow, ""))
	l := w.start("sshd", "alice")
	l.expect("authenticate", l.Authenticate, ignored)
	l.expect("setcred", l.SetCred, ignored)
	l.expect("second setcred", l.SetCred, ignored)
	l.expect("close_session without one", l.CloseSession, ignored)
	if n := a.asks(); n != 0 {
		t.Errorf("the agent was asked %d times", n)
	}
}
