package controlplane_test

import (
	"context"
	"encoding/base64"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/e2e/inject"
	"github.com/curfew-access/curfew/e2e/inject/power"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

var (
	everyPoint = flag.Bool("every", false, "play every point, not a sample")
	pointSeed  = flag.Uint64("seed", 0, "seed of the sample; 0 draws one")
)

// process is the real program under the injector.
type process struct {
	h          *house
	t          *testing.T
	dir        string // of programs and socket
	script     *inject.Script
	cmd        *exec.Cmd
	log        *os.File
	alice, bob *person
	web1       *host
}

// newProcess is a house with alice, bob and web1 that goes on as a process of its own, with its data
// on a disk that can lose its power when there is one.
func newProcess(t *testing.T, disk *power.Disk) *process {
	t.Helper()
	h := build(t, nil)
	p := &process{h: h, t: t, dir: t.TempDir(), script: new(inject.Script)}
	p.alice, p.bob, _, p.web1 = h.cast(1)
	p.web1.disconnect()
	h.stop()
	if disk != nil {
		moved := filepath.Join(disk.Path, "data")
		power.Run(t, "cp", "-a", h.dir, moved)
		power.Run(t, "sync", "--file-system", moved) // the copy is the test's own, and was there before
		h.dir = moved
	}
	power.Run(t, "go", "build", "-o", p.dir+"/", "../cmd/curfew-controlplane")
	_, err := inject.Build(p.dir)
	must(t, err)
	in, err := inject.Listen(p.dir+"/s", p.script.Decide, nil)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	h.addr = l.Addr().String()
	must(t, l.Close())
	must(t, os.WriteFile(p.dir+"/config.yaml", fmt.Appendf(nil, "listen: %s\n", h.addr), 0o600))
	p.log, err = os.Create(p.dir + "/log")
	must(t, err)
	p.start()
	h.stop = func() {
		p.web1.disconnect()
		_ = p.cmd.Process.Kill() // it may be dead
		_ = p.cmd.Wait()         // of the signal
		if err := in.Close(); err != nil {
			t.Errorf("the injector: %v", err)
		}
		if text, err := os.ReadFile(p.log.Name()); err == nil && t.Failed() {
			t.Logf("its log:\n%s", text[max(0, len(text)-4000):])
		}
	}
	return p
}

// start runs the program, and signs everybody in anew.
func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.dir+"/curfew-inject", p.dir+"/s", p.dir+"/curfew-controlplane",
		"--config", p.dir+"/config.yaml", "--data-dir", p.h.dir, "serve")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	must(p.t, p.cmd.Start())
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", p.h.addr)
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(p.log.Name())
			p.t.Fatalf("the control plane does not come up: %v\n%s", err, text)
		}
	}
	p.h.admin = p.h.signIn("dana", p.h.admin.key)
	p.alice, p.bob = p.h.signIn("alice", p.alice.key), p.h.signIn("bob", p.bob.key)
	p.web1.connect()
}

// again starts the program after it was killed.
func (p *process) again(restore func()) {
	p.t.Helper()
	_ = p.cmd.Wait() // of the signal
	p.web1.disconnect()
	for _, who := range []*person{p.alice, p.bob, p.h.admin} {
		who.conn.Close()
	}
	if restore != nil {
		restore()
	}
	p.start()
}

const settled = 150 * time.Millisecond

// window plays one call with the script's window open, until nothing follows it any more.
func (p *process) window(target *inject.Point, call func(context.Context) error) ([]inject.Point, error) {
	p.t.Helper()
	p.script.Begin(target)
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	err := call(ctx)
	for n := -1; n != p.script.Count() && !p.script.Hit(); time.Sleep(settled) {
		n = p.script.Count()
	}
	return p.script.End(), err
}

// step is something that a person does to a request, which must happen once or not at all.
type step struct {
	name     string
	do       func(p *process, ctx context.Context, r *apiv1.Request) error
	from, to apiv1.RequestState
	open     int // windows on the host after it
}

