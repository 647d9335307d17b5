package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An anchor is a process that only sleeps, so that the namespaces it made stay alive and others can
// enter them. Killing it is all it takes to have every mount in them undone.
type anchor struct {
	cmd *exec.Cmd
}

// drop starts an anchor: program (with its leading nsenter or unshare) runs script by sh, which
// prepares the namespaces. It lives in the given cgroup.
func drop(
	ctx context.Context, in cgroup, program []string, script string, args ...string,
) (*anchor, error) {
	group, err := os.Open(string(in))
	if err != nil {
		return nil, err
	}
	defer group.Close()
	argv := append(program, "sh", "-euc", script+"\necho ready\nexec sleep infinity", "sh")
	argv = append(argv, args...)
	// No CommandContext: the anchor outlives the call. It ends with its cgroup.
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = rootEnv
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	ready, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(ready, make([]byte, len("ready\n")))
		said <- err
	}()
	select {
	case err = <-said:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("preparing namespaces: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return &anchor{cmd: cmd}, nil
}

func (a *anchor) pid() int { return a.cmd.Process.Pid }

// ns is the path of one of the anchor's namespaces: "net", "mnt".
func (a *anchor) ns(kind string) string {
	return proc(a.pid(), "ns", kind)
}

// root is the anchor's root folder, seen from outside.
func (a *anchor) root() string {
	return proc(a.pid(), "root")
}

// enter is the beginning of a command line which runs the rest in the anchor's mount and network
// namespaces.
func (a *anchor) enter(flags ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(a.pid()), "-m", "-n"}, flags...)
}

// sh runs a script in the anchor's namespaces.
func (a *anchor) sh(ctx context.Context, script string, args ...string) error {
	argv := append(a.enter(), "sh", "-euc", script, "sh")
	argv = append(argv, args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = rootEnv
	_, err := output(cmd)
	return err
}

// unaudited makes a command line drop the audit identity of whoever runs the stories. A host that
// inherited it would take all of its services for that person's.
func unaudited(argv []string) []string {
	const unset = "4294967295" // (uint32)-1: pam_loginuid(8), audit_setloginuid(3)
	own, err := os.ReadFile("/proc/self/loginuid")
	if err != nil || string(own) == unset {
		return argv
	}
	const script = `echo ` + unset + ` >/proc/self/loginuid; exec "$@"`
	return append([]string{"sh", "-euc", script, "sh"}, argv...)
}

// rootEnv is the whole environment of what runs as root: nothing leaks in from the caller's.
var rootEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8", "TERM=dumb",
}

// output runs cmd and returns its standard output; an error carries the end of standard error.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if said := tail(stderr.String(), 4<<10); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return stdout.Bytes(), err
}

// tail is the end of s, at most n bytes, without surrounding space.
func tail(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = "…" + s[len(s)-n:]
	}
	return s
}

// stoppable makes the end of ctx kill cmd's whole process group: nsenter's child as well, which
// would otherwise live on alone in its host. Session leaders have no terminal to ask at.
func stoppable(cmd *exec.Cmd) *exec.Cmd {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = 10 * time.Second // a starved machine reads the last line late
	return cmd
}

// proc is a path in the machine's /proc.
func proc(pid int, parts ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(pid)}, parts...)...)
}
