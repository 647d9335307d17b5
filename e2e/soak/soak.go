package soak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// Options of a soak.
type Options struct {
	Name   string
	Seed   uint64
	For    time.Duration // from the end of the warm-up; the rest takes a few minutes more
	Hosts  int
	People int
	// Log is called from several goroutines.
	Log func(format string, args ...any)
}

// maxFindings ends a soak early: what follows the first ones explains little.
const maxFindings = 40

// A Soak is one run.
type Soak struct {
	o      Options
	s      *stage.Stage
	truth  *truth
	hosts  []*world.Host
	names  []string
	people []*stage.Person
	bob    *stage.Person // approves and revokes
	lou    *stage.Person // a local admin on every host, unknown to Curfew
	uids   map[string]int
	logins map[int]string

	mu       sync.Mutex
	counts   map[string]int
	lags     []time.Duration
	findings []string
	stop     context.CancelFunc
}

// Run soaks and returns what it found, which should be nothing. The error is for a soak that could
// not be carried out.
func Run(ctx context.Context, o Options) (findings []string, err error) {
	k := &Soak{o: o, truth: newTruth(), counts: make(map[string]int)}
	o.Log("soak: seed %d, %d hosts, %d people, for %s", o.Seed, o.Hosts, o.People, o.For)
	if err := k.open(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.s.Close()) }()
	if err := k.warmUp(ctx); err != nil {
		return nil, fmt.Errorf("warming up: %w", err)
	}
	before, err := k.inventories(ctx)
	if err != nil {
		return nil, err
	}
	o.Log("soak: warmed up")
	k.live(ctx)
	after, err := k.comeToRest(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		for _, f := range Compare(name, before[name], after[name], k.uids) {
			k.find("%s", f)
		}
	}
	k.agree(ctx)
	k.sum(before, after)
	return k.findings, nil
}

// rng is a stream of its own for each actor, so that one's delays do not change another's plan.
func (k *Soak) rng(actor string) *rand.Rand {
	var h uint64 = 14695981039346656037 // FNV-1a
	for _, b := range []byte(actor) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(k.o.Seed, h))
}

func (k *Soak) count(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.counts[what]++
}

// find notes a finding. Too many end the soak.
func (k *Soak) find(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.findings = append(k.findings, text)
	k.o.Log("soak: FINDING %s %s", time.Now().UTC().Format("15:04:05.000"), text)
	if len(k.findings) >= maxFindings && k.stop != nil {
		k.stop()
	}
}

// open boots the stage: hosts, people with laptops, lou's and the break-glass user's keys.
func (k *Soak) open(ctx context.Context) (err error) {
	for i := range k.o.Hosts {
		k.names = append(k.names, fmt.Sprintf("web%d", i+1))
	}
	if k.s, err = stage.New(ctx, stage.Options{Name: k.o.Name, Hosts: k.names}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.s.Close())
		}
	}()
	for _, name := range k.names {
		k.hosts = append(k.hosts, k.s.Hosts[name])
	}
	if k.bob, err = k.s.Person(ctx, "bob"); err != nil {
		return err
	}
	err = errors.Join(k.s.Admin.Must(ctx, "admin", "group", "set", "sre", "bob"), k.s.Roles(ctx))
	if err != nil {
		return err
	}
	for i := range k.o.People {
		p, err := k.s.Person(ctx, fmt.Sprintf("user%d", i+1))
		if err != nil {
			return err
		}
		k.people = append(k.people, p)
	}
	if k.lou, err = k.s.Person(ctx, "lou"); err != nil {
		return err
	}
	for _, h := range k.hosts {
		for _, login := range []string{"lou", "rescue"} {
			if err := k.lou.LetIn(ctx, h, login); err != nil {
				return err
			}
		}
	}
	return k.learnUIDs(ctx)
}

func (k *Soak) learnUIDs(ctx context.Context) error {
	var users []struct {
		Name string
		UID  int
	}
	if err := k.s.Admin.Query(ctx, &users, "admin", "user", "ls"); err != nil {
		return err
	}
	k.uids, k.logins = make(map[string]int), make(map[int]string)
	for _, u := range users {
		k.uids[u.Name], k.logins[u.UID] = u.UID, u.Name
	}
	return nil
}

