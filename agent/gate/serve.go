package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/gatewire"
)

// Limits of the socket.
const (
	maxAsking = 4096 // connections without an answer, in all
	// maxPerUID is how many of them one person's processes may have: whoever starts sudo in a loop
	// delays himself. Root has no limit of its own, since every sshd asks as root.
	maxPerUID  = 64
	readLimit  = time.Second
	acceptWait = 20 * time.Millisecond
	// lastAnswers is how long the end of the agent waits for answers: who comes meanwhile waits, too.
	lastAnswers = 500 * time.Millisecond
	// hangUpPause is how long a refused ssh connection lives on.
	hangUpPause = 200 * time.Millisecond
)

// Run serves until ctx ends, and returns nil then. Who has asked by then gets an answer; who comes later
// waits for the next agent where systemd listens. Sessions live on: whoever comes next finds them in
// the registry.
func (s *Server) Run(ctx context.Context) error {
	var asking, holding sync.WaitGroup
	answers, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	held, letGo := context.WithCancel(answers)
	defer func() {
		last := time.AfterFunc(lastAnswers, giveUp)
		asking.Wait()
		last.Stop()
		letGo()
		holding.Wait()
		giveUp()
		_ = s.cfg.Listener.Close()
	}()
	stop := context.AfterFunc(ctx, func() { _ = s.cfg.Listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		conn, err := s.cfg.Listener.AcceptUnix()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("gate: %w", err)
		default:
			// Out of descriptors, most likely; they come back when others end.
			s.cfg.Log.Error("accepting a question", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptWait):
			}
			continue
		}
		select {
		case s.asking <- struct{}{}:
			asking.Add(1)
			holding.Go(func() { s.serve(answers, held, asking.Done, conn) })
		default:
			s.stats.refused.Add(1)
			_ = conn.Close()
		}
	}
}

// serve answers one connection and, when a session opened over it, waits for the session's end.
func (s *Server) serve(answers, held context.Context, answered func(), conn *net.UnixConn) {
	defer func() { _ = conn.Close() }() // what was said was said
	opened, caller, err := s.exchange(answers, conn)
	<-s.asking
	answered()
	if caller != nil {
		defer func() { _ = caller.Close() }()
	}
	if err != nil {
		s.stats.refused.Add(1)
		level := hclog.Warn
		if errors.Is(err, errHungUp) {
			level = hclog.Debug
		}
		s.cfg.Log.Log(level, "a question got no answer", "error", err)
	}
	if opened != nil {
		s.hold(held, conn, caller, opened)
	}
}

// opened is a session that was allowed over a connection.
type opened struct {
	session.Session
	ended context.Context
}

