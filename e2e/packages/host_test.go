package packages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/pace"
)

// A host is a machine that Curfew's packages come to and go from, and the people who use it.
type host struct {
	*world.Host
	stage *stage.Stage
	t     *testing.T
	ctx   context.Context

	alice, bob *stage.Person   // who asks for grants, and who approves them
	lou        *stage.Person   // has keys of old for everybody of the host's own
	before     string          // inventory before Curfew came
	tty        *world.Terminal // alice's session
	keys       string          // of the control plane that was set up here
}

// observing manages gus, and says no mode: nobody is denied.
const observing = "gated_users: [gus]\n"

// open boots hosts of a release without Curfew on them, but with its packages: "plane" is to be a control
// plane's machine. prepare is run on each root before its first boot.
func open(
	t *testing.T, limit time.Duration, release string, prepare func(root string) error, names ...string,
) map[string]*host {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	s, err := stage.New(ctx, stage.Options{Name: "packages" + release, Hosts: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the stage: %v", err)
		}
	})
	alice, bob, err := s.Cast(ctx)
	if err != nil {
		t.Fatal(err)
	}
	lou, err := s.Guest(ctx, "lou")
	if err != nil {
		t.Fatal(err)
	}
	hosts := make(map[string]*host)
	for _, name := range names {
		h := &host{stage: s, t: t, ctx: ctx, alice: alice, bob: bob, lou: lou}
		packages := agentPackages
		if name == "plane" {
			packages = planePackages
		}
		h.Host, err = s.AddHost(ctx, world.HostOptions{
			Name: name, Release: release,
			Install: func(root string) error { return errors.Join(bring(root, packages), prepare(root)) },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Hosts[name] = h.Host
		h.furnish()
		hosts[name] = h
	}
	return hosts
}

// tell begins a part of a test that a host plays in.
func (h *host) tell(t *testing.T) *host {
	h.t = t
	t.Cleanup(h.curtain)
	return h
}

// bring puts packages of both versions on a host.
func bring(root string, names []string) error {
	for _, version := range []string{older, newer} {
		to := filepath.Join(root, "var/tmp", version)
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		for _, name := range names {
			deb := fmt.Sprintf("%s_%s-1_%s.deb", name, version, runtime.GOARCH)
			if out, err := exec.Command("cp", filepath.Join(built, version, deb), to).CombinedOutput(); err != nil {
				return fmt.Errorf("copying packages: %w: %s", err, out)
			}
		}
	}
	return nil
}

// furnish gives the host its own people, lets lou in as each of them, and looks at what there is.
func (h *host) furnish() {
	h.t.Helper()
	h.ok(h.stage.People(h.ctx, h.Host))
	for _, login := range []string{"lou", "gus", "rescue"} {
		h.ok(h.lou.LetIn(h.ctx, h.Host, login))
	}
	// systemd-nspawn shows programs another boot id than the kernel's, and sandboxed services the kernel's: a
	// machine has one.
	h.on(`
umount /proc/sys/kernel/random/boot_id
install -D -m 600 ~lou/.ssh/authorized_keys /root/.ssh/authorized_keys
echo 'rescue ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/rescue
chmod 440 /etc/sudoers.d/rescue`)
	h.before = h.inventory()
	h.everybody("before Curfew")
}

// curtain shows what a failed host has to say.
func (h *host) curtain() {
	if !h.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := h.Shell(ctx, `dpkg -l '*curfew*' | tail -n 4 || true
tail -n 40 /var/log/dpkg.log || true
journalctl --no-pager -q -o short-precise -n 400 | grep -E 'curfew|sshd|sudo|su\[' | tail -n 40`)
	h.t.Logf("%s: %v\n%s", h.Name(), err, out)
}

func (h *host) ok(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// on runs a script as root on the host and returns what it printed, without surrounding space.
func (h *host) on(script string) string {
	h.t.Helper()
	out, err := h.Shell(h.ctx, script)
	if err != nil {
		h.t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// within demands that something comes true while a machine at rest would have lived for as long as limit.
func (h *host) within(limit time.Duration, what string, done func() (bool, string)) {
	h.t.Helper()
	for watch := pace.Start(); ; time.Sleep(50 * time.Millisecond) {
		ok, seen := done()
		if ok {
			return
		}
		if took := watch.Elapsed(); took > limit || h.ctx.Err() != nil {
			h.t.Fatalf("waiting for %s on %s: not after %s; last seen:\n%s", what, h.Name(),
				took.Round(time.Millisecond), seen)
		}
	}
}

// login runs a command in a new ssh session of one of the host's own people. While sshd reads its files anew
// it listens to nobody for a moment: another attempt a second later is within what people notice.
func (h *host) login(login, command string) (stage.Result, error) {
	return h.lou.Command(h.ctx, "ssh", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ControlPath=none",
		"-o", "ConnectionAttempts=2", login+"@"+h.Name(), command)
}

// everybody demands that root, a local user and the break-glass user log in, that sudo works for each as
// before, and that visudo finds nothing to say.
func (h *host) everybody(when string) {
	h.t.Helper()
	var logins errgroup.Group
	for login, command := range map[string]string{
		"root":   `visudo -c 2>&1 | grep -v 'parsed OK$'; su lou -c 'sudo -n /usr/bin/id -u'`,
		"lou":    `sudo -n /usr/bin/id -u`,
		"rescue": `sudo -n /bin/sh -c 'id -u'`,
	} {
		logins.Go(func() error {
			r, err := h.login(login, command)
			if err == nil && (r.Exit != 0 || r.Out != "0\n") {
				err = fmt.Errorf("%s %s: %s", login, when, r)
			}
			return err
		})
	}
	h.ok(logins.Wait())
}

// gus is a local user who needs a grant where Curfew enforces, and never gets one.
func (h *host) gus(in bool, when string) {
	h.t.Helper()
	h.within(20*time.Second, fmt.Sprintf("gus, whom the host lets in: %t, %s", in, when), func() (bool, string) {
		r, err := h.login("gus", "id -un")
		return err == nil && (r.Exit == 0 && r.Out == "gus\n") == in, r.String()
	})
}

// inventory is what Curfew must leave as it found it.
func (h *host) inventory() string {
	h.t.Helper()
	return h.on(`
cd /etc
all='pam.d nsswitch.conf sudoers sudoers.d ssh'
find $all -printf '%p %y %m %u:%g %l\n' | sort
find $all -type f -print0 | sort -z | xargs -0 sha256sum`)
}

// asBefore demands that Curfew left no trace among these files; except are names that may be more.
func (h *host) asBefore(when string, except ...string) {
	h.t.Helper()
	before, after := strings.Split(h.before, "\n"), strings.Split(h.inventory(), "\n")
	for _, line := range before {
		if !slices.Contains(after, line) {
			h.t.Errorf("%s: gone or changed: %s", when, line)
		}
	}
	for _, line := range after {
		excepted := slices.ContainsFunc(except, func(name string) bool { return strings.Contains(line, name) })
		if !slices.Contains(before, line) && !excepted {
			h.t.Errorf("%s: new or changed: %s", when, line)
		}
	}
	if h.t.Failed() {
		h.t.FailNow()
	}
}
