package residue

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests give files to other users: run as root")
		os.Exit(1)
	}
	unix.Umask(0o022)
	goleak.VerifyTestMain(m)
}

const (
	request = "k3v9x2m7q4ab"
	second  = "k3v9x2m7q4ac"
	kim     = 1987000321 // a Curfew account
	lee     = 1987000322 // another
	carol   = 1001       // a local user
	lou     = 1002       // a member of web
	web     = 4242       // a group that was granted
)

// host is a small root file system.
type host struct {
	t    *testing.T
	root string
	now  time.Time
	job  Job
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, root: t.TempDir(), now: time.Now()}
	for _, dir := range []string{
		"etc/sudoers.d", "etc/systemd/system", "run/systemd/transient", "root/.ssh", "tmp", "srv",
		"usr/bin", "var/lib/curfew", "var/spool/cron/crontabs", "home/carol/.ssh", "home/lou",
	} {
		h.ok(os.MkdirAll(h.path(dir), 0o755))
	}
	h.ok(os.Chmod(h.path("var/lib/curfew"), 0o700))
	h.write("etc/passwd", "root:x:0:0::/root:/bin/sh\ncarol:x:1001:1001::/home/carol:/bin/sh\n"+
		"lou:x:1002:1002::/home/lou:/bin/sh\n")
	h.write("etc/shadow", "root:*:1::::::\ncarol:*:1::::::\nlou:*:1::::::\n")
	h.write("etc/group", "root:x:0:\ncarol:x:1001:\nlou:x:1002:\nweb:x:4242:lou\n")
	h.write("etc/sudoers.d/base", "# none\n")
	store, err := OpenStore(h.path("var/lib/curfew"), nil)
	h.ok(err)
	t.Cleanup(func() { _ = store.Close() })
	h.job = Job{
		Root: h.root, Store: store, Log: hclog.NewNullLogger(),
		Clock: func() grant.Clock {
			var boot unix.Timespec
			h.ok(unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot))
			return grant.Clock{Wall: time.Now(), Boot: time.Duration(boot.Nano())}
		},
	}
	return h
}

func (h *host) ok(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) path(name string) string { return filepath.Join(h.root, name) }

func (h *host) write(name, text string) {
	h.t.Helper()
	h.ok(os.MkdirAll(filepath.Dir(h.path(name)), 0o755))
	h.ok(os.WriteFile(h.path(name), []byte(text), 0o644))
}

// program makes a file with an owner, a group and a mode with setuid and setgid bits.
func (h *host) program(name string, uid, gid int, mode uint32) string {
	h.t.Helper()
	h.write(name, "#!/bin/sh\n")
	h.ok(os.Lchown(h.path(name), uid, gid))
	h.ok(unix.Chmod(h.path(name), mode))
	return h.path(name)
}

func (h *host) mode(name string) uint32 {
	h.t.Helper()
	var st unix.Stat_t
	h.ok(unix.Lstat(h.path(name), &st))
	return st.Mode & 0o7777
}

// ended is a request of kim's that is over.
func ended(since time.Time) Record {
	return Record{
		Request: request, Login: "kim", UID: kim, Account: true, Whole: true, Ended: true, Role: "ops",
		SinceMS: since.UnixMilli(),
	}
}

// work runs the worker and returns the outcome of a request.
func (h *host) work(name string) Outcome {
	h.t.Helper()
	h.ok(h.job.Work(h.t.Context()))
	o, err := h.job.Store.Outcome(name)
	h.ok(err)
	return o
}
