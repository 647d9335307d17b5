package session

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/e2e/world"
)

// crowdSize is promise 2's number of ends at once that may take 5 s.
const crowdSize = 1000

// TestThousandEndsAtOnce: a thousand requests of a thousand accounts, each with a process in a scope
// of its own, end within 5 s, and PID 1's timers of every fifth are removed.
func TestThousandEndsAtOnce(t *testing.T) {
	s := newStage(t, world.DefaultRelease, "kim", 1900000007)
	r := s.on("crowd", "abcdefghjkmn", "account", "whole")
	t.Logf("%d processes in as many scopes: the last was dead after %s, all timers were gone after %s",
		crowdSize, r.Dead.Round(time.Millisecond), r.Gone.Round(time.Millisecond))
	if r.Dead > 5*time.Second {
		t.Errorf("the last process died after %s, want at most 5 s", r.Dead)
	}
	for _, left := range r.Residue {
		if len(left.Processes) > 0 {
			t.Errorf("left: %+v", left)
		}
	}
	if timers := s.shell(`systemctl list-units --all --plain --no-legend 'curfew-end-*'`); timers != "" {
		t.Errorf("timers are left:\n%s", timers[:min(len(timers), 1000)])
	}
}

// TestStubbornEndDelaysNobody: a process in uninterruptible sleep, which no signal ends, takes one end to its
// limit, and the next does not wait for it.
func TestStubbornEndDelaysNobody(t *testing.T) {
	s := newStage(t, world.DefaultRelease, "kim", 1900000007)
	r := s.on("stubborn", "abcdefghjkmn", "account", "whole")
	if len(r.Residue) != 1 || len(r.Residue[0].Processes) == 0 {
		t.Fatalf("the first end was not stubborn: %+v", r.Residue)
	}
	t.Logf("the second died after %s", r.Dead)
	if r.Dead > killLimit-killPatience {
		t.Errorf("the second died only after %s", r.Dead)
	}
}

// endStubborn runs on the host. It returns what was left of the first, and when the second died.
func endStubborn(m *Manager, first Target) (left []Residue, died time.Duration, err error) {
	at, err := os.MkdirTemp("", "hung")
	if err != nil {
		return nil, 0, err
	}
	hung := &hung{RawFileSystem: fuse.NewDefaultRawFileSystem(), asked: make(chan struct{})}
	if err := unix.Mknod("/dev/fuse", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 229))); err != nil {
		return nil, 0, fmt.Errorf("making /dev/fuse: %w", err)
	}
	server, err := fuse.NewServer(hung, at, &fuse.MountOptions{AllowOther: true, DirectMountStrict: true})
	if err != nil {
		return nil, 0, err
	}
	go server.Serve() // until this process exits, which aborts what waits: no other may hold its descriptor
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, 0, err
	}
	stuck := exec.Command("/bin/stat", filepath.Join(at, "anything"))
	stuck.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: first.UID, Gid: first.UID}}
	second := first
	second.RequestID, second.Login, second.UID = "zbcdefghjkmn", "lee", first.UID+1
	nap := exec.Command("/bin/sleep", "3600")
	nap.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: second.UID, Gid: second.UID}}
	if err := errors.Join(stuck.Start(), nap.Start()); err != nil {
		return nil, 0, err
	}
	select {
	case <-hung.asked:
	case <-time.After(20 * time.Second):
		return nil, 0, errors.New("nobody asked the file system that does not answer")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stubborn := make(chan []Residue, 1)
	go func() { stubborn <- m.Kill(ctx, []Target{first}) }()
	time.Sleep(100 * time.Millisecond) // the first has begun
	began := time.Now()
	go m.Kill(ctx, []Target{second})
	_ = nap.Wait()
	died = time.Since(began)
	return <-stubborn, died, nil
}

// hung is a file system that never says what a name is, as an NFS server that is gone.
type hung struct {
	fuse.RawFileSystem
	asked chan struct{}
}

func (h *hung) Lookup(<-chan struct{}, *fuse.InHeader, string, *fuse.EntryOut) fuse.Status {
	close(h.asked)
	select {}
}

// GetAttr is asked of the root alone.
func (h *hung) GetAttr(_ <-chan struct{}, _ *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.Mode = fuse.S_IFDIR | 0o755
	return fuse.OK
}

// endCrowd runs on the host. It returns how long after the end began the last process was dead and
// the last timer gone.
func endCrowd(m *Manager) (left []Residue, died, removed time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	targets := make([]Target, crowdSize)
	var open, dying errgroup.Group
	open.SetLimit(4)
	for i := range targets {
		t := Target{
			RequestID: fmt.Sprintf("crowd%07d", i), Login: fmt.Sprintf("u%d", i),
			UID: m.cfg.UIDMin + 1000 + uint32(i), Class: account.ClassAccount, Whole: true,
		}
		targets[i] = t
		cmd := exec.Command("/bin/sleep", "3600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: t.UID, Gid: t.UID}}
		if err := cmd.Start(); err != nil {
			return nil, 0, 0, err
		}
		dying.Go(func() error {
			if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
				return fmt.Errorf("%s ended with %w", t.Login, err)
			}
			return nil
		})
		open.Go(func() error {
			if i%5 == 0 {
				if err := m.Arm(ctx, t, time.Now().Add(time.Hour), time.Hour); err != nil {
					return err
				}
			}
			_, err := m.Move(ctx, cmd.Process.Pid, t.RequestID, t.UID)
			return err
		})
	}
	if err := open.Wait(); err != nil {
		return nil, 0, 0, err
	}
	began := time.Now()
	dead := make(chan time.Duration, 1)
	var errDying error
	go func() {
		errDying = dying.Wait()
		dead <- time.Since(began)
	}()
	left = m.Kill(ctx, targets)
	var ids []string
	for _, t := range targets {
		ids = append(ids, t.RequestID)
	}
	err = m.Disarm(ctx, ids...)
	removed = time.Since(began)
	select {
	case died = <-dead:
	case <-time.After(10 * time.Second):
		return left, time.Since(began), removed, err // what is left says more
	}
	if err == nil {
		err = errDying
	}
	return left, died, removed, err
}
