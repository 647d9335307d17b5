// Package stage sets up Curfew in a world of real hosts: a control plane, hosts that are enrolled
// with it, and people with laptops who can sign in. The stories and the demo play on it.
//
// It uses what users use: the installer of packaging/, the systemd units, and the curfew command.
// Nothing of the product is imported.
package stage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/e2e/world"
)

// Port is where the control plane listens.
const Port = "7443"

// Server is the control plane's address in the world.
const Server = "control:" + Port

// Options of a stage. The zero value gives a control plane and web1.
type Options struct {
	Name  string
	Hosts []string // default: web1
	// Later are hosts that boot with the others and do not join: Join does.
	Later []string
	// Release of the hosts; empty is world.DefaultRelease.
	Release string
	// Agent is what stands in /etc/curfew/agent.yaml; empty takes DefaultAgent.
	Agent string
	// Control is what stands in /etc/curfew/controlplane.yaml; empty: no such file.
	Control string
	// ControlFiles are written beside it, by absolute path, and belong to the control plane.
	ControlFiles map[string]string
	// Shapes are what is unlike other hosts, by name of host.
	Shapes map[string]Shape
	Out    io.Writer
}

// A Shape is what sets a host apart.
type Shape struct {
	Release string
	With    []string // packages beside those that every host has
	Hybrid  bool
	// Programs of the stories' own, by their package below e2e/, that are brought to /usr/local/bin.
	Programs []string
	// Before runs on the host before it joins, and boots it anew when it says so by its last line, "reboot".
	Before string
}

// DefaultAgent enforces, permits root-equivalent roles, and manages two local people.
const DefaultAgent = `mode: enforce
ceiling:
  max_duration: 8h
  allow_root_equivalent: true
gated_users: [gus]
elevate_users: [carol]
`

// A Stage is a world with Curfew in it.
type Stage struct {
	*world.World
	Control *world.Host
	Hosts   map[string]*world.Host
	Admin   *Person // dana
	Pin     string  // of the control plane's CA

	options Options
}

// A Person has a laptop, an SSH key and the curfew command.
type Person struct {
	*world.Laptop
	stage *Stage
}

// A Result is how a command ended.
type Result struct {
	Out, Err string
	Exit     int
}

// String shows a result in failures.
func (r Result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.Exit, r.Out, r.Err)
}

// Root is the top of the source tree.
func Root() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, "go.mod")); missing == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("not inside of the source tree: no go.mod above")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// Build makes bin/ anew, so that stories never play with yesterday's programs.
func Build(ctx context.Context) error {
	root, err := Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "make", "-s", "-C", root, "build")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make build: %w\n%s", err, out)
	}
	return nil
}

