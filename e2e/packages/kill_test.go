package packages

import (
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/world"
)

// matrixLimit bounds all chains on one release.
const matrixLimit = 3 * time.Hour

// The shell of hosts on which maintainer scripts are killed, and what it asks before each of their
// commands.
var (
	//go:embed testdata/sh
	shell []byte
	//go:embed testdata/step
	step []byte
)

// rig puts them on a host. Debian's own sh is dash, which runs the scripts here too.
func rig(root string) error {
	sh := filepath.Join(root, "usr/bin/sh")
	if to, err := os.Readlink(sh); err != nil || to != "dash" {
		return fmt.Errorf("sh is no link to dash: %q, %w", to, err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(root, "usr/local/bin/story-step"), step, 0o755),
		os.WriteFile(sh+".new", shell, 0o755),
		os.Rename(sh+".new", sh),
	)
}

// A point is a command of a maintainer script, or of what one calls, as the operation comes by it.
type point struct {
	at    int    // counted from 1
	where string // script and command
	how   string // "script": it alone is killed. "all": dpkg is too, as by a crash
}

func (p point) String() string {
	return fmt.Sprintf("killed (%s) at command %d, %s", p.how, p.at, p.where)
}

// An operation is one thing that an administrator does with the packages, here by dpkg alone, which apt calls
// too. Each finds the host as those before left it.
type operation struct {
	name, script string
	settled      func(*host)
	// dead looks at the host, or does something about it, when it was killed at a point. May be nil.
	dead func(h *host, when string, p point)
}

// A life is an installation's, from the first operation to the last.
type life struct {
	of         string
	operations []operation
	over       func(*host) // makes the host fit for another
}

var lives = []life{
	{"agent", agentOperations, (*host).moveOut},
	{"control plane", planeOperations, (*host).forgetPlane},
}

// dpkg is how the packages of a version come.
func dpkg(version string) string { return "dpkg --force-unsafe-io -i /var/tmp/" + version + "/*.deb" }

var agentOperations = []operation{
	{"install", dpkg(older), func(h *host) {
		h.installed(older)
		h.moveIn()
	}, (*host).abandon},
	{"upgrade", dpkg(newer), func(h *host) { h.stays("after the upgrade") }, rootChildStays},
	{"reinstall", dpkg(newer), func(h *host) { h.stays("after the reinstallation") }, rootChildStays},
	{"remove", "dpkg --remove " + strings.Join(agentPackages, " "), (*host).removed, nil},
	{"purge", "dpkg --purge " + strings.Join(agentPackages, " "), (*host).purged, nil},
}

func rootChildStays(h *host, when string, _ point) { h.rootChildLives(when) }

// traced is what the shell says of a command before it asks.
var traced = regexp.MustCompile(`(?m)^\+(\d+) (.{1,60})`)

// play does an operation, killed at the point if there is one, and has it done to the end. It returns the
// commands that it came by.
func (h *host) play(op operation, p *point) (steps []string, hit bool) {
	h.t.Helper()
	order := ""
	if p != nil {
		order = fmt.Sprintf("%d %s\n", p.at, p.how)
	}
	h.ok(h.Write("/run/story/kill", []byte(order), 0o644))
	h.ok(h.Write("/run/story/steps", nil, 0o644))
	out, err := h.Shell(h.ctx, op.script+" 2>&1")
	text, readErr := h.Read("/run/story/steps")
	h.ok(errors.Join(readErr, h.Write("/run/story/kill", nil, 0o644)))
	steps = strings.Fields(string(text))
	for _, m := range traced.FindAllStringSubmatch(string(out), -1) {
		if n, err := strconv.Atoi(m[1]); err == nil && n <= len(steps) {
			steps[n-1] += ": " + m[2]
		}
	}
	hit = p != nil && len(steps) >= p.at
	if hit {
		h.t.Logf("%s, %s", op.name, p)
		h.recover(op, *p, fmt.Sprintf("%v\n%s", err, out))
	} else if err != nil {
		h.t.Fatalf("%s: %v\n%s", op.name, err, out)
	}
	h.everybody("after " + op.name)
	op.settled(h)
	return steps, hit
}

var reinstall = regexp.MustCompile(`you should\s+reinstall it before attempting configuration`)

// recover is what an administrator types who finds an operation dead.
func (h *host) recover(op operation, p point, said string) {
	h.t.Helper()
	if p.how == "script" && !strings.Contains(said, "Killed") {
		h.t.Errorf("%s, %s: nobody says so:\n%s", op.name, p, said)
	}
	h.everybody(op.name + ", " + p.String())
	if op.dead != nil {
		op.dead(h, op.name+", "+p.String(), p)
	}
	for _, script := range []string{"dpkg --configure -a", op.script} {
		out, err := h.Shell(h.ctx, script+" 2>&1")
		// What died while dpkg unpacked it dpkg itself wants installed again, which comes next.
		if err != nil && (script == op.script || !reinstall.Match(out)) {
			h.t.Fatalf("%s, %s:\n%s\nand then: %v\n%s", op.name, p, said, err, out)
		}
	}
}

