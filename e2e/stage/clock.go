package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/e2e/world"
)

// storyClock is read by e2e/shifted: two numbers of seconds. It is replaced by rename.
const storyClock = "/etc/story-clock"

// rootHalf is where the installer puts the root half's program.
const rootHalf = "/usr/lib/curfew/curfew-enforce"

// fakes builds e2e/shifted, once for all stories.
var fakes = sync.OnceValues(func() (dir string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(root, "bin")
	for _, argv := range [][]string{
		{"go", "build", "-o", dir + "/shifted", "./e2e/shifted"},
		{
			"gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", dir + "/story-clock.so",
			"e2e/shifted/preload/clock.c",
		},
	} {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("building what shifts clocks: %w\n%s", err, out)
		}
	}
	return dir, nil
})

// FakeClocks makes the clocks of an enrolled host the story's: from now on SetClocks moves them, for
// C programs and for the root half. PID 1, the link half and the kernel keep the true time.
func (s *Stage) FakeClocks(ctx context.Context, h *world.Host) error {
	dir, err := fakes()
	if err != nil {
		return err
	}
	if _, err := h.Shell(ctx, "systemctl stop curfew-gate.socket curfew-enforce.service; rm "+rootHalf); err != nil {
		return err
	}
	for from, to := range map[string]string{
		"shifted": rootHalf, "story-clock.so": "/usr/lib/story-clock.so",
	} {
		data, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			return err
		}
		if err := h.Write(to, data, 0o755); err != nil {
			return err
		}
	}
	if err := h.Write("/etc/ld.so.preload", []byte("/usr/lib/story-clock.so\n"), 0o644); err != nil {
		return err
	}
	if err := s.SetClocks(ctx, h, 0, 0); err != nil {
		return err
	}
	// A start is waited for, for two seconds only: on a slow machine it goes on after them.
	if _, err := h.Exec(ctx, "systemctl", "start", "--no-block", "curfew-enforce.service"); err != nil {
		return err
	}
	return s.Connected(ctx, h.Name())
}

// SetClocks moves a host's wall clock and boot-time clock away from the true ones, and wakes the
// root half's timers as the kernel does when a clock was set or the machine was suspended.
func (s *Stage) SetClocks(ctx context.Context, h *world.Host, wall, boot time.Duration) error {
	text := fmt.Sprintf("%d %d\n", wall/time.Second, boot/time.Second)
	if err := h.Replace(storyClock, []byte(text), 0o644); err != nil || h.PID() == 0 {
		return err // a host that is off boots with these clocks
	}
	processes, err := h.Processes(ctx)
	if err != nil {
		return err
	}
	for _, p := range processes {
		if strings.HasSuffix(p.Cmdline, rootHalf+" enforce") {
			return fireTimers(p.OuterPID)
		}
	}
	return nil // the root half is dead
}

// fireTimers makes all timerfds of a process fire now. The kernel does so to timers that carry
// TFD_TIMER_CANCEL_ON_SET when the wall clock is set, and to overdue ones on CLOCK_BOOTTIME when a
// machine wakes.
func fireTimers(pid int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("waking process %d: %w", pid, err)
	}
	defer unix.Close(process)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	fired := 0
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || to != "anon_inode:[timerfd]" {
			continue
		}
		var n int
		if _, err := fmt.Sscan(e.Name(), &n); err != nil {
			return err
		}
		fd, err := unix.PidfdGetfd(process, n, 0)
		if err != nil {
			return fmt.Errorf("taking timer %d of process %d: %w", n, pid, err)
		}
		now := unix.ItimerSpec{Value: unix.NsecToTimespec(1)}
		err = errors.Join(unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &now, nil), unix.Close(fd))
		if err != nil {
			return fmt.Errorf("firing timer %d of process %d: %w", n, pid, err)
		}
		fired++
	}
	if fired < 2 {
		return fmt.Errorf("process %d has %d timers; want one on each clock", pid, fired)
	}
	return nil
}
