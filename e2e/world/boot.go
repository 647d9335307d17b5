package world

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bootLimit bounds one boot, whatever the caller's context says. A boot takes well below a second
// when the machine has nothing else to do.
const bootLimit = 90 * time.Second

// exitReboot is nspawn's exit status when the host wants to be started again (EXIT_FORCE_RESTART).
const exitReboot = 133

// capabilities are what nspawn withholds and a real host has. CAP_NET_ADMIN reaches no further than
// the host's own network. CAP_BPF, with its system call, lets systemd enforce DeviceAllow= and
// IPAddressDeny=.
const capabilities = "CAP_NET_ADMIN,CAP_SYS_RESOURCE,CAP_IPC_LOCK,CAP_SYSLOG,CAP_WAKE_ALARM,CAP_BPF"

// Start boots the host and waits until it has finished booting and its sshd listens. It does
// nothing if the host runs already.
func (h *Host) Start(ctx context.Context) error { return h.StartAt(ctx, 0) }

// StartAt boots the host with its boot-time clock (CLOCK_BOOTTIME) ahead of the machine's: the
// difference to the monotonic clock is what a host sees that has been suspended.
func (h *Host) StartAt(ctx context.Context, ahead time.Duration) error {
	h.starting.Lock()
	defer h.starting.Unlock()
	if _, err := h.running(); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, errors.New("it took too long"))
	defer cancel()
	if err := h.start(ctx, ahead); err != nil {
		console, _ := os.ReadFile(h.path("console.log"))
		return fmt.Errorf("booting %s: %w\n%s", h.name, err, tail(string(console), 2<<10))
	}
	return nil
}

// path is a file in the host's folder, as the machine sees it.
func (h *Host) path(name string) string { return filepath.Join(h.w.dir, "hosts", h.name, name) }