// warmUp has everybody on every host once, so that homes, uids and the daemons' pools are there.
func (k *Soak) warmUp(ctx context.Context) error {
	group, warming := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, p := range k.people {
		group.Go(func() error {
			ctx := warming
			args := append([]string{"request"}, k.names...)
			r, err := p.Curfew(ctx, append(args, "--role", "root", "--for", "10m", "--reason",
				"warm up", "--no-wait")...)
			if err != nil || r.Exit != 0 {
				return fmt.Errorf("asking: %w\n%s", err, r)
			}
			id := strings.TrimSpace(r.Out)
			if err := k.bob.Must(ctx, "approve", id, "--yes"); err != nil {
				return err
			}
			for _, name := range k.names {
				if err := k.warm(ctx, p, name); err != nil {
					return err
				}
			}
			return p.Must(ctx, "done", id)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, h := range k.hosts {
		if _, err := h.Shell(ctx, "touch /etc/curfew/.soak"); err != nil {
			return err
		}
	}
	return k.quiet(ctx)
}

func (k *Soak) warm(ctx context.Context, p *stage.Person, host string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return stage.Eventually(ctx, p.Name()+" to be let into "+host, func() (bool, string) {
		r, err := p.SSH(ctx, host, "sudo -n -i id -u")
		return err == nil && r.Exit == 0, r.String()
	})
}

// quiet waits until no host has anything of anybody's, not even a closed account.
func (k *Soak) quiet(ctx context.Context) error {
	for _, h := range k.hosts {
		limited, cancel := context.WithTimeout(ctx, 90*time.Second)
		err := stage.Eventually(limited, h.Name()+" to be empty", func() (bool, string) {
			time.Sleep(500 * time.Millisecond)
			in, err := Take(ctx, h)
			if err != nil {
				return false, err.Error()
			}
			users := slices.DeleteFunc(in.Things, func(thing string) bool {
				return !strings.Contains(thing, "19") && !strings.Contains(thing, "user")
			})
			return len(users) == 0, strings.Join(users, "\n")
		})
		cancel()
		if err != nil {
			return errors.Join(err, errors.New(k.circumstances(ctx, h)))
		}
	}
	return nil
}

// circumstances are what to look at when a host does not come to rest.
func (k *Soak) circumstances(ctx context.Context, h *world.Host) string {
	out, err := h.Shell(ctx, `curfew-agent status; systemctl list-jobs --no-pager; loginctl --no-pager
		systemctl list-units --no-pager --all 'user*19*' 'session*' 'curfew-*'
		journalctl -o short-precise --no-pager -n 400`)
	if err != nil {
		return fmt.Sprintf("%s: %v", h.Name(), err)
	}
	return string(out)
}

// inventories of all hosts, with the control plane's beside.
func (k *Soak) inventories(ctx context.Context) (map[string]Inventory, error) {
	all := make(map[string]Inventory)
	for _, h := range append(slices.Clone(k.hosts), k.s.Control) {
		in, err := Take(ctx, h)
		if err != nil {
			return nil, err
		}
		all[h.Name()] = in
	}
	return all, nil
}

// live lets everybody act until the time is over.
func (k *Soak) live(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, k.o.For)
	defer cancel()
	k.mu.Lock()
	k.stop = cancel
	k.mu.Unlock()
	watching, enough := context.WithCancel(context.WithoutCancel(ctx))
	var watchers, actors sync.WaitGroup
	watchers.Go(func() { k.canary(watching) })
	for _, h := range k.hosts {
		watchers.Go(func() { k.watch(watching, h) })
	}
	actors.Go(func() { k.localsGetIn(ctx) })
	actors.Go(func() { k.misfortunes(ctx) })
	for _, p := range k.people {
		actors.Go(func() { k.act(ctx, p) })
	}
	actors.Go(func() { k.progress(ctx) })
	actors.Wait()
	enough()
	watchers.Wait()
}

func (k *Soak) progress(ctx context.Context) {
	tick := time.NewTicker(max(k.o.For/12, 15*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.o.Log("soak: so far %s", k.tally())
		}
	}
}

func (k *Soak) tally() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var parts []string
	for _, what := range slices.Sorted(maps.Keys(k.counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", what, k.counts[what]))
	}
	return strings.Join(parts, ", ") + fmt.Sprintf("; findings %d", len(k.findings))
}

// canary measures how much longer than usual a trifle takes here: the soak's promises hold on a
// machine that runs, and this says how much it ran.
func (k *Soak) canary(ctx context.Context) {
	const rest = 100 * time.Millisecond
	usual := 10 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		time.Sleep(rest)
		_ = exec.CommandContext(ctx, "/bin/true").Run() // its duration is what counts
		if late := time.Since(began) - rest - usual; late > 0 {
			k.truth.stalled(time.Now(), late)
		}
	}
}

// sum prints what was done and measured.
func (k *Soak) sum(before, after map[string]Inventory) {
	k.o.Log("soak: done: %s", k.tally())
	k.mu.Lock()
	defer k.mu.Unlock()
	slices.Sort(k.lags)
	if n := len(k.lags); n > 0 {
		k.o.Log("soak: from an end to nothing left, undisturbed: n=%d p50 %s, p99 %s, worst %s", n,
			k.lags[n/2].Round(time.Millisecond), k.lags[n*99/100].Round(time.Millisecond),
			k.lags[n-1].Round(time.Millisecond))
	}
	k.o.Log("soak: the longest that a stalled machine was excused for: %s",
		k.truth.lent.Round(time.Millisecond))
	for _, host := range slices.Sorted(maps.Keys(after)) {
		for _, name := range []string{"root half", "link half", "control plane"} {
			if fds := after[host].Descriptors[name]; fds > 0 {
				k.o.Log("soak: %s: %s: descriptors %d, then %d; MiB %.1f, then %.1f", host, name,
					before[host].Descriptors[name], fds, before[host].MiB[name], after[host].MiB[name])
			}
		}
	}
}
