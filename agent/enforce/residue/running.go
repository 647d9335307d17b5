package residue

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
)

// startedBy is what begins the path of a process that a job or a login started.
const startedBy = "started by a job or a login, pid "

// running notes the control groups that processes stand in. A group that is made anew, because its
// unit was started, has another inode.
//
// That is what can be told of other daemons' children: what PID 1 or a container manager started for
// somebody stands in a group that is new, and a job of atd's or cron's has an audit identity. A child
// that an old daemon forked on a client's word looks like any other child of it, and is not found.
func (t *taker) running(sinceTicks uint64) {
	all, err := process.All()
	if err != nil && len(all) == 0 {
		t.cut("processes: " + err.Error())
		return
	}
	for _, p := range all {
		if p.Dead() || theirOwn(p.CGroup) || len(t.inv.Entries) >= maxEntries {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(process.CGroupRoot()+p.CGroup, &st) != nil {
			continue // it is gone meanwhile
		}
		key := "runs in " + show(p.CGroup)
		if _, known := t.inv.Entries[key]; !known {
			t.inv.Entries[key] = Entry{
				Kind: KindProcess, Sum: strconv.FormatUint(st.Ino, 10), Who: named(p),
			}
		}
		job := p.LoginUID != process.NoAudit && !inside(p.CGroup, "/user.slice")
		if job && p.StartTicks >= sinceTicks && sinceTicks > 0 {
			t.inv.Entries[startedBy+strconv.Itoa(p.PID)] = Entry{
				Kind: KindProcess, Sum: strconv.FormatUint(p.StartTicks, 10), Who: named(p),
			}
		}
	}
}

func named(p process.Process) string {
	return fmt.Sprintf("%s (pid %d, uid %d)", grant.VisibleText(p.Comm), p.PID, p.RealUID())
}

// theirOwn tells groups that are somebody's session, or Curfew's. Sessions of the grant are dead;
// those of other people are none of its residue. Root's own manager is looked at.
func theirOwn(cgroup string) bool {
	base := filepath.Base(cgroup)
	if strings.HasPrefix(cgroup, "/user.slice/") {
		return !strings.HasPrefix(cgroup, "/user.slice/user-0.slice/user@0.service")
	}
	return strings.HasPrefix(base, "curfew-") || cgroup == "" || cgroup == "/" ||
		cgroup == "/init.scope"
}

// capability tells whether a file gives whoever runs it capabilities (xattr security.capability).
func capability(f found) bool {
	if f.stat.Mode&0o111 == 0 {
		return false
	}
	n, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", f.dir, f.name),
		"security.capability", nil)
	return err == nil && n > 0
}
