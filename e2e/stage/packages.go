package stage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The two versions that packages are built as, of one tree.
const (
	Older = "1.0.0"
	Newer = "1.0.1"
)

// Packages returns a folder with one folder of Debian packages for each version, built for this machine from
// the source tree as it stands. They are built once for each state of the tree, below dist/, and kept: tests
// in other processes wait for them instead of building their own. The folder must not be changed, and stays
// until this process has ended.
func Packages(ctx context.Context) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	all := filepath.Join(root, "dist/stories")
	if err := os.MkdirAll(all, 0o755); err != nil {
		return "", err
	}
	building, err := lock(ctx, filepath.Join(all, "lock"), unix.O_CREAT|unix.O_RDWR, unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer unix.Close(building)
	key, err := treeState(root)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(all, key)
	if _, err := os.Stat(dir); err != nil {
		forgetPackages(all)
		if err := buildPackages(ctx, root, dir+".new"); err != nil {
			return "", fmt.Errorf("building packages: %w", err)
		}
		if err := os.Rename(dir+".new", dir); err != nil {
			return "", err
		}
	}
	// Held by this process until its end: who builds others lets these be.
	_, err = lock(ctx, dir, unix.O_RDONLY, unix.LOCK_SH)
	return dir, err
}

// lock opens a file or folder and waits for its lock.
func lock(ctx context.Context, path string, flags, how int) (fd int, err error) {
	if fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0o644); err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	err = Eventually(ctx, "the lock of "+path, func() (bool, string) {
		err := unix.Flock(fd, how|unix.LOCK_NB)
		return err == nil, fmt.Sprint(err)
	})
	if err != nil {
		unix.Close(fd)
	}
	return fd, err
}

// forgetPackages removes what was built of other trees, unless a test holds it still.
func forgetPackages(all string) {
	dirs, _ := filepath.Glob(filepath.Join(all, "*")) // the pattern is one
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // the lock
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dir) // what stays is removed the next time
		}
		unix.Close(fd)
	}
}

// notPacked are folders that no package has anything of.
var notPacked = []string{".git", "bin", "dist", "docs", "e2e"}

// treeState is a hash of all that packages are made of: the source tree and the compiler.
func treeState(root string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && slices.Contains(notPacked, name):
			return filepath.SkipDir
		case !d.Type().IsRegular() || name == ".git" || strings.HasSuffix(name, "_test.go") || strings.HasSuffix(name, ".md"):
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %o %x\n", name, info.Mode().Perm(), sha256.Sum256(text))
		return err
	})
	return hex.EncodeToString(sum.Sum(nil)[:8]), err
}

// buildPackages makes the packages of both versions.
func buildPackages(ctx context.Context, root, out string) error {
	builder := filepath.Join(out, "build")
	commands := [][]string{
		{"rm", "-rf", out},
		{"make", "-s", "bin/nfpm"},
		{"go", "build", "-o", builder, "./packaging/build"},
	}
	for _, version := range []string{Older, Newer} {
		commands = append(commands, []string{
			builder, "-version", "v" + version, "-arch", runtime.GOARCH, "-kind", "deb",
			"-o", filepath.Join(out, version),
		})
	}
	for _, argv := range commands {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Dir = root
		// A tree without its history will do.
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1795946400")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}
