package account

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const testUID, testGID = 1900000001, 1900000002

// rootFolder makes a folder as /home and /etc/skel are: root's, 0755, whatever the umask.
func rootFolder(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("making homes for other people needs root: run this test as root")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// list describes a tree, one line per entry: mode, owner, name, and what it holds.
func list(t *testing.T, top string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(top, path)
		fmt.Fprintf(&b, "%06o %d:%d %s", st.Mode, st.Uid, st.Gid, name)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s", target)
		case unix.S_IFREG:
			text, _ := os.ReadFile(path)
			fmt.Fprintf(&b, " %q", text)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// names is what a folder holds, hidden leftovers included.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// trickySkel holds one of each kind, and next to it what its links point at.
func trickySkel(t *testing.T) string {
	t.Helper()
	skel := rootFolder(t)
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "root's secret", 0o600)
	write(t, skel+"/.bashrc", "# hello\n", 0o644)
	write(t, skel+"/empty", "", 0o600)
	write(t, skel+"/setuid", "#!", 0o755|fs.ModeSetuid|fs.ModeSetgid)
	write(t, skel+"/shared", "all", 0o666)
	write(t, skel+"/second-name", "linked", 0o644)
	for _, err := range []error{
		os.MkdirAll(skel+"/.config/deep", 0o755),
		os.Chmod(skel+"/.config", 0o777|fs.ModeSticky),
		os.WriteFile(skel+"/.config/deep/file", []byte("deep"), 0o640),
		os.Symlink(secret, skel+"/link"),
		os.Symlink("/etc", skel+"/folder-link"),
		os.Symlink("nowhere", skel+"/dangling"),
		os.Link(skel+"/second-name", filepath.Join(filepath.Dir(secret), "first-name")),
		unix.Mkfifo(skel+"/fifo", 0o644),
		unix.Mknod(skel+"/device", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))),
		unix.Mknod(skel+"/socket", unix.S_IFSOCK|0o666, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return skel
}

const trickyHome = `040700 1900000001:1900000002 .
100644 1900000001:1900000002 .bashrc "# hello\n"
040755 1900000001:1900000002 .config
040755 1900000001:1900000002 .config/deep
100640 1900000001:1900000002 .config/deep/file "deep"
120777 1900000001:1900000002 dangling -> nowhere
100600 1900000001:1900000002 empty ""
120777 1900000001:1900000002 folder-link -> /etc
120777 1900000001:1900000002 link -> SECRET
100755 1900000001:1900000002 setuid "#!"
100644 1900000001:1900000002 shared "all"
`

func TestMakeHome(t *testing.T) {
	skel := trickySkel(t)
	secret, _ := os.Readlink(skel + "/link")
	for _, umask := range []int{0, 0o022, 0o777} {
		root := rootFolder(t)
		old := unix.Umask(umask)
		err := MakeHome(root, "alice", testUID, testGID, skel)
		unix.Umask(old)
		if err != nil {
			t.Fatalf("umask %o: %v", umask, err)
		}
		want := strings.ReplaceAll(trickyHome, "SECRET", secret)
		if diff := cmp.Diff(want, list(t, root+"/alice")); diff != "" {
			t.Errorf("umask %o: the home differs:\n%s", umask, diff)
		}
		if diff := cmp.Diff([]string{"alice"}, names(t, root)); diff != "" {
			t.Errorf("umask %o: something was left behind:\n%s", umask, diff)
		}
	}
}

func TestMakeHomeWithoutSkel(t *testing.T) {
	for _, skel := range []string{"", "/nonexistent/skel"} {
		root := rootFolder(t)
		if err := MakeHome(root, "alice", testUID, testGID, skel); err != nil {
			t.Fatal(err)
		}
		if got, want := list(t, root+"/alice"), "040700 1900000001:1900000002 .\n"; got != want {
			t.Errorf("skel %q: home is %q, want %q", skel, got, want)
		}
	}
}

func TestMakeHomeLeavesAnExistingHome(t *testing.T) {
	root := rootFolder(t)
	if err := MakeHome(root, "alice", testUID, testGID, ""); err != nil {
		t.Fatal(err)
	}
	write(t, root+"/alice/mine", "kept", 0o644)
	before := list(t, root)
	if err := MakeHome(root, "alice", testUID, testGID, trickySkel(t)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, list(t, root)); diff != "" {
		t.Errorf("an existing home was changed:\n%s", diff)
	}
}

func TestMakeHomeRefusesWhatIsInTheWay(t *testing.T) {
	victim := t.TempDir()
	for name, c := range map[string]struct {
		make func(home string) error
		hint string
	}{
		"root's folder": {func(home string) error { return os.Mkdir(home, 0o700) }, "chown"},
		"another's folder": {func(home string) error {
			return errors.Join(os.Mkdir(home, 0o700), os.Chown(home, testUID+1, testGID))
		}, "chown"},
		"link to a folder": {func(home string) error { return os.Symlink(victim, home) }, "remove"},
		"dangling link":    {func(home string) error { return os.Symlink("no", home) }, "remove"},
		"file":             {func(home string) error { return os.WriteFile(home, nil, 0o600) }, "remove"},
		"FIFO":             {func(home string) error { return unix.Mkfifo(home, 0o600) }, "remove"},
	} {
		root := rootFolder(t)
		if err := c.make(root + "/alice"); err != nil {
			t.Fatal(err)
		}
		before := list(t, root)
		err := MakeHome(root, "alice", testUID, testGID, trickySkel(t))
		if err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: MakeHome = %v; want an error that says %q", name, err, c.hint)
		}
		if diff := cmp.Diff(before, list(t, root)); diff != "" {
			t.Errorf("%s: a refused home changed something:\n%s", name, diff)
		}
	}
	if got := names(t, victim); len(got) != 0 {
		t.Errorf("the link was followed: %v", got)
	}
}

