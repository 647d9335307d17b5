package grant

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Limits on a typed sudo rule.
const (
	MaxSudoRules   = 64
	maxCommandPath = 255
	maxSudoArgs    = 32
	maxSudoArg     = 255
)

// CheckSudoRule accepts a rule that means exactly one thing to sudo: everything; or one absolute
// path with exact arguments, no arguments, or any arguments. Arguments with white space are
// refused, because sudo joins arguments with spaces before it compares; so are wildcards, regular
// expressions and everything that sudoers could read as syntax.
func CheckSudoRule(r *curfewv1.SudoRule) error {
	if r == nil {
		return errors.New("sudo rule is missing")
	}
	if err := CheckUserName(r.GetRunAs()); err != nil {
		return fmt.Errorf("sudo rule, run as: %w", err)
	}
	if r.GetAll() {
		if r.GetCommand() != "" || len(r.GetArgs()) > 0 || r.GetAnyArgs() {
			return errors.New("sudo rule: ALL stands alone, without command or arguments")
		}
		if r.GetContained() {
			return errors.New("sudo rule: ALL cannot be contained; it is root-equivalent")
		}
		// It means every target too, so it must not read as a lesser one to approvers.
		if r.GetRunAs() != "root" {
			return fmt.Errorf("sudo rule: ALL as %s: ALL is every command as any user; "+
				"write it as root", r.GetRunAs())
		}
		return nil
	}
	if err := checkCommand(r.GetCommand()); err != nil {
		return fmt.Errorf("sudo rule: %w", err)
	}
	if r.GetAnyArgs() && len(r.GetArgs()) > 0 {
		return fmt.Errorf("sudo rule for %s: any arguments and exact arguments exclude each other",
			r.GetCommand())
	}
	if len(r.GetArgs()) > maxSudoArgs {
		return fmt.Errorf("sudo rule for %s: %d arguments; at most %d",
			r.GetCommand(), len(r.GetArgs()), maxSudoArgs)
	}
	for _, arg := range r.GetArgs() {
		if err := checkSudoText("argument", arg, maxSudoArg); err != nil {
			return fmt.Errorf("sudo rule for %s: %w", r.GetCommand(), err)
		}
	}
	if r.GetContained() {
		return checkContained(r)
	}
	return nil
}

func checkCommand(command string) error {
	if err := checkSudoText("command", command, maxCommandPath); err != nil {
		return err
	}
	if !strings.HasPrefix(command, "/") || path.Clean(command) != command || command == "/" {
		return fmt.Errorf("command %q is not a clean absolute path", command)
	}
	return nil
}

func checkSudoText(what, s string, limit int) error {
	if s == "" {
		return fmt.Errorf("%s is empty", what)
	}
	if len(s) > limit {
		return fmt.Errorf("%s has %d bytes; at most %d", what, len(s), limit)
	}
	for i := range len(s) {
		c := s[i]
		letter := isLower(c) || isDigit(c) || c >= 'A' && c <= 'Z'
		if !letter && !strings.ContainsRune("/._+@%:=,-", rune(c)) {
			return fmt.Errorf("%s %q: only letters, digits and / . _ + @ %% : = , -",
				what, VisibleText(s))
		}
	}
	return nil
}

// escapes are commands that hand out a shell or write any file, whatever their arguments.
var escapes = map[string]bool{
	"sh": true, "bash": true, "dash": true, "zsh": true, "ksh": true, "fish": true, "csh": true,
	"tcsh": true, "busybox": true, "su": true, "sudo": true, "env": true, "nsenter": true,
	"chroot": true, "vi": true, "vim": true, "view": true, "nano": true, "emacs": true, "ed": true,
	"less": true, "more": true, "most": true, "man": true, "python3": true, "python": true,
	"perl": true, "ruby": true, "lua": true, "awk": true, "gawk": true, "mawk": true, "find": true,
	"xargs": true, "tmux": true, "screen": true, "script": true, "gdb": true, "strace": true,
	"ash": true, "rbash": true, "mksh": true, "rvim": true, "nvim": true, "vimdiff": true,
	"vim.tiny": true, "vim.basic": true, "vim.nox": true, "vim.gtk3": true, "ed.distrib": true,
	"sudoedit": true, "rnano": true, "pico": true, "node": true, "php": true, "tclsh": true,
	"pkexec": true, "doas": true, "runuser": true, "setpriv": true, "unshare": true,
	"ssh": true, "systemd-run": true, "dd": true, "tee": true, "cp": true, "mv": true, "ln": true,
	"chmod": true, "chown": true, "visudo": true, "crontab": true, "mount": true, "docker": true,
}

func checkContained(r *curfewv1.SudoRule) error {
	base := path.Base(r.GetCommand())
	if r.GetAnyArgs() {
		return fmt.Errorf("sudo rule for %s: any arguments cannot be contained", r.GetCommand())
	}
	// python3.11 and lua5.4 are python and lua.
	if escapes[base] || escapes[strings.TrimRight(base, "0123456789.")] {
		return fmt.Errorf("sudo rule for %s: %s can hand out a shell or write any file; "+
			"it cannot be contained", r.GetCommand(), base)
	}
	return nil
}

// RuleRootEquivalent tells whether a rule must be treated as giving all of root. Everything does
// that its author did not declare contained.
func RuleRootEquivalent(r *curfewv1.SudoRule) bool {
	return r.GetAll() || r.GetAnyArgs() || !r.GetContained()
}

// RootEquivalent tells whether any of the rules or groups is root-equivalent.
func RootEquivalent(rules []*curfewv1.SudoRule, groups []string) bool {
	return slices.ContainsFunc(rules, RuleRootEquivalent) ||
		slices.ContainsFunc(groups, GroupRootEquivalent)
}

// rootGroups are the groups whose members have root whenever they like, on the systems that have
// them: by the sudoers that ship with the system (admin, google-sudoers, sudo, wheel); by a daemon
// that mounts the host's files for whoever may ask it (docker, incus-admin, libvirt, lxd, podman); by
// the disk or the memory under the files (disk, kmem); by everybody's password hashes (shadow); or
// by programs that root will run (staff writes to /usr/local on Debian). Google's OS Login gave
// everybody such groups, and with them root (CVE-2020-8907, CVE-2020-8933).
var rootGroups = map[string]bool{
	"admin": true, "disk": true, "docker": true, "google-sudoers": true, "incus-admin": true,
	"kmem": true, "libvirt": true, "lxd": true, "podman": true, "root": true, "shadow": true,
	"staff": true, "sudo": true, "wheel": true,
}

// GroupRootEquivalent tells whether a Unix group of this name must be treated as giving all of root.
// A host knows what its groups are good for, and names those that may be given at all.
func GroupRootEquivalent(name string) bool { return rootGroups[name] }

// RuleText says a rule the way people write it: "root: /usr/bin/systemctl restart nginx.service".
func RuleText(r *curfewv1.SudoRule) string {
	what := r.GetCommand()
	switch {
	case r.GetAll():
		what = "ALL"
	case r.GetAnyArgs():
		what += " (any arguments)"
	case len(r.GetArgs()) > 0:
		what += " " + strings.Join(r.GetArgs(), " ")
	}
	return VisibleText(r.GetRunAs() + ": " + what)
}
