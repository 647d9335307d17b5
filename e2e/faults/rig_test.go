package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/e2e/inject"
	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// rig is a booted host whose root half runs under the injector, and a control plane of the test's.
type rig struct {
	t      *testing.T
	ctx    context.Context
	host   *world.Host
	laptop *world.Laptop // alice's
	plane  *plane
	script *inject.Script
	uids   map[string]uint32
	ended  []*access // all that ever ended
	best   uint64    // the highest sequence that the host was seen to hold

	disk *disk // under /var/lib/curfew; nil for the host's own

	mu   sync.Mutex    // guards hold
	hold chan struct{} // while it is there and open, the root half does not start
}

const injectSocket = "/run/curfew-inject.sock"

// dropin puts the root half under the injector, and lets it die as often as the tests want; it changes
// nothing else about its unit.
const dropin = `[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=
ExecStart=/usr/local/bin/curfew-inject ` + injectSocket + ` %s
SystemCallFilter=seccomp
`

// eager lets the walk over the disks take its turn at once: that it waits for everybody else is its
// point, and would have these tests wait for other tests.
const eager = `[Service]
Nice=0
IOSchedulingClass=best-effort
CPUWeight=100
IOWeight=100
`

const agentYAML = "mode: enforce\nelevate_users: [carol]\n"

type rigOptions struct {
	disk  bool // a small disk of its own under /var/lib/curfew
	plain bool // without the injector
	host  world.HostOptions
}

func newRig(t *testing.T, o rigOptions) *rig {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), storyLimit)
	t.Cleanup(cancel)
	r := &rig{t: t, ctx: ctx, plane: newPlane(), script: new(inject.Script), uids: map[string]uint32{}}
	w, err := world.New(ctx, world.Options{Name: strings.ToLower(t.Name())})
	r.ok(err)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("closing the world: %v", err)
		}
	})
	o.host.Name = "web1"
	o.host.Install = func(root string) error { return r.install(root, o.plain) }
	r.host, err = w.AddHost(ctx, o.host)
	r.ok(err)
	t.Cleanup(r.curtain)
	_, err = r.host.Shell(ctx, `/usr/lib/curfew/setup agent; useradd -m -s /bin/bash carol`)
	r.ok(err)
	r.uids["carol"] = r.number("id -u carol")
	r.uids["alice"] = r.plane.Alice.UID
	r.laptop, err = w.AddLaptop(ctx, "alice")
	r.ok(err)
	key, err := r.laptop.SSHKey(ctx)
	r.ok(err)
	r.plane.Alice.SSHKey = strings.Join(strings.Fields(key)[:2], " ")
	if o.disk {
		r.disk = newDisk(r)
	}
	r.join()
	if o.plain {
		_, err = r.host.Exec(ctx, "systemctl", "enable", "--now", "--no-block", "curfew-enforce.service", "curfew-agent.target")
		r.ok(err)
		r.connect()
		return r
	}
	in, err := inject.Listen(fmt.Sprintf("/proc/%d/root%s", r.host.PID(), injectSocket),
		r.script.Decide, r.starting)
	r.ok(err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r.release()
		if _, err := r.host.Exec(ctx, "systemctl", "stop", "curfew-gate.socket", "curfew-enforce.service"); err != nil {
			t.Error(err)
		}
		if err := in.Close(); err != nil {
			t.Errorf("the injector: %v", err)
		}
	})
	_, err = r.host.Exec(ctx, "systemctl", "start", "--no-block", "curfew-enforce.service")
	r.ok(err)
	r.connect()
	return r
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// curtain shows the journal of a failed test.
func (r *rig) curtain() {
	if !r.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if out, err := r.host.Shell(ctx, `journalctl --no-pager -q -o short-precise -n 400 | `+
		`grep -E 'curfew|sshd|sudo|systemd\[1\]' | tail -n 80`); err == nil {
		r.t.Logf("the host's journal:\n%s", out)
	}
}

