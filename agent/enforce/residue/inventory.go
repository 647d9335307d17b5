package residue

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

// Limits of one inventory. What does not fit is left out, and it says so.
const (
	maxEntries = 50_000
	maxBytes   = 128 << 20
	maxHashed  = 4 << 20 // of one file; a larger one is known by its size and times
	maxHomes   = 2_000
	maxLines   = 2_000 // of one file of keys
)

// Inventory is the state of the places where root would leave something that lasts.
type Inventory struct {
	AtMS int64 `json:"at_ms"`
	// AccountsMS is when one of the files of accounts was last changed.
	AccountsMS int64 `json:"accounts_ms"`
	// Entries by path; for what is no file, by a made-up path such as "user alice".
	Entries map[string]Entry `json:"entries"`
	// Cut says that a limit was met, and which.
	Cut []string `json:"cut,omitempty"`
}

// Entry is one thing, as far as two looks have to be told apart.
type Entry struct {
	Kind Kind `json:"k"`
	// Sum is of content and metadata.
	Sum string `json:"s"`
	// ChangedMS is the inode's ctime, which only the clock or the raw disk could forge; 0 for what has
	// none.
	ChangedMS int64 `json:"c,omitempty"`
	// Lines are the sums of the lines of a file of keys.
	Lines []string `json:"l,omitempty"`
	// Who says which process an entry about processes was made for.
	Who string `json:"w,omitempty"`
}

// Kind sorts what was left for people.
type Kind string

// Kinds, the most telling first; a report shows them in this order.
const (
	KindSetid   Kind = "setuid"  // a program that gives whoever runs it another uid, gid or capability
	KindAccount Kind = "account" // a local user or group
	KindSudo    Kind = "sudo"    // a sudo rule
	KindKey     Kind = "key"     // what sshd lets in by, or a secret key
	KindAuth    Kind = "auth"    // PAM, name service, sshd's settings, the dynamic linker
	KindUnit    Kind = "unit"    // systemd units, timers, generators, lingering
	KindJob     Kind = "job"     // cron and at
	KindProcess Kind = "process" // what runs on outside of the grant's cages; kernel modules
	KindStart   Kind = "startup" // what shells read when they start
	KindSystem  Kind = "system"  // programs and libraries below /usr and /boot
	KindEtc     Kind = "etc"     // the rest of /etc
)

// Kinds in the order of a report.
var Kinds = []Kind{
	KindSetid, KindAccount, KindSudo, KindKey, KindAuth, KindUnit, KindJob, KindProcess, KindStart,
	KindSystem, KindEtc,
}

// places are the trees that are looked at. A kind of "" is found by the path (kindOf).
var places = []struct {
	path string
	kind Kind
}{
	{"/etc", ""},
	{"/run/systemd/system", KindUnit},
	{"/run/systemd/user", KindUnit},
	{"/run/systemd/transient", KindUnit},
	{"/run/systemd/system-generators", KindUnit},
	{"/usr/local/lib/systemd", KindUnit},
	{"/var/lib/systemd/linger", KindUnit},
	{"/var/spool/cron", KindJob},
	{"/var/spool/at", KindJob},
}

// ofHomes are what counts in a person's home.
var ofHomes = []struct {
	path string
	kind Kind
}{
	{".ssh", KindKey},
	{".config/systemd/user", KindUnit},
	{".config/autostart", KindStart},
	{".config/environment.d", KindStart},
	{".bashrc", KindStart},
	{".bash_profile", KindStart},
	{".bash_login", KindStart},
	{".bash_logout", KindStart},
	{".profile", KindStart},
	{".zshrc", KindStart},
	{".zshenv", KindStart},
	{".pam_environment", KindStart},
}

// noise changes by itself and gives nobody anything.
var noise = []string{
	"/etc/.pwd.lock", "/etc/passwd", "/etc/passwd-", "/etc/shadow", "/etc/shadow-", "/etc/group",
	"/etc/group-", "/etc/gshadow", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/mtab",
	"/etc/adjtime", "/etc/ld.so.cache", "/var/spool/cron/atjobs/.SEQ", "/var/spool/at/.SEQ",
}

