package main

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// A lab is the hosts that rows share: web1 is joined to a control plane, plain is the same Debian
// without Curfew, and on desk the root half obeys this program instead of a control plane.
type lab struct {
	*stage.Stage
	web, plain, desk *world.Host
	alice, bob       *stage.Person // alice has a grant on web1 that lasts
	amy, carol       *stage.Person // amy comes and goes; carol is a local user whose sudo is Curfew's
	uids             map[string]int
}

// tool is this program on the hosts.
const tool = "/usr/local/bin/curfew-bench"

//go:embed c/*.c
var sources embed.FS

// close removes the hosts.
func (b *Bench) close() error {
	if b.lab == nil {
		return nil
	}
	return b.lab.Close()
}

// hosts boots the lab when the first row asks for it.
func (b *Bench) hosts(ctx context.Context) (*lab, error) {
	if b.lab != nil {
		return b.lab, nil
	}
	s, err := stage.New(ctx, stage.Options{Name: "bench"})
	if err != nil {
		return nil, err
	}
	b.lab = &lab{Stage: s, web: s.Hosts["web1"]}
	return b.lab, b.lab.furnish(ctx)
}

func (l *lab) furnish(ctx context.Context) (err error) {
	if l.plain, err = l.AddHost(ctx, world.HostOptions{Name: "plain"}); err != nil {
		return err
	}
	if l.desk, err = l.AddHost(ctx, world.HostOptions{Name: "desk", Install: installAgent}); err != nil {
		return err
	}
	if _, err := l.desk.Exec(ctx, "/usr/lib/curfew/setup", "agent"); err != nil {
		return err
	}
	if err := l.equip(ctx); err != nil {
		return err
	}
	if l.alice, l.bob, err = l.Cast(ctx); err != nil {
		return err
	}
	for name, p := range map[string]**stage.Person{"amy": &l.amy, "carol": &l.carol} {
		if *p, err = l.Person(ctx, name); err != nil {
			return err
		}
	}
	err = l.Admin.Must(ctx, "admin", "role", "set", "bench", "--login", "--contained", "--sudo",
		"/usr/bin/true", "--max", "4h", "--approvers", "sre", "--approvals", "1")
	if err != nil {
		return err
	}
	for _, p := range []*stage.Person{l.alice, l.carol} {
		if _, err := l.Grant(ctx, p, l.bob, "web1", "bench", 2*time.Hour); err != nil {
			return err
		}
	}
	if err := l.locals(ctx); err != nil {
		return err
	}
	var users []struct {
		Name string
		UID  int
	}
	l.uids = make(map[string]int)
	err = l.Admin.Query(ctx, &users, "admin", "user", "ls")
	for _, u := range users {
		l.uids[u.Name] = u.UID
	}
	return err
}

// locals gives alice and carol accounts on plain that can do by themselves what Curfew lets them do
// on web1, with the same settings of sudo's.
func (l *lab) locals(ctx context.Context) error {
	_, err := l.plain.Shell(ctx, `
for u in alice carol; do
  useradd -m -s /bin/bash "$u"
  install -d -m 700 -o "$u" -g "$u" "/home/$u/.ssh"
  echo "Defaults:$u pam_session, pam_acct_mgmt, use_pty, timestamp_timeout=0
$u ALL=(root) NOPASSWD: /usr/bin/true \"\"" >/etc/sudoers.d/$u
done`)
	return errors.Join(err, l.alice.LetIn(ctx, l.plain, "alice"), l.carol.LetIn(ctx, l.plain, "carol"),
		l.carol.LetIn(ctx, l.web, "carol"))
}

func installAgent(at string) error {
	root, err := stage.Root()
	if err != nil {
		return err
	}
	out, err := exec.Command(filepath.Join(root, "packaging/install.sh"), "--root", at, "agent").
		CombinedOutput()
	if err != nil {
		return fmt.Errorf("install.sh: %w\n%s", err, out)
	}
	return nil
}

// equip puts this program and the C loops on the hosts.
func (l *lab) equip(ctx context.Context) error {
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "curfew-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	machine, err := exec.Command("uname", "-m").Output()
	if err != nil {
		return err
	}
	files := map[string][]byte{tool: own}
	for name, library := range map[string]string{"pamloop": "-lpam", "nssloop": "-lc"} {
		source, err := sources.ReadFile("c/" + name + ".c")
		if err != nil {
			return err
		}
		at := filepath.Join(dir, name)
		if err := os.WriteFile(at+".c", source, 0o600); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "gcc", "-O2", "-D_GNU_SOURCE",
			`-DMACHINE="`+strings.TrimSpace(string(machine))+`"`, "-o", at, at+".c", library).CombinedOutput()
		if err != nil {
			return fmt.Errorf("compiling %s: %w\n%s", name, err, out)
		}
		if files["/usr/local/bin/"+name], err = os.ReadFile(at); err != nil {
			return err
		}
	}
	for _, h := range []*world.Host{l.web, l.plain, l.desk} {
		for path, data := range files {
			if err := h.Write(path, data, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

// A helper is a program that does its thing once for each line it reads, and answers with a line.
type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	say *bytes.Buffer
}

func start(cmd *exec.Cmd) (*helper, error) {
	h := &helper{cmd: cmd, say: new(bytes.Buffer)}
	var err error
	if h.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.out, cmd.Stderr = bufio.NewReaderSize(out, 1<<20), h.say
	return h, cmd.Start()
}

// line asks for one more answer.
func (h *helper) line() (string, error) {
	if _, err := io.WriteString(h.in, "\n"); err != nil {
		return "", fmt.Errorf("%w: %s", err, h.say)
	}
	text, err := h.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the helper ended: %w: %s", err, h.say)
	}
	return strings.TrimSpace(text), nil
}

// lap is a side: how many nanoseconds the helper says that it took.
func (h *helper) lap() (time.Duration, error) {
	text, err := h.line()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %s", text, h.say)
	}
	return time.Duration(n), nil
}

// close ends the helper by ending its input.
func (h *helper) close() {
	h.in.Close()
	_ = h.cmd.Wait() // how it ends does not matter any more
}

// overSSH starts a helper in a login session of a person's.
func overSSH(ctx context.Context, p *stage.Person, host string, argv ...string) (*helper, error) {
	ssh := append([]string{
		"ssh", "-o", "BatchMode=yes", "-o", "ControlPath=none",
		p.Name() + "@" + host,
	}, argv...)
	return start(p.Cmd(ctx, ssh...))
}
