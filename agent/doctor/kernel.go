package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernels that Curfew leans on: openat2(2), by which no link is followed, came with 5.6, and
// cgroup.kill, by which everything of a grant dies in one step, with 5.14.
var (
	oldest    = []int{5, 6}
	killsAll  = []int{5, 14}
	unified   = "sys/fs/cgroup/cgroup.controllers"
	hybrid    = "sys/fs/cgroup/unified/cgroup.controllers"
	pid1      = "run/systemd/private"
	isSystemd = "run/systemd/system"
)

// kernel looks at what ends processes and at what tells the time.
func (h Host) kernel(context.Context) []Finding {
	list := []Finding{{What: "kernel " + h.Kernel, Mend: "boot a kernel of 5.14 or later"}}
	switch {
	case before(h.Kernel, oldest):
		list[0].Err = errors.New("it has no openat2(2), which the agent opens every file by; 5.6 is the first")
	case before(h.Kernel, killsAll):
		list[0].Warning = true
		list[0].Err = errors.New("it has no cgroup.kill: grants are ended process by process, which is slower")
	}
	groups := Finding{
		What: "cgroup version 2", Mend: "boot with systemd.unified_cgroup_hierarchy=1",
	}
	if _, err := os.Stat(h.at(unified)); err != nil {
		groups.Err = errors.New("there is none at /sys/fs/cgroup: what a grant started cannot be told apart")
		if _, err := os.Stat(h.at(hybrid)); err == nil {
			groups.Err = nil
		}
	}
	list = append(list, groups)
	manager := Finding{What: "systemd is PID 1", Mend: "use a host that systemd runs"}
	if _, err := os.Stat(h.at(isSystemd)); err != nil {
		manager.Err = err
	} else if _, err := os.Stat(h.at(pid1)); err != nil {
		manager.Err = fmt.Errorf("its own socket is missing: %w", err)
		manager.Mend = "systemctl daemon-reexec"
	}
	return append(list, manager, Finding{
		What: "the clock is kept in time", Err: h.Clock(), Warning: true,
		Mend: "run a time daemon: apt-get install systemd-timesyncd (or chrony)",
	})
}

// before compares a kernel's release with a version. One that cannot be read is not before any.
func before(release string, version []int) bool {
	for i, part := range strings.SplitN(release, ".", len(version)+1)[:min(len(version),
		1+strings.Count(release, "."))] {
		end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		if end >= 0 {
			part = part[:end]
		}
		n, err := strconv.Atoi(part)
		if err != nil || n > version[i] {
			return false
		}
		if n < version[i] {
			return true
		}
	}
	return false
}

// Synchronised asks the kernel whether a time daemon keeps its clock (adjtimex(2)).
func Synchronised() error {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		return fmt.Errorf("asking for the clock's state: %w", err)
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return errors.New("the kernel says that nothing synchronises it; a grant that is opened by a wrong " +
			"clock ends by a wrong clock")
	}
	return nil
}
