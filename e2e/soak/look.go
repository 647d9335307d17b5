package soak

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/curfew-access/curfew/e2e/world"
)

// The uids of Curfew accounts, as agent.yaml has them by default.
const (
	uidMin = 1900000000
	uidMax = 1999999999
)

func ours(uid int) bool { return uid >= uidMin && uid <= uidMax }

// A trace is something of a login's that is on a host.
type trace struct {
	login string // "#UID" where the uid is nobody's, "?" where a rule names nobody
	what  string
}

var ruleLogin = regexp.MustCompile(`(?m)^([a-z_][a-z0-9_.-]*) ALL=`)

// traces are the rules, keys and processes of Curfew's on a host, seen from outside: the host is not
// disturbed. people says whose a uid is.
func traces(ctx context.Context, h *world.Host, people map[int]string) ([]trace, error) {
	var found []trace
	run := fmt.Sprintf("/proc/%d/root/run/curfew", h.PID())
	rules, err := os.ReadDir(filepath.Join(run, "sudoers.d"))
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		if strings.HasPrefix(r.Name(), ".") {
			continue // on its way, and no sudo reads it
		}
		text, err := os.ReadFile(filepath.Join(run, "sudoers.d", r.Name()))
		if os.IsNotExist(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		login := "?"
		if m := ruleLogin.FindSubmatch(text); m != nil {
			login = string(m[1])
		}
		found = append(found, trace{login, "rule " + r.Name()})
	}
	keys, err := os.ReadDir(filepath.Join(run, "keys"))
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if !strings.HasPrefix(k.Name(), ".") {
			found = append(found, trace{k.Name(), "key"})
		}
	}
	processes, err := h.Processes(ctx)
	for _, p := range processes {
		for _, uid := range []int{p.UID, p.EUID, p.LoginUID} {
			if ours(uid) {
				found = append(found, trace{owner(uid, people), fmt.Sprintf(
					"process %d (uid %d, login uid %d, %s) in %s", p.PID, p.UID, p.LoginUID,
					p.Cmdline, p.CGroup)})
				break
			}
		}
	}
	return found, err
}

func owner(uid int, people map[int]string) string {
	if name := people[uid]; name != "" {
		return name
	}
	return "#" + strconv.Itoa(uid)
}

// An Inventory is all that is compared of one host.
type Inventory struct {
	// Things are named singly: a rule, an account, a unit, a residue file, a unit of systemd's.
	Things []string
	// Processes counts the host's processes by name.
	Processes map[string]int
	// UIDs is the agent's table of logins and uids.
	UIDs map[string]int
	// Descriptors and MiB of daemons and folders, by name.
	Descriptors map[string]int
	MiB         map[string]float64
}

// thingsScript prints one line per thing that only a live grant may have, or that nobody may have.
const thingsScript = `
cd /
find /run/curfew/sudoers.d /run/curfew/keys /run/curfew/sessions -mindepth 1 -printf 'file %p\n' 2>/dev/null
getent passwd | awk -F: '$3 >= 1900000000 && $3 <= 1999999999 && $7 !~ /nologin$/ {print "account " $1}'
getent passwd | awk -F: '$3 >= 1900000000 && $3 <= 1999999999 && $7 ~ /nologin$/ {print "closed account " $1}'
getent group | awk -F: '$3 >= 1900000000 && $3 <= 1999999999 {print "group " $1}'
awk -F: '$3 >= 1900000000 && $3 <= 1999999999 {print "passwd line " $1}' /etc/passwd
systemctl list-units --all --no-legend --plain 'curfew-*.scope' 'curfew-end-*' 'user-19*' 'user@19*' \
  'user-runtime-dir@19*' | awk '{print "unit " $1}'
loginctl list-sessions --no-legend | awk '$2 >= 1900000000 {print "login session of " $3}'
ls -A /var/lib/systemd/linger 2>/dev/null | sed 's/^/linger /'
ls -A /run/sudo/ts /var/spool/cron/crontabs 2>/dev/null | grep -v : | grep . | sed 's/^/spool /'
find /var/spool/cron/atjobs -name 'a*' -type f -printf 'at job %p\n' 2>/dev/null
find /tmp /var/tmp /dev/shm -xdev -uid +1899999999 -perm /6000 -printf 'setuid file %p\n' 2>/dev/null
ls -d /run/user/19* 2>/dev/null | sed 's/^/folder /'
ipcs -m -q -s | awk '$3 >= 1900000000 {print "ipc " $2}'
findmnt -rno TARGET | grep -E '/run/user/19|/home/' | sed 's/^/mount /'
find /etc/sudoers.d /etc/cron.d /etc/systemd/system -newer /etc/curfew/.soak -type f -printf 'new file %p\n'
ss -Hxl | awk '{print $5}' | grep -E 'curfew' | sed 's/^/socket /' | sort
exit 0`

