package session

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
	"github.com/curfew-access/curfew/internal/pace"
)

const program = "/usr/local/bin/session-test"

// stage is a real host with this package on it, and a laptop whose owner has a login there.
type stage struct {
	*testing.T
	ctx    context.Context
	world  *world.World
	host   *world.Host
	laptop *world.Laptop
	login  string
	uid    int
}

// build compiles this package's tests statically, to run on hosts with another libc.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "session-test")
	cmd := exec.Command("go", "test", "-c", "-o", binary, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the test program: %v\n%s", err, out)
	}
	return binary
}

func newStage(t *testing.T, release, login string, uid int) *stage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute) // with a root file system to build
	t.Cleanup(cancel)
	w, err := world.New(ctx, world.Options{Name: t.Name(), Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	binary := build(t)
	h, err := w.AddHost(ctx, world.HostOptions{
		Name: "web1", Release: release, Install: func(root string) error {
			return put(binary, root+program)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.AddLaptop(ctx, login)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t, ctx, w, h, l, login, uid}
	key, err := l.SSHKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.shell(fmt.Sprintf(`useradd -m -u %[2]d -s /bin/bash %[1]s
install -d -m 700 -o %[1]s -g %[1]s ~%[1]s/.ssh
install -m 600 -o %[1]s -g %[1]s /dev/stdin ~%[1]s/.ssh/authorized_keys <<<%[3]q
install -m 440 /dev/stdin /etc/sudoers.d/%[1]s <<<'%[1]s ALL=(ALL:ALL) NOPASSWD: ALL'`,
		login, uid, strings.TrimSpace(key)))
	return s
}

func put(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

func (s *stage) shell(script string) string {
	s.Helper()
	out, err := s.host.Shell(s.ctx, script)
	if err != nil {
		s.Fatalf("%v", err)
	}
	return strings.TrimSpace(string(out))
}

// on runs a verb of onHost with the login as subject.
func (s *stage) on(verb, request, class, whole string, more ...string) report {
	s.Helper()
	args := append([]string{
		program, "onhost", verb, request, s.login, fmt.Sprint(s.uid), class, whole,
	}, more...)
	out, err := s.host.Exec(s.ctx, args...)
	if err != nil {
		s.Fatalf("%v", err)
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		s.Fatalf("%s: %v: %s", verb, err, out)
	}
	return r
}

// mine lists the processes of the login's: by uid, and by audit identity.
func (s *stage) mine() (found []world.Process) {
	s.Helper()
	all, err := s.host.Processes(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	for _, p := range all {
		if p.UID == s.uid || p.EUID == s.uid || p.LoginUID == s.uid {
			found = append(found, p)
		}
	}
	return found
}

// eventually waits until a condition holds.
func (s *stage) eventually(what string, within time.Duration, ok func() bool) {
	s.Helper()
	for start := pace.Start(); !ok(); time.Sleep(20 * time.Millisecond) {
		if start.Elapsed() > within {
			s.Fatalf("not within %v: %s; the login's processes: %+v", within, what, s.mine())
		}
	}
}

func (s *stage) running(cmdline string) bool {
	s.Helper()
	all, err := s.host.Processes(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	return slices.ContainsFunc(all, func(p world.Process) bool {
		return strings.TrimPrefix(p.Cmdline, "/usr/bin/") == cmdline
	})
}

// escapes is everything that a person might leave behind (A21 of the threat model).
const escapes = `
setsid sleep 1001 </dev/null >/dev/null 2>&1 &
nohup sleep 1002 </dev/null >/dev/null 2>&1 &
(setsid bash -c 'sleep 1003 & disown; exit' </dev/null >/dev/null 2>&1 &)
sudo -b sleep 1004 </dev/null >/dev/null 2>&1
sudo setsid sleep 1005 </dev/null >/dev/null 2>&1 &
tmux new-session -d sleep 1006
systemd-run --user -q sleep 1007
echo '* * * * * sleep 1008' | crontab -
echo 'sleep 1009' | at now + 1 hour 2>/dev/null
sudo -i bash -c 'sleep 1010 </dev/null >/dev/null 2>&1 & disown'
sudo su - -c 'sleep 1011 </dev/null >/dev/null 2>&1 & disown'
sudo sh -c 'mkdir /sys/fs/cgroup/elsewhere; echo $$ >/sys/fs/cgroup/elsewhere/cgroup.procs
exec setsid sleep 1012 </dev/null >/dev/null 2>&1' &
loginctl enable-linger 2>/dev/null || sudo loginctl enable-linger $USER
echo ready
`

func (s *stage) misbehave() *world.Terminal {
	s.Helper()
	terminal, err := s.laptop.StartPTY(s.ctx, "ssh", "-tt", "web1")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = terminal.Close() })
	if _, err := terminal.Expect(s.ctx, `\$ `); err != nil {
		s.Fatal(err)
	}
	if err := s.host.Write("/usr/local/bin/escape", []byte("#!/bin/bash"+escapes), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := terminal.Send("escape\r"); err != nil {
		s.Fatal(err)
	}
	if _, err := terminal.Expect(s.ctx, `ready`); err != nil {
		s.Fatal(err)
	}
	for n := 1001; n <= 1012; n++ {
		if n == 1008 || n == 1009 {
			continue // due later
		}
		s.eventually(fmt.Sprintf("sleep %d runs", n), 5*time.Second, func() bool {
			return s.running(fmt.Sprintf("sleep %d", n))
		})
	}
	return terminal
}

// TestKillLeavesNothingOfAnAccount: setsid, nohup, double fork, sudo -b, tmux, user units, cron, at,
// linger, root shells and the ssh connection itself, all within 2 s.
func TestKillLeavesNothingOfAnAccount(t *testing.T) {
	for _, release := range world.Releases {
		t.Run(release, func(t *testing.T) {
			s := newStage(t, release, "kim", 1900000007)
			terminal := s.misbehave()
			r := s.on("open", "abcdefghjkmn", "account", "whole")
			if !strings.Contains(r.CGroup, "/session-") {
				t.Errorf("the login stands in %s", r.CGroup)
			}
			r = s.on("kill", "abcdefghjkmn", "account", "whole")
			if len(r.Residue) != 1 || !r.Residue[0].Clean() || r.Took > 2*time.Second {
				t.Errorf("after %v left %+v", r.Took, r.Residue)
			}
			if left := s.mine(); len(left) != 0 {
				t.Errorf("still there: %+v", left)
			}
			for n := 1001; n <= 1012; n++ {
				if s.running(fmt.Sprintf("sleep %d", n)) {
					t.Errorf("sleep %d outlived it", n)
				}
			}
			if !slices.Contains(r.Kinds, "session.killed") {
				t.Errorf("the trail says %v", r.Kinds)
			}
			if _, err := terminal.Expect(s.ctx, `Curfew: access on web1 has ended \(revoked by bob\)`); err != nil {
				t.Error(err)
			}
			if _, err := terminal.Wait(s.ctx); err != nil {
				t.Error(err)
			}
			left := s.shell(`ls -A /var/spool/cron/crontabs /var/spool/cron/atjobs | grep -v : |
grep -v SEQ || true; ls -A /var/lib/systemd/linger /run/user 2>/dev/null | grep -v : || true
ls -A ` + hostDir + `; systemctl --failed --plain --no-legend`)
			if left != "" {
				t.Errorf("files are left: %s", left)
			}
		})
	}
}

// TestKillWorksWithoutLogindAndBus is fault F12.
func TestKillWorksWithoutLogindAndBus(t *testing.T) {
	s := newStage(t, world.DefaultRelease, "kim", 1900000007)
	s.misbehave()
	s.on("open", "abcdefghjkmn", "account", "whole")
	s.shell(`kill -STOP $(pidof systemd-logind) $(pidof dbus-daemon)`)
	r := s.on("kill", "abcdefghjkmn", "account", "whole")
	if left := s.mine(); len(left) != 0 || r.Took > 2500*time.Millisecond {
		t.Errorf("after %v still there: %+v", r.Took, left)
	}
	if len(r.Residue) != 1 || len(r.Residue[0].Processes) != 0 {
		t.Errorf("residue: %+v", r.Residue)
	}
}

// TestNoFailedUnitIsLeftByABusySystemd: a killed user manager counts as failed, and the host as
// degraded, until PID 1 is told to forget it; also when it was too slow to be told at once.
func TestNoFailedUnitIsLeftByABusySystemd(t *testing.T) {
	s := newStage(t, world.DefaultRelease, "kim", 1900000007)
	s.shell(`mkdir -p /etc/systemd/system/user-runtime-dir@.service.d
printf '[Service]\nExecStop=/bin/sleep 4\n' >/etc/systemd/system/user-runtime-dir@.service.d/slow.conf
systemctl daemon-reload`)
	s.misbehave()
	s.on("open", "abcdefghjkmn", "account", "whole")
	s.on("settle", "abcdefghjkmn", "account", "whole")
	left := s.shell(`systemctl --failed --plain --no-legend
systemctl list-units --all --plain --no-legend 'user*1900000007*'`)
	if left != "" {
		t.Errorf("PID 1 still knows: %s", left)
	}
}

// TestElevationDiesAndTheLoginStays: of a person who only elevates, the scope goes and nothing else.
func TestElevationDiesAndTheLoginStays(t *testing.T) {
	for _, release := range world.Releases {
		t.Run(release, func(t *testing.T) {
			s := newStage(t, release, "carol", 1500)
			ssh := s.laptop.Cmd(s.ctx, "ssh", "web1", `sleep 2001 & sudo sh -c '
echo $$ >/run/elevated; while ! test -e /run/go; do sleep 0.05; done
setsid sleep 2002 & su - -c "sleep 2003 & sleep 2004"'`)
			if err := ssh.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ssh.Process.Kill(); _ = ssh.Wait() }()
			s.eventually("sudo runs", 5*time.Second, func() bool {
				_, err := s.host.Read("/run/elevated")
				return err == nil
			})
			pid := s.shell("cat /run/elevated")
			r := s.on("move", "abcdefghjkmn", "elevate", "part", pid)
			if !strings.HasPrefix(r.CGroup, "/user.slice/user-1500.slice/curfew-abcdefghjkmn-1-") {
				t.Errorf("moved to %s", r.CGroup)
			}
			s.shell("touch /run/go")
			s.eventually("the elevation runs", 5*time.Second, func() bool {
				return s.running("sleep 2002") && s.running("sleep 2004")
			})
			r = s.on("kill", "abcdefghjkmn", "elevate", "whole")
			if len(r.Residue) != 1 || !r.Residue[0].Clean() || r.Took > 2*time.Second {
				t.Errorf("after %v left %+v", r.Took, r.Residue)
			}
			for _, cmd := range []string{"sleep 2002", "sleep 2003", "sleep 2004"} {
				if s.running(cmd) {
					t.Errorf("%s outlived its grant", cmd)
				}
			}
			if !s.running("sleep 2001") {
				t.Error("carol's own login was hurt")
			}
		})
	}
}

// TestBackstopKillsWithoutAgent: PID 1's timer alone ends the scopes and the account's slice.
func TestBackstopKillsWithoutAgent(t *testing.T) {
	for _, release := range world.Releases {
		t.Run(release, func(t *testing.T) {
			s := newStage(t, release, "kim", 1900000007)
			s.misbehave()
			s.on("arm", "abcdefghjkmn", "account", "whole", "3600")
			s.on("arm", "abcdefghjkmn", "account", "whole", "1")
			timers := s.shell(`systemctl list-units --all --plain --no-legend 'curfew-end-*.timer' | wc -l`)
			if timers != "1" {
				t.Errorf("%s timers after a replacement", timers)
			}
			start := time.Now()
			s.eventually("the backstop has killed", 30*time.Second, func() bool {
				return !s.running("sleep 1001") && !s.running("sleep 1005")
			})
			if took := time.Since(start); took < 3*time.Second {
				t.Errorf("it came after %v, before the agent could", took)
			}
			s.on("arm", "abcdefghjkmn", "account", "whole", "3600")
			s.on("disarm", "abcdefghjkmn", "account", "whole")
			s.eventually("no timer is left", 5*time.Second, func() bool {
				return s.shell(`systemctl list-units --all --plain --no-legend 'curfew-end-*'`) == ""
			})
		})
	}
}

// TestSweepKillsStrays: what runs under a uid of Curfew's without a live grant dies, whoever forgot it.
func TestSweepKillsStrays(t *testing.T) {
	s := newStage(t, world.DefaultRelease, "kim", 1900000007)
	s.misbehave()
	s.on("sweep", "abcdefghjkmn", "account", "whole")
	for _, p := range s.mine() {
		if p.UID == s.uid || p.EUID == s.uid {
			t.Errorf("still there: %+v", p)
		}
	}
}