func TestMakeHomeRefusesFoldersOfOthers(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"owner":            func(dir string) error { return os.Chown(dir, testUID, 0) },
		"writable by all":  func(dir string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) },
		"writable by some": func(dir string) error { return os.Chmod(dir, 0o775) },
	} {
		for _, which := range []string{"root", "skel"} {
			folders := map[string]string{"root": rootFolder(t), "skel": rootFolder(t)}
			if err := spoil(folders[which]); err != nil {
				t.Fatal(err)
			}
			err := MakeHome(folders["root"], "alice", testUID, testGID, folders["skel"])
			if err == nil || !strings.Contains(err.Error(), "belong to root") {
				t.Errorf("%s of %s: MakeHome = %v", name, which, err)
			}
			if got := names(t, folders["root"]); len(got) != 0 {
				t.Errorf("%s of %s: left %v", name, which, got)
			}
		}
	}
}

func TestMakeHomeRefusesPeopleWhoAreNone(t *testing.T) {
	root := rootFolder(t)
	for _, c := range []struct {
		login    string
		uid, gid uint32
	}{
		{"", testUID, testGID},
		{"..", testUID, testGID},
		{"a/b", testUID, testGID},
		{"../alice", testUID, testGID},
		{".curfew-new-bob", testUID, testGID},
		{"alice", 0, testGID},
		{"alice", testUID, 0},
		{"alice", 999, testGID},
	} {
		if err := MakeHome(root, c.login, c.uid, c.gid, ""); err == nil {
			t.Errorf("MakeHome made a home for %+v", c)
		}
	}
	if got := names(t, root); len(got) != 0 {
		t.Errorf("refusals left %v", got)
	}
}

