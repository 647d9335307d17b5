package world_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

// newWorld makes a world for one test. These tests need root and fail without it: skipped ones
// would tell nobody that the stories have not been tried.
func newWorld(t *testing.T) (context.Context, *world.World) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	w, err := world.New(ctx, world.Options{Name: t.Name(), Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		start := time.Now()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		t.Logf("closed in %v", time.Since(start).Round(time.Millisecond))
	})
	return ctx, w
}

func addHost(ctx context.Context, t *testing.T, w *world.World, o world.HostOptions) *world.Host {
	t.Helper()
	start := time.Now()
	h, err := w.AddHost(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s (%s) added in %v", h.Name(), h.Release, time.Since(start).Round(time.Millisecond))
	return h
}

func addLaptop(ctx context.Context, t *testing.T, w *world.World, name string) *world.Laptop {
	t.Helper()
	l, err := w.AddLaptop(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// shell runs a script on a host and returns what it printed, without the last line's end.
func shell(ctx context.Context, t *testing.T, h *world.Host, script string) string {
	t.Helper()
	out, err := h.Shell(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// addUser makes a local user of the laptop's owner on a host, who may log in with the laptop's key
// and run everything by sudo.
func addUser(ctx context.Context, t *testing.T, h *world.Host, l *world.Laptop) {
	t.Helper()
	key, err := l.SSHKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	name := l.Name()
	shell(ctx, t, h, fmt.Sprintf(`useradd -m -s /bin/bash %[1]s
install -d -m 700 -o %[1]s -g %[1]s ~%[1]s/.ssh
install -m 600 -o %[1]s -g %[1]s /dev/stdin ~%[1]s/.ssh/authorized_keys <<<%[2]q
install -m 440 /dev/stdin /etc/sudoers.d/%[1]s <<<'%[1]s ALL=(ALL:ALL) NOPASSWD: ALL'`,
		name, strings.TrimSpace(key)))
}

// ssh runs a command on a host from a laptop and wants it to succeed.
func ssh(ctx context.Context, t *testing.T, l *world.Laptop, h *world.Host, command string) string {
	t.Helper()
	out, complaint, exit, err := l.Run(ctx, "ssh", h.Name(), command)
	if err != nil || exit != 0 {
		t.Fatalf("ssh %s %s: exit %d, %v\n%s%s", h.Name(), command, exit, err, out, complaint)
	}
	return strings.TrimSpace(out)
}

func TestPartition(t *testing.T) {
	ctx, w := newWorld(t)
	h := addHost(ctx, t, w, world.HostOptions{Name: "web1"})
	ada := addLaptop(ctx, t, w, "ada")
	addUser(ctx, t, h, ada)
	ssh(ctx, t, ada, h, "true")
	if err := h.Disconnect(ctx); err != nil {
		t.Fatal(err)
	}
	_, _, exit, err := ada.Run(ctx, "ssh", "-o", "ConnectTimeout=1", "web1", "true")
	if err != nil || exit != 255 {
		t.Errorf("ssh through a cut cable: exit %d, %v", exit, err)
	}
	if err := h.Reconnect(ctx); err != nil {
		t.Fatal(err)
	}
	ssh(ctx, t, ada, h, "true")
}

func TestEverybodyKnowsEverybody(t *testing.T) {
	ctx, w := newWorld(t)
	ada := addLaptop(ctx, t, w, "ada")
	first := addHost(ctx, t, w, world.HostOptions{Name: "first"})
	second := addHost(ctx, t, w, world.HostOptions{Name: "second"})
	for _, name := range []string{"first", "second", "ada"} {
		for _, h := range []*world.Host{first, second} {
			shell(ctx, t, h, "ping -c 1 -W 2 "+name)
		}
		out, complaint, exit, err := ada.Run(ctx, "getent", "hosts", name)
		if err != nil || exit != 0 || !strings.Contains(out, "10.99.0.") {
			t.Errorf("ada looks up %s: %s%s%v", name, out, complaint, err)
		}
	}
	conn, err := w.Dial(ctx, "second:22")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	banner := make([]byte, 7)
	if _, err := conn.Read(banner); err != nil || string(banner) != "SSH-2.0" {
		t.Errorf("read from sshd: %q, %v", banner, err)
	}
	if _, err := w.AddHost(ctx, world.HostOptions{Name: "ada"}); err == nil {
		t.Error("a host took a laptop's name")
	}
	if _, err := w.AddHost(ctx, world.HostOptions{Name: "Bad_Name"}); err == nil {
		t.Error("a bad name was taken")
	}
}

func TestEightHostsAtOnce(t *testing.T) {
	ctx, w := newWorld(t)
	if _, err := world.RootFS(ctx, world.DefaultRelease, t.Output()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	results := make(chan error)
	for i := range 8 {
		go func() {
			_, err := w.AddHost(ctx, world.HostOptions{Name: fmt.Sprintf("web%d", i)})
			results <- err
		}()
	}
	for range 8 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	t.Logf("eight hosts are up after %v", time.Since(start).Round(time.Millisecond))
}

func TestNeedsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the stories need root: run go test as root")
	}
	self := copyOfTest(t)
	cmd := exec.Command(self, "-test.run=^TestEverybodyKnowsEverybody$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "needs root") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// copyOfTest is this very program, where everybody may run it.
func copyOfTest(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "world")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "world.test")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
