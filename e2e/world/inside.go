package world

import (
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

	"golang.org/x/sys/unix"
)

// Cmd prepares a command that runs as root on the host: in all its namespaces, in a cgroup of its
// own among the host's services, with a clean environment, no terminal, no login session and no
// audit identity, like a command of a configuration management's.
func (h *Host) Cmd(ctx context.Context, argv ...string) *exec.Cmd {
	b, err := h.running()
	if err == nil && len(argv) == 0 {
		err = errors.New("no command")
	}
	if err != nil {
		return &exec.Cmd{Err: err}
	}
	line := unaudited(append([]string{"nsenter", "-t", strconv.Itoa(b.pid1), "-a", "--"}, argv...))
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = rootEnv
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: b.execs}
	return stoppable(cmd)
}

// Exec runs a command by Cmd and returns its standard output. The error of a command that failed
// wraps an *exec.ExitError and shows what it wrote to standard error.
func (h *Host) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	return h.ExecIn(ctx, nil, argv...)
}

// ExecIn is Exec with a standard input.
func (h *Host) ExecIn(ctx context.Context, stdin io.Reader, argv ...string) ([]byte, error) {
	cmd := h.Cmd(ctx, argv...)
	cmd.Stdin = stdin
	stdout, err := output(cmd)
	if err != nil {
		return stdout, fmt.Errorf("%s: %s: %w", h.name, tail(strings.Join(argv, " "), 200), err)
	}
	return stdout, nil
}

// Shell runs a script by bash, which stops at the first command that fails.
func (h *Host) Shell(ctx context.Context, script string) ([]byte, error) {
	return h.Exec(ctx, "bash", "-euo", "pipefail", "-c", script)
}

// Write makes or replaces a file on the host, owned by root, and its parent folders. It works with
// the host off as well, then without what would be mounted, such as /run.
func (h *Host) Write(path string, data []byte, mode fs.FileMode) error {
	err := h.create(path, unix.O_TRUNC, data, mode)
	if err != nil {
		return fmt.Errorf("writing %s on %s: %w", path, h.name, err)
	}
	return nil
}

// Replace is Write for a file that is read meanwhile: it is there at every moment, whole. Its folder
// must not be reached by a symbolic link. A frozen host is no obstacle.
func (h *Host) Replace(path string, data []byte, mode fs.FileMode) error {
	if err := h.Write(path+".new", data, mode); err != nil {
		return err
	}
	at := filepath.Join(h.root(), path)
	if err := os.Rename(at+".new", at); err != nil {
		return fmt.Errorf("replacing %s on %s: %w", path, h.name, err)
	}
	return nil
}

// appendTo adds to a file, which may be absent.
func (h *Host) appendTo(path string, data []byte) error {
	if err := h.create(path, unix.O_APPEND, data, 0o644); err != nil {
		return fmt.Errorf("appending to %s on %s: %w", path, h.name, err)
	}
	return nil
}

func (h *Host) create(path string, how int, data []byte, mode fs.FileMode) error {
	path = filepath.Clean("/" + path)
	if err := h.mkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := h.openFile(path, unix.O_WRONLY|unix.O_CREAT|how, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if how == unix.O_APPEND {
		return f.Close()
	}
	return errors.Join(f.Chmod(mode), f.Close())
}

// Read returns the content of a file on the host. It works with the host off, as Write does.
func (h *Host) Read(path string) ([]byte, error) {
	f, err := h.openFile(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("reading %s on %s: %w", path, h.name, err)
	}
	defer f.Close()
	return io.ReadAll(f)
}

// root is the host's root folder: with all its mounts while it runs, the bare disk otherwise.
func (h *Host) root() string {
	if b, err := h.running(); err == nil {
		return proc(b.pid1, "root")
	}
	return h.diskRoot()
}

// openFile opens a file on the host. Symbolic links mean what they mean there: an absolute one must
// not lead into the machine.
func (h *Host) openFile(path string, flags int, mode fs.FileMode) (*os.File, error) {
	root, err := os.Open(h.root())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT,
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode.Perm())
	}
	fd, err := unix.Openat2(int(root.Fd()), path, &how)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mkdirAll makes an absolute folder on the host and those above it.
func (h *Host) mkdirAll(path string) error {
	dir, err := h.openFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return dir.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return err
	}
	if err := h.mkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	parent, err := h.openFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), filepath.Base(path), 0o755)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}
