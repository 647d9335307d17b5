package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// HostOptions describe a host.
type HostOptions struct {
	Name    string            // lower-case; also the host name inside
	Release string            // a Debian release out of Releases; empty is DefaultRelease
	With    []string          // Debian packages beside those that every host has
	Labels  map[string]string // kept for the story, of no meaning here
	// Hybrid gives the host version 1 of control groups at /sys/fs/cgroup, and version 2 below it.
	Hybrid bool

	// Install puts files into the host before its first boot. root is the host's root folder, good
	// for opening, copying and chroot(8); resolving it (realpath, EvalSymlinks) leads astray.
	Install func(root string) error
	// Build is a script that the image runs after that, with its root as its own, as an image builder does.
	Build string

	Disk bool // give it a disk of its own, for PowerLoss to cut off from its power
	Off  bool // leave the host switched off: Start boots it
}

// A Host is a Debian machine. It keeps its disk, address and identity through reboots.
type Host struct {
	plug
	Release string
	Labels  map[string]string

	cgroup cgroup
	disk   disk
	hybrid bool

	starting sync.Mutex // held during a whole boot, so that there is one at a time

	mu   sync.Mutex // guards boot
	boot *boot      // nil while the host is off
}

// boot is one life of a host, from power on to power off.
type boot struct {
	pid1  int           // seen from outside
	execs int           // descriptor of the cgroup for what Cmd starts
	ended chan struct{} // closed when nothing of it runs any more
	err   error         // nspawn's, valid after ended
}

// AddHost makes a host, announces its name in the world, and boots it. When it returns the host has
// finished booting and its sshd listens.
func (w *World) AddHost(ctx context.Context, o HostOptions) (*Host, error) {
	h, err := w.addHost(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("adding host %s: %w", o.Name, err)
	}
	if o.Off {
		return h, nil
	}
	return h, h.Start(ctx)
}

func (w *World) addHost(ctx context.Context, o HostOptions) (*Host, error) {
	if o.Release == "" {
		o.Release = DefaultRelease
	}
	lower, err := RootFS(ctx, o.Release, w.out, o.With...)
	if err != nil {
		return nil, err
	}
	h := &Host{Release: o.Release, Labels: o.Labels, hybrid: o.Hybrid}
	if h.plug, err = w.reserve(o.Name); err != nil {
		return nil, err
	}
	if h.cgroup, err = w.cgroup.child("host-" + h.name); err != nil {
		return nil, err
	}
	if err := h.mount(ctx, lower, o.Disk); err != nil {
		return nil, fmt.Errorf("mounting its disk: %w", err)
	}
	netns := "/run/world/net/" + h.name
	if err := w.stage.sh(ctx, `: >"$1"; unshare --net="$1" true`, netns); err != nil {
		return nil, fmt.Errorf("making its network: %w", err)
	}
	if err := h.connect(ctx, netns); err != nil {
		return nil, fmt.Errorf("plugging it in: %w", err)
	}
	if err := h.identify(ctx); err != nil {
		return nil, fmt.Errorf("giving it an identity: %w", err)
	}
	if o.Install != nil {
		if err := o.Install(h.diskRoot()); err != nil {
			return nil, fmt.Errorf("installing: %w", err)
		}
	}
	if o.Build != "" {
		const build = `unshare --mount sh -ec 'mount -t proc proc "$1/proc"; exec chroot "$1" sh -ec "$2"' sh "$1" "$2"`
		if err := h.w.stage.sh(ctx, build, h.inStage()+"/root", o.Build); err != nil {
			return nil, fmt.Errorf("building its image: %w", err)
		}
	}
	w.mu.Lock()
	known, err := os.ReadFile(filepath.Join(w.dir, "hosts.txt"))
	if err == nil {
		err = h.learn(known)
	}
	w.hosts = append(w.hosts, h)
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return h, w.announce(h.plug)
}

// identify gives the host what no two hosts may share.
func (h *Host) identify(ctx context.Context) error {
	for path, text := range map[string]string{
		"/etc/hostname": h.name, "/etc/machine-id": randomHex(16),
	} {
		if err := h.Write(path, []byte(text+"\n"), 0o644); err != nil {
			return err
		}
	}
	const key = "/etc/ssh/ssh_host_ed25519_key"
	return h.w.stage.sh(ctx, `ssh-keygen -q -t ed25519 -N "" -C "root@$1" -f "$2"`, h.name,
		h.inStage()+"/root"+key)
}

