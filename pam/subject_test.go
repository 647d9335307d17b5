package pam_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/gatewire"
)

// TestWhoIsAskedAbout is section 5's rule as a table: caller's real uid, PAM_USER, service.
func TestWhoIsAskedAbout(t *testing.T) {
	const (
		root, system, bob, carol, rescue, stranger = 0, 998, 1001, 1002, 1003, 1004

		alice = 1900000001
	)
	w := newWorld(t)
	a := w.agent(say(gatewire.Allow, ""))
	for _, c := range []struct {
		service string
		caller  int
		user    string
		asked   bool
	}{
		// By name, for everything that is not an elevation, whoever runs the service.
		{"sshd", root, "alice", true},
		{"sshd", root, "bob", true},
		{"sshd", root, "carol", false},
		{"sshd", root, "rescue", false},
		{"sshd", root, "root", false},
		{"sshd", root, "mallory", false},
		{"sshd", root, "system", false}, // uid below 1000, whatever the table says
		{"sshd", root, "alic", false},
		{"sshd", root, "alicee", false},
		{"sshd", root, "Alice", false},
		{"login", root, "alice", true},
		{"cron", root, "bob", true},
		{"cron", root, "carol", false},
		{"atd", root, "bob", true},
		{"systemd-user", root, "alice", true},
		{"polkit-1", stranger, "bob", true},
		{"other", bob, "mallory", false},
		// By the caller's real uid, whatever PAM_USER says: in open_session it says root.
		{"sudo", bob, "bob", true},
		{"sudo", bob, "root", true},
		{"sudo", bob, "mallory", true},
		{"sudo", alice, "root", true},
		{"sudo", carol, "carol", true},
		{"sudo", carol, "root", true},
		{"sudo-i", carol, "root", true},
		{"sudo-i", alice, "root", true},
		{"sudo", rescue, "root", false},
		{"sudo", stranger, "root", false},
		{"sudo", stranger, "bob", false},
		{"sudo", root, "bob", false},
		{"sudo", system, "bob", false},
		{"sudo-i", stranger, "alice", false},
		// su: the caller, and the one they become.
		{"su", bob, "root", true},
		{"su-l", bob, "mallory", true},
		{"su", alice, "root", true},
		{"su", carol, "root", false},
		{"su", carol, "bob", true},
		{"su", stranger, "root", false},
		{"su", stranger, "mallory", false},
		{"su", stranger, "bob", true},
		{"su-l", stranger, "alice", true},
		{"su", stranger, "carol", false},
		{"su", stranger, "system", false},
		{"su", rescue, "bob", false},
		{"su", root, "bob", false},
		{"su-l", root, "alice", false},
	} {
		w.service(c.service)
		asCaller(t, c.caller, func() {
			l := w.start(c.service, c.user)
			want, asks := ignored, 0
			if c.asked {
				want, asks = success, 1
			}
			name := fmt.Sprintf("%s by %d as %s", c.service, c.caller, c.user)
			l.expect(name+": account", l.AcctMgmt, want)
			if n := a.asks(); n != asks {
				t.Errorf("%s: account asked %d times, want %d", name, n, asks)
			}
			l.expect(name+": open_session", l.OpenSession, want)
			if c.asked {
				if uid := a.last().UID; uid != uint32(c.caller) {
					t.Errorf("%s: the agent heard of uid %d", name, uid)
				}
			}
			if n := a.asks(); n != asks {
				t.Errorf("%s: open_session asked %d times, want %d", name, n, asks)
			}
		})
	}
}

// TestAUserWhoCannotBeNamedIsDenied: sudo's subject is the uid, so any PAM_USER gets here.
func TestAUserWhoCannotBeNamedIsDenied(t *testing.T) {
	for _, user := range []string{strings.Repeat("u", 65), "a\nb", "a\x7f"} {
		w := newWorld(t)
		w.service("sudo")
		a := w.agent(say(gatewire.Allow, ""))
		asCaller(t, 1001, func() {
			l := w.start("sudo", user)
			l.expect("account", l.AcctMgmt, denied, oops(cannot))
		})
		if n := a.asks(); n != 0 {
			t.Errorf("%q: the agent was asked", user)
		}
	}
}

func TestAServiceTooLongIsDenied(t *testing.T) {
	w := newWorld(t)
	name := strings.Repeat("s", 33)
	w.service(name)
	w.agent(say(gatewire.Allow, ""))
	l := w.start(name, "alice")
	l.expect("account", l.AcctMgmt, denied, oops(cannot))
}

func TestNoUserIsNobody(t *testing.T) {
	w := newWorld(t)
	w.agent(say(gatewire.Allow, ""))
	l := w.start("sshd", "")
	if err := l.AcctMgmt(0); err == nil || errors.Is(err, ignored) {
		t.Errorf("account without a user: %v; want a refusal", err)
	}
}