func (r *rig) install(root string, plain bool) error {
	top, err := stage.Root()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(r.ctx, filepath.Join(top, "packaging/install.sh"),
		"--root", root, "agent").CombinedOutput()
	if err != nil {
		return fmt.Errorf("install.sh: %w\n%s", err, out)
	}
	walk := filepath.Join(root, "etc/systemd/system/curfew-residue.service.d")
	err = errors.Join(os.MkdirAll(walk, 0o755),
		os.WriteFile(filepath.Join(walk, "eager.conf"), []byte(eager), 0o644))
	if err != nil || plain {
		return err
	}
	launcher, err := os.ReadFile(launcher)
	if err != nil {
		return err
	}
	shipped, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/curfew-enforce.service"))
	if err != nil {
		return err
	}
	start := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindSubmatch(shipped)
	if start == nil {
		return errors.New("the unit of the root half starts nothing")
	}
	unit := filepath.Join(root, "etc/systemd/system/curfew-enforce.service.d")
	return errors.Join(
		os.MkdirAll(unit, 0o755),
		os.WriteFile(filepath.Join(unit, "inject.conf"), fmt.Appendf(nil, dropin, start[1]), 0o644),
		os.MkdirAll(filepath.Join(root, "usr/local/bin"), 0o755),
		os.WriteFile(filepath.Join(root, "usr/local/bin/curfew-inject"), launcher, 0o755),
	)
}

// join gives the host what curfew-agent join would have left.
func (r *rig) join() {
	r.t.Helper()
	dir := filepath.Join(r.t.TempDir(), "store")
	r.ok(os.Mkdir(dir, 0o700))
	s, err := store.Open(store.Config{Directory: dir, WithoutEvents: true})
	r.ok(err)
	_, err = s.NewKey(bytes.NewReader(r.plane.HostKey.Seed()))
	r.ok(errors.Join(err, s.SaveLedger(r.plane.Ledger()),
		s.SaveHost(store.Host{Name: "web1", Organisation: granttest.Organisation}), s.Close()))
	for _, name := range []string{"root.key", "ledger.json", "host.json"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		r.ok(err)
		r.ok(r.host.Write("/var/lib/curfew/"+name, data, 0o600))
	}
	r.ok(r.host.Write("/etc/curfew/agent.yaml", []byte(agentYAML), 0o644))
	r.on("sync") // curfew-agent join would have seen to that, and the host is not as new as this one
}

// starting lets the root half start, unless it is held.
func (r *rig) starting(int) {
	r.mu.Lock()
	hold := r.hold
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
}

func (r *rig) holdStart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold = make(chan struct{})
}

func (r *rig) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hold != nil {
		close(r.hold)
		r.hold = nil
	}
}

// limit is a context for one step.
func (r *rig) limit(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(r.ctx, d)
	r.t.Cleanup(cancel)
	return ctx
}

// connect dials the link socket, and demands that the host has forgotten nothing.
func (r *rig) connect() {
	r.t.Helper()
	socket := fmt.Sprintf("/proc/%d/root/run/curfew/link.sock", r.host.PID())
	ctx := r.limit(15 * time.Second)
	err := r.plane.dial(ctx, socket)
	for errors.Is(err, errGone) && ctx.Err() == nil { // one that was killed still answered
		err = r.plane.dial(ctx, socket)
	}
	r.ok(err)
	if got := r.plane.hello.GetSequence(); got < r.best || r.plane.hello.GetEpoch() != 1 {
		r.t.Errorf("the host says sequence %d of epoch %d, and held %d", got,
			r.plane.hello.GetEpoch(), r.best)
	}
}

func (r *rig) on(script string) string {
	r.t.Helper()
	out, err := r.host.Shell(r.ctx, script)
	r.ok(err)
	return strings.TrimSpace(string(out))
}

func (r *rig) number(script string) uint32 {
	r.t.Helper()
	var n uint32
	_, err := fmt.Sscan(r.on(script), &n)
	r.ok(err)
	return n
}

// clock is the root half's: it shares the kernel's clocks, and its boot id was in its hello.
func (r *rig) clock() grant.Clock {
	r.t.Helper()
	const bootID = 36 // of the hello's, which goes on with a digest of the machine id
	var boot unix.Timespec
	r.ok(unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot))
	return grant.Clock{
		Wall: time.Now(), Boot: time.Duration(boot.Nano()), BootID: r.plane.hello.GetBootId()[:bootID],
	}
}

