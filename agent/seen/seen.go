// Package seen tells who logs in and who uses sudo on a host that only observes, so that observing pays
// before anybody is managed: `curfew report` says who uses what, and which role would cover it.
//
// It reads the host's journal through journalctl, and there only what processes of root's logged to the
// authentication facilities, and sudo: pam_unix's word that a session was opened, and sudo's line of a command.
// People whom Curfew does not manage are never made to wait for that, or for the agent. What they type is
// in these lines, so that they are read as text for a report, and nothing is decided by them.
package seen

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// trusted are the lines that are read: journald knows the uid and the program, whatever a line says. Sudo
// still has its caller's real uid when it logs.
var trusted = []string{
	"_UID=0", "SYSLOG_FACILITY=10", "SYSLOG_FACILITY=4", "+",
	"_EXE=/usr/bin/sudo", "_EXE=/usr/bin/sudo-rs", "_EXE=/usr/lib/cargo/bin/sudo",
}

// Limits on one look.
const (
	maxLook  = 4 << 20
	maxLine  = 64 << 10
	lookTime = 10 * time.Second
)

// Use is one login, or one command by sudo.
type Use struct {
	At      time.Time
	Login   string
	Service string // the PAM service
	As      string // who the command ran as, or whom su became
	Command string // of sudo
}

// Journal reads a host's journal from where it stood.
type Journal struct {
	// Program is journalctl.
	Program string
	// Cursor is where it stands; empty is the beginning of what is wanted.
	Cursor string
}

// Look returns what was used since the last look, or since a time at the first. There is more when it
// says so. The cursor moves with what is returned.
func (j *Journal) Look(ctx context.Context, since time.Time) (list []Use, more bool, err error) {
	args := []string{
		"--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE,_COMM",
	}
	args = append(args, trusted...)
	if j.Cursor != "" {
		args = append(args, "--after-cursor="+j.Cursor)
	} else {
		args = append(args, fmt.Sprintf("--since=@%d", since.Unix()))
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, j.Program, args...)
	cmd.Env, cmd.Dir, cmd.WaitDelay = []string{"LC_ALL=C", "TZ=UTC"}, "/", time.Second
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading the journal: %w", err)
	}
	list, more, err = j.read(out)
	if more || err != nil {
		cancel() // it need not write the rest
		_ = cmd.Wait()
		return list, more, err
	}
	if err := cmd.Wait(); err != nil {
		return list, false, fmt.Errorf("reading the journal: %w: %.200s", err, complaint.Bytes())
	}
	return list, false, nil
}

// read takes lines of journalctl --output=json.
func (j *Journal) read(r io.Reader) (list []Use, more bool, err error) {
	limited := &io.LimitedReader{R: r, N: maxLook}
	in := bufio.NewReaderSize(limited, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull): // no line of ours is so long
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = in.ReadSlice('\n')
			}
			if err == nil {
				continue
			}
		case err == nil:
			var e entry
			if json.Unmarshal(line, &e) != nil || e.Cursor == "" {
				continue // what is not text comes as an array
			}
			j.Cursor = e.Cursor
			if u, ok := e.use(); ok {
				list = append(list, u)
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			return list, limited.N == 0, nil
		}
		return list, false, fmt.Errorf("reading the journal: %w", err)
	}
}

// entry is one line. What is not valid text in the journal, and what is very long, is no string here.
type entry struct {
	Cursor  string          `json:"__CURSOR"`
	Time    string          `json:"__REALTIME_TIMESTAMP"` // µs
	Comm    json.RawMessage `json:"_COMM"`
	Message json.RawMessage `json:"MESSAGE"`
}

func (e entry) use() (u Use, ok bool) {
	var comm, message string
	us, err := strconv.ParseInt(e.Time, 10, 64)
	if err = errors.Join(err, json.Unmarshal(e.Comm, &comm), json.Unmarshal(e.Message, &message)); err != nil {
		return u, false
	}
	if comm == "sudo" {
		if u, ok = command(message); ok {
			u.At = time.UnixMicro(us)
			return u, true
		}
	}
	u, ok = session(message)
	u.At = time.UnixMicro(us)
	return u, ok
}

// opened is what pam_unix says, before Linux-PAM 1.4.1 without the first uid.
var opened = regexp.MustCompile(`^pam_unix\(([A-Za-z0-9_.-]+):session\): session opened for user ` +
	`([^\s()]+)(?:\(uid=\d+\))? by ([^\s()]*)\(uid=\d+\)$`)

// others open sessions, too, and nobody logs in by that. Sudo's have lines of their own.
var others = map[string]bool{
	"sudo": true, "sudo-i": true, "cron": true, "crond": true, "atd": true, "systemd-user": true,
	"runuser": true, "runuser-l": true, "polkit-1": true,
}

func session(message string) (u Use, ok bool) {
	m := opened.FindStringSubmatch(message)
	if m == nil || others[m[1]] {
		return u, false
	}
	u = Use{Service: m[1], Login: m[2]}
	if u.Service == "su" || u.Service == "su-l" {
		if m[3] == "" {
			return u, false
		}
		u.Login, u.As = m[3], m[2]
	}
	return u, true
}

// command reads sudo's line, "lou : TTY=pts/0 ; PWD=/home/lou ; USER=root ; COMMAND=/usr/bin/id -u", which
// says instead of TTY or PWD why nothing ran where nothing did.
func command(message string) (u Use, ok bool) {
	login, rest, ok := strings.Cut(strings.TrimSpace(message), " : ")
	if !ok || strings.ContainsAny(login, " \t") {
		return u, false
	}
	before, what, ok := strings.Cut(rest, " ; COMMAND=")
	if !ok {
		return u, false
	}
	u = Use{Service: "sudo", Login: login, As: "root", Command: strings.TrimSpace(what)}
	for field := range strings.SplitSeq(before, " ; ") {
		name, value, ok := strings.Cut(field, "=")
		if !ok || name == "" || strings.ToUpper(name) != name || strings.Contains(name, " ") {
			return u, false
		}
		if name == "USER" {
			u.As = value
		}
	}
	return u, u.Command != ""
}
