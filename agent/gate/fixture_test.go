package gate

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// registry stands for the session manager: it keeps what it is told, and can be slow or broken.
type registry struct {
	mu      sync.Mutex
	opened  []session.Session
	ended   []string
	moved   []int
	cancel  map[string]context.CancelFunc
	openErr error
	moveErr error
	moving  func()
	owner   string // of whoever is read whole
}

func (r *registry) Open(_ context.Context, s session.Session) (session.Session, context.Context, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.openErr != nil {
		return s, nil, r.openErr
	}
	s.ID = fmt.Sprint("s", len(r.opened))
	ctx, cancel := context.WithCancel(context.Background())
	if r.cancel == nil {
		r.cancel = make(map[string]context.CancelFunc)
	}
	r.cancel[s.ID] = cancel
	r.opened = append(r.opened, s)
	return s, ctx, nil
}

func (r *registry) End(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel[id]()
	if !slices.Contains(r.ended, id) {
		r.ended = append(r.ended, id)
	}
}

func (r *registry) Owner(p process.Process) (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owner, p.StartTicks > 0
}

func (r *registry) InCage(p process.Process, request string) bool { return false }

func (r *registry) Move(ctx context.Context, pid int, request string, uid uint32) (string, error) {
	r.mu.Lock()
	moving := r.moving
	r.mu.Unlock()
	if moving != nil {
		moving()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moved = append(r.moved, pid)
	return "/user.slice/" + request, errors.Join(r.moveErr, ctx.Err())
}

func (r *registry) set(edit func(*registry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	edit(r)
}

func (r *registry) counts() (opened, ended int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.opened), len(r.ended)
}

// sink takes events, slowly or not at all when told so.
type sink struct {
	mu     sync.Mutex
	events []*curfewv1.Event
	hang   bool
}

func (s *sink) Record(ctx context.Context, e *curfewv1.Event) error {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, e)
	return nil
}

func (s *sink) kinds() (kinds []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		kinds = append(kinds, e.GetKind()+" "+e.GetLogin())
	}
	return kinds
}

type fixture struct {
	*testing.T
	server   *Server
	socket   string
	sessions *registry
	events   *sink
	cancel   func()
	stop     func()
}

func start(t *testing.T, grants ...grant.Live) *fixture {
	t.Helper()
	f := &fixture{
		T: t, socket: filepath.Join(t.TempDir(), "gate.sock"), sessions: &registry{}, events: &sink{},
	}
	l, err := Listen(f.socket)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(l, grants...)
	return f
}

func (f *fixture) serve(l *net.UnixListener, grants ...grant.Live) {
	f.Helper()
	t := f.T
	var err error
	f.server, err = New(Config{
		Listener: l, Host: "web1", Sessions: f.sessions, Events: f.events,
		Clock: func() grant.Clock { return noon }, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server.Publish(table(grants...))
	ctx, cancel := context.WithCancel(t.Context())
	f.cancel = cancel
	done, server := make(chan error, 1), f.server
	go func() { done <- server.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(f.stop)
}

func (f *fixture) dial() *net.UnixConn {
	f.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: f.socket, Net: "unixpacket"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	return c
}

func packet(t testing.TB, r gatewire.Request) []byte {
	t.Helper()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ask asks from this process, root, and keeps the connection open.
func (f *fixture) ask(r gatewire.Request) (*net.UnixConn, gatewire.Reply) {
	f.Helper()
	c := f.dial()
	if _, err := c.Write(packet(f.T, r)); err != nil {
		f.Fatal(err)
	}
	reply, err := read(c)
	if err != nil {
		f.Fatal(err)
	}
	return c, reply
}

func read(c *net.UnixConn) (gatewire.Reply, error) {
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return gatewire.Reply{}, err
	}
	b := make([]byte, gatewire.MaxReply+1)
	n, err := c.Read(b)
	if err != nil {
		return gatewire.Reply{}, err
	}
	return gatewire.DecodeReply(b[:n])
}

func (f *fixture) eventually(what string, ok func() bool) {
	f.Helper()
	for start := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			f.Fatalf("never: %s", what)
		}
	}
}

var (
	sshAccount = gatewire.Request{Op: gatewire.OpAccount, Service: "sshd", User: "alice"}
	sshOpen    = gatewire.Request{
		Op: gatewire.OpOpenSession, Service: "sshd", User: "alice", TTY: "ssh", RHost: "10.0.0.9",
		AuthInfo: "publickey " + aliceKey + "\n",
	}
	sudoOpen = gatewire.Request{
		Op: gatewire.OpOpenSession, Service: "sudo", User: "root", UID: uidCarol,
	}
)

// person is a process of another user's that asks.
type person struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Reader
}

func (f *fixture) person(uids string, r gatewire.Request, how ...string) *person {
	f.Helper()
	args := append([]string{"client", f.socket, uids, hex.EncodeToString(packet(f.T, r))}, how...)
	p := &person{cmd: exec.Command(os.Args[0], args...)}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		f.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		f.Fatal(err)
	}
	p.lines = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = p.stdin.Close(); _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// reply is the answer that a person got, or the error that he met.
func (p *person) reply(f *fixture) (gatewire.Reply, string) {
	f.Helper()
	line, err := p.lines.ReadString('\n')
	if err != nil {
		return gatewire.Reply{}, err.Error()
	}
	b, err := hex.DecodeString(strings.TrimSpace(line))
	if err != nil {
		return gatewire.Reply{}, strings.TrimSpace(line)
	}
	r, err := gatewire.DecodeReply(b)
	if err != nil {
		f.Fatal(err)
	}
	return r, ""
}
