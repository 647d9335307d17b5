// Package process reads processes from /proc and kills them without mistaking one for another.
//
// A pid is a number that the kernel gives to the next process as soon as the last one is gone; what
// names a process is (pid, start time), and what may be signalled is a pidfd that was opened before
// the start time was compared. The package reads and signals; it decides nothing.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Process is what /proc says of one process at one moment.
type Process struct {
	PID        int
	PPID       int
	StartTicks uint64 // since boot; field 22 of /proc/PID/stat
	Comm       string // as the process named itself: any bytes
	State      byte   // R, S, D, Z, …
	TTY        uint64 // device number of the controlling terminal, 0 when there is none
	// UIDs are the real, effective, saved and file-system uid.
	UIDs [4]uint32
	// GIDs are the real, effective, saved and file-system gid. Groups are the supplementary ones as the
	// kernel lists them, in decimal with spaces between: most who ask do not need them taken apart.
	GIDs   [4]uint32
	Groups string
	// LoginUID and AuditSession are NoAudit when unset or unknown to the kernel.
	LoginUID     uint32
	AuditSession uint32
	CGroup       string // path in the cgroup2 hierarchy, "" when there is none
	Kernel       bool   // a kernel thread
}

// NoAudit is the kernel's value for an unset loginuid or audit session.
const NoAudit uint32 = math.MaxUint32

// ErrGone means that the process does not exist, or is another one by now.
var ErrGone = errors.New("process is gone")

// Limits on what is read of one process, and on how many there can be.
const (
	maxFile      = 64 << 10
	maxProcesses = 1 << 22
)

const pfKthread = 0x00200000 // PF_KTHREAD of linux/sched.h

// RealUID is who started the process.
func (p Process) RealUID() uint32 { return p.UIDs[0] }

// Dead tells a process that runs no code any more and only waits for its parent to notice.
func (p Process) Dead() bool { return p.State == 'Z' || p.State == 'X' || p.State == 'x' }

// HasUID tells whether any of the four uids is uid.
func (p Process) HasUID(uid uint32) bool { return slices.Contains(p.UIDs[:], uid) }

// HasGID tells whether any of the four gids is gid.
func (p Process) HasGID(gid uint32) bool { return slices.Contains(p.GIDs[:], gid) }

// InGroup tells whether gid is among the supplementary groups.
func (p Process) InGroup(gid uint32) bool {
	want := strconv.FormatUint(uint64(gid), 10)
	for field := range strings.FieldsSeq(p.Groups) {
		if field == want {
			return true
		}
	}
	return false
}

// CGroupRoot is where the cgroup2 hierarchy is, which CGroup is a path in: below another folder where
// version 1 is still in charge.
var CGroupRoot = sync.OnceValue(func() string {
	const root, hybrid = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
	for _, dir := range []string{root, hybrid} {
		if _, err := os.Stat(dir + "/cgroup.controllers"); err == nil {
			return dir
		}
	}
	return root
})

// Same tells whether q is the same process as p, not just the same number.
func (p Process) Same(q Process) bool { return p.PID == q.PID && p.StartTicks == q.StartTicks }

// Read returns one process. ErrGone when there is none.
func Read(pid int) (Process, error) {
	p := Process{PID: pid, LoginUID: NoAudit, AuditSession: NoAudit}
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return p, gone(pid, err)
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH
	// All files are read through one descriptor, which fails once this very process is reaped.
	for _, f := range []struct {
		name     string
		parse    func(*Process, string) error
		optional bool
	}{
		{"stat", (*Process).parseStat, false},
		{"status", (*Process).parseStatus, false},
		{"cgroup", (*Process).parseCGroup, false},
		{"loginuid", (*Process).parseLoginUID, true},
		{"sessionid", (*Process).parseSession, true},
	} {
		text, err := readAt(dir, f.name)
		if f.optional && errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without audit
		}
		if err != nil {
			return p, gone(pid, err)
		}
		if err := f.parse(&p, text); err != nil {
			return p, fmt.Errorf("reading %s of process %d: %w", f.name, pid, err)
		}
	}
	return p, nil
}

func gone(pid int, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	return fmt.Errorf("reading process %d: %w", pid, err)
}

