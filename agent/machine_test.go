package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// machine is a root half below a temporary folder, with the real sudo tools and no systemd.
type machine struct {
	t      *testing.T
	root   string
	plane  *plane
	half   *Enforce // what runs
	cancel context.CancelFunc
	done   chan error
	// look has the residue worker run; nobody has one by default.
	look func(context.Context) error
	// ahead is how far both of its clocks are ahead of the true ones: time that passed at a leap.
	ahead atomic.Int64
	// wrong is how far its wall clock alone is.
	wrong atomic.Int64
	// reading is called before each reading of the clock.
	reading  atomic.Pointer[func()]
	renewals atomic.Int32 // how often new break-glass codes were to be made
	lookings atomic.Int32 // how often it was to be looked over for a rollout
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes root's files and asks the real visudo; run it as root")
	}
	root, err := os.MkdirTemp("", "cf") // short: socket paths are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: root, look: func(context.Context) error { return nil }}
	for dir, mode := range map[string]os.FileMode{
		"etc/sudoers.d": 0o755, "etc/curfew": 0o755, "run/curfew": 0o755, "var/lib/curfew": 0o700,
		"usr/bin": 0o755, "usr/sbin": 0o755, "home": 0o755,
	} {
		if err := os.MkdirAll(m.path(dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	m.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nbob:x:1001:1001::/home/bob:/bin/bash\n"+
		"curfew-link:x:999:999::/:/usr/sbin/nologin\n")
	m.write("etc/group", "root:x:0:\nbob:x:1001:\ncurfew-users:x:990:\ncurfew-link:x:999:\n"+
		"curfew-breakglass:x:991:\n")
	m.write("etc/sudoers", "@includedir "+m.path("etc/sudoers.d")+"\n")
	m.write("etc/sudoers.d/curfew", "@includedir "+m.path(enforce.SudoersDir)+"\n")
	m.settings("mode: enforce\nelevate_users: [bob]\n")
	for link, target := range map[string]string{
		"usr/bin/sudo": "/usr/bin/sudo", "usr/sbin/visudo": "/usr/sbin/visudo", "usr/bin/cvtsudoers": "/usr/bin/cvtsudoers",
	} {
		if err := os.Symlink(target, m.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"usr/bin/true": "", "usr/bin/getent": getent} {
		m.write(name, text)
		if err := os.Chmod(m.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("etc/directory", "")
	m.join()
	return m
}

// getent is a name service that knows the host's own files and the accounts that have keys.
const getent = `#!/bin/sh
root=$(dirname "$0")/../..
one() {
  case $1 in *[!0-9]*) ;; *) return 1 ;; esac
  grep "^$1:" "$root/etc/directory" && return
  grep "^$1:" "$root/etc/passwd" && return
  line=$(grep " $1\$" "$root/var/lib/curfew/gate.conf" | grep ^account) || return
  set -- $line
  echo "$3:*:$2:$2:Curfew account:/home/$3:/bin/bash"
}
shift
missing=0
for key; do one "$key" || missing=2; done
exit $missing
`

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

func (m *machine) write(name, data string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(data), 0o440); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) settings(text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(ConfigPath), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// join is what curfew-agent join keeps.
func (m *machine) join() {
	m.t.Helper()
	s, err := store.Open(store.Config{Directory: m.path(enforce.StateDir)})
	if err != nil {
		m.t.Fatal(err)
	}
	key, err := s.NewKey(rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	m.plane = newPlane(m.t, key.Public().(ed25519.PublicKey))
	ledger, err := grant.NewLedger(m.plane.host, m.plane.sealedTrust())
	if err != nil {
		m.t.Fatal(err)
	}
	err = errors.Join(s.SaveHost(store.Host{Name: "web1", Organisation: "example"}),
		s.SaveLedger(ledger), s.Close())
	if err != nil {
		m.t.Fatal(err)
	}
}

// start runs the root half until stop or the test's end.
func (m *machine) start() {
	m.t.Helper()
	clock, err := expiry.SystemClock()
	if err != nil {
		m.t.Fatal(err)
	}
	log := hclog.New(&hclog.LoggerOptions{Output: testWriter{m.t}, Level: hclog.Debug})
	e, err := NewEnforce(EnforceConfig{
		Root: m.root, Program: "/usr/bin/curfew-agent", Version: "test", Log: log, Look: m.look,
		RenewCodes:    func(context.Context) error { m.renewals.Add(1); return nil },
		FollowRollout: func(context.Context) error { m.lookings.Add(1); return nil },
		Clock: func() grant.Clock {
			if f := m.reading.Load(); f != nil {
				(*f)()
			}
			now, ahead := clock(), time.Duration(m.ahead.Load())
			now.Wall, now.Boot = now.Wall.Add(ahead+time.Duration(m.wrong.Load())), now.Boot+ahead
			return now
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(e.Run(ctx), e.Close()) }()
	m.half, m.cancel, m.done = e, cancel, done
	m.t.Cleanup(m.stop)
}

func (m *machine) stop() {
	m.t.Helper()
	if m.cancel == nil {
		return
	}
	m.cancel()
	select {
	case err := <-m.done:
		if err != nil {
			m.t.Errorf("the root half ends with %v", err)
		}
	case <-time.After(2 * time.Minute):
		m.t.Error("the root half does not end")
	}
	m.cancel = nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (m *machine) connect() *plane {
	m.t.Helper()
	m.plane.dial(m.path(enforce.RunDir))
	return m.plane
}

func (m *machine) read(name string) string {
	m.t.Helper()
	data, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(data)
}

func (m *machine) has(name string) bool {
	_, err := os.Lstat(m.path(name))
	return err == nil
}

func (m *machine) dropin(id grant.ID) string { return enforce.SudoersDir + "/" + id.String() }

var rule = &curfewv1.SudoRule{RunAs: "root", Command: "/usr/bin/true", Args: []string{"x"}, Contained: true}

func withRule(t *curfewv1.Terms) { t.SudoRules = []*curfewv1.SudoRule{rule} }

func lasting(d time.Duration) func(*curfewv1.Terms) {
	return func(t *curfewv1.Terms) { t.DurationMs = d.Milliseconds() }
}

func resultOf(t *testing.T, a *curfewv1.Ack, id grant.ID) *curfewv1.GrantResult {
	t.Helper()
	for _, r := range a.GetGrants() {
		if grant.ID(r.GetGrantId()) == id {
			return r
		}
	}
	t.Fatalf("the ack does not name grant %s: %v", id.Short(), a)
	return nil
}

// watchGaps looks for moments without key or rule, until the returned function is called.
func (m *machine) watchGaps() (stop func() int) {
	done, found := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			entries, err := os.ReadDir(m.path(enforce.SudoersDir))
			rule := slices.ContainsFunc(entries, func(e os.DirEntry) bool {
				return !strings.Contains(e.Name(), ".")
			})
			if err != nil || !rule || !m.has(enforce.KeysDir+"/alice") {
				n++
			}
			select {
			case <-done:
				found <- n
				return
			default:
			}
		}
	}()
	return func() int { close(done); return <-found }
}

// runAs is a command of an ordinary user's.
func runAs(uid uint32, argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}
