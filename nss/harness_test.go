// Package nss_test drives the real libnss_curfew.so.2, alone and through glibc, with snapshots that
// the agent's own writer rendered, and with broken ones.
package nss_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

var bin = func() string {
	dir, err := filepath.Abs("../bin")
	if err != nil {
		panic(err)
	}
	return dir
}()

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "nss: snapshots belong to root: run these tests as root")
		os.Exit(1)
	}
	// Reading the sources here tells the test cache what the result depends on.
	sources, _ := filepath.Glob("*/*.[ch]")
	for _, name := range append(sources, "Makefile", "../pam/src/fdstat.h") {
		if _, err := os.ReadFile(name); err != nil {
			fmt.Fprintln(os.Stderr, "nss:", err)
			os.Exit(1)
		}
	}
	if out, err := exec.Command("make", "-s", "all", "asan").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "nss: make all asan: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// NSS's statuses, and what the driver appends to each answer.
const (
	found       = "1 0"
	notFound    = "0 0"
	unavailable = "-1 5" // EIO
)

// driver is the C driver with one snapshot of its own. Its death is a finding.
type driver struct {
	db string // the snapshot's path, as this process sees it

	mu     sync.Mutex
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.Reader
	stderr bytes.Buffer
}

// sanitized starts the module's sources under ASan and UBSan.
func sanitized(t testing.TB) *driver {
	t.Helper()
	d := &driver{db: t.TempDir() + "/nss.db"}
	d.start(t, exec.Command(bin+"/nss_driver.asan", d.db))
	return d
}

// real starts a program that dlopens the real object, in a mount namespace with a /run of its own.
func real(t testing.TB) *driver {
	t.Helper()
	d := &driver{}
	d.start(t, privately("exec "+bin+"/nss_driver "+bin+"/libnss_curfew.so.2"))
	// The first answer says that the namespace is ready.
	d.ask(t, 'N', 0, "nobody-at-all")
	d.db = fmt.Sprintf("/proc/%d/root/run/curfew/nss.db", d.cmd.Process.Pid)
	return d
}

// privately is a shell command with a private, empty /run/curfew.
func privately(script string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-ec", `
		mount --make-rprivate /
		mount -t tmpfs -o mode=755 tmpfs /run
		mkdir -m 755 /run/curfew
		`+script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	return cmd
}

func (d *driver) start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	var err error
	if d.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if d.out, err = cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = &d.stderr
	d.cmd = cmd
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the driver died: %v\n%s", err, d.stderr.String())
		}
	})
}

// fataler is what a test, a fuzz target and a property have in common.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// question is one call of the module; see driver.c.
type question struct {
	what  byte
	skew  byte
	size  uint32 // of the buffer; 0 grows it byte by byte
	id    uint32
	limit int32
	name  string
}

func (d *driver) question(t fataler, q question) string {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	le := binary.LittleEndian
	b := []byte{q.what, q.skew}
	b = le.AppendUint32(b, q.size)
	b = le.AppendUint32(b, q.id)
	b = le.AppendUint32(b, uint32(q.limit))
	b = append(b, q.name...)
	if _, err := d.in.Write(append(le.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
		t.Fatalf("the driver is gone before %+v: %v\n%s", q, err, d.stderr.String())
	}
	var head [4]byte
	if _, err := io.ReadFull(d.out, head[:]); err != nil {
		_ = d.cmd.Wait()
		t.Fatalf("the driver died of %+v:\n%s", q, d.stderr.String())
	}
	answer := make([]byte, le.Uint32(head[:]))
	if _, err := io.ReadFull(d.out, answer); err != nil {
		t.Fatalf("the answer to %+v is cut: %v", q, err)
	}
	return string(answer)
}

func (d *driver) ask(t fataler, what byte, id uint32, name string) string {
	t.Helper()
	return d.question(t, question{what: what, id: id, name: name})
}

// groups is initgroups with room for one gid, so that the list must grow.
func (d *driver) groups(t fataler, name string, primary uint32) string {
	t.Helper()
	return d.question(t, question{what: 'I', size: 1, id: primary, limit: -1, name: name})
}

// put writes a snapshot in place, with the mode and owner that the module demands.
func (d *driver) put(t fataler, b []byte) {
	t.Helper()
	if err := os.WriteFile(d.db, b, 0o644); err != nil {
		t.Fatalf("writing the snapshot: %v", err)
	}
}

// replace writes a snapshot as the agent does, by rename.
func (d *driver) replace(b []byte) error {
	if err := os.WriteFile(d.db+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(d.db+".new", d.db)
}

// bootNow is the time since boot, as deadlines count it.
func bootNow() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// people is the snapshot of most tests: alice is live, bob's wall clock and carol's boot clock
// have run out, dave has no gecos and no groups.
func people() ([]account.Account, []account.Group) {
	wall, boot := time.Now().Add(time.Hour), bootNow()+time.Hour
	live := account.Account{
		Login: "alice", UID: 1900000002, GID: 1900000002, Gecos: "Alice Ångström",
		Home: "/home/alice", Shell: "/bin/bash", Groups: []uint32{4, 999},
		WallDeadline: wall, BootDeadline: boot,
	}
	bob, carol, dave := live, live, live
	bob.Login, bob.UID, bob.GID, bob.Home = "bob", 1900000001, 1900000001, "/home/bob"
	bob.WallDeadline = time.Now()
	carol.Login, carol.UID, carol.GID, carol.Home = "carol", 1900000003, 1900000003, "/home/carol"
	carol.BootDeadline = bootNow()
	dave.Login, dave.UID, dave.GID, dave.Home = "dave", 4294967293, 4294967293, "/home/dave"
	dave.Gecos, dave.Groups = "", nil
	groups := []account.Group{
		{
			Name: "aaa-team", GID: 1900000100, Members: []string{"alice", "daemon", "dave"},
			WallDeadline: wall, BootDeadline: boot,
		},
		{
			Name: "gone-wall", GID: 1900000101, Members: []string{"alice", "daemon"},
			WallDeadline: time.UnixMilli(1), BootDeadline: boot,
		},
		{
			Name: "gone-boot", GID: 1900000102, Members: []string{"alice", "daemon"},
			WallDeadline: wall, BootDeadline: -1,
		},
		{
			Name: "huge", GID: 4294967292, Members: []string{"daemon"},
			WallDeadline: wall, BootDeadline: boot,
		},
	}
	return []account.Account{live, bob, carol, dave}, groups
}

func render(t fataler, accounts []account.Account, groups []account.Group) []byte {
	t.Helper()
	b, err := account.Render(accounts, groups)
	if err != nil {
		t.Fatalf("rendering: %v", err)
	}
	return b
}

func renderPeople(t fataler) []byte {
	t.Helper()
	accounts, groups := people()
	return render(t, accounts, groups)
}

// many is n accounts with the given number of supplementary groups each.
func many(n int) []account.Account {
	var list []account.Account
	for i := range n {
		uid := uint32(1900000000 + i)
		login := fmt.Sprintf("user%05d", i)
		list = append(list, account.Account{
			Login: login, UID: uid, GID: uid, Home: "/home/" + login, Shell: "/bin/bash",
			Groups:       []uint32{4},
			WallDeadline: time.Now().Add(time.Hour), BootDeadline: bootNow() + time.Hour,
		})
	}
	return list
}

// both runs a test against the sanitized sources and against the real object.
func both(t *testing.T, f func(t *testing.T, d *driver)) {
	t.Run("sanitized", func(t *testing.T) { f(t, sanitized(t)) })
	t.Run("real", func(t *testing.T) { f(t, real(t)) })
}

func lines(s string) []string {
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}
