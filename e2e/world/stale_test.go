package world_test

import (
	"bufio"
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

// traces lists what a world is to be seen by on the machine. prefix is the world's.
func traces(t *testing.T, prefix string, networks map[string]bool) []string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, prefix) || strings.Contains(line, "nsfs") {
			found = append(found, "mount "+line)
		}
	}
	for _, pattern := range []string{
		filepath.Join(world.CacheDir(), "worlds", prefix+"*"), "/sys/fs/cgroup/" + prefix,
		"/sys/fs/cgroup/unified/" + prefix, "/run/netns/*" + prefix + "*", "/tmp/nspawn-root-*",
		"/run/systemd/nspawn/*/*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		group, _ := os.ReadFile(filepath.Join(p, "cgroup"))
		network, _ := os.Readlink(filepath.Join(p, "ns/net"))
		status, _ := os.ReadFile(filepath.Join(p, "status"))
		if strings.Contains(string(status), "State:\tZ") {
			continue // dead, and has nothing any more; waits for the machine's init to take notice
		}
		if strings.Contains(string(group), prefix) || networks[network] {
			command, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			found = append(found, fmt.Sprintf("process %s %q", p, command))
		}
	}
	loops, err := exec.Command("losetup", "--list", "--noheadings").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(loops), prefix) {
		found = append(found, "loop device "+string(loops))
	}
	return found
}

// wantNoTraces gives the kernel a moment: it unmounts and detaches in the background.
func wantNoTraces(t *testing.T, prefix string, networks map[string]bool) {
	t.Helper()
	var left []string
	for range 100 {
		if left = traces(t, prefix, networks); len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

// networksOf are the network namespaces of the world's processes.
func networksOf(t *testing.T, prefix string) map[string]bool {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	networks := make(map[string]bool)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		group, _ := os.ReadFile(filepath.Join(p, "cgroup"))
		network, _ := os.Readlink(filepath.Join(p, "ns/net"))
		if strings.Contains(string(group), prefix) && network != own && network != "" {
			networks[network] = true
		}
	}
	return networks
}

func TestCloseLeavesNothingBehind(t *testing.T) {
	ctx, w := newWorld(t)
	addHost(ctx, t, w, world.HostOptions{Name: "web1", Disk: true})
	ada := addLaptop(ctx, t, w, "ada")
	if _, _, _, err := ada.Run(ctx, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	prefix := filepath.Base(w.Dir())
	networks := networksOf(t, prefix)
	if len(networks) != 3 {
		t.Errorf("%d networks, want the switch's, the host's and the laptop's", len(networks))
	}
	if len(traces(t, prefix, networks)) == 0 {
		t.Error("an open world is not to be seen: this test looks in the wrong places")
	}
	start := time.Now()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	wantNoTraces(t, prefix, networks)
	if err := w.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	if _, err := w.AddHost(ctx, world.HostOptions{Name: "late"}); err == nil {
		t.Error("a closed world took a host")
	}
}

// TestMain also plays the victim: a process that makes a world and is killed by TestCleanStale.
func TestMain(m *testing.M) {
	if os.Getenv("WORLD_VICTIM") == "" {
		os.Exit(m.Run())
	}
	ctx := context.Background()
	w, err := world.New(ctx, world.Options{Name: "victim", Out: os.Stderr})
	if err == nil {
		_, err = w.AddHost(ctx, world.HostOptions{Name: "web1", Disk: true})
	}
	if err == nil {
		_, err = w.AddLaptop(ctx, "ada")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(filepath.Base(w.Dir()))
	select {}
}

func TestCleanStale(t *testing.T) {
	victim := exec.Command("/proc/self/exe")
	victim.Stderr = t.Output()
	victim.Env = append(os.Environ(), "WORLD_VICTIM=1")
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	prefix, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the victim made no world: %v, %v", err, victim.Wait())
	}
	prefix = strings.TrimSpace(prefix)
	networks := networksOf(t, prefix)
	if err := world.CleanStale(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(traces(t, prefix, networks)) == 0 {
		t.Fatal("a world in use was removed")
	}
	if err := victim.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	victim.Wait()
	if len(traces(t, prefix, networks)) == 0 {
		t.Fatal("nothing was left behind: this test looks in the wrong places")
	}
	if err := world.CleanStale(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantNoTraces(t, prefix, networks)
}
