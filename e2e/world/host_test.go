package world_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

func TestEveryReleaseIsARealHost(t *testing.T) {
	for _, release := range world.Releases {
		t.Run(release, func(t *testing.T) {
			ctx, w := newWorld(t)
			h := addHost(ctx, t, w, world.HostOptions{Name: "web1", Release: release})
			ada := addLaptop(ctx, t, w, "ada")
			addUser(ctx, t, h, ada)

			services := "ssh cron atd dbus systemd-logind systemd-journald nginx"
			for _, c := range [][2]string{
				{"systemctl is-system-running", "running"},
				{"systemctl --failed --plain --no-legend | wc -l", "0"},
				{"systemctl is-active " + services + " | uniq", "active"},
				{"ps -o comm= 1", "systemd"},
				{"hostname", "web1"},
				{"wc -c </etc/machine-id", "33"},
				{". /etc/os-release; echo $VERSION_CODENAME", release},
				{"cat /proc/self/loginuid", "4294967295"},
				{"grep ^0:: /proc/self/cgroup", "0::/system.slice/from-outside.service"},
				{"stat -f -c %T /sys/fs/cgroup", "cgroup2fs"},
				{"test -w /sys/fs/cgroup/system.slice/cgroup.kill", ""},
				{"ip -4 -o addr show eth0 | grep -o 10.99.0.10/24", "10.99.0.10/24"},
			} {
				if got := shell(ctx, t, h, c[0]); got != c[1] {
					t.Errorf("%s: got %q, want %q", c[0], got, c[1])
				}
			}
			start := time.Now()
			got := ssh(ctx, t, ada, h, `cat /proc/self/loginuid; echo; id -un; loginctl --no-legend
				grep ^0:: /proc/self/cgroup; sudo -n id -un; sudo -n cat /proc/self/loginuid`)
			t.Logf("logged in and out in %v", time.Since(start).Round(time.Millisecond))
			for _, want := range []string{
				"1000\nada\n", " 1000 ada ", "user-1000.slice/session-",
				"\nroot\n1000",
			} {
				if !strings.Contains(got, want) {
					t.Errorf("from the login: %q is not in\n%s", want, got)
				}
			}
			log, err := h.Journal(ctx, "ssh.service")
			want := "Accepted publickey for ada from " + ada.IP().String()
			if err != nil || !strings.Contains(log, want) {
				t.Errorf("the login is not in the journal: %v\n%s", err, log)
			}
		})
	}
}

