package session

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	// Majors of Unix98 pseudo-terminals (Documentation/admin-guide/devices.txt), 256 minors each.
	firstPTS, lastPTS = 136, 143
	maxTerminals      = 64
)

// terminals returns the pseudo-terminals that the processes sit at, none twice.
func terminals(processes []process.Process) []uint64 {
	seen := make(map[uint64]bool)
	var found []uint64
	for _, p := range processes {
		major := unix.Major(p.TTY)
		if major < firstPTS || major > lastPTS || seen[p.TTY] || len(found) == maxTerminals {
			continue
		}
		seen[p.TTY] = true
		found = append(found, p.TTY)
	}
	return found
}

// writeTerminal writes a line on a pseudo-terminal. It never waits: a terminal that takes nothing
// (stopped by ^S, its other end hung) is not told.
func writeTerminal(device uint64, text string) error {
	number := (unix.Major(device)-firstPTS)*256 + unix.Minor(device)
	dir, err := unix.Open("/dev/pts", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /dev/pts: %w", err)
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH
	fd, err := unix.Openat(dir, strconv.FormatUint(uint64(number), 10),
		unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /dev/pts/%d: %w", number, err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != device) {
		err = errors.New("not the terminal that the process has")
	}
	if err == nil {
		_, err = unix.Write(fd, []byte("\r\n"+grant.VisibleText(text)+"\r\n"))
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("writing on /dev/pts/%d: %w", number, err)
	}
	return nil
}
