package world

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A Process is one of a host's, as /proc shows it. Ids of processes are the host's own, except
// OuterPID. LoginUID and SessionID are -1 when unset.
type Process struct {
	PID, PPID int
	OuterPID  int // the machine's id of it: what the test may send signals to
	UID, EUID int
	LoginUID  int
	SessionID int    // of the audit subsystem, not logind's
	CGroup    string // path of its cgroup as the host sees it
	Comm      string
	Cmdline   string // arguments, joined with spaces
}

// Processes lists the host's processes, from outside: the host is not disturbed, and cannot hide
// any. What exits while it is read is left out, and so are zombies.
func (h *Host) Processes(ctx context.Context) ([]Process, error) {
	b, err := h.running()
	if err != nil {
		return nil, err
	}
	var all []Process
	inner := make(map[int]int) // the host's id of each process by the machine's
	top := h.groups(b)
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if vanished(err) || err == nil && d.Name() != "cgroup.procs" {
			return nil
		}
		pids, err := os.ReadFile(path)
		if vanished(err) {
			return nil
		} else if err != nil {
			return err
		}
		group := "/" + strings.TrimPrefix(strings.TrimPrefix(filepath.Dir(path), top), "/")
		for field := range strings.FieldsSeq(string(pids)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			p, err := readProcess(pid)
			if vanished(err) {
				continue
			} else if err != nil {
				return fmt.Errorf("reading process %d: %w", pid, err)
			}
			p.CGroup = group
			inner[p.OuterPID] = p.PID
			all = append(all, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing processes of %s: %w", h.name, err)
	}
	for i := range all {
		all[i].PPID = inner[all[i].PPID]
	}
	return all, nil
}

// vanished says whether an error means that a process or a cgroup ended while it was looked at.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, errGone)
}

// readProcess reads one process by the machine's id. PPID is still the machine's as well.
func readProcess(pid int) (Process, error) {
	p := Process{OuterPID: pid}
	status, err := os.ReadFile(proc(pid, "status"))
	if err != nil {
		return p, err
	}
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(value)
		switch {
		case key == "Name":
			p.Comm = strings.TrimSpace(value)
		case key == "PPid" && len(fields) == 1:
			p.PPID, err = strconv.Atoi(fields[0])
		case key == "Uid" && len(fields) == 4:
			p.UID, p.EUID, err = twoInts(fields[0], fields[1])
		case key == "NSpid" && len(fields) > 1:
			// The first is ours, the second the host's; more if the host has namespaces of its own.
			p.PID, err = strconv.Atoi(fields[1])
		}
		if err != nil {
			return p, fmt.Errorf("%s: %w", lines.Text(), err)
		}
	}
	cmdline, err := os.ReadFile(proc(pid, "cmdline"))
	if err != nil {
		return p, err
	}
	p.Cmdline = string(bytes.TrimSpace(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	login, err := os.ReadFile(proc(pid, "loginuid"))
	if err != nil {
		return p, err
	}
	session, err := os.ReadFile(proc(pid, "sessionid"))
	if err != nil {
		return p, err
	}
	p.LoginUID, p.SessionID, err = twoInts(string(login), string(session))
	return p, err
}

// twoInts parses two ids, of which (uint32)-1 means none.
func twoInts(a, b string) (int, int, error) {
	x, errX := strconv.ParseUint(a, 10, 32)
	y, errY := strconv.ParseUint(b, 10, 32)
	return id(x), id(y), errors.Join(errX, errY)
}

func id(n uint64) int {
	if n == 1<<32-1 {
		return -1
	}
	return int(n)
}