func TestObserveDeniesNobody(t *testing.T) {
	garbage := func(int, gatewire.Request) []byte { return []byte("garbage") }
	for name, f := range map[string]answer{
		"allow":     say(gatewire.Allow, "words"),
		"deny":      say(gatewire.Deny, "words"),
		"ignore":    say(gatewire.Ignore, ""),
		"try again": say(gatewire.TryAgain, "words"),
		"garbage":   garbage,
		"hang-up":   func(int, gatewire.Request) []byte { return nil },
		"silence":   func(int, gatewire.Request) []byte { return silence },
		"absent":    nil,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setTable(strings.Replace(enforce, "mode enforce", "mode observe", 1))
			asked := func() int { return 1 }
			if f != nil {
				asked = w.agent(f).asks
			}
			l := w.start("sshd", "alice")
			l.expect("account", l.AcctMgmt, ignored)
			if asked() == 0 {
				t.Error("the agent was not asked: it has nothing to record")
			}
			l.expect("open_session", l.OpenSession, ignored)
		})
	}
}

// A trial enforces while its mark is there and neither clock has come to its end; the agent may be dead.
func TestTrialEndsByItself(t *testing.T) {
	var since unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &since); err != nil {
		t.Fatal(err)
	}
	wall, boot := time.Now().UnixMilli(), since.Nano()/1e6
	const minute = 60_000
	for name, tt := range map[string]struct {
		wall, boot int64
		marked     bool
		want       error
	}{
		"running":                 {wall + minute, boot + minute, true, denied},
		"rebooted":                {wall + minute, boot + minute, false, ignored},
		"over by the wall clock":  {wall - 1, boot + minute, true, ignored},
		"over by the boot clock":  {wall + minute, boot - 1, true, ignored},
		"over by both":            {wall - minute, boot - minute, true, ignored},
		"over before it was told": {0, 0, true, ignored},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.marked {
				if err := os.WriteFile(w.dir+"/trial", nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			w.setTable(strings.Replace(enforce, "mode enforce",
				fmt.Sprintf("mode trial %d %d", tt.wall, tt.boot), 1))
			l := w.start("sshd", "alice") // there is no agent
			var said []string
			if tt.want == denied {
				said = []string{oops(cannot)}
			}
			l.expect("account", l.AcctMgmt, tt.want, said...)
		})
	}
}

// With root's mark nobody is denied, whatever the table says and whoever answers.
func TestMarkOfObserving(t *testing.T) {
	for name, table := range map[string]string{
		"enforce": enforce, "unreadable": "curfew-gate 1\n",
		"trial": strings.Replace(enforce, "enforce", "trial 999999999999999 999999999999999", 1),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setTable(table)
			w.agent(say(gatewire.Deny, "no"))
			if err := os.WriteFile(w.dir+"/trial", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			l := w.start("sshd", "alice")
			l.expect("without the mark", l.AcctMgmt, denied, oops("no"))
			if err := os.WriteFile(w.dir+"/observe", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			l.expect("with the mark", l.AcctMgmt, ignored)
			if err := os.Chown(w.dir+"/observe", 1001, 0); err != nil {
				t.Fatal(err)
			}
			l.expect("with somebody else's mark", l.AcctMgmt, denied, oops("no"))
		})
	}
}

func TestNoTableMeansNotSetUp(t *testing.T) {
	w := newWorld(t)
	if err := os.Remove(w.table); err != nil {
		t.Fatal(err)
	}
	a := w.agent(say(gatewire.Deny, ""))
	l := w.start("sshd", "alice")
	l.expect("account", l.AcctMgmt, ignored)
	l.expect("open_session", l.OpenSession, ignored)
	if n := a.asks(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// spoiled are tables that are not one: who is in them counts for nothing.
var spoiled = map[string]string{
	"empty":             "",
	"no end":            strings.TrimSuffix(enforce, "end\n"),
	"end without LF":    strings.TrimSuffix(enforce, "\n"),
	"after the end":     enforce + "\n",
	"cut in a line":     enforce[:60],
	"observe, cut":      "curfew-gate 1\nmode observe\n",
	"wrong version":     "curfew-gate 2" + enforce[13:],
	"unknown class":     strings.Replace(enforce, "exempt", "exempts", 1),
	"unknown mode":      strings.Replace(enforce, "enforce", "off", 1),
	"two spaces":        strings.Replace(enforce, "gated ", "gated  ", 1),
	"uid with a zero":   strings.Replace(enforce, "1001", "01001", 1),
	"NUL":               strings.Replace(enforce, "bob\n", "bob\n\x00", 1),
	"carriage return":   strings.ReplaceAll(enforce, "\n", "\r\n"),
	"line of 129 bytes": enforce[:27] + "gated 1009 " + strings.Repeat("x", 117) + "\nend\n",
	"over 4 MiB": enforce[:27] +
		strings.Repeat("gated 100000 "+strings.Repeat("x", 50)+"\n", 4<<20/64) + "end\n",
}

// misplaced are the ways to put something else where the table is.
var misplaced = map[string]func(table string) error{
	"another's":       func(table string) error { return os.Chown(table, 1001, 0) },
	"group-writable":  func(table string) error { return os.Chmod(table, 0o620) },
	"world-writable":  func(table string) error { return os.Chmod(table, 0o602) },
	"a FIFO":          instead(func(table string) error { return unix.Mkfifo(table, 0o600) }),
	"a folder":        instead(func(table string) error { return os.Mkdir(table, 0o700) }),
	"a link loop":     instead(func(table string) error { return os.Symlink("gate.conf", table) }),
	"a dangling link": instead(func(table string) error { return os.Symlink("nowhere", table) }),
	"a link": func(table string) error {
		return errors.Join(os.Rename(table, table+".good"), os.Symlink("gate.conf.good", table))
	},
	"a device": instead(func(table string) error {
		return unix.Mknod(table, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5)))
	}),
	"a socket": instead(func(table string) error { return unix.Mknod(table, unix.S_IFSOCK|0o600, 0) }),
}