// exchange reads one question and answers it. The caller's handle is returned, when there is one,
// for the caller to close.
func (s *Server) exchange(ctx context.Context, conn *net.UnixConn) (*opened, *process.Handle, error) {
	start := time.Now()
	caller, err := callerOf(conn)
	if err != nil {
		return nil, nil, err
	}
	uid := caller.RealUID
	if !s.enter(uid) {
		return nil, caller, fmt.Errorf("uid %d asks %d times at once", uid, maxPerUID)
	}
	defer s.leave(uid)
	request, err := receive(conn)
	if err != nil {
		return nil, caller, fmt.Errorf("process %d: %w", caller.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	d, session := s.answer(ctx, request, caller, conn)
	s.stats.count(request.Service, d.verdict)
	s.stats.took.Observe(time.Since(start))
	err = send(conn, gatewire.Reply{Verdict: d.verdict, Text: gatewire.CleanText(d.text)})
	if err != nil && session != nil {
		s.cfg.Sessions.End(session.ID)
		session = nil
	}
	if session == nil && d.verdict != gatewire.Ignore {
		s.hangUp(ctx, request, caller)
	}
	if err != nil {
		return nil, caller, fmt.Errorf("process %d: %w", caller.PID, err)
	}
	return session, caller, nil
}

// hangUp ends an ssh connection whose session was refused: sshd then refuses the shell, but keeps
// the connection, and with it forwards. The pause lets it say why.
func (s *Server) hangUp(ctx context.Context, r gatewire.Request, caller *process.Handle) {
	if r.Op != gatewire.OpOpenSession || r.Service != "sshd" {
		return
	}
	// Whoever said sshd and cannot be looked at goes, too.
	if name, err := caller.Name(); err == nil && !strings.HasPrefix(name, "sshd") {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(hangUpPause):
	}
	if err := caller.Kill(); err != nil {
		s.cfg.Log.Error("ending a refused connection", "pid", caller.PID, "error", err)
	}
}

func (s *Server) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid != 0 && s.askers[uid] >= maxPerUID {
		return false
	}
	s.askers[uid]++
	return true
}

func (s *Server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.askers[uid]--; s.askers[uid] <= 0 {
		delete(s.askers, uid)
	}
}

// receive reads the one packet of a question. It is there already, nearly always: who has to wait for it
// sets a timer, which wakes the thread that waits for everybody.
func receive(conn *net.UnixConn) (gatewire.Request, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return gatewire.Request{}, fmt.Errorf("reading the question: %w", err)
	}
	var buf [gatewire.MaxRequest + 1]byte
	var n, flags int
	var errRead error
	read := func(fd uintptr) bool {
		n, flags, errRead = receiveNow(int(fd), buf[:])
		return !errors.Is(errRead, unix.EAGAIN)
	}
	err = raw.Control(func(fd uintptr) { read(fd) })
	if errors.Is(errRead, unix.EAGAIN) {
		err = errors.Join(err, conn.SetReadDeadline(time.Now().Add(readLimit)), raw.Read(read))
	}
	if err = errors.Join(err, errRead); err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return gatewire.Request{}, fmt.Errorf("reading the question: %w", err)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return gatewire.Request{}, fmt.Errorf("reading the question: %w", gatewire.ErrRefused)
	}
	return gatewire.DecodeRequest(buf[:n])
}

// receiveNow does not wait. Without room for control data, descriptors that come along are closed by the
// kernel.
func receiveNow(fd int, buf []byte) (n, flags int, err error) {
	for {
		n, _, flags, _, err = unix.Recvmsg(fd, buf, nil, unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return n, flags, err
		}
	}
}

// send answers. A connection has room for its one answer: nobody is waited for.
func send(conn *net.UnixConn, reply gatewire.Reply) error {
	packet, err := reply.Encode()
	if err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		errRaw := raw.Control(func(fd uintptr) {
			_, err = unix.SendmsgN(int(fd), packet, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		})
		err = errors.Join(errRaw, err)
	}
	if err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}

// hold waits for a session's end: its process exits, everybody who holds the connection closes it,
// or the registry says so. The connection is never read again: sshd's unprivileged half has a copy.
func (s *Server) hold(ctx context.Context, conn *net.UnixConn, caller *process.Handle, o *opened) {
	over, cancel := context.WithCancel(o.ended)
	defer cancel()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	var watching sync.WaitGroup
	watching.Go(func() {
		_ = caller.Wait(over) // either way it is over
		cancel()
	})
	watching.Go(func() {
		waitHangUp(over, conn)
		cancel()
	})
	watching.Wait()
	if ctx.Err() == nil {
		s.cfg.Sessions.End(o.ID)
	}
}

// waitHangUp returns when the other side has hung up or ctx has ended.
func waitHangUp(ctx context.Context, conn *net.UnixConn) {
	raw, err := conn.SyscallConn()
	if err != nil || conn.SetReadDeadline(time.Time{}) != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = raw.Read(func(fd uintptr) bool { return hungUp(int(fd)) }) // an error is a hang-up, too
}

func hungUp(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for range 16 {
		_, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err != nil || poll[0].Revents != 0
		}
	}
	return false
}
