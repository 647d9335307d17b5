package world

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Releases are the Debian releases that a host can run, oldest first.
var Releases = []string{"bullseye", "bookworm", "trixie"}

// DefaultRelease is what a host runs unless it is told otherwise.
const DefaultRelease = "bookworm"

// packages are what a small real server has, and what the stories need to see on it. libnss-systemd
// and dbus-user-session are there because every ordinary Debian installation has them, nscd and
// libfaketime because stories switch them on, usrmerge because Debian's installer has long made
// /bin and /usr/bin one, which bullseye's packages alone do not.
var packages = []string{
	"adduser", "at", "ca-certificates", "cron", "dbus", "dbus-user-session", "iproute2",
	"iputils-ping", "less", "libfaketime", "libnss-systemd", "libpam-runtime", "libpam-systemd",
	"login", "netcat-openbsd", "nscd", "openssh-client", "openssh-server", "passwd", "procps",
	"psmisc", "sudo", "systemd", "systemd-sysv", "tmux", "usrmerge", "util-linux",
}

// ofRelease are packages of single releases. polkit, renamed after bullseye, lets people switch on
// lingering for themselves; sudo-rs lies beside sudo until a story puts it in sudo's place.
var ofRelease = map[string][]string{
	"bullseye": {"policykit-1"},
	"bookworm": {"polkitd", "pkexec"},
	"trixie":   {"polkitd", "pkexec", "sudo-rs"},
}

// recipe turns a fresh installation into one that many hosts can start from. Identity (machine id,
// host name, ssh host key) is removed: each host gets its own. Masked units are those that only
// cost time or make noise in a container. nginx.service is a stand-in which can be restarted.
const recipe = `set -eu
cd "$1"
rm -f etc/ssh/ssh_host_*
: >etc/machine-id
rm -f etc/hostname etc/resolv.conf
: >etc/resolv.conf
echo 'HostKey /etc/ssh/ssh_host_ed25519_key' >etc/ssh/sshd_config.d/10-host-key.conf
mkdir -p var/log/journal
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer console-getty.service getty.target systemd-firstboot.service \
    dev-hugepages.mount sys-fs-fuse-connections.mount; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
rm -f etc/systemd/system/*.wants/nscd.service
cat >etc/systemd/system/nginx.service <<'UNIT'
[Unit]
Description=Stand-in for a web server

[Service]
ExecStart=/bin/sleep infinity

[Install]
WantedBy=multi-user.target
UNIT
ln -sf /etc/systemd/system/nginx.service etc/systemd/system/multi-user.target.wants/nginx.service
`

// CacheDir is where root file systems and the state of running worlds are kept. CURFEW_E2E_CACHE
// moves it. It must lie on a real file system that overlayfs accepts as an upper layer.
func CacheDir() string {
	if dir := os.Getenv("CURFEW_E2E_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/curfew-e2e"
}

// RootFS returns the folder of a Debian release's root file system, made by mmdebstrap at first use
// (half a minute, from deb.debian.org) and kept in CacheDir. The folder is shared by all hosts and
// must not be changed. Progress goes to out. Concurrent callers wait for each other. with are packages
// beside those that every host has.
func RootFS(ctx context.Context, release string, out io.Writer, with ...string) (dir string, err error) {
	if !slices.Contains(Releases, release) {
		return "", fmt.Errorf("no such release %q: want one of %s", release, Releases)
	}
	if err := requirements(); err != nil {
		return "", err
	}
	if err := makeCacheDir(); err != nil {
		return "", err
	}
	flags := mmdebstrapFlags(release, with)
	key := sha256.Sum256([]byte(release + strings.Join(flags, "\n")))
	name := release + "-" + hex.EncodeToString(key[:6])
	dir = filepath.Join(CacheDir(), name)
	lock, err := flock(ctx, dir+".lock")
	if err != nil {
		return "", fmt.Errorf("waiting for another build of %s: %w", name, err)
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := debootstrap(ctx, release, flags, dir, out); err != nil {
		return "", fmt.Errorf("building a %s root file system: %w", release, err)
	}
	return dir, nil
}

// debootstrap builds beside dir and renames, so that dir is complete whenever it exists.
func debootstrap(ctx context.Context, release string, flags []string, dir string, out io.Writer) error {
	if out != nil {
		fmt.Fprintf(out, "building a %s root file system, once, in half a minute\n", release)
	}
	temp := dir + ".partial"
	if err := os.RemoveAll(temp); err != nil {
		return err
	}
	// In a mount namespace of its own: what mmdebstrap mounts in the chroot goes with it even when it
	// is killed, and the next build finds no file system that it could not remove, or should not.
	args := append([]string{"--mount", "--propagation", "private", "mmdebstrap"},
		flags...)
	cmd := exec.CommandContext(ctx, "unshare", append(args, release, temp)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if _, err := output(cmd); err != nil {
		return errors.Join(fmt.Errorf("mmdebstrap: %w", err), os.RemoveAll(temp))
	}
	return os.Rename(temp, dir)
}

// mmdebstrapFlags say what is built; they are the cache's key.
func mmdebstrapFlags(release string, with []string) []string {
	return []string{
		"--variant=minbase",
		"--include=" + strings.Join(slices.Concat(packages, ofRelease[release], with), ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--customize-hook=" + strings.TrimSpace(recipe),
	}
}

// makeCacheDir makes CacheDir, closed to everyone but root: it holds old setuid programs.
func makeCacheDir() error {
	if err := os.MkdirAll(filepath.Join(CacheDir(), "worlds"), 0o700); err != nil {
		return fmt.Errorf("making the cache folder: %w", err)
	}
	return nil
}

// flock opens path and waits for its exclusive lock, which ends with the file or the process.
func flock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, 50*time.Millisecond, func() (bool, error) { return tryLock(f) })
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tryLock takes the exclusive lock of f if nobody holds it.
func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// requirements says what is missing on this machine, and what to type.
func requirements() error {
	if os.Geteuid() != 0 {
		return errors.New("booting hosts needs root: run this with sudo, or as root")
	}
	for program, from := range map[string]string{
		"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "ip": "iproute2",
		"nsenter": "util-linux", "unshare": "util-linux", "ssh-keygen": "openssh-client",
	} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing: apt-get install %s", program, from)
		}
	}
	return makeRoom()
}

// instances is how many inotify instances the hosts need together. The kernel counts them for root
// of all hosts as one, and Debian's 128 are gone with a dozen hosts.
const instances = 1024

// makeRoom raises the machine's limit where it is lower.
func makeRoom() error {
	const file = "/proc/sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err != nil || n >= instances {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(instances)), 0)
}