func instead(f func(table string) error) func(table string) error {
	return func(table string) error { return errors.Join(os.Remove(table), f(table)) }
}

func TestUnreadableTable(t *testing.T) {
	for name, text := range spoiled {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setTable(text)
			w.expectUnreadable()
		})
	}
	for name, spoil := range misplaced {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := spoil(w.table); err != nil {
				t.Fatal(err)
			}
			w.expectUnreadable()
		})
	}
	t.Run("below a file", func(t *testing.T) {
		w := newWorld(t)
		w.table += "/gate.conf"
		w.service("sshd")
		w.expectUnreadable()
	})
}

func (w *world) expectUnreadable() {
	w.t.Helper()
	// Without an agent local people keep their logins.
	l := w.start("sshd", "mallory")
	l.expect("account without agent", l.AcctMgmt, ignored)
	l.expect("open_session without agent", l.OpenSession, ignored)
	root := w.start("sshd", "root")
	root.expect("root's account", root.AcctMgmt, ignored)
	// With one, it decides, and about everybody but root.
	verdict := gatewire.Deny
	a := w.agent(func(n int, r gatewire.Request) []byte { return say(verdict, "")(n, r) })
	l.expect("account denied", l.AcctMgmt, denied, oops("Curfew denies this"))
	verdict = gatewire.Allow
	l.expect("account allowed", l.AcctMgmt, success)
	verdict = gatewire.Ignore
	l.expect("account ignored", l.AcctMgmt, ignored)
	verdict = gatewire.TryAgain
	l.expect("account to be tried again", l.AcctMgmt, ignored)
	if n := a.asks(); n != 4 {
		w.t.Errorf("asked %d times, want 4", n)
	}
	root.expect("root's account", root.AcctMgmt, ignored)
	if n := a.asks(); n != 0 {
		w.t.Errorf("asked about root")
	}
}

// TestTableAtItsCap: the largest table that is allowed is read to its last line.
func TestTableAtItsCap(t *testing.T) {
	w := newWorld(t)
	var b strings.Builder
	b.WriteString("curfew-gate 1\nmode enforce\n")
	for uid := 100_000; b.Len() < 4<<20-200; uid++ {
		fmt.Fprintf(&b, "gated %d %064d\n", uid, uid)
	}
	b.WriteString("gated 4294967294 " + strings.Repeat("z", 64) + "\nend\n")
	w.setTable(b.String())
	a := w.agent(say(gatewire.Allow, ""))
	l := w.start("sshd", strings.Repeat("z", 64))
	l.expect("the last person", l.AcctMgmt, success)
	if n := a.asks(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	other := w.start("sshd", "mallory")
	other.expect("nobody's business", other.AcctMgmt, ignored)
	if n := a.asks(); n != 0 {
		t.Errorf("a table at its cap is taken for an unreadable one")
	}
}

// TestTableReplacedUnderLogins: a rename swaps whole tables, so nobody meets half of one.
func TestTableReplacedUnderLogins(t *testing.T) {
	w := newWorld(t)
	w.agent(say(gatewire.Allow, ""))
	long := strings.Replace(enforce, "end", strings.Repeat("gated 5000 x\n", 2000)+"end", 1)
	stop := make(chan struct{})
	stopped := make(chan error)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			text := []string{enforce, long}[i%2]
			err := errors.Join(os.WriteFile(w.dir+"/new", []byte(text), fs.FileMode(0o600)),
				os.Rename(w.dir+"/new", w.table))
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 300 {
		l := w.start("sshd", "alice")
		l.expect("managed", l.AcctMgmt, success)
		other := w.start("sshd", "mallory")
		other.expect("unmanaged", other.AcctMgmt, ignored)
		_ = l.End()
		_ = other.End()
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}