// ofEtc sorts /etc.
var ofEtc = []struct {
	path string
	kind Kind
}{
	{"/etc/sudoers", KindSudo},
	{"/etc/sudoers.d", KindSudo},
	{"/etc/polkit-1", KindSudo},
	{"/etc/doas.conf", KindSudo},
	{"/etc/pam.d", KindAuth},
	{"/etc/pam.conf", KindAuth},
	{"/etc/security", KindAuth},
	{"/etc/nsswitch.conf", KindAuth},
	{"/etc/ssh", KindAuth},
	{"/etc/ld.so.preload", KindAuth},
	{"/etc/ld.so.conf", KindAuth},
	{"/etc/ld.so.conf.d", KindAuth},
	{"/etc/login.defs", KindAuth},
	{"/etc/curfew", KindAuth},
	{"/etc/systemd", KindUnit},
	{"/etc/init.d", KindUnit},
	{"/etc/rc.local", KindUnit},
	{"/etc/xdg/systemd", KindUnit},
	{"/etc/udev", KindUnit},
	{"/etc/crontab", KindJob},
	{"/etc/anacrontab", KindJob},
	{"/etc/cron.d", KindJob},
	{"/etc/cron.hourly", KindJob},
	{"/etc/cron.daily", KindJob},
	{"/etc/cron.weekly", KindJob},
	{"/etc/cron.monthly", KindJob},
	{"/etc/at.allow", KindJob},
	{"/etc/at.deny", KindJob},
	{"/etc/profile", KindStart},
	{"/etc/profile.d", KindStart},
	{"/etc/bash.bashrc", KindStart},
	{"/etc/environment", KindStart},
	{"/etc/update-motd.d", KindStart},
}

func kindOf(p string) Kind {
	for _, e := range ofEtc {
		if inside(p, e.path) {
			return e.kind
		}
	}
	return KindEtc
}

// taker takes an inventory.
type taker struct {
	root   string
	mounts mounts
	inv    *Inventory
	bytes  int64
}

// take looks at all places below root.
func (t *taker) take(ctx context.Context, nowMS int64) (*Inventory, error) {
	t.inv = &Inventory{AtMS: nowMS, Entries: make(map[string]Entry)}
	for _, p := range places {
		if err := t.tree(ctx, p.path, p.kind); err != nil {
			return nil, err
		}
	}
	local, err := account.ReadLocal(t.root)
	if err != nil {
		t.cut("accounts: " + err.Error())
	}
	t.accounts()
	if err := t.homes(ctx, local); err != nil {
		return nil, err
	}
	t.modules()
	return t.inv, nil
}

func (t *taker) cut(why string) {
	if len(t.inv.Cut) < maxProblems && !slices.Contains(t.inv.Cut, why) {
		t.inv.Cut = append(t.inv.Cut, why)
	}
}

// tree notes every file below a path, or the file at it. Where it does not exist there is nothing.
func (t *taker) tree(ctx context.Context, p string, kind Kind) error {
	full := filepath.Join(t.root, p)
	if !t.mounts.isLocal(full) {
		t.cut(p + " is on no local file system and was not looked at")
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		if !vanished(err) && !errors.Is(err, unix.ENOTDIR) {
			t.cut(p + ": " + err.Error())
		}
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return t.alone(p, kind)
	}
	w := &walk{visit: func(f found) { t.file(f, kind) }}
	err := w.tree(ctx, full, 0, "")
	for _, problem := range w.problems {
		t.cut(problem)
	}
	return err
}

// alone notes one file that is named by its path.
func (t *taker) alone(p string, kind Kind) error {
	full := filepath.Join(t.root, p)
	fd, err := unix.Openat2(unix.AT_FDCWD, filepath.Dir(full), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil //nolint:nilerr // a link on the way: what it leads to is looked at there
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH
	f := found{dir: fd, name: filepath.Base(full), path: func() string { return full }}
	if unix.Fstatat(fd, f.name, &f.stat, unix.AT_SYMLINK_NOFOLLOW) == nil {
		t.file(f, kind)
	}
	return nil
}

// file notes one file.
func (t *taker) file(f found, kind Kind) {
	p := strings.TrimPrefix(f.path(), strings.TrimSuffix(t.root, "/"))
	if slices.Contains(noise, p) || ownUnit(p) {
		return
	}
	if kind == "" {
		kind = kindOf(p)
	}
	if len(t.inv.Entries) >= maxEntries {
		t.cut(fmt.Sprintf("more than %d files", maxEntries))
		return
	}
	e := Entry{Kind: kind, ChangedMS: f.stat.Ctim.Nano() / 1e6}
	sum := sha256.New()
	fmt.Fprintf(sum, "%o %d %d ", f.stat.Mode, f.stat.Uid, f.stat.Gid)
	switch f.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Lines = t.content(sum, f, path.Base(p))
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		if n, err := unix.Readlinkat(f.dir, f.name, target); err == nil {
			_, _ = sum.Write(target[:n])
		}
	}
	e.Sum = short(sum.Sum(nil))
	t.inv.Entries[p] = e
}

func short(sum []byte) string { return base64.RawStdEncoding.EncodeToString(sum[:12]) }

// ownUnit tells transient units that come and go with every login and grant.
func ownUnit(p string) bool {
	name, ok := strings.CutPrefix(p, "/run/systemd/transient/")
	return ok && (strings.HasPrefix(name, "curfew-") ||
		strings.HasPrefix(name, "session-") && strings.HasSuffix(name, ".scope"))
}

