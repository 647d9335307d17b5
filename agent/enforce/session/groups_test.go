package session

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/trail"
)

const (
	gidWeb = 1987654 // a group that a grant gives
	uidLou = 54322   // a member of it by the host's own files
)

// holder starts a program as a user with a gid and supplementary groups.
func holder(t *testing.T, program string, uid, gid uint32, groups ...uint32) int {
	t.Helper()
	cmd := exec.Command(program, "1000")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: gid, Groups: groups},
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Reaped at once, so that a dead one is gone.
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-done })
	return cmd.Process.Pid
}

// setgid is a copy of sleep with the group's bit.
func setgid(t *testing.T, owner int) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "curfew-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sleep")
	for _, err := range []error{
		os.Chmod(dir, 0o755), os.WriteFile(path, data, 0o755), os.Chown(path, owner, gidWeb),
		unix.Chmod(path, 0o2755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func alive(pid int) bool {
	p, err := process.Read(pid)
	return err == nil && !p.Dead()
}

// Who holds a granted gid by right lives, whoever came by it through the grant dies.
func TestOldGIDsEnd(t *testing.T) {
	dir := recordsDir(t)
	m, events := newManager(t, dir)
	m.cfg.MayHold = func(uid, gid uint32) bool { return uid == uidLou && gid == gidWeb }
	before := holder(t, "/bin/sleep", uidGus, gidWeb)
	time.Sleep(30 * time.Millisecond) // start times count in hundredths of a second
	live := kimLive()
	live.GIDs = []uint32{gidWeb}
	m.Publish([]Live{live})
	time.Sleep(30 * time.Millisecond)
	spared := map[string]int{
		"what ran before":                   before,
		"the holder of the grant":           holder(t, "/bin/sleep", uidKim, uidKim, gidWeb),
		"a member by /etc/group":            holder(t, "/bin/sleep", uidLou, gidWeb),
		"a supplementary group":             holder(t, "/bin/sleep", uidGus, uidGus, gidWeb),
		"a login with that primary group":   holder(t, "/bin/sleep", uidGus, gidWeb, gidWeb),
		"a daemon":                          holder(t, "/bin/sleep", 33, gidWeb),
		"root":                              holder(t, "/bin/sleep", 0, gidWeb),
		"somebody else":                     holder(t, "/bin/sleep", uidGus, uidGus),
		"the host's own setgid program":     holder(t, setgid(t, 0), uidGus, uidGus),
		"a setgid program of a system user": holder(t, setgid(t, 33), uidGus, uidGus),
	}
	doomed := map[string]int{
		"a gid alone":                   holder(t, "/bin/sleep", uidGus, gidWeb),
		"a setgid copy":                 holder(t, setgid(t, uidKim), uidGus, uidGus),
		"another account":               holder(t, "/bin/sleep", uidKim+1, uidKim+1, gidWeb),
		"another account's setgid copy": holder(t, setgid(t, uidKim+1), uidKim+1, uidKim+1),
	}
	time.Sleep(50 * time.Millisecond) // setgid counts from the exec on
	m.EndOldGIDs(t.Context())
	for what, pid := range spared {
		if !alive(pid) {
			t.Errorf("%s was killed", what)
		}
	}
	for what, pid := range doomed {
		if alive(pid) {
			t.Errorf("%s lives", what)
		}
	}
	if n := len(slices.DeleteFunc(events.kinds(), func(k string) bool { return k != trail.KindProcessKilled })); n != 4 {
		t.Errorf("%d events", n)
	}
	// The grant with the group ends, another of the same account lives on. A new agent knows.
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	again, _ := newManager(t, dir)
	again.cfg.MayHold = m.cfg.MayHold
	late := holder(t, setgid(t, uidKim), uidGus, uidGus)
	time.Sleep(50 * time.Millisecond)
	again.EndOldGIDs(t.Context())
	if !alive(late) || !alive(spared["the holder of the grant"]) {
		t.Error("something died before anything was published: not knowing is no order to kill")
	}
	live.GIDs = nil
	again.Publish([]Live{live})
	again.EndOldGIDs(t.Context())
	if alive(late) {
		t.Error("a new agent does not know which gids were given")
	}
	if alive(spared["the holder of the grant"]) {
		t.Error("an account keeps a gid that none of its grants gives")
	}
	if !alive(before) || !alive(spared["a member by /etc/group"]) {
		t.Error("somebody with a right to the gid died with the grant")
	}
}