func TestMakeHomeBoundsTheSkel(t *testing.T) {
	for name, fill := range map[string]func(skel string){
		"entries": func(skel string) {
			for i := range maxEntries + 1 {
				write(t, fmt.Sprintf("%s/%d", skel, i), "", 0o644)
			}
		},
		"entries in folders": func(skel string) {
			for i := range maxEntries + 1 {
				dir := fmt.Sprintf("%s/%d", skel, i%2)
				_ = os.Mkdir(dir, 0o755)
				write(t, fmt.Sprintf("%s/%d", dir, i), "", 0o644)
			}
		},
		"bytes": func(skel string) {
			write(t, skel+"/a", strings.Repeat("x", maxBytes), 0o644)
			write(t, skel+"/b", "y", 0o644)
		},
		"sparse bytes": func(skel string) {
			write(t, skel+"/a", "", 0o644)
			if err := os.Truncate(skel+"/a", 1<<40); err != nil {
				t.Fatal(err)
			}
		},
		"levels": func(skel string) {
			if err := os.MkdirAll(skel+strings.Repeat("/d", maxDepth), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	} {
		root, skel := rootFolder(t), rootFolder(t)
		fill(skel)
		err := MakeHome(root, "alice", testUID, testGID, skel)
		if !errors.Is(err, errTooLarge) {
			t.Errorf("%s: MakeHome = %v; want errTooLarge", name, err)
		}
		if got := names(t, root); len(got) != 0 {
			t.Errorf("%s: left %v", name, got)
		}
	}
}

func TestMakeHomeAfterACrash(t *testing.T) {
	const leftover = "/.curfew-new-alice"
	t.Run("incomplete", func(t *testing.T) {
		root := rootFolder(t)
		if err := os.MkdirAll(root+leftover+"/half", 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, root+leftover+"/.bashrc", "torn", 0o600)
		if err := MakeHome(root, "alice", testUID, testGID, ""); err != nil {
			t.Fatal(err)
		}
		if got, want := list(t, root+"/alice"), "040700 1900000001:1900000002 .\n"; got != want {
			t.Errorf("home is %q, want %q", got, want)
		}
	})
	t.Run("complete", func(t *testing.T) {
		root := rootFolder(t)
		if err := errors.Join(os.Mkdir(root+leftover, 0o700), os.Chown(root+leftover, testUID, testGID),
			os.WriteFile(root+leftover+"/done", nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := MakeHome(root, "alice", testUID, testGID, trickySkel(t)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"done"}, names(t, root+"/alice")); diff != "" {
			t.Errorf("the complete home was not put into place:\n%s", diff)
		}
	})
	for name, make := range map[string]func(path string) error{
		"another's": func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), os.Chown(path, testUID+1, testGID))
		},
		"link": func(path string) error { return os.Symlink("/etc", path) },
		"file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := rootFolder(t)
			if err := make(root + leftover); err != nil {
				t.Fatal(err)
			}
			before := list(t, root)
			if err := MakeHome(root, "alice", testUID, testGID, ""); err == nil {
				t.Error("a leftover that is not Curfew's was used or removed")
			}
			if diff := cmp.Diff(before, list(t, root)); diff != "" {
				t.Errorf("a leftover that is not Curfew's was changed:\n%s", diff)
			}
		})
	}
}

// Where root is nobody, as on an NFS export that squashes it, the error says what an administrator can do.
func TestMakeHomeWhereRootMayNot(t *testing.T) {
	homes := rootFolder(t)
	runtime.LockOSThread() // a thread has its own fsuid
	defer runtime.UnlockOSThread()
	err := unix.Setfsuid(65534)
	if err == nil {
		err = errors.Join(MakeHome(homes, "alice", testUID, testGID, ""), unix.Setfsuid(0))
	}
	if !errors.Is(err, ErrNoHome) || !errors.Is(err, unix.EACCES) {
		t.Fatalf("a squashed root makes a home: %v", err)
	}
	if want := fmt.Sprintf("make %s/alice where homes are kept, mode 0700 and owned by uid %d", homes, testUID); !strings.Contains(err.Error(), want) {
		t.Errorf("it is not said what to do: %v", err)
	}
}