// content adds a file's bytes to its sum, and returns the sums of the lines of a file of keys.
func (t *taker) content(sum io.Writer, f found, base string) (lines []string) {
	if f.stat.Size > maxHashed || t.bytes+f.stat.Size > maxBytes {
		if f.stat.Size <= maxHashed {
			t.cut(fmt.Sprintf("more than %d MiB", maxBytes>>20))
		}
		fmt.Fprintf(sum, "%d %d", f.stat.Size, f.stat.Mtim.Nano())
		return nil
	}
	fd, err := unix.Openat2(f.dir, f.name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOATIME,
		Resolve: resolve,
	})
	if err != nil {
		fmt.Fprintf(sum, "unread %d %d", f.stat.Size, f.stat.Mtim.Nano())
		return nil
	}
	file := os.NewFile(uintptr(fd), f.name)
	defer func() { _ = file.Close() }() // read only
	t.bytes += f.stat.Size
	in := io.TeeReader(io.LimitReader(file, maxHashed), sum)
	if strings.HasPrefix(base, "authorized_keys") {
		lines = keyLines(in)
	}
	_, _ = io.Copy(io.Discard, in)
	return lines
}

func keyLines(in io.Reader) (sums []string) {
	scan := bufio.NewScanner(in)
	scan.Buffer(nil, 64<<10)
	for scan.Scan() && len(sums) < maxLines {
		line := strings.TrimSpace(scan.Text())
		if line != "" && line[0] != '#' {
			sums = append(sums, lineSum(line))
		}
	}
	return sums
}

func lineSum(line string) string {
	sum := sha256.Sum256([]byte(line))
	return short(sum[:])
}

// accounts notes local users and groups line by line, so that a report can name who is new. Sums of
// shadow lines never leave the host.
func (t *taker) accounts() {
	for _, f := range []struct{ file, what string }{
		{"etc/passwd", "user"},
		{"etc/shadow", "password of"},
		{"etc/group", "group"},
		{"etc/gshadow", "password of group"},
	} {
		full := filepath.Join(t.root, f.file)
		file, err := os.OpenFile(full, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if vanished(err) {
			continue
		}
		if err != nil {
			t.cut(f.file + ": " + err.Error())
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(int(file.Fd()), &st) == nil {
			t.inv.AccountsMS = max(t.inv.AccountsMS, st.Ctim.Nano()/1e6)
		}
		scan := bufio.NewScanner(io.LimitReader(file, 16<<20))
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			name, _, _ := strings.Cut(scan.Text(), ":")
			if name == "" || len(t.inv.Entries) >= maxEntries {
				continue
			}
			t.inv.Entries[f.what+" "+show(name)] = Entry{Kind: KindAccount, Sum: lineSum(scan.Text())}
		}
		_ = file.Close() // read only
	}
}

// homes looks at what counts in the homes of root and of local people.
func (t *taker) homes(ctx context.Context, local account.Local) error {
	seen := make(map[string]bool)
	for _, u := range local.Users {
		person := u.UID == 0 || u.UID >= firstPerson && u.UID != 65534
		if !person || !path.IsAbs(u.Home) || u.Home == "/" || seen[u.Home] {
			continue
		}
		if len(seen) == maxHomes {
			t.cut(fmt.Sprintf("more than %d homes", maxHomes))
			return nil
		}
		seen[u.Home] = true
		home := t.home(u.Home)
		for _, p := range ofHomes {
			if err := t.tree(ctx, path.Join(home, p.path), p.kind); err != nil {
				return err
			}
		}
	}
	return nil
}

// home resolves the links on the way to a home, which are the host's own. What is in it is the person's
// and never followed.
func (t *taker) home(p string) string {
	full := filepath.Join(t.root, p)
	if !t.mounts.isLocal(full) {
		return path.Clean(p)
	}
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return path.Clean(p)
	}
	if below, ok := strings.CutPrefix(real, strings.TrimSuffix(t.root, "/")); ok {
		return below
	}
	return path.Clean(p)
}

// modules notes what is loaded into the kernel, and what it runs by itself.
func (t *taker) modules() {
	text, err := os.ReadFile("/proc/modules")
	if err == nil {
		for line := range strings.Lines(string(text)) {
			name, _, _ := strings.Cut(line, " ")
			t.inv.Entries["kernel module "+show(name)] = Entry{Kind: KindProcess}
		}
	}
	for _, name := range []string{"core_pattern", "modprobe"} {
		text, err := os.ReadFile("/proc/sys/kernel/" + name)
		if err == nil {
			t.inv.Entries["kernel."+name] = Entry{Kind: KindProcess, Sum: lineSum(string(text))}
		}
	}
}
