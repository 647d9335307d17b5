package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

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
	writeLimit = 250 * time.Millisecond
	acceptWait = 20 * time.Millisecond
	// hangUpPause is how long a refused ssh connection lives on.
	hangUpPause = 200 * time.Millisecond
)

// Listen makes the gate socket at path: 0600, for root alone. A socket that an earlier agent left is
// replaced.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making the gate socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("making the gate socket: %w", err)
	}
	// Whoever slips in before is told by SO_PEERCRED, like anybody who got a descriptor.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("making the gate socket: %w", err), l.Close())
	}
	return l, nil
}

// Run serves until ctx ends and every connection is closed, and returns nil then. Sessions live on:
// whoever comes next finds them in the registry.
func (s *Server) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.cfg.Listener.Close() })
	defer stop()
	for {
		conn, err := s.cfg.Listener.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("gate: %w", err)
		}
		if err != nil {
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
			serving.Go(func() { s.serve(ctx, conn) })
		default:
			s.stats.refused.Add(1)
			_ = conn.Close()
		}
	}
}

// serve answers one connection and, when a session opened over it, waits for the session's end.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }() // what was said was said
	opened, caller, err := s.exchange(ctx, conn)
	<-s.asking
	if caller != nil {
		defer func() { _ = caller.Close() }()
	}
	if err != nil {
		s.stats.refused.Add(1)
		s.cfg.Log.Warn("a question got no answer", "error", err)
	}
	if opened != nil {
		s.hold(ctx, conn, caller, opened)
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
	uid := caller.RealUID()
	if !s.enter(uid) {
		return nil, caller, fmt.Errorf("uid %d asks %d times at once", uid, maxPerUID)
	}
	defer s.leave(uid)
	request, err := receive(conn)
	if err != nil {
		return nil, caller, fmt.Errorf("process %d (%s): %w", caller.PID, caller.Comm, err)
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	d, session := s.answer(ctx, request, caller, conn)
	s.count(d.verdict)
	s.took(time.Since(start))
	err = send(conn, gatewire.Reply{Verdict: d.verdict, Text: gatewire.CleanText(d.text)})
	if err != nil && session != nil {
		s.cfg.Sessions.End(session.ID)
		session = nil
	}
	if session == nil && d.verdict != gatewire.Ignore {
		s.hangUp(ctx, request, caller)
	}
	if err != nil {
		return nil, caller, fmt.Errorf("process %d (%s): %w", caller.PID, caller.Comm, err)
	}
	return session, caller, nil
}

// hangUp ends an ssh connection whose session was refused: sshd then refuses the shell, but keeps
// the connection, and with it forwards. The pause lets it say why.
func (s *Server) hangUp(ctx context.Context, r gatewire.Request, caller *process.Handle) {
	if r.Op != gatewire.OpOpenSession || r.Service != "sshd" ||
		!strings.HasPrefix(caller.Comm, "sshd") {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(hangUpPause):
	}
	if err := process.Kill(caller.Process); err != nil {
		s.cfg.Log.Error("ending a refused connection", "pid", caller.PID, "error", err)
	}
}

func (s *Server) took(d time.Duration) {
	for {
		slowest := s.stats.slowest.Load()
		if int64(d) <= slowest || s.stats.slowest.CompareAndSwap(slowest, int64(d)) {
			return
		}
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

func (s *Server) count(v gatewire.Verdict) {
	switch v {
	case gatewire.Allow:
		s.stats.allowed.Add(1)
	case gatewire.Deny:
		s.stats.denied.Add(1)
	case gatewire.Ignore:
		s.stats.ignored.Add(1)
	case gatewire.TryAgain:
		s.stats.tryAgain.Add(1)
	}
}

// receive reads the one packet of a question.
func receive(conn *net.UnixConn) (gatewire.Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(readLimit)); err != nil {
		return gatewire.Request{}, err
	}
	buf := make([]byte, gatewire.MaxRequest+1)
	// Without room for control data: descriptors that come along are closed by the kernel.
	n, _, flags, _, err := conn.ReadMsgUnix(buf, nil)
	if err != nil {
		return gatewire.Request{}, fmt.Errorf("reading the question: %w", err)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return gatewire.Request{}, fmt.Errorf("reading the question: %w", gatewire.ErrRefused)
	}
	return gatewire.DecodeRequest(buf[:n])
}

func send(conn *net.UnixConn, reply gatewire.Reply) error {
	packet, err := reply.Encode()
	if err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	if _, err := conn.Write(packet); err != nil {
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
