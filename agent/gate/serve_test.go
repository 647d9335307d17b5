package gate

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/pace"
)

func TestSessionOpensAndEnds(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "alice", time.Hour, true, false))
	if c, r := f.ask(sshAccount); r.Verdict != gatewire.Allow {
		t.Errorf("account: %+v", r)
	} else {
		_ = c.Close()
	}
	c, r := f.ask(sshOpen)
	if r.Verdict != gatewire.Allow || !strings.Contains(r.Text, "until 13:00 UTC") {
		t.Errorf("open_session: %+v", r)
	}
	opened, ended := f.sessions.counts()
	if opened != 1 || ended != 0 {
		t.Fatalf("%d sessions opened, %d ended", opened, ended)
	}
	f.sessions.mu.Lock()
	s := f.sessions.opened[0]
	f.sessions.mu.Unlock()
	if s.RequestID != "aaaaaaaaaaaa" || s.PID != os.Getpid() || s.UID != uidAlice || s.Elevation ||
		s.RHost != "10.0.0.9" || s.StartTicks == 0 || s.AuditSession != session.NoAudit {
		t.Errorf("session %+v", s)
	}
	// What is sent later is nobody's business: it neither ends the session nor is it read.
	if _, err := c.Write([]byte("more")); err != nil {
		t.Error(err)
	}
	time.Sleep(50 * time.Millisecond)
	if _, ended := f.sessions.counts(); ended != 0 {
		t.Error("talking ended the session")
	}
	_ = c.Close()
	f.eventually("hanging up ends the session", func() bool {
		_, ended := f.sessions.counts()
		return ended == 1
	})
}

// The session ends with its process even while a child holds a copy of the connection, and it
// outlives the agent's own end.
func TestSessionEndsWithItsProcess(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "carol", time.Hour, false, true))
	p := f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen, "copy")
	if r, failed := p.reply(f); r.Verdict != gatewire.Allow {
		t.Fatalf("sudo: %+v %s", r, failed)
	}
	if line, err := p.lines.ReadString('\n'); line != "copied\n" {
		t.Fatalf("%q %v", line, err)
	}
	f.sessions.mu.Lock()
	s := f.sessions.opened[0]
	f.sessions.mu.Unlock()
	if !s.Elevation || s.PID != p.cmd.Process.Pid || s.CGroup != "/user.slice/aaaaaaaaaaaa" {
		t.Errorf("session %+v", s)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	f.eventually("SIGKILL ends the session", func() bool {
		_, ended := f.sessions.counts()
		return ended == 1
	})
	p = f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen)
	if r, failed := p.reply(f); r.Verdict != gatewire.Allow {
		t.Fatalf("sudo: %+v %s", r, failed)
	}
	f.stop()
	if _, ended := f.sessions.counts(); ended != 1 {
		t.Error("the agent's end ended a session")
	}
	f.sessions.End("s1")
}

// Where the caller stands is looked up for what depends on it.
func TestElevationBelongsToItsCallersGrant(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "carol", time.Hour, false, true),
		live("bbbbbbbbbbbb", "carol", 2*time.Hour, false, true))
	f.sessions.set(func(r *registry) { r.owner = "bbbbbbbbbbbb" })
	p := f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen)
	if r, failed := p.reply(f); r.Verdict != gatewire.Allow {
		t.Fatalf("sudo: %+v %s", r, failed)
	}
	f.sessions.mu.Lock()
	defer f.sessions.mu.Unlock()
	if got := f.sessions.opened[0].RequestID; got != "bbbbbbbbbbbb" {
		t.Errorf("the elevation from a session of bbbbbbbbbbbb belongs to %s", got)
	}
}

func TestElevationIsCagedBeforeTheYes(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "carol", time.Hour, false, true))
	f.sessions.set(func(r *registry) { r.moveErr = errors.New("systemd is not there") })
	p := f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen)
	if r, failed := p.reply(f); r.Verdict != gatewire.TryAgain {
		t.Errorf("without a cage: %+v %s", r, failed)
	}
	if opened, _ := f.sessions.counts(); opened != 0 {
		t.Error("a session without a cage is registered")
	}
	if kinds := f.events.kinds(); !slices.Equal(kinds, []string{"sudo.denied carol"}) {
		t.Errorf("the trail says %v", kinds)
	}
}