func readAt(dir int, name string) (string, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }() // read only
	// Every login and every sudo waits for this: no poller, and one read where one is enough. Each of
	// these files is one record, which the kernel hands out whole or up to the buffer's end.
	var buf [4096]byte
	var text []byte
	for len(text) < maxFile {
		n, err := unix.Read(fd, buf[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		text = append(text, buf[:n]...)
		if n < len(buf) {
			break
		}
	}
	return string(text), nil
}

// parseStat reads proc(5)'s stat. The name stands in parentheses and may hold any byte, so the
// fields begin after the last one.
func (p *Process) parseStat(text string) error {
	end := strings.LastIndexByte(text, ')')
	begin := strings.IndexByte(text, '(')
	if begin < 0 || end < begin {
		return errors.New("no name")
	}
	p.Comm = text[begin+1 : end]
	fields := strings.Fields(text[end+1:])
	if len(fields) < 20 || len(fields[0]) != 1 {
		return errors.New("too few fields")
	}
	p.State = fields[0][0]
	var flags uint64
	var tty int64
	var errs [4]error
	p.PPID, errs[0] = strconv.Atoi(fields[1])
	tty, errs[1] = strconv.ParseInt(fields[4], 10, 64)
	flags, errs[2] = strconv.ParseUint(fields[6], 10, 64)
	p.StartTicks, errs[3] = strconv.ParseUint(fields[19], 10, 64)
	p.Kernel = flags&pfKthread != 0
	// The kernel prints the 32 bits signed; minor's upper bits stand above major's.
	dev := uint32(tty)
	p.TTY = unix.Mkdev(dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)
	if dev == 0 {
		p.TTY = 0
	}
	return errors.Join(errs[:]...)
}

func (p *Process) parseStatus(text string) error {
	var uids, gids bool
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		var err error
		switch name {
		case "Uid":
			uids, err = true, parseFour(&p.UIDs, value)
		case "Gid":
			gids, err = true, parseFour(&p.GIDs, value)
		case "Groups": // follows the other two
			p.Groups = strings.Clone(strings.TrimSpace(value)) // not the whole text with it
		}
		if err != nil {
			return err
		}
	}
	if !uids || !gids {
		return errors.New("no uids or gids")
	}
	return nil
}

func parseFour(into *[4]uint32, text string) error {
	fields := strings.Fields(text)
	if len(fields) != len(into) {
		return fmt.Errorf("%d ids", len(fields))
	}
	for i, f := range fields {
		id, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return err
		}
		into[i] = uint32(id)
	}
	return nil
}

func (p *Process) parseCGroup(text string) error {
	for line := range strings.Lines(text) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			p.CGroup = strings.TrimSuffix(path, "\n")
		}
	}
	return nil
}

func (p *Process) parseLoginUID(text string) (err error) {
	p.LoginUID, err = parseID(text)
	return err
}

func (p *Process) parseSession(text string) (err error) {
	p.AuditSession, err = parseID(text)
	return err
}

func parseID(text string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	return uint32(n), err
}

// All returns every process but kernel threads. What ends while it is looked at is left out; any
// other error is returned beside what could be read.
func All() ([]Process, error) {
	pids, err := pids()
	if err != nil {
		return nil, err
	}
	all := make([]Process, 0, len(pids))
	var errs []error
	for _, pid := range pids {
		p, err := Read(pid)
		switch {
		case errors.Is(err, ErrGone) || err == nil && p.Kernel:
		case err != nil:
			errs = append(errs, err)
		default:
			all = append(all, p)
		}
	}
	return all, errors.Join(errs[:min(len(errs), 8)]...)
}

func pids() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer func() { _ = dir.Close() }() // read only
	names, err := dir.Readdirnames(maxProcesses)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Arguments returns a process's command line, at most limit bytes of it, arguments joined by spaces.
func Arguments(pid, limit int) (string, error) {
	file, err := os.Open("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return "", gone(pid, err)
	}
	defer func() { _ = file.Close() }() // read only
	text, err := io.ReadAll(io.LimitReader(file, int64(limit)))
	if err != nil {
		return "", gone(pid, err)
	}
	return string(bytes.TrimSpace(bytes.ReplaceAll(text, []byte{0}, []byte{' '}))), nil
}
