package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

// A root is a file system of Debian's without pam-auth-update, that its test may change.
type root struct {
	t   *testing.T
	dir string // upper, work and merged
	low string
}

func newRoot(t *testing.T) root {
	t.Helper()
	low, err := world.RootFS(t.Context(), world.DefaultRelease, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(world.CacheDir(), "rpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, sub := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := root{t: t, dir: dir, low: low}
	r.sh("rm /usr/sbin/pam-auth-update")
	return r
}

// inside is the beginning of a script that runs with the root mounted at $at, in a mount namespace that ends
// with it.
func (r root) inside() string {
	return fmt.Sprintf(`set -eu
if [ -z "${at-}" ]; then
  at=%[1]s/merged exec unshare --mount --propagation private -- bash -c "$BASH_EXECUTION_STRING" sh "$@"
fi
mount -t overlay overlay -o lowerdir=%[2]s,upperdir=%[1]s/upper,workdir=%[1]s/work "$at"
mount -t proc proc "$at/proc"
mount --rbind /dev "$at/dev"
`, r.dir, r.low)
}

func (r root) try(script string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-c", r.inside() + script, "sh"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// sh runs a script in the root, of which each line must be true.
func (r root) sh(script string) string {
	r.t.Helper()
	out, err := r.try(`exec chroot "$at" sh -euc "$1"`, script)
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

func (r root) write(name, text string, mode os.FileMode) {
	r.t.Helper()
	if out, err := r.try(`printf %s "$2" >"$at$1"; chmod "$3" "$at$1"`, name, text, fmt.Sprintf("%o", mode)); err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
}

// rpm runs rpm on the root. Its dependencies are other distributions' names of what Debian has too.
func (r root) rpm(what string, args ...string) string {
	r.t.Helper()
	out, err := r.tryRPM(what, args...)
	if err != nil || strings.Contains(out, "scriptlet failed") {
		r.t.Fatalf("rpm %s %s: %v\n%s", what, strings.Join(args, " "), err, out)
	}
	return out
}

// fails runs rpm on the root, which must not do what it is told.
func (r root) fails(what string, args ...string) string {
	r.t.Helper()
	out, err := r.tryRPM(what, args...)
	if err == nil {
		r.t.Fatalf("rpm %s %s succeeds\n%s", what, strings.Join(args, " "), out)
	}
	return out
}

func (r root) tryRPM(what string, args ...string) (string, error) {
	nodeps := "--nodeps"
	if what == "-q" {
		nodeps = ""
	}
	return r.try(`exec rpm --root "$at" `+nodeps+` "$@"`, append([]string{what}, args...)...)
}

// etc is everything in /etc: names, owners, modes and contents, but for users and groups, which are added and
// stay, and what is cached.
func (r root) etc() map[string]string {
	r.t.Helper()
	out := r.sh(`cd /etc; find . -type f -exec sha256sum {} +; find . -printf '%U:%G:%m:%l  %p\n'`)
	users := regexp.MustCompile(`^\./((passwd|group|shadow|gshadow)-?|ld\.so\.cache|\.pwd\.lock|curfew|)$|^\.$`)
	all := make(map[string]string)
	for line := range strings.Lines(out) {
		what, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if !users.MatchString(name) {
			all[name] += what + " "
		}
	}
	return all
}

// differ lists what two looks at /etc do not share.
func differ(before, after map[string]string) string {
	var list []string
	for name, was := range before {
		if is := after[name]; is != was {
			list = append(list, fmt.Sprintf("%s: was %q, is %q", name, was, is))
		}
	}
	for name, is := range after {
		if _, was := before[name]; !was {
			list = append(list, fmt.Sprintf("%s: is %q", name, is))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}