// learn adds lines to the host's /etc/hosts.
func (h *Host) learn(lines []byte) error {
	return h.appendTo("/etc/hosts", lines)
}

// running returns the current boot.
func (h *Host) running() (*boot, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.boot == nil {
		return nil, fmt.Errorf("host %s is off", h.name)
	}
	return h.boot, nil
}

// Name is the host's name, on the network and on its own prompt.
func (h *Host) Name() string { return h.name }

// PID is the process id of the host's systemd as the machine sees it, 0 while the host is off.
func (h *Host) PID() int {
	b, err := h.running()
	if err != nil {
		return 0
	}
	return b.pid1
}

// Reboot restarts the host in order, as its own `systemctl reboot` does, and waits as AddHost does.
func (h *Host) Reboot(ctx context.Context) error {
	b, err := h.running()
	if err != nil {
		return err
	}
	// The answer is lost when the host goes down under the command: its end is what counts.
	_, said := h.Exec(ctx, "systemctl", "reboot")
	if err := b.wait(ctx); err != nil {
		return fmt.Errorf("rebooting %s: %w", h.name, errors.Join(err, said))
	}
	return h.Start(ctx)
}

// PowerOff shuts the host down in order and waits until it is off.
func (h *Host) PowerOff(ctx context.Context) error {
	b, err := h.running()
	if err != nil {
		return err
	}
	// systemd(1), SIGNALS: SIGRTMIN+4 starts poweroff.target.
	const sigrtmin = 34
	if err := syscall.Kill(b.pid1, syscall.Signal(sigrtmin+4)); err != nil {
		return fmt.Errorf("asking %s to power off: %w", h.name, err)
	}
	if err := b.wait(ctx); err != nil {
		return fmt.Errorf("waiting for %s to power off: %w", h.name, err)
	}
	return nil
}

// Kill ends all processes of the host at once. What they wrote to files stays written: the kernel
// still has it, so this is a crash of everything but the disk; PowerLoss is the other thing.
func (h *Host) Kill(ctx context.Context) error {
	b, err := h.running()
	if err != nil {
		return err
	}
	if err := h.cgroup.kill(ctx); err != nil {
		return fmt.Errorf("killing %s: %w", h.name, err)
	}
	return b.wait(ctx)
}

// Freeze stops all processes of the host where they stand, as a suspended machine does. Its clocks
// run on, and so do connections as far as the kernel carries them.
func (h *Host) Freeze(ctx context.Context) error { return h.cgroup.freeze(ctx, true) }

// Thaw lets a frozen host go on.
func (h *Host) Thaw(ctx context.Context) error { return h.cgroup.freeze(ctx, false) }

// wait returns when the boot has ended.
func (b *boot) wait(ctx context.Context) error {
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// WaitUnit waits until a systemd unit is active. A unit that fails, or is unknown, ends the wait
// with an error, which shows the last of its journal.
func (h *Host) WaitUnit(ctx context.Context, unit string) error {
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		shown, err := h.Exec(ctx, "systemctl", "show", "-p", "LoadState", "-p", "ActiveState", unit)
		if err != nil {
			return false, fmt.Errorf("waiting for %s on %s: %w", unit, h.name, err)
		}
		state := string(shown)
		switch {
		case strings.Contains(state, "LoadState=not-found"):
			return false, fmt.Errorf("%s knows no unit %s", h.name, unit)
		case strings.Contains(state, "ActiveState=failed"):
			log, err := h.Journal(ctx, unit)
			return false, errors.Join(fmt.Errorf("%s on %s has failed:\n%s", unit, h.name,
				tail(log, 4<<10)), err)
		}
		return strings.Contains(state, "ActiveState=active"), nil
	})
}

// Journal is what a unit has logged in this and earlier boots; an empty name means everything.
func (h *Host) Journal(ctx context.Context, unit string) (string, error) {
	argv := []string{"journalctl", "--no-pager", "--quiet", "--output=short-precise"}
	if unit != "" {
		argv = append(argv, "--unit="+unit)
	}
	log, err := h.Exec(ctx, argv...)
	return string(log), err
}
