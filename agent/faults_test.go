package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// leap lets time pass at once, on both clocks, and wakes the timers as the kernel does after it.
func (m *machine) leap(d time.Duration) {
	m.t.Helper()
	m.ahead.Add(int64(d))
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		m.t.Fatal(err)
	}
	fired := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || to != "anon_inode:[timerfd]" {
			continue
		}
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil {
			m.t.Fatal(err)
		}
		now := unix.ItimerSpec{Value: unix.NsecToTimespec(1)}
		if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &now, nil); err != nil {
			m.t.Fatal(err)
		}
		fired++
	}
	if fired < 2 {
		m.t.Fatalf("%d timers, want one on each clock", fired)
	}
}

// asks is the question that sshd's PAM stack asks about a login.
func (m *machine) asks(login string) gatewire.Verdict {
	m.t.Helper()
	packet, err := gatewire.Request{Op: gatewire.OpAccount, Service: "sshd", User: login}.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	c, err := net.Dial("unixpacket", m.path(enforce.RunDir+"/gate.sock"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer c.Close()
	answer := make([]byte, gatewire.MaxReply)
	_, err = c.Write(packet)
	err = errors.Join(err, c.SetReadDeadline(time.Now().Add(2*time.Second)))
	n, errRead := c.Read(answer)
	if err = errors.Join(err, errRead); err != nil {
		m.t.Fatal(err)
	}
	reply, err := gatewire.DecodeReply(answer[:n])
	if err != nil {
		m.t.Fatal(err)
	}
	return reply.Verdict
}

func (m *machine) within(limit time.Duration, what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func (m *machine) status() *Status {
	m.t.Helper()
	s, err := AskStatus(context.Background(), m.path(enforce.RunDir+"/admin.sock"))
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// F5: whatever a partition lasts, the lease alone says whether new access opens, to the second;
// nothing valid is purged, through a restart in the middle too; and it heals within 5 s.
func TestPartitionsOfAnyLength(t *testing.T) {
	const lease = 15 * time.Minute
	for _, c := range []struct {
		name    string
		cut     time.Duration
		restart bool
	}{
		{name: "30 s", cut: 30 * time.Second},
		{name: "a second less than the lease", cut: lease - time.Second},
		{name: "a second more than the lease", cut: lease + time.Second},
		{name: "1 h", cut: time.Hour},
		{name: "24 h", cut: 24 * time.Hour},
		{name: "24 h and a restart", cut: 24 * time.Hour, restart: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			m.settings("mode: enforce\nceiling:\n  max_duration: 48h\n")
			m.start()
			p := m.connect()
			id, env := p.grant(p.terms(requestID("long"), "alice", withRule, lasting(48*time.Hour),
				func(t *curfewv1.Terms) { t.HardEndMs = time.Now().Add(100 * time.Hour).UnixMilli() }))
			p.sendGrant(env)
			p.sendState(p.state(nil, id))
			resultOf(t, p.ack(), id)
			if v := m.asks("alice"); v != gatewire.Allow {
				t.Fatalf("connected, the gate says %v", v)
			}
			left := time.Until(m.status().LeaseEnd)
			if left > lease || left < lease-10*time.Second {
				t.Fatalf("a lease of %s has %s to go", lease, left)
			}
			end := time.Now().Add(left - c.cut) // of the lease, as the true clock will show it
			_ = p.conn.Close()
			m.leap(c.cut)
			if c.restart {
				m.stop()
				m.start()
			}
			if c.cut < lease {
				if v := m.asks("alice"); v != gatewire.Allow && time.Now().Before(end) {
					t.Errorf("%s before the lease's end, the gate says %v", time.Until(end), v)
				}
			} else {
				m.within(2*time.Second, "new access is denied", func() bool {
					return m.asks("alice") == gatewire.Deny
				})
			}
			if !m.has(m.dropin(id)) || !m.has(enforce.KeysDir+"/alice") || len(m.status().Grants) != 1 {
				t.Error("silence took a valid grant away")
			}
			p.ahead = c.cut
			p = m.connect()
			p.sendState(p.state(nil, id))
			m.within(5*time.Second, "access opens again", func() bool {
				return m.asks("alice") == gatewire.Allow
			})
		})
	}
}

// A machine that wakes past its lease asks for word from the control plane at once, not with the next
// heartbeat.
func TestWakingPastTheLeaseAsksAtOnce(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	id, env := p.grant(p.terms(requestID("one"), "alice", lasting(2*time.Hour)))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	resultOf(t, p.ack(), id)
	m.leap(time.Hour)
	p.ahead = time.Hour
	woke := time.Now()
	p.nonce = p.next(func(h *curfewv1.HostMessage) bool {
		return h.GetHeartbeat().GetTimeMs() > woke.Add(30*time.Minute).UnixMilli()
	}).GetHeartbeat().GetNonce()
	p.sendState(p.state(nil, id))
	m.within(5*time.Second-time.Since(woke), "access opens again", func() bool {
		return m.asks("alice") == gatewire.Allow
	})
}

// F9: as many grants as one host can hold end at one moment: access is denied at once, the files are
// gone in 2 s, the processes in 10 s. A host that was told of more would refuse them.
func TestAllGrantsOfAHostEndAtOnce(t *testing.T) {
	const processes = 500
	m := newMachine(t)
	m.volatileRun()
	// A name service that is asked four thousand times has to be quick.
	m.replace("usr/bin/getent", `#!/bin/sh
shift
missing=0
for key; do
  case $key in g[0-9]*) n=${key#g} ;; *) missing=2; continue ;; esac
  uid=$((1900000001 + 1$n - 10000))
  echo "$key:*:$uid:$uid:Curfew account:/home/$key:/bin/bash"
done
exit $missing
`)
	m.start()
	p := m.connect()
	login := func(i int) string { return fmt.Sprintf("g%04d", i) }
	ids := make([]grant.ID, grant.MaxLive)
	for i := range ids {
		var env []byte
		ids[i], env = p.grant(p.terms(requestID(fmt.Sprintf("r%04d", i)), login(i),
			func(t *curfewv1.Terms) {
				t.Uid = 1900000001 + uint32(i)
				if i < 50 {
					withRule(t)
				}
			}))
		p.sendGrant(env)
	}
	p.sendState(p.state(nil, ids...))
	began := time.Now()
	ack := p.nextAck(10 * time.Minute) // as long as a slow machine needs
	for _, id := range ids {
		if r := resultOf(t, ack, id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			t.Fatalf("%v", r)
		}
	}
	t.Logf("%d grants applied in %s", len(ids), time.Since(began).Round(time.Millisecond))
	for i := range processes {
		started := runAs(1900000001+uint32(i), "/bin/sleep", "1000")
		started.SysProcAttr.Setsid = true
		if err := started.Start(); err != nil {
			t.Fatal(err)
		}
		go started.Wait()
	}

	go func() { // what it says from here on is not asked for
		for range p.in {
		}
	}()
	m.leap(time.Hour)
	ended := pace.Start()
	for _, i := range []int{0, 1, len(ids) / 2, len(ids) - 1} {
		if v := m.asks(login(i)); v != gatewire.Deny {
			t.Errorf("%s after the end, the gate says %v to %s", ended.Elapsed(), v, login(i))
		}
	}
	m.within(2*time.Second-ended.Elapsed(), "all keys and rules are gone", func() bool {
		return m.empty(enforce.KeysDir) && m.empty(enforce.SudoersDir)
	})
	files := ended.Elapsed()
	m.within(10*time.Second-ended.Elapsed(), "all processes are gone", func() bool {
		return exec.Command("pgrep", "-x", "sleep").Run() != nil
	})
	t.Logf("files gone after %s, %d processes after %s", files.Round(time.Millisecond), processes,
		ended.Elapsed().Round(time.Millisecond))
}

// volatileRun puts /run/curfew where it is on a host: on a tmpfs.
func (m *machine) volatileRun() {
	m.t.Helper()
	run := m.path(enforce.RunDir)
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "mode=0755"); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = unix.Unmount(run, unix.MNT_DETACH) })
}

// replace puts another program in a program's place.
func (m *machine) replace(name, text string) {
	m.t.Helper()
	err := errors.Join(os.Remove(m.path(name)), os.WriteFile(m.path(name), []byte(text), 0o755))
	if err != nil {
		m.t.Fatal(err)
	}
}

// nextAck drops what comes before the next ack.
func (p *plane) nextAck(limit time.Duration) *curfewv1.Ack {
	p.t.Helper()
	for deadline := time.After(limit); ; {
		select {
		case m, ok := <-p.in:
			if !ok {
				p.t.Fatal("the host closed the connection")
			}
			if m.GetAck() != nil {
				return m.GetAck()
			}
		case <-deadline:
			p.t.Fatalf("no ack within %s", limit)
		}
	}
}

// empty tells whether a folder holds nothing but what is hidden.
func (m *machine) empty(dir string) bool {
	m.t.Helper()
	names, err := filepath.Glob(m.path(dir) + "/[^.]*")
	return err == nil && len(names) == 0
}