func TestHostsKeepTheirDiskThroughReboots(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "db1", Install: func(root string) error {
		return os.WriteFile(filepath.Join(root, "etc/installed"), []byte("before boot"), 0o644)
	}})
	if got, err := h.Read("/etc/installed"); err != nil || string(got) != "before boot" {
		t.Errorf("installed file: %q, %v", got, err)
	}
	if err := h.Write("/var/lib/curfew/a/file", []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	// An absolute link means the host's own /run, which is in memory.
	if err := h.Write("/var/run/curfew/file", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	shell(ctx, t, h, "test -e /run/curfew/file")
	identity := "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub"
	before := shell(ctx, t, h, identity)
	lives := map[string]func() error{
		"reboot":    func() error { return h.Reboot(ctx) },
		"power off": func() error { return h.PowerOff(ctx) },
		"kill":      func() error { return h.Kill(ctx) },
	}
	for name, end := range lives {
		pid, start := h.PID(), time.Now()
		if err := end(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name != "reboot" {
			if h.PID() != 0 {
				t.Errorf("after %s the host has a first process", name)
			}
			if got, err := h.Read("/var/lib/curfew/a/file"); err != nil || string(got) != "kept" {
				t.Errorf("after %s, reading the host's disk: %q, %v", name, got, err)
			}
			if _, err := h.Exec(ctx, "true"); err == nil {
				t.Errorf("after %s a command could be run", name)
			}
		}
		if err := h.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s and start: %v", name, time.Since(start).Round(time.Millisecond))
		if h.PID() == pid {
			t.Errorf("after %s the host is in the same boot", name)
		}
		if got := shell(ctx, t, h, "cat /var/lib/curfew/a/file"); got != "kept" {
			t.Errorf("after %s the file is %q", name, got)
		}
		if after := shell(ctx, t, h, identity); after != before {
			t.Errorf("after %s the host is another one", name)
		}
	}
}

func TestHostRebootsByItself(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "web1"})
	pid := h.PID()
	h.Exec(ctx, "systemctl", "reboot") // whether it gets an answer is chance
	for h.PID() == 0 || h.PID() == pid {
		if ctx.Err() != nil {
			t.Fatal("the host did not come back")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := h.Start(ctx); err != nil { // waits for the boot in progress
		t.Fatal(err)
	}
	if err := h.WaitUnit(ctx, "ssh.service"); err != nil {
		t.Error(err)
	}
}

func TestPowerLossLosesWhatWasNotSynced(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "web1", Disk: true})
	shell(ctx, t, h, "echo safe >/root/synced; sync; echo hope >/root/unsynced")
	if err := h.PowerLoss(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(ctx); err != nil {
		t.Fatal(err)
	}
	got := shell(ctx, t, h, "cat /root/synced; cat /root/unsynced 2>/dev/null || true")
	if got != "safe" {
		t.Errorf("after the power came back: %q, want only what was synced", got)
	}
	other := addHost(ctx, t, w, world.HostOptions{Name: "web2", Off: true})
	if err := other.PowerLoss(ctx); err == nil {
		t.Error("a host without a disk of its own lost power")
	}
}

func TestBootClockCanBeAhead(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "web1", Off: true})
	if err := h.StartAt(ctx, 1000*time.Hour); err != nil {
		t.Fatal(err)
	}
	// /proc/uptime shows the boot-time clock.
	got := shell(ctx, t, h, `read -r up rest </proc/uptime; echo $((${up%.*} >= 3600000))`)
	if got != "1" {
		t.Error("the boot-time clock is not ahead")
	}
}

func TestCommands(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "web1"})
	out, err := h.ExecIn(ctx, strings.NewReader("typed"), "cat")
	if err != nil || string(out) != "typed" {
		t.Errorf("cat: %q, %v", out, err)
	}
	_, err = h.Shell(ctx, "echo complaint >&2; exit 7")
	if err == nil || !strings.Contains(err.Error(), "complaint") ||
		!strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("error of a failed command: %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := h.Shell(short, "sleep 4242 & sleep 4242"); err == nil {
		t.Error("a command outlived its context")
	}
	processes, err := h.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]world.Process)
	for _, p := range processes {
		seen[p.Comm] = p
		if strings.Contains(p.Cmdline, "4242") {
			t.Errorf("still there: %+v", p)
		}
	}
	if p := seen["sshd"]; p.PPID != 1 || p.CGroup != "/system.slice/ssh.service" ||
		p.LoginUID != -1 || p.UID != 0 || !strings.Contains(p.Cmdline, "sshd") {
		t.Errorf("sshd is %+v", p)
	}
	if p := seen["systemd"]; p.PID != 1 || p.OuterPID != h.PID() || p.CGroup != "/init.scope" {
		t.Errorf("systemd is %+v", p)
	}
	// systemd must leave alone the cgroup where commands run.
	shell(ctx, t, h, "systemctl daemon-reload; systemctl daemon-reexec")
	time.Sleep(100 * time.Millisecond)
	shell(ctx, t, h, "systemctl restart cron nginx; systemctl is-active cron nginx")
	if err := h.WaitUnit(ctx, "no-such.service"); err == nil {
		t.Error("waiting for a unit that does not exist succeeded")
	}
}

func TestChrootInInstall(t *testing.T) {
	ctx, w := newWorld(t)
	addHost(ctx, t, w, world.HostOptions{Name: "web1", Install: func(root string) error {
		out, err := exec.Command("chroot", root, "sh", "-ec", "useradd -m eve; systemctl disable nginx").
			CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}})
}