func TestFaultsNeverAllow(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "alice", time.Hour, true, false))
	f.sessions.set(func(r *registry) { r.openErr = errors.New("the disk is full") })
	if _, r := f.ask(sshOpen); r.Verdict != gatewire.TryAgain || !strings.Contains(r.Text, "try again") {
		t.Errorf("with a broken registry: %+v", r)
	}
	f.sessions.set(func(r *registry) { r.openErr = session.ErrNotLive })
	if _, r := f.ask(sshOpen); r.Verdict != gatewire.Deny || !strings.Contains(r.Text, "just ended") {
		t.Errorf("with a grant that ended meanwhile: %+v", r)
	}
	f.events.mu.Lock()
	f.events.hang = true
	f.events.mu.Unlock()
	begun := pace.Start()
	_, r := f.ask(gatewire.Request{Op: gatewire.OpAccount, Service: "sshd", User: "gus"})
	if took := begun.Elapsed(); r.Verdict != gatewire.Deny || took > time.Second {
		t.Errorf("a denial waits %v for its event: %+v", took, r)
	}
}

func TestObserveRecordsAndDeniesNobody(t *testing.T) {
	f := start(t)
	tb := table()
	tb.Mode = account.ModeObserve
	f.server.Publish(tb)
	for _, r := range []gatewire.Request{sshAccount, sshOpen} {
		if _, r := f.ask(r); r.Verdict != gatewire.Ignore {
			t.Errorf("observe answers %v", r.Verdict)
		}
	}
	want := []string{"gate.would_deny alice", "gate.would_deny alice"}
	if kinds := f.events.kinds(); !slices.Equal(kinds, want) {
		t.Errorf("the trail says %v, want %v", kinds, want)
	}
	if n := f.server.Stats().WouldDeny; n != 2 {
		t.Errorf("would_deny counts %d", n)
	}
}

func TestBeforeTheFirstTableOnlyRootPasses(t *testing.T) {
	f := start(t)
	f.server.table.Store(nil)
	if _, r := f.ask(sshAccount); r.Verdict != gatewire.TryAgain {
		t.Errorf("alice: %v", r.Verdict)
	}
	if _, r := f.ask(gatewire.Request{Op: 1, Service: "sudo", User: "root"}); r.Verdict != gatewire.Ignore {
		t.Errorf("root's sudo: %v", r.Verdict)
	}
}

// Everybody who is not root, or not who he says, is turned away.
func TestForgersAreRefused(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "carol", time.Hour, false, true))
	if err := os.Chmod(filepath.Dir(filepath.Dir(f.socket)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(f.socket), f.socket} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	p := f.person(fmt.Sprintf("%d/%[1]d", uidCarol), sudoOpen)
	if r, failed := p.reply(f); failed == "" {
		t.Errorf("a process without root's rights was answered: %+v", r)
	}
	lie := sudoOpen
	lie.UID = uidLou
	p = f.person(fmt.Sprintf("%d/0", uidCarol), lie)
	if r, failed := p.reply(f); r.Verdict != gatewire.Deny {
		t.Errorf("carol as lou: %+v %s", r, failed)
	}
	p = f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen, "leave")
	if r, failed := p.reply(f); r.Verdict == gatewire.Allow {
		t.Errorf("a connection whose maker is gone was allowed: %+v %s", r, failed)
	}
	if opened, _ := f.sessions.counts(); opened != 0 {
		t.Errorf("%d sessions opened", opened)
	}
}

func TestDisconnectInMidCheckOpensNothing(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "carol", time.Hour, false, true))
	gone := make(chan struct{})
	f.sessions.set(func(r *registry) { r.moving = func() { <-gone } })
	p := f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen, "hangup")
	if line, err := p.lines.ReadString('\n'); line != "hung up\n" {
		t.Fatalf("%q %v", line, err)
	}
	close(gone)
	f.eventually("the question is over", func() bool {
		return f.server.Stats().Refused+f.server.Stats().TryAgain > 0
	})
	if opened, _ := f.sessions.counts(); opened != 0 {
		t.Errorf("%d sessions opened", opened)
	}
}

// Only an audit session that is the person's own dies with the grant: not one that a daemon or an
// admin had before.
func TestAuditSessionMustBeThePersonsOwn(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "alice", time.Hour, true, false))
	for loginUID, own := range map[string]bool{"1900000001": true, "1004": false} {
		p := f.person("0/0", sshOpen, "loginuid="+loginUID)
		if r, failed := p.reply(f); r.Verdict != gatewire.Allow {
			t.Fatalf("ssh: %+v %s", r, failed)
		}
		f.sessions.mu.Lock()
		s := f.sessions.opened[len(f.sessions.opened)-1]
		f.sessions.mu.Unlock()
		if got := s.AuditSession != session.NoAudit; got != own {
			t.Errorf("with login uid %s the audit session %d is taken: %v", loginUID, s.AuditSession, got)
		}
	}
}