func (h *Host) start(ctx context.Context, ahead time.Duration) error {
	h.cgroup.prune() // what the last boot left
	group, err := h.w.cgroup.child(filepath.Base(string(h.cgroup)))
	if err != nil {
		return err
	}
	into, err := os.Open(string(group))
	if err != nil {
		return err
	}
	defer into.Close()
	notices, err := listen(h.path("notify"))
	if err != nil {
		return err
	}
	defer notices.Close()
	console, err := os.OpenFile(h.path("console.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()

	cmd := h.nspawn(ahead)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(into.Fd())}
	if err := cmd.Start(); err != nil {
		return err
	}
	b := &boot{ended: make(chan struct{})}
	h.w.booting.Add(1)
	go h.supervise(b, cmd)
	if err := h.comeUp(ctx, b, notices); err != nil {
		return errors.Join(err, h.cgroup.kill(context.WithoutCancel(ctx)))
	}
	return nil
}

// nspawn is the command that is the host.
func (h *Host) nspawn(ahead time.Duration) *exec.Cmd {
	argv := unaudited(h.w.stage.enter())
	if ahead != 0 {
		seconds := strconv.FormatInt(int64(ahead/time.Second), 10)
		argv = append(argv, "unshare", "-T", "--boottime", seconds)
	}
	env := []string{"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1"}
	if h.hybrid {
		env = nil // nspawn sees how it is laid out here, and what the host's systemd is for
		argv = append(argv, "unshare", "-m", "sh", "-euc", hybridScript, "sh", string(h.v1()))
	}
	argv = append(argv, "systemd-nspawn", "--quiet", "--settings=no", "--keep-unit", "--register=no",
		"--boot", "--notify-ready=yes", "--console=pipe", "--directory="+h.inStage()+"/root",
		"--machine="+h.name, "--network-namespace-path=/run/world/net/"+h.name,
		"--resolv-conf=off", "--timezone=off", "--link-journal=no",
		"--capability="+capabilities, "--system-call-filter=bpf")
	// No CommandContext: the host outlives the call. It ends with its cgroup.
	cmd := exec.Command(argv[0], argv[1:]...)
	env = append(env, "SYSTEMD_NSPAWN_LOCK=0", "NOTIFY_SOCKET="+h.inStage()+"/notify")
	cmd.Env = append(env, rootEnv...)
	return cmd
}

// hybridScript lays control groups out as systemd does on a machine that says neither unified nor legacy:
// version 2 for tracking, and version 1 named systemd beside it.
const hybridScript = `
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
mkdir /sys/fs/cgroup/unified /sys/fs/cgroup/systemd
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
mkdir -p "/sys/fs/cgroup/systemd/$1"
echo $$ >"/sys/fs/cgroup/systemd/$1/cgroup.procs"
shift
exec "$@"`

// groups is where the host has version 2.
func (h *Host) groups(b *boot) string {
	if h.hybrid {
		return proc(b.pid1, "root/sys/fs/cgroup/unified")
	}
	return proc(b.pid1, "root/sys/fs/cgroup")
}

// v1 is the host's control group of version 1, below its root.
func (h *Host) v1() cgroup { return cgroup(h.w.prefix + "/" + h.name) }

// forgetV1 takes away what a hybrid host leaves in version 1, which nothing runs in any more.
func (h *Host) forgetV1() error {
	return h.w.stage.sh(context.Background(), `
unshare -m sh -euc '
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup
find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +' sh "$1"`, string(h.v1()))
}

// supervise waits for the end of a boot. A host that wants to reboot is started again, whoever
// asked for it.
func (h *Host) supervise(b *boot, cmd *exec.Cmd) {
	defer h.w.booting.Done()
	b.err = cmd.Wait()
	if h.hybrid && !h.w.isClosed() {
		if err := h.forgetV1(); err != nil {
			fmt.Fprintf(h.w.out, "world: %v\n", err)
		}
	}
	h.mu.Lock()
	if h.boot == b {
		h.boot = nil
	}
	h.mu.Unlock()
	close(b.ended)
	if cmd.ProcessState.ExitCode() == exitReboot && !h.w.isClosed() {
		if err := h.Start(context.Background()); err != nil {
			fmt.Fprintf(h.w.out, "world: %v\n", err)
		}
	}
}

// listen opens the socket where nspawn tells of its progress, in the language of sd_notify(3).
func listen(path string) (*net.UnixConn, error) {
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
}

// comeUp follows nspawn's notices until the host's systemd is ready, and then looks for sshd.
func (h *Host) comeUp(ctx context.Context, b *boot, notices *net.UnixConn) error {
	stop := context.AfterFunc(ctx, func() { notices.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	go func() {
		<-b.ended
		notices.SetReadDeadline(time.Unix(1, 0))
	}()
	message := make([]byte, 4<<10)
	for ready := false; !ready; {
		n, err := notices.Read(message)
		select {
		case <-b.ended:
			return fmt.Errorf("systemd-nspawn ended: %w", b.err)
		default:
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("reading systemd-nspawn's notices: %w", err)
		}
		for line := range strings.SplitSeq(string(message[:n]), "\n") {
			if leader, ok := strings.CutPrefix(line, "X_NSPAWN_LEADER_PID="); ok {
				if b.pid1, err = strconv.Atoi(leader); err != nil {
					return fmt.Errorf("reading systemd-nspawn's notices: %w", err)
				}
			}
			ready = ready || line == "READY=1"
		}
	}
	if b.pid1 == 0 {
		return errors.New("systemd-nspawn did not say which process is the host's first")
	}
	if err := h.open(b); err != nil {
		return err
	}
	return poll(ctx, 10*time.Millisecond, func() (bool, error) { return listensOn(b.pid1, 22) })
}

// open makes the host usable: Exec and the like work from here on.
func (h *Host) open(b *boot) error {
	// A cgroup among the host's services, but not one of systemd's: it must not be a session's or
	// a scope's, lest the stories see what is not theirs.
	execs := filepath.Join(h.groups(b), "system.slice/from-outside.service")
	if err := os.MkdirAll(execs, 0o755); err != nil {
		return err
	}
	fd, err := h.w.openGroup(execs)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b.execs, h.boot = fd, b
	return nil
}

// listensOn says whether something listens on a TCP port in the network namespace of a process.
func listensOn(pid, port int) (bool, error) {
	for _, family := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(proc(pid, "net", family))
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(string(table)) {
			// proc_net_tcp: sl, local address:port in hexadecimal, remote address, state (0A: LISTEN).
			fields := strings.Fields(line)
			if len(fields) > 3 && fields[3] == "0A" &&
				strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
				return true, nil
			}
		}
	}
	return false, nil
}
