package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func TestReadAgreesWithTheKernel(t *testing.T) {
	p, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.PPID != os.Getppid() || p.RealUID() != uint32(os.Getuid()) || p.Kernel || p.Dead() ||
		p.StartTicks == 0 {
		t.Errorf("%+v", p)
	}
	if _, err := Read(1 << 22); !errors.Is(err, ErrGone) {
		t.Errorf("no process: %v", err)
	}
	if p, err := Read(2); err != nil || !p.Kernel {
		t.Logf("pid 2 is no kernel thread here: %+v %v", p, err)
	}
}

// What the kernel says of somebody with thousands of groups is longer than one read, and no group of his
// is missed.
func TestNoGroupIsMissed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("groups are root's to set: run the tests as root")
	}
	const many = 5000
	cmd := exec.Command("sleep", "1000")
	groups := make([]uint32, many)
	for i := range groups {
		groups[i] = 1_000_000_000 + uint32(i)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: groups}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p, err := Read(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, gid := range groups {
		if !p.InGroup(gid) {
			t.Fatalf("group %d is missed of %d; %d bytes were read of the groups", gid, many, len(p.Groups))
		}
	}
}

// A process may call itself anything, also what looks like the end of its name.
func TestNamesDoNotMislead(t *testing.T) {
	var p Process
	evil := "4711 (x) R 1 1 1 0 (y)\n) S 42 4711 4711 34817 4711 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9876 0 0"
	if err := p.parseStat(evil); err != nil {
		t.Fatal(err)
	}
	if p.PPID != 42 || p.State != 'S' || p.StartTicks != 9876 || p.TTY != unix.Mkdev(136, 1) {
		t.Errorf("%+v", p)
	}
	for _, broken := range []string{"", "1 (x", "1 (x) S 1", ")(", "1 (x) S a 1 1 0 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"} {
		if err := p.parseStat(broken); err == nil {
			t.Errorf("%q was read", broken)
		}
	}
	if err := p.parseStat(strings.Replace(evil, " 34817 ", " -2013265919 ", 1)); err != nil ||
		unix.Major(p.TTY) != 0 && unix.Minor(p.TTY) < 256 {
		t.Errorf("a large minor: %d:%d %v", unix.Major(p.TTY), unix.Minor(p.TTY), err)
	}
}

// What the kernel says by a pidfd is what /proc says: the real uid, as which sudo was called, and not root, as
// which it acts.
func TestRealUIDIsTheRealOne(t *testing.T) {
	cmd := exec.Command("perl", "-e", `$< = 4242; print "$<\n"; close STDOUT; sleep 1000`)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said, err := io.ReadAll(out)
	if err != nil || string(said) != "4242\n" {
		t.Fatalf("the process says that it is %q, %v", said, err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	h := &Handle{PID: cmd.Process.Pid, fd: fd}
	defer h.Close()
	told, err := h.ask()
	if err != nil || told && h.RealUID != 4242 {
		t.Errorf("by the pidfd: uid %d, %v", h.RealUID, err)
	}
	if !told && kernelAtLeast(t, 6, 13) {
		t.Error("the kernel does not tell by the pidfd")
	}
	h.RealUID = 0
	if err := h.look(); err != nil || h.RealUID != 4242 {
		t.Errorf("in /proc: uid %d, %v", h.RealUID, err)
	}
	other := &Handle{PID: os.Getpid(), fd: fd}
	if err := other.identify(); told && err == nil {
		t.Error("a pidfd of one process speaks for another")
	}
}

func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var has [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &has[0], &has[1]); err != nil {
		t.Fatal(err)
	}
	return slices.Compare(has[:], []int{major, minor}) >= 0
}

func TestHandleFollowsOneProcess(t *testing.T) {
	cmd := sleeper(t)
	h, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.Ended() {
		t.Error("ended before its end")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for what lives: %v", err)
	}
	waited := make(chan error, 1)
	other, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() { waited <- other.Wait(t.Context()) }()
	name, err := h.Name()
	if err != nil || name != "sleep" || h.RealUID != uint32(os.Getuid()) {
		t.Errorf("held %q of uid %d, %v", name, h.RealUID, err)
	}
	if p, err := h.Read(); err != nil || p.PID != cmd.Process.Pid || p.Comm != name {
		t.Errorf("read %+v, %v", p, err)
	}
	if err := h.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-waited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Second):
		t.Fatal("the end was not noticed")
	}
	if _, err := h.Read(); !errors.Is(err, ErrGone) {
		t.Errorf("read again: %v", err)
	}
	_ = cmd.Wait()
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Errorf("opened again: %v", err)
	}
	if err := h.Kill(); err != nil {
		t.Errorf("killed again: %v", err)
	}
}

func TestAllFindsEverybodyOnce(t *testing.T) {
	cmd := sleeper(t)
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[int]int)
	for _, p := range all {
		seen[p.PID]++
	}
	if seen[cmd.Process.Pid] != 1 || seen[os.Getpid()] != 1 {
		t.Errorf("%d of %s, %d of mine", seen[cmd.Process.Pid], strconv.Itoa(cmd.Process.Pid), seen[os.Getpid()])
	}
	line, err := Arguments(cmd.Process.Pid, 100)
	if err != nil || line != "sleep 1000" {
		t.Errorf("%q %v", line, err)
	}
}