// sshd keeps the connection when open_session fails; the gate ends it, and nobody else's.
func TestRefusedSessionEndsTheConnection(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "alice", time.Hour, true, false))
	wrongKey := sshOpen
	wrongKey.AuthInfo = "publickey " + otherKey + "\n"
	for comm, dies := range map[string]bool{"sshd": true, "sshd-session": true, "doctor": false} {
		p := f.person("0/0", wrongKey, "comm="+comm)
		if r, failed := p.reply(f); r.Verdict != gatewire.Deny {
			t.Errorf("%s: %+v %s", comm, r, failed)
		}
		exited := make(chan struct{})
		go func() { _ = p.cmd.Wait(); close(exited) }()
		select {
		case <-exited:
			if !dies {
				t.Errorf("%s was killed", comm)
			}
		case <-time.After(600 * time.Millisecond):
			if dies {
				t.Errorf("%s keeps its connection", comm)
			}
			_ = p.stdin.Close()
			<-exited
		}
	}
}

func TestGarbageGetsNoAnswer(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "alice", time.Hour, true, false))
	good := packet(t, sshAccount)
	for _, b := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"), good[:len(good)-1], append(slices.Clone(good), 0),
		make([]byte, gatewire.MaxRequest+1),
		{0},
		append([]byte("CFQ2"), good[4:]...),
	} {
		c := f.dial()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if r, err := read(c); err == nil {
			t.Errorf("%.20q was answered %+v", b, r)
		}
	}
	// Empty packets and hang-ups, too.
	c := f.dial()
	_ = c.CloseWrite()
	if r, err := read(c); err == nil {
		t.Errorf("silence was answered %+v", r)
	}
	if _, r := f.ask(sshAccount); r.Verdict != gatewire.Allow {
		t.Errorf("afterwards: %+v", r)
	}
}

// TestSlowClientsDelayNobody is fault F8: a thousand connections that never ask.
func TestSlowClientsDelayNobody(t *testing.T) {
	f := start(t, live("aaaaaaaaaaaa", "alice", time.Hour, true, false))
	for range 1000 {
		f.dial()
	}
	var took []time.Duration
	for range 200 {
		begun := time.Now()
		c, r := f.ask(sshAccount)
		took = append(took, time.Since(begun))
		if r.Verdict != gatewire.Allow {
			t.Fatalf("answer %+v", r)
		}
		_ = c.Close()
	}
	slices.Sort(took)
	if p99 := took[len(took)*99/100]; p99 > 100*time.Millisecond {
		t.Errorf("p99 is %v", p99)
	}
	f.eventually("the slow are sent away", func() bool { return f.server.Stats().Refused == 1000 })
}

// One person's processes have a share of the gate; others do not notice.
func TestOnePersonCannotTakeAllPlaces(t *testing.T) {
	f := start(t)
	for range maxPerUID {
		if !f.server.enter(uidCarol) {
			t.Fatal("refused below the limit")
		}
	}
	if f.server.enter(uidCarol) {
		t.Error("over the limit")
	}
	p := f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen)
	if r, failed := p.reply(f); failed == "" {
		t.Errorf("answered over the limit: %+v", r)
	}
	if !f.server.enter(0) || !f.server.enter(uidAlice) {
		t.Error("others are refused")
	}
	f.server.leave(uidCarol)
	if !f.server.enter(uidCarol) {
		t.Error("a place that became free is not given")
	}
}

func TestListenReplacesAStaleSocketAndClosesItToOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gate.sock")
	for range 2 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v: %v", st.Mode(), err)
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
	}
}

// Who has asked when the agent is told to end gets an answer, and who comes then waits for the next
// agent on the socket that systemd holds.
func TestTheEndOfAnAgentRefusesNobody(t *testing.T) {
	grants := []grant.Live{
		live("aaaaaaaaaaaa", "carol", time.Hour, false, true),
		live("bbbbbbbbbbbb", "alice", time.Hour, true, false),
	}
	f := start(t, grants...)
	f.server.cfg.Listener.SetUnlinkOnClose(false)
	systemds, err := f.server.cfg.Listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer systemds.Close()
	asked, goOn := make(chan struct{}), make(chan struct{})
	f.sessions.set(func(r *registry) { r.moving = func() { close(asked); <-goOn } })
	p := f.person(fmt.Sprintf("%d/0", uidCarol), sudoOpen)
	select {
	case <-asked:
	case <-time.After(20 * time.Second):
		t.Fatal("the question is not taken")
	}
	f.cancel()
	close(goOn)
	if r, failed := p.reply(f); r.Verdict != gatewire.Allow {
		t.Errorf("asked before the end: %+v %s", r, failed)
	}
	f.stop()
	late := f.dial()
	if _, err := late.Write(packet(t, sshOpen)); err != nil {
		t.Fatal(err)
	}
	next, err := net.FileListener(systemds)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(next.(*net.UnixListener), grants...)
	if r, err := read(late); err != nil || r.Verdict != gatewire.Allow {
		t.Errorf("asked between two agents: %+v, %v", r, err)
	}
}