// New boots and enrols everything. Build first. Close the stage when done.
func New(ctx context.Context, o Options) (_ *Stage, err error) {
	if o.Hosts == nil {
		o.Hosts = []string{"web1"}
	}
	if o.Agent == "" {
		o.Agent = DefaultAgent
	}
	s := &Stage{Hosts: make(map[string]*world.Host), options: o}
	if s.World, err = world.New(ctx, world.Options{Name: o.Name, Out: o.Out}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.boot(ctx); err != nil {
		return nil, err
	}
	if err := s.StartControl(ctx); err != nil {
		return nil, err
	}
	if s.Admin, err = s.Person(ctx, "dana"); err != nil {
		return nil, err
	}
	join, ctx := errgroup.WithContext(ctx)
	for _, name := range o.Hosts {
		join.Go(func() error { return s.Join(ctx, name) })
	}
	return s, join.Wait()
}

// boot starts all machines side by side.
func (s *Stage) boot(ctx context.Context) error {
	boot, ctx := errgroup.WithContext(ctx)
	boot.Go(func() (err error) {
		s.Control, err = s.AddHost(ctx, world.HostOptions{Name: "control", Install: install(ctx, "controlplane")})
		if err != nil {
			return err
		}
		_, err = s.Control.Exec(ctx, "/usr/lib/curfew/setup-controlplane")
		return err
	})
	names := slices.Concat(s.options.Hosts, s.options.Later)
	hosts := make([]*world.Host, len(names))
	for i, name := range names {
		boot.Go(func() (err error) {
			shape := s.options.Shapes[name]
			hosts[i], err = s.AddHost(ctx, world.HostOptions{
				Name: name, Release: cmp.Or(shape.Release, s.options.Release), With: shape.With, Hybrid: shape.Hybrid,
				Install: func(root string) error {
					return errors.Join(install(ctx, "agent")(root), bring(ctx, root, shape.Programs))
				},
			})
			if err != nil {
				return err
			}
			if err := s.furnish(ctx, hosts[i]); err != nil || shape.Before == "" {
				return err
			}
			out, err := hosts[i].Shell(ctx, shape.Before)
			if err == nil && strings.HasSuffix(string(out), "reboot\n") {
				err = hosts[i].Reboot(ctx)
			}
			return err
		})
	}
	if err := boot.Wait(); err != nil {
		return err
	}
	for _, h := range hosts {
		s.Hosts[h.Name()] = h
	}
	return nil
}

// Image boots a host from an image with the agent in it, which has joined nothing. prepare puts files
// into the image; with are packages that it has besides.
func (s *Stage) Image(
	ctx context.Context, name string, prepare func(root string) error, with ...string,
) (*world.Host, error) {
	h, err := s.AddHost(ctx, world.HostOptions{
		Name: name, Release: s.options.Release, With: with, Install: func(root string) error {
			return errors.Join(install(ctx, "agent")(root), prepare(root))
		},
		Build: "/usr/lib/curfew/setup agent",
	})
	if err != nil {
		return nil, err
	}
	s.Hosts[name] = h
	return h, nil
}

// furnish makes a host that install.sh was run on known to itself, and gives it its people.
func (s *Stage) furnish(ctx context.Context, h *world.Host) error {
	if _, err := h.Exec(ctx, "/usr/lib/curfew/setup", "agent"); err != nil {
		return err
	}
	if err := s.People(ctx, h); err != nil {
		return err
	}
	return h.Write("/etc/curfew/agent.yaml", []byte(s.options.Agent), 0o644)
}

// People gives a host its local people: carol and gus, whom the agent manages, lou, whom it does not,
// and rescue, who breaks glass. All have SSH keys of their own kind: see Stage.LocalKey.
func (s *Stage) People(ctx context.Context, h *world.Host) error {
	const people = `
for u in carol gus lou rescue; do
  useradd -m -s /bin/bash "$u"
  install -d -m 700 -o "$u" -g "$u" "/home/$u/.ssh"
done
getent group curfew-breakglass >/dev/null || groupadd -r curfew-breakglass
usermod -aG curfew-breakglass rescue
echo 'lou ALL=(root) NOPASSWD: /usr/bin/id' >/etc/sudoers.d/lou
chmod 440 /etc/sudoers.d/lou`
	_, err := h.Shell(ctx, people)
	return err
}

// StartControl initialises the control plane with dana as admin and starts its unit.
func (s *Stage) StartControl(ctx context.Context) error {
	dana, err := s.laptop(ctx, "dana")
	if err != nil {
		return err
	}
	key, err := dana.SSHKey(ctx)
	if err != nil {
		return err
	}
	s.Admin = &Person{Laptop: dana, stage: s}
	if err := s.Control.Write("/root/dana.pub", []byte(key), 0o644); err != nil {
		return err
	}
	out, err := s.Control.Shell(ctx, `runuser -u curfew-controlplane -- curfew-controlplane init \
  --organisation acme --url `+Server+` --admin dana --admin-key /dev/stdin </root/dana.pub 2>&1`)
	if err != nil {
		return fmt.Errorf("init: %w\n%s", err, out)
	}
	pin := regexp.MustCompile(`--ca-pin ([A-Za-z0-9_-]{43})`).FindSubmatch(out)
	if pin == nil {
		return fmt.Errorf("init did not tell the CA's pin:\n%s", out)
	}
	s.Pin = string(pin[1])
	for path, text := range s.options.ControlFiles {
		if err := s.Control.Write(path, []byte(text), 0o600); err != nil {
			return err
		}
		if _, err := s.Control.Exec(ctx, "chown", "curfew-controlplane:", path); err != nil {
			return err
		}
	}
	if s.options.Control != "" {
		text := []byte(s.options.Control)
		if err := s.Control.Write("/etc/curfew/controlplane.yaml", text, 0o644); err != nil {
			return err
		}
	}
	if _, err := s.Control.Exec(ctx, "systemctl", "start", "curfew-controlplane.service"); err != nil {
		log, _ := s.Control.Journal(ctx, "curfew-controlplane.service")
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

// laptop makes a laptop with the curfew command and an SSH key on it.
func (s *Stage) laptop(ctx context.Context, name string) (*world.Laptop, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	l, err := s.AddLaptop(ctx, name)
	if err != nil {
		return nil, err
	}
	return l, l.Put("bin/curfew", filepath.Join(root, "bin/curfew"))
}

// Guest adds somebody whom the directory does not know: a laptop with the command and an SSH key.
func (s *Stage) Guest(ctx context.Context, name string) (*Person, error) {
	l, err := s.laptop(ctx, name)
	if err != nil {
		return nil, err
	}
	_, err = l.SSHKey(ctx)
	return &Person{Laptop: l, stage: s}, err
}

// Person adds a person: a laptop, a user of the directory, signed in. Dana exists from the start.
func (s *Stage) Person(ctx context.Context, name string) (*Person, error) {
	p := s.Admin
	if name != "dana" {
		l, err := s.laptop(ctx, name)
		if err != nil {
			return nil, err
		}
		key, err := l.SSHKey(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.Admin.Must(ctx, "admin", "user", "add", name, "--key", strings.TrimSpace(key)); err != nil {
			return nil, err
		}
		p = &Person{Laptop: l, stage: s}
	}
	return p, p.Must(ctx, "login", "--server", Server, "--ca-pin", s.Pin, "--user", name)
}

// Join enrols a host with a fresh token by the one line that the control plane prints, and starts it.
func (s *Stage) Join(ctx context.Context, name string) error {
	r, err := s.Admin.Curfew(ctx, "admin", "host", "add", name, "--json")
	if err != nil || r.Exit != 0 {
		return fmt.Errorf("a join token for %s: %w\n%s", name, err, r)
	}
	command := regexp.MustCompile(`"command":\s*"([^"]+)"`).FindStringSubmatch(r.Out)
	if command == nil {
		return fmt.Errorf("no command in: %s", r.Out)
	}
	line := strings.TrimPrefix(command[1], "sudo ")
	if out, err := s.Hosts[name].Shell(ctx, line+" --start 2>&1"); err != nil {
		log, _ := s.Hosts[name].Shell(ctx, "journalctl -q --no-pager -n 30 -u 'curfew-*'")
		return fmt.Errorf("joining %s: %w\n%s\n%s", name, err, out, log)
	}
	return s.Connected(ctx, name)
}

// Connected waits until the control plane sees the host's stream.
func (s *Stage) Connected(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	re := regexp.MustCompile(`(?s)"name":\s*"` + name + `".*?"connected":\s*true`)
	return Eventually(ctx, "host "+name+" to connect", func() (bool, string) {
		r, err := s.Admin.Curfew(ctx, "hosts", "--json")
		return err == nil && anyLine(r.Out, re), r.Out + r.Err
	})
}

// anyLine matches within one JSON object where the output has one a line, else within all of it.
func anyLine(out string, re *regexp.Regexp) bool {
	for line := range strings.Lines(out) {
		if re.MatchString(line) {
			return true
		}
	}
	return strings.Count(out, "\n") > 1 && !strings.HasPrefix(out, "{") && re.MatchString(out)
}

// Eventually polls until done says true or ctx ends; the error shows what was last seen.
func Eventually(ctx context.Context, what string, done func() (bool, string)) error {
	for {
		ok, seen := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; last seen:\n%s", what, context.Cause(ctx), seen)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Curfew runs the curfew command on the person's laptop.
func (p *Person) Curfew(ctx context.Context, args ...string) (Result, error) {
	return p.Command(ctx, append([]string{"curfew"}, args...)...)
}

// Command runs any command on the person's laptop.
func (p *Person) Command(ctx context.Context, argv ...string) (Result, error) {
	out, complaint, exit, err := p.Run(ctx, argv...)
	return Result{out, complaint, exit}, err
}

// Must runs curfew and makes an error of any exit status but 0.
func (p *Person) Must(ctx context.Context, args ...string) error {
	r, err := p.Curfew(ctx, args...)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("curfew %s by %s: %s", strings.Join(args, " "), p.Name(), r)
	}
	return err
}

// SSH runs a command on a host by real ssh, as the login of the person's own name, without a
// multiplexed connection and without ever asking.
func (p *Person) SSH(ctx context.Context, host string, command ...string) (Result, error) {
	argv := []string{"ssh", "-o", "BatchMode=yes", "-o", "LogLevel=INFO", "-o", "ControlPath=none", p.Name() + "@" + host}
	return p.Command(ctx, append(argv, command...)...)
}

// LetIn puts the person's own key into a local user's authorized_keys on a host, as an
// administrator would have done before Curfew came.
func (p *Person) LetIn(ctx context.Context, h *world.Host, login string) error {
	key, err := p.SSHKey(ctx)
	if err != nil {
		return err
	}
	path := "/home/" + login + "/.ssh/authorized_keys"
	_, err = h.ExecIn(ctx, bytes.NewBufferString(strings.TrimSpace(key)+"\n"), "bash", "-ec",
		`cat >>"$1"; chown "$2:$2" "$1"; chmod 600 "$1"`, "sh", path, login)
	return err
}
