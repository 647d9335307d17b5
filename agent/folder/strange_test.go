package folder

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thing is what an attacker may put in a file's place. victim is a secret file and folder a folder
// with a file, both out of reach.
type thing struct {
	put func(at, victim, folder string) error
	// stays says that the kernel lets nobody replace it, so that writing there must fail.
	stays bool
}

var things = map[string]thing{
	"link to a file":    {put: func(at, victim, _ string) error { return os.Symlink(victim, at) }},
	"link to a folder":  {put: func(at, _, folder string) error { return os.Symlink(folder, at) }},
	"link to nothing":   {put: func(at, victim, _ string) error { return os.Symlink(victim+"-new", at) }},
	"link to itself":    {put: func(at, _, _ string) error { return os.Symlink(at, at) }},
	"magic link":        {put: func(at, _, _ string) error { return os.Symlink("/proc/self/root/etc", at) }},
	"hard link":         {put: func(at, victim, _ string) error { return os.Link(victim, at) }},
	"pipe":              {put: func(at, _, _ string) error { return unix.Mkfifo(at, 0o666) }},
	"device":            {put: func(at, _, _ string) error { return unix.Mknod(at, unix.S_IFCHR|0o666, 1<<8|3) }},
	"terminal":          {put: func(at, _, _ string) error { return unix.Mknod(at, unix.S_IFCHR|0o666, 5<<8) }},
	"empty folder":      {put: func(at, _, _ string) error { return os.Mkdir(at, 0o777) }},
	"foreign file":      {put: foreign},
	"socket":            {put: socket},
	"folder with links": {put: nested},
	"mounted file":      {put: mountedFile, stays: true},
	"mounted folder":    {put: mountedFolder, stays: true},
}

func foreign(at, _, _ string) error {
	return errors.Join(os.WriteFile(at, []byte("foreign"), 0o666), os.Chown(at, 1000, 1000))
}

func socket(at, _, _ string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

func nested(at, victim, folder string) error {
	return errors.Join(os.MkdirAll(at+"/a/b", 0o755), os.Symlink(folder, at+"/a/link"),
		os.Symlink(victim, at+"/link"), os.Link(victim, at+"/a/b/hard"), unix.Mkfifo(at+"/a/pipe", 0o666))
}

func mountedFile(at, victim, _ string) error {
	return errors.Join(os.WriteFile(at, nil, 0o600), unix.Mount(victim, at, "", unix.MS_BIND, ""))
}

func mountedFolder(at, _, folder string) error {
	return errors.Join(os.Mkdir(at, 0o755), unix.Mount(folder, at, "", unix.MS_BIND, ""))
}

// TestStrangeThings does everything that a Folder can do with everything that can stand in a name's
// place. What lies behind it is never read, written, given away or removed, and nothing hangs.
func TestStrangeThings(t *testing.T) {
	file := File{Data: []byte("ours"), Mode: 0o600}
	does := map[string]func(f *Folder) error{
		"Write":    func(f *Folder) error { return f.Write("x", file) },
		"Append":   func(f *Folder) error { return f.Append("x", []byte("ours"), 0o600) },
		"Truncate": func(f *Folder) error { return f.Truncate("x", 0) },
		"Remove":   func(f *Folder) error { return f.Remove("x") },
		"Read":     func(f *Folder) error { _, err := f.Read("x", 100); return err },
		"Holds": func(f *Folder) error {
			if same, err := f.Holds("x", file); same || err != nil {
				return fmt.Errorf("holds: %v, %w", same, err)
			}
			return errors.New("not held")
		},
		"SubOwn": func(f *Folder) error {
			sub, err := f.SubOwn("x", 0o755)
			if err != nil {
				return err
			}
			return errors.Join(sub.Write("inner", file), sub.Close())
		},
	}
	// Append, Truncate and Read of a plain file of root's with two names is that file, and root's alone
	// to make: they are left out for it.
	shares := map[string]bool{"Append": true, "Truncate": true, "Read": true}
	for name, thing := range things {
		for verb, do := range does {
			if name == "hard link" && shares[verb] {
				continue
			}
			t.Run(verb+" on "+name, func(t *testing.T) {
				standIn(t, thing, verb, do)
			})
		}
	}
}

func standIn(t *testing.T, thing thing, verb string, do func(*Folder) error) {
	dir, outside := t.TempDir(), t.TempDir()
	victim, folder := filepath.Join(outside, "victim"), filepath.Join(outside, "folder")
	if err := errors.Join(os.WriteFile(victim, []byte("secret"), 0o640), os.Mkdir(folder, 0o751),
		os.WriteFile(filepath.Join(folder, "file"), []byte("secret"), 0o640)); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "x")
	if err := thing.put(at, victim, folder); err != nil {
		t.Fatalf("this test makes devices and mounts; run it as root: %v", err)
	}
	if thing.stays {
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) }) // the folders go with the test
	}
	before := tree(t, outside)
	f := open(t, dir)
	done := make(chan error, 1)
	go func() { done <- do(f) }()
	var err error
	select {
	case err = <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
	if after := tree(t, outside); after != before {
		t.Errorf("it was followed (%v):\n%s\nbefore\n%s", err, after, before)
	}
	replaces := verb == "Write" || verb == "Remove" || verb == "SubOwn"
	if !replaces && err == nil || replaces && (err == nil) == thing.stays {
		t.Errorf("it says %v", err)
	}
	if verb != "Write" || thing.stays {
		return
	}
	if data, err := f.Read("x", 100); err != nil || string(data) != "ours" {
		t.Errorf("afterwards it holds %q, %v", data, err)
	}
}