// abandon is what an administrator types who has seen enough of an installation, as every second one has.
func (h *host) abandon(when string, p point) {
	h.t.Helper()
	if p.at/2%2 != 0 {
		return
	}
	h.on("dpkg --purge --force-remove-reinstreq " + strings.Join(agentPackages, " ") + " 2>&1")
	h.everybody(when + ", and given up")
	h.purged()
}

// chain is a whole life, killed once in each operation for which there is a point. It returns the commands of
// each operation.
func (h *host) chain(l life, points map[string]point) (steps map[string][]string, missed int) {
	h.t.Helper()
	steps = make(map[string][]string)
	for _, op := range l.operations {
		if p, ok := points[op.name]; ok {
			if _, hit := h.play(op, &p); !hit {
				h.t.Logf("%s did not come by %s", op.name, p)
				missed++
			}
		} else {
			steps[op.name], _ = h.play(op, nil)
		}
	}
	l.over(h)
	return steps, missed
}

// inert are commands that change nothing but the shell's own state, or nothing at all: killed behind one of
// them a script leaves what it leaves when it is killed before.
var inert = regexp.MustCompile(`: (set -|\[ |[a-z_]+=|export |local |exit |return |stop |reload_sshd|command -v ` +
	`|readlink |cmp |grep |visudo -c|sshd -t|systemctl -q is-active|echo )`)

// distinct are the points of an operation that differ in what they leave: the first command of each script,
// since dpkg has done something in between, and each behind one that is not inert.
func distinct(steps []string) (points []point) {
	script := func(step string) string { name, _, _ := strings.Cut(step, ":"); return name }
	for i, step := range steps {
		if i == 0 || script(steps[i-1]) != script(step) || !inert.MatchString(steps[i-1]) {
			points = append(points, point{i + 1, step, "script"}, point{i + 1, step, "all"})
		}
	}
	return points
}

// draw makes chains out of n points of each operation, or of all if n is 0.
func (l life) draw(t *testing.T, steps map[string][]string, n int) (chains []map[string]point) {
	t.Helper()
	if *at != "" {
		name, rest, _ := strings.Cut(*at, ":")
		how, command, _ := strings.Cut(rest, ":")
		n := slices.IndexFunc(steps[name], func(step string) bool { return strings.Contains(step, command) })
		if n < 0 || command == "" || how != "script" && how != "all" {
			t.Fatalf("-at %s: there is no such point", *at)
		}
		return []map[string]point{{name: {at: n + 1, where: steps[name][n], how: how}}}
	}
	drawn := *seed
	if drawn == 0 {
		drawn = rand.Uint64()
	}
	random := rand.New(rand.NewPCG(drawn, 0))
	for _, op := range l.operations {
		points := distinct(steps[op.name])
		random.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		t.Logf("%s: %d commands, %d points, drawn by -seed %d", op.name, len(steps[op.name]), len(points), drawn)
		if n > 0 {
			points = points[:min(n, len(points))]
		}
		for i, p := range points {
			if i == len(chains) {
				chains = append(chains, make(map[string]point))
			}
			chains[i][op.name] = p
		}
	}
	return chains
}

// Killed before any command of any maintainer script, alone or with dpkg, every operation can be
// done to the end: nobody is locked out meanwhile, sessions live where they should and die where they
// should, and a purge leaves nothing. A control plane loses nothing that nobody can make anew.
func TestKilledAtEveryCommand(t *testing.T) {
	t.Parallel()
	lives := slices.DeleteFunc(slices.Clone(lives), func(l life) bool { return !l.has(*at) })
	if len(lives) == 0 {
		t.Fatalf("-at %s: there is no such operation", *at)
	}
	for _, release := range releases() {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			names, sample := []string{"web1", "plane"}, 1
			if *every {
				names, sample = append(names, "web2"), 0
				if release != world.DefaultRelease {
					names, sample = names[:2], 3
				}
			}
			hosts := open(t, matrixLimit, release, rig, names...)
			for _, l := range lives {
				t.Run(l.of, func(t *testing.T) {
					t.Parallel()
					l.killed(t, sample, hosts)
				})
			}
		})
	}
}

// has tells whether the point that -at names, if it names one, is of this life.
func (l life) has(at string) bool {
	name, _, _ := strings.Cut(at, ":")
	return at == "" || slices.ContainsFunc(l.operations, func(op operation) bool { return op.name == name })
}

// killed plays the chains, side by side on the hosts that are for them.
func (l life) killed(t *testing.T, n int, all map[string]*host) {
	var hosts []*host
	for name, h := range all {
		if (name == "plane") == (l.of == "control plane") {
			hosts = append(hosts, h)
		}
	}
	steps, _ := hosts[0].tell(t).chain(l, nil)
	for _, op := range l.operations {
		t.Logf("%s:\n%s", op.name, strings.Join(steps[op.name], "\n"))
	}
	chains := l.draw(t, steps, n)
	queue := make(chan map[string]point, len(chains))
	for _, c := range chains {
		queue <- c
	}
	close(queue)
	for _, h := range hosts {
		t.Run(h.Name(), func(t *testing.T) {
			t.Parallel()
			h.tell(t)
			played, missed := 0, 0
			for c := range queue {
				_, m := h.chain(l, c)
				played, missed = played+len(c), missed+m
			}
			if missed > 1+played/10 {
				t.Errorf("%d of %d points did not come by: the numbering does not hold", missed, played)
			}
		})
	}
}
