package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A Laptop is a person's machine: the machine's own programs, seen by an ordinary user who has a
// home, a /tmp, an /etc/hosts and a network of its own. Programs run there without a login, so
// nothing ends with a shell; all ends with the world.
type Laptop struct {
	plug
	uid    int
	anchor *anchor
	group  int // descriptor of the cgroup of what runs here
}

// laptopScript gives the laptop the few files that tell ssh and others who and where they are.
// OpenSSH takes the home folder from the password database and not from HOME. The world's folder is
// let go, lest a laptop keep the disks of hosts mounted.
const laptopScript = `
mount -t tmpfs -o mode=755 tmpfs /home
mkdir "/home/$2"
mount --bind "$1/home" "/home/$2"
mount --bind "$1/tmp" /tmp
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
mount --bind /run/world/hosts.txt /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind /dev/null /etc/resolv.conf; fi
umount -R -l /run/world
cd "/home/$2"
`

const sshConfig = `Host *
	StrictHostKeyChecking accept-new
	ConnectTimeout 5
	LogLevel ERROR
`

// AddLaptop makes a laptop for the person with this login name, who is nobody on any host yet.
func (w *World) AddLaptop(ctx context.Context, name string) (*Laptop, error) {
	l, err := w.addLaptop(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("adding %s's laptop: %w", name, err)
	}
	return l, nil
}

func (w *World) addLaptop(ctx context.Context, name string) (*Laptop, error) {
	plug, err := w.reserve(name)
	if err != nil {
		return nil, err
	}
	l := &Laptop{plug: plug, uid: 1000 + int(plug.addr.As4()[3])}
	if err := l.furnish(); err != nil {
		return nil, err
	}
	group, err := w.cgroup.child("laptop-" + name)
	if err != nil {
		return nil, err
	}
	if l.group, err = w.openGroup(string(group)); err != nil {
		return nil, err
	}
	l.anchor, err = drop(ctx, group, w.stage.enter("unshare", "-m", "-n"), laptopScript,
		"/run/world/laptops/"+name, name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.laptops = append(w.laptops, l)
	w.mu.Unlock()
	if err := l.connect(ctx, l.anchor.ns("net")); err != nil {
		return nil, fmt.Errorf("plugging it in: %w", err)
	}
	return l, w.announce(l.plug)
}

// furnish makes the files of laptopScript.
func (l *Laptop) furnish() error {
	dir := filepath.Join(l.w.dir, "laptops", l.name)
	if err := os.MkdirAll(filepath.Join(dir, "tmp"), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), fs.ModeSticky|0o777); err != nil {
		return err
	}
	id := strconv.Itoa(l.uid)
	for path, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\n" +
			l.name + ":x:" + id + ":" + id + "::/home/" + l.name + ":/bin/bash\n",
		"group": "root:x:0:\ntty:x:5:\n" + l.name + ":x:" + id + ":\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, sub := range []string{"", "bin", ".ssh"} {
		if err := l.mkdirAll(filepath.Join(l.Home(), sub)); err != nil {
			return err
		}
	}
	return l.Write(".ssh/config", []byte(sshConfig), 0o600)
}

// Name is the login name of the laptop's owner and the laptop's name on the network.
func (l *Laptop) Name() string { return l.name }

// Home is the owner's home folder as the machine sees it; on the laptop it is /home/NAME.
func (l *Laptop) Home() string { return filepath.Join(l.w.dir, "laptops", l.name, "home") }

// Write makes or replaces a file of the owner's, at a path relative to the home.
func (l *Laptop) Write(path string, data []byte, mode fs.FileMode) error {
	return l.put(path, bytes.NewReader(data), mode)
}

// Put copies one of the machine's files to the laptop, with its mode, to a path relative to the
// home. Programs belong into bin, which is first in PATH.
func (l *Laptop) Put(path, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return l.put(path, f, info.Mode().Perm())
}

func (l *Laptop) put(path string, data io.Reader, mode fs.FileMode) error {
	full := filepath.Join(l.Home(), path)
	if err := l.mkdirAll(filepath.Dir(full)); err != nil {
		return err
	}
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, data); err != nil {
		return err
	}
	return errors.Join(f.Chmod(mode), f.Chown(l.uid, l.uid), f.Close())
}

// mkdirAll makes a private folder of the owner's, and those above it.
func (l *Laptop) mkdirAll(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := l.mkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, l.uid, l.uid))
}

// Cmd prepares a program to run as the laptop's owner, in the home folder, with a small environment
// of its own and without a terminal. The machine's /tmp, /home and /run are not to be seen there:
// use Put.
func (l *Laptop) Cmd(ctx context.Context, argv ...string) *exec.Cmd {
	if len(argv) == 0 {
		return &exec.Cmd{Err: errors.New("no command")}
	}
	id := strconv.Itoa(l.uid)
	home := "/home/" + l.name
	line := append(l.anchor.enter("-S", id, "-G", id, "-w", "--"), argv...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = []string{
		"PATH=" + home + "/bin:/usr/local/bin:/usr/bin:/bin", "HOME=" + home, "USER=" + l.name,
		"LOGNAME=" + l.name, "SHELL=/bin/bash", "LANG=C.UTF-8", "TERM=dumb",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: l.group}
	return stoppable(cmd)
}

// Run runs a program by Cmd to its end. A program that could not be run, or that ctx ended, is an
// error; one that ends with a status other than 0 is not.
func (l *Laptop) Run(
	ctx context.Context, argv ...string,
) (stdout, stderr string, exit int, err error) {
	var out, complaint bytes.Buffer
	cmd := l.Cmd(ctx, argv...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err = cmd.Run()
	if cmd.ProcessState != nil {
		exit = cmd.ProcessState.ExitCode()
	}
	var failed *exec.ExitError
	if errors.As(err, &failed) && failed.Exited() {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%s's laptop: %s: %w", l.name, strings.Join(argv, " "), err)
	}
	return out.String(), complaint.String(), exit, err
}

// SSHKey makes the owner's key pair, ~/.ssh/id_ed25519 without a passphrase, unless there is one,
// and returns the public key as one line of authorized_keys.
func (l *Laptop) SSHKey(ctx context.Context) (string, error) {
	const script = `test -e ~/.ssh/id_ed25519 ||
	ssh-keygen -q -t ed25519 -N "" -C "$USER" -f ~/.ssh/id_ed25519; cat ~/.ssh/id_ed25519.pub`
	public, err := output(l.Cmd(ctx, "sh", "-euc", script))
	if err != nil {
		return "", fmt.Errorf("making %s's key: %w", l.name, err)
	}
	return string(public), nil
}
