// Package doctor looks over a host for everything that enforcement leans on, and says of each thing that
// is not as it should be how to mend it.
//
// It reads files below a root folder and asks the host's own programs (sshd -T, cvtsudoers); it changes
// nothing, and decides nothing about access. `curfew-agent doctor` prints what it finds, and
// `curfew-agent enforce-on` goes no further while one of the findings is a problem. What the root half
// says of itself and what the link half needs is asked by the command (internal/agentcli).
package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A Finding is one thing that was looked at.
type Finding struct {
	// What was looked at, in a few words.
	What string
	// Err says what is wrong; nil is good.
	Err error
	// Mend is what to type or to change. It is empty only where nothing can be said.
	Mend string
	// Warning marks what does not keep a host from enforcing, and should be known all the same.
	Warning bool
}

// Bad tells whether enforcement must not begin with this.
func (f Finding) Bad() bool { return f.Err != nil && !f.Warning }

// Host is what is looked at.
type Host struct {
	// Root is the folder that all paths start from, "/" on a host.
	Root string
	// Run runs one of the host's programs and returns what it printed.
	Run func(ctx context.Context, argv ...string) (stdout []byte, err error)
	// Clock is the kernel's word on the clock: Synchronised on a host.
	Clock func() error
	// Kernel is the release that runs, as in "6.1.0-18-amd64".
	Kernel string
	// Gated and Elevate are the local people whom agent.yaml names, BreakGlass is its group.
	Gated, Elevate []string
	BreakGlass     string
	HomeRoot       string
}

// Here is the host that this program runs on.
func Here() (Host, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Host{}, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	return Host{
		Root: "/", Run: Run, Clock: Synchronised, Kernel: unix.ByteSliceToString(name.Release[:]),
		BreakGlass: "curfew-breakglass", HomeRoot: "/home",
	}, nil
}

// Look looks at everything, in the order in which one would mend it.
func Look(ctx context.Context, h Host) []Finding {
	var list []Finding
	for _, part := range []func(context.Context) []Finding{
		h.installed, h.names, h.stacks, h.sshd, h.sudo, h.confinement, h.kernel, h.people,
	} {
		list = append(list, part(ctx)...)
	}
	return list
}

func (h Host) at(name string) string { return filepath.Join(h.Root, name) }

const (
	toolTimeout = 10 * time.Second
	maxFile     = 4 << 20
)

// Run runs a program of the host's, for ten seconds at most, and returns what it printed.
func Run(ctx context.Context, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("running %s: %w: %s", filepath.Base(argv[0]), err,
			bytes.TrimSpace(complaint.Bytes()[:min(complaint.Len(), 500)]))
	}
	return out, nil
}

// read returns a file that is not larger than anybody writes by hand.
func (h Host) read(name string) (string, error) {
	// Not blocking: a pipe in the file's place must not hang the look.
	file, err := os.OpenFile(h.at(name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err = errors.Join(err, file.Close()); err != nil {
		return "", err
	}
	if len(data) > maxFile {
		return "", fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	return string(data), nil
}

// setup is what puts Curfew's lines back.
const setup = "/usr/lib/curfew/setup agent"

// setupPAM does so for PAM, or says what to type where authselect(8) keeps the stacks.
const setupPAM = "/usr/lib/curfew/setup-pam"