var steps = []step{
	{"approve", func(p *process, ctx context.Context, r *apiv1.Request) error {
		_, err := p.bob.Approve(ctx, &apiv1.ApproveRequest{
			Id: r.GetId(), Revision: r.GetRevision(), Sshsig: p.bob.sign(r.GetTerms()),
		})
		return err
	}, apiv1.RequestState_REQUEST_STATE_PENDING, apiv1.RequestState_REQUEST_STATE_GRANTED, 1},
	{"revoke", func(p *process, ctx context.Context, r *apiv1.Request) error {
		_, err := p.bob.Revoke(ctx, &apiv1.RevokeRequest{Id: r.GetId()})
		return err
	}, apiv1.RequestState_REQUEST_STATE_GRANTED, apiv1.RequestState_REQUEST_STATE_ENDED, 0},
	{"done", func(p *process, ctx context.Context, r *apiv1.Request) error {
		_, err := p.alice.Done(ctx, &apiv1.DoneRequest{Id: r.GetId()})
		return err
	}, apiv1.RequestState_REQUEST_STATE_GRANTED, apiv1.RequestState_REQUEST_STATE_ENDED, 0},
}

// kinds are what the trail says of a request, sorted.
func (p *process) kinds(r *apiv1.Request) string {
	p.t.Helper()
	var list []string
	for _, raw := range p.h.admin.records() {
		rec, err := trail.ParseRecord(raw.GetLeaf())
		must(p.t, err)
		if rec.RequestID == r.GetId() {
			list = append(list, rec.Kind)
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// settles waits until a request is in a state and the host has its window, or none.
func (p *process) settles(s step, r *apiv1.Request) {
	p.t.Helper()
	p.alice.until(r.GetId(), s.to.String(), func(r *apiv1.Request) bool { return r.GetState() == s.to })
	live := p.web1.eventually(s.open)
	if s.open == 1 && live[0].Terms.GetRequestId() != r.GetId() {
		p.t.Fatalf("%s is live", live[0].Terms.GetRequestId())
	}
}

// strike kills the program at a point of a step, and demands that what was acknowledged holds, that
// nothing is half done, and that doing it again ends where an undisturbed run ends.
func (p *process) strike(s step, r *apiv1.Request, at inject.Point, want string, restore func()) bool {
	p.t.Helper()
	_, err := p.window(&at, func(ctx context.Context) error { return s.do(p, ctx, r) })
	if !p.script.Hit() {
		must(p.t, err)
		p.settles(s, r)
		return false
	}
	p.again(restore)
	got := p.alice.get(r.GetId())
	where := fmt.Sprintf("%s killed at %s", s.name, at)
	decided := 0
	for _, d := range got.GetDecisions() {
		if d.GetApproved() {
			decided++
		}
	}
	switch got.GetState() {
	case s.from:
		if err == nil {
			p.t.Fatalf("%s: it was acknowledged, and the request is %s", where, got.GetState())
		}
		if s.name == "approve" && decided != 0 {
			p.t.Fatalf("%s: pending with %d approvals", where, decided)
		}
		must(p.t, s.do(p, p.t.Context(), r))
	case s.to, apiv1.RequestState_REQUEST_STATE_APPROVED:
	default:
		p.t.Fatalf("%s: the request is %s", where, got.GetState())
	}
	p.settles(s, r)
	// The trail holds every step once, as if nothing had been; what the hosts say comes a little later.
	var kinds string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if kinds = p.kinds(r); kinds == want {
			return true
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s: the trail says\n%s\nwant\n%s", where, kinds, want)
		}
	}
}

// reference plays the steps undisturbed, twice each, and returns their points and what the trail
// says after each.
func (p *process) reference() (points map[string][]inject.Point, said map[string]string) {
	p.t.Helper()
	points, said = make(map[string][]inject.Point), make(map[string]string)
	for _, end := range []step{steps[1], steps[2], steps[1], steps[2]} {
		r := p.alice.ask("web1")
		for _, s := range []step{steps[0], end} {
			list, err := p.window(nil, func(ctx context.Context) error { return s.do(p, ctx, r) })
			must(p.t, err)
			p.settles(s, r)
			said[s.name] = p.kinds(r)
			for _, at := range list {
				if !slices.Contains(points[s.name], at) {
					points[s.name] = append(points[s.name], at)
				}
			}
		}
	}
	return points, said
}

// draw is a sample of n points, or all with -every.
func draw(t *testing.T, points []inject.Point, n int) []inject.Point {
	t.Helper()
	if *everyPoint || n >= len(points) {
		return points
	}
	seed := *pointSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("%d of %d points, drawn by -seed %d", n, len(points), seed)
	var list []inject.Point
	order := rand.New(rand.NewPCG(seed, 0)).Perm(len(points))[:n]
	slices.Sort(order)
	for _, i := range order {
		list = append(list, points[i])
	}
	return list
}

func (p *process) strikeAll(n int, restore func()) {
	p.t.Helper()
	points, said := p.reference()
	plan := make(map[string][]inject.Point)
	for _, s := range steps {
		p.t.Logf("%s has %d points; the trail says %s", s.name, len(points[s.name]), said[s.name])
		plan[s.name] = draw(p.t, points[s.name], n)
	}
	killed, missed := 0, 0
	strike := func(s step, r *apiv1.Request) {
		if len(plan[s.name]) == 0 {
			must(p.t, s.do(p, p.t.Context(), r))
			p.settles(s, r)
			return
		}
		at := plan[s.name][0]
		plan[s.name] = plan[s.name][1:]
		if p.strike(s, r, at, said[s.name], restore) {
			killed++
		} else {
			missed++
		}
	}
	for i := 0; len(plan["approve"])+len(plan["revoke"])+len(plan["done"]) > 0; i++ {
		r := p.alice.ask("web1")
		strike(steps[0], r)
		strike(steps[1+i%2], r)
	}
	p.t.Logf("struck at %d points; %d more did not come by", killed, missed)
	if missed > 1+(killed+missed)/5 {
		p.t.Errorf("%d points did not come by: the numbering does not hold", missed)
	}
}

// F13: killed before any changing call of an approval, a revocation or a hand-back, the control plane
// comes back with what it acknowledged, with one grant, and with each step on the trail once.
func TestKilledAtEveryCall(t *testing.T) {
	p := newProcess(t, nil)
	p.strikeAll(5, nil)
}

// F2: the same with the power: what SQLite had not synced is gone, and nothing of it was promised.
func TestPowerLostInMidApprove(t *testing.T) {
	disk := power.NewDisk(t, 64<<20)
	p := newProcess(t, disk)
	p.script.Only = func(c inject.Call) bool { return strings.Contains(c.Path, disk.Path) }
	p.script.Act = func(inject.Call) inject.Verdict {
		if err := disk.Cut(); err != nil {
			t.Error(err)
		}
		return inject.Kill()
	}
	p.strikeAll(4, disk.Restore)
}

// What init has said is there is there after a power loss right behind it: the root and issuer keys
// above all, which nobody else has.
func TestPowerLostAfterInit(t *testing.T) {
	disk := power.NewDisk(t, 64<<20)
	dir := filepath.Join(disk.Path, "data")
	key := newKey(t)
	pin, err := controlplane.Init(t.Context(), controlplane.Setup{
		DataDir: dir, Organisation: "acme", URL: "127.0.0.1:7443", Admin: "dana",
		AdminKey: grant.SSHKeyText(key.PublicKey()), Now: time.Now, Log: quietLog(),
	})
	must(t, err)
	before := power.Run(t, "bash", "-c", "cd "+dir+" && sha256sum *.key *.pem 2>/dev/null; ls *.key")
	must(t, disk.Cut())
	disk.Restore()
	after := power.Run(t, "bash", "-c", "cd "+dir+" && sha256sum *.key *.pem 2>/dev/null; ls *.key")
	if after != before {
		t.Errorf("after the power loss there is\n%s\nbefore\n%s", after, before)
	}
	h := &house{t: t, dir: dir, config: controlplane.DefaultConfig()}
	raw, err := base64.RawURLEncoding.DecodeString(pin)
	must(t, err)
	h.pin = [32]byte(raw)
	h.config.DataDir, h.config.Listen = dir, "127.0.0.1:0"
	h.start()
	h.admin = h.signIn("dana", key)
	h.stop()
}