// tree says everything of a folder except what reading it changes.
func tree(t *testing.T, dir string) (out string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		content := []byte(nil)
		if info.Mode().IsRegular() {
			content, err = os.ReadFile(path)
		}
		out += fmt.Sprintf("%s %v %d:%d %q\n", path, info.Mode(), st.Uid, st.Gid, content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWritesUnderSwaps exchanges the file, and the hidden name beside it, for links, pipes and a
// folder as fast as it can, while the file is written, read and removed.
func TestWritesUnderSwaps(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "curfew-folder-") // syncing costs nothing there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ours, aside := filepath.Join(dir, "ours"), filepath.Join(dir, "aside")
	outside := filepath.Join(dir, "outside")
	victim, folder := filepath.Join(outside, "victim"), filepath.Join(outside, "folder")
	if err := errors.Join(os.Mkdir(ours, 0o755), os.Mkdir(aside, 0o755), os.Mkdir(outside, 0o755),
		os.WriteFile(victim, []byte("secret"), 0o640), os.Mkdir(folder, 0o751),
		os.WriteFile(filepath.Join(folder, "file"), []byte("secret"), 0o640)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, outside)
	stop := make(chan struct{})
	var attackers sync.WaitGroup
	for i, name := range []string{"x", ".x.new"} {
		attackers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				swapIn(filepath.Join(aside, fmt.Sprint(i)), filepath.Join(ours, name), n, victim, folder)
			}
		})
	}
	f := open(t, ours)
	held := make(map[bool]int)
	began := time.Now()
	for time.Since(began) < 20*time.Second {
		if held[true] >= 30 && held[false] >= 30 && time.Since(began) > 3*time.Second {
			break
		}
		bounded(t, func() {
			held[f.Write("x", File{Data: []byte("ours"), Mode: 0o600}) == nil]++
			data, err := f.Read("x", 100)
			if err == nil && string(data) == "secret" {
				t.Error("a link was read")
			}
			_ = f.Remove("x")
			if sub, err := f.SubOwn("x", 0o755); err == nil {
				_ = errors.Join(sub.Write("file", File{Data: []byte("ours"), Mode: 0o600}), sub.Close())
			}
		})
	}
	close(stop)
	attackers.Wait()
	if held[true] == 0 || held[false] == 0 {
		t.Errorf("%d writes held and %d failed: the test tried nothing", held[true], held[false])
	}
	if after := tree(t, outside); after != before {
		t.Errorf("something was followed:\n%s\nbefore\n%s", after, before)
	}
	bounded(t, func() {
		if err := f.Write("x", File{Data: []byte("ours"), Mode: 0o600}); err != nil {
			t.Errorf("once the attacker is gone: %v", err)
		}
	})
}

func swapIn(aside, at string, n int, victim, folder string) {
	_ = os.RemoveAll(aside)
	var err error
	switch n % 4 {
	case 0:
		err = os.Symlink(victim, aside)
	case 1:
		err = os.Symlink(folder, aside)
	case 2:
		err = unix.Mkfifo(aside, 0o666)
	case 3:
		err = os.MkdirAll(aside+"/deep", 0o755)
	}
	if err != nil {
		return
	}
	if unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, at, unix.RENAME_EXCHANGE) != nil {
		_ = os.Rename(aside, at)
	}
}

func bounded(t *testing.T, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); do() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
}