// Take makes the inventory of a host.
func Take(ctx context.Context, h *world.Host) (Inventory, error) {
	in := Inventory{
		Processes: make(map[string]int), UIDs: make(map[string]int),
		Descriptors: make(map[string]int), MiB: make(map[string]float64),
	}
	out, err := h.Exec(ctx, "bash", "-c", thingsScript)
	if err != nil {
		return in, fmt.Errorf("looking at %s: %w", h.Name(), err)
	}
	in.Things = nonEmpty(string(out))
	processes, err := h.Processes(ctx)
	if err != nil {
		return in, err
	}
	for _, p := range processes {
		if strings.HasSuffix(p.CGroup, "/from-outside.service") {
			continue // the soak's own hands
		}
		in.Processes[p.Comm]++
		if name := daemon(p); name != "" {
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.OuterPID))
			if err != nil {
				return in, fmt.Errorf("descriptors of %s: %w", name, err)
			}
			in.Descriptors[name] += len(fds)
			resident, err := vmRSS(p.OuterPID)
			if err != nil {
				return in, err
			}
			in.MiB[name] += resident
		}
	}
	for name, dir := range map[string]string{"/run/curfew": "/run/curfew", "/var/lib/curfew": "/var/lib/curfew"} {
		if in.MiB[name], err = folderMiB(fmt.Sprintf("/proc/%d/root%s", h.PID(), dir)); err != nil {
			return in, err
		}
	}
	in.UIDs, err = uidTable(h)
	return in, err
}

// daemon names the processes whose descriptors and memory are compared.
func daemon(p world.Process) string {
	switch {
	case strings.HasSuffix(p.CGroup, "/curfew-enforce.service"):
		return "root half"
	case strings.HasSuffix(p.CGroup, "/curfew-link.service"):
		return "link half"
	case strings.HasSuffix(p.CGroup, "/curfew-controlplane.service"):
		return "control plane"
	case p.PID == 1:
		return "systemd"
	case p.Comm == "systemd-logind" || p.Comm == "dbus-daemon" || p.Comm == "cron":
		return p.Comm
	}
	return ""
}

func vmRSS(pid int) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}

func folderMiB(dir string) (float64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // what goes meanwhile counts nothing
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return nil
	})
	return float64(total) / (1 << 20), err
}

var uidEntry = regexp.MustCompile(`"([a-z_][a-z0-9_.-]*)":(\d{10})`)

// uidTable reads which login has which uid from the agent's own store.
func uidTable(h *world.Host) (map[string]int, error) {
	table := make(map[string]int)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/var/lib/curfew/uids.json", h.PID()))
	if os.IsNotExist(err) {
		return table, nil
	}
	for _, m := range uidEntry.FindAllStringSubmatch(string(text), -1) {
		table[m[1]], _ = strconv.Atoi(m[2])
	}
	return table, err
}

func nonEmpty(s string) []string {
	lines := slices.DeleteFunc(strings.Split(s, "\n"), func(l string) bool {
		return strings.TrimSpace(l) == ""
	})
	slices.Sort(lines)
	return lines
}
