package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// The contract of the command is in testdata/*.txt, against the real main and a fake control plane.

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"curfew": func() { os.Exit(Main(OSEnv("test"))) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			f := startFake(t)
			e.Values[fakeKey{}] = f
			e.Setenv("SERVER", f.address)
			e.Setenv("PIN", pinOf(f.ca))
			e.Setenv("TZ", "UTC")
			return cast(t, f, e.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"as": as, "signin": signInAs, "exits": exits, "keep": keep, "fake": tellFake,
		},
	})
}

type fakeKey struct{}

// cast puts down alice who asks, bob of sre who approves, dana who is admin, two hosts, of which
// db1 is offline, and three roles. Each person has a home with a key in dir.
func cast(t testing.TB, f *fake, dir string) error {
	for _, name := range []string{"alice", "bob", "dana"} {
		public, private := newSSHKey(t)
		home := filepath.Join(dir, name, ".ssh")
		if err := os.MkdirAll(home, 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(home, "id_ed25519"), private, 0o600); err != nil {
			return err
		}
		f.addUser(name, public, name == "dana")
	}
	f.groups["sre"] = []string{"bob"}
	hour := time.Hour.Milliseconds()
	f.roles["ops"] = &apiv1.Role{
		Name: "ops", Description: "Mend the web server", AllowLogin: true, MaxDurationMs: 4 * hour,
		ApproverGroup: "sre", Approvals: 1,
		SudoRules: []*curfewv1.SudoRule{{
			RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "nginx.service"},
			Contained: true,
		}},
	}
	f.roles["root"] = &apiv1.Role{
		Name: "root", AllowLogin: true, MaxDurationMs: hour, ApproverGroup: "sre", Approvals: 1,
		SudoRules: []*curfewv1.SudoRule{{RunAs: "root", All: true}}, RootEquivalent: true,
	}
	return errors.Join(f.addHost("web1", true), f.addHost("db1", false))
}

func as(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: as NAME")
	}
	ts.Setenv("USER", args[0])
	ts.Setenv("HOME", filepath.Join(ts.Getenv("WORK"), args[0]))
}

func signInAs(ts *testscript.TestScript, neg bool, args []string) {
	as(ts, neg, args)
	ts.Check(ts.Exec("curfew", "login", "--server", ts.Getenv("SERVER"), "--ca-pin",
		ts.Getenv("PIN")))
}

// exits runs a command that must end with a given exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// keep puts the last stdout into an environment variable.
func keep(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func tellFake(ts *testscript.TestScript, _ bool, args []string) {
	f, ok := ts.Value(fakeKey{}).(*fake)
	if !ok {
		ts.Fatalf("no fake control plane")
	}
	ts.Check(f.tell(args))
}

// tell makes the fake do what a script says.
func (f *fake) tell(args []string) error {
	if args[0] == "connect" {
		return f.connect(args[1])
	}
	if args[0] == "ended" {
		_, err := f.end(args[1], apiv1.RequestState_REQUEST_STATE_ENDED,
			curfewv1.EndCause_END_CAUSE_EXPIRED, "")
		return err
	}
	if args[0] == "codes" {
		return f.codes.draw()
	}
	if args[0] == "stop" {
		f.server.Stop()
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch args[0] {
	case "lie":
		f.tamper[args[1]] = true
	case "truth":
		f.tamper = map[string]bool{}
	case "refuse":
		f.hosts[args[1]].refuse = strings.Join(args[2:], " ")
	case "expire-sessions":
		f.sessions = map[[32]byte]string{}
	case "lapse":
		r, err := f.find(args[1])
		if err != nil {
			return err
		}
		r.State = apiv1.RequestState_REQUEST_STATE_LAPSED
		f.wake()
	case "session":
		r, err := f.find(args[1])
		if err != nil {
			return err
		}
		r.Sessions = append(r.Sessions, &curfewv1.Session{
			RequestId: args[1], Login: r.GetRequester(), Service: "sshd", Pid: 42,
			Tty: "pts/0", Commands: []string{"bash", "evil\x1b[2J"}, SinceMs: time.Now().UnixMilli(),
		})
	case "alter":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		f.leaves[n] = []byte(strings.Replace(string(f.leaves[n]), args[2], args[3], 1))
	case "rewrite":
		return f.rewrite(args[1:])
	default:
		return fmt.Errorf("the fake does not know %q", args[0])
	}
	return nil
}

// rewrite forges the trail as a thief of the control plane would: text replaced, head made anew. With
// "cut" the newest records go.
func (f *fake) rewrite(args []string) error {
	leaves := f.leaves
	f.leaves, f.hashes = nil, nil
	for i, leaf := range leaves {
		if args[0] == "cut" && i >= len(leaves)-1 {
			break
		}
		if args[0] != "cut" {
			leaf = []byte(strings.ReplaceAll(string(leaf), args[0], args[1]))
		}
		hashes, err := trail.NewHashes(uint64(i), leaf, f.hashes)
		if err != nil {
			return err
		}
		f.leaves, f.hashes = append(f.leaves, leaf), append(f.hashes, hashes...)
	}
	return nil
}