// ledger is what the host's disk says.
func (r *rig) ledger() *grant.Ledger {
	r.t.Helper()
	data, err := r.host.Read("/var/lib/curfew/ledger.json")
	r.ok(err)
	l := new(grant.Ledger)
	if err := json.Unmarshal(data, l); err != nil {
		r.t.Fatalf("the ledger on disk: %v", err)
	}
	return l
}

// new makes the next grants: alice's with an account, a login and a rule, and carol's elevation.
func (r *rig) new(edit ...func(*curfewv1.Terms)) []*access {
	all := func(t *curfewv1.Terms) {
		for _, e := range edit {
			e(t)
		}
	}
	return []*access{
		r.plane.grant("alice", func(t *curfewv1.Terms) {
			t.AuthorizedKeys = []string{r.plane.Alice.SSHKey}
			all(t)
		}),
		r.plane.grant("carol", func(t *curfewv1.Terms) {
			t.Uid, t.AllowLogin, t.AuthorizedKeys = r.uids["carol"], false, nil
			all(t)
		}),
	}
}

func newRequest() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// nap is how long the commands of a login sleep, by which they are told from each other.
func nap(login string) string { return map[string]string{"alice": "77771", "carol": "77772"}[login] }

const orphanNap = "77773"

// surveyScript prints a line for each thing of Curfew's that is on the host.
const surveyScript = `
cd /run/curfew
for f in $(ls -A sudoers.d); do echo "rule $f $(base64 -w0 <"sudoers.d/$f")"; done
for f in $(ls -A keys); do echo "key $f"; done
ls -A . | grep -E '^\..*\.new$' | grep -v sock || true
for u in alice erin; do
  getent passwd $u | grep -v nologin >/dev/null && echo "account $u" || true
done
for d in /sys/fs/cgroup/user.slice/{,*/}curfew-*.scope; do # find would fail on one that goes meanwhile
  if [ -d "$d" ]; then echo "scope ${d##*/}"; fi
done | sed -E 's/curfew-([0-9a-z]{12})-.*/\1/'
systemctl list-units --all --plain --no-legend 'curfew-end-*.timer' |
  sed -nE 's/^curfew-end-([0-9a-z]{12})-.*/timer \1/p'
pgrep -a sleep | grep -oE '7777[123]' | sed 's/^/process /' | sort -u || true`

func (r *rig) survey() []string {
	r.t.Helper()
	out := r.on(surveyScript)
	list := strings.Split(out, "\n")
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	slices.Sort(list)
	return list
}

// expected is what a survey must find when exactly these grants are live; with their processes, when
// the grants were used.
func (r *rig) expected(live []grant.Live, used bool) []string {
	r.t.Helper()
	var list []string
	for _, l := range live {
		text, err := sudoers.Render(enforce.DropinOf(l))
		r.ok(err)
		request, login := l.Terms.GetRequestId(), l.Terms.GetLogin()
		list = append(list, fmt.Sprintf("rule %s %s", l.ID, base64of(text)), "timer "+request)
		if login != "carol" {
			list = append(list, "key "+login, "account "+login)
		}
		if !used {
			continue
		}
		list = append(list, "process "+nap(login))
		if login == "alice" {
			list = append(list, "process "+orphanNap)
		} else {
			list = append(list, "scope "+request)
		}
	}
	slices.Sort(list)
	return list
}

// settles demands that within the limit the host is exactly as these grants want it. PID 1's timers
// open nothing: they may take longer on a busy machine, and must be right in the end.
func (r *rig) settles(
	limit time.Duration, what string, live func() []grant.Live, used bool,
) time.Duration {
	r.t.Helper()
	const timerLimit = 30 * time.Second
	began, in := time.Now(), time.Duration(0)
	for {
		want := r.expected(live(), used)
		got := r.survey()
		took := time.Since(began)
		if in == 0 && slices.Equal(untimed(got), untimed(want)) {
			in = took
		}
		if slices.Equal(got, want) {
			return in
		}
		if in == 0 && took > limit || took > limit+timerLimit {
			r.t.Fatalf("%s: %v later the host has\n%s\nand should have\n%s", what, took.Round(time.Millisecond),
				show(got), show(want))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func untimed(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
		return strings.HasPrefix(s, "timer ")
	})
}

func show(list []string) string {
	for i, s := range list {
		list[i] = s[:min(len(s), 90)]
	}
	return strings.Join(list, "\n")
}
