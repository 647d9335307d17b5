package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// controlName stands for the control plane among the disturbed.
const controlName = "control"

// A misfortune befalls one host, or the control plane.
type misfortune struct {
	name   string
	weight int
	// steady says that it may befall the first host too, whose agent lives as long as the soak, so
	// that its memory and descriptors at the end tell something.
	steady bool
	happen func(k *Soak, ctx context.Context, h *world.Host, rng float64) error
}

var misfortunes = []misfortune{
	{"kills of the root half", 5, false, (*Soak).killRootHalf},
	{"kills of the link half", 4, false, (*Soak).killLinkHalf},
	{"stops of the root half", 2, false, (*Soak).stopRootHalf},
	{"restarts of the agent", 2, false, (*Soak).restartAgent},
	{"root halves frozen", 2, false, (*Soak).freezeRootHalf},
	{"reboots", 2, false, (*Soak).reboot},
	{"power cuts", 1, false, (*Soak).cutPower},
	{"partitions of a host", 4, true, (*Soak).partition},
	{"control plane restarts", 2, true, (*Soak).restartControl},
	{"kills of the control plane", 2, true, (*Soak).killControl},
	{"partitions of the control plane", 1, true, (*Soak).partitionControl},
}

// misfortunes has one after the other begin; those of different hosts overlap.
func (k *Soak) misfortunes(ctx context.Context) {
	rng := k.rng("misfortunes")
	var total int
	for _, m := range misfortunes {
		total += m.weight
	}
	busy := make(map[string]*sync.Mutex)
	for _, name := range append([]string{controlName}, k.names...) {
		busy[name] = new(sync.Mutex)
	}
	var going sync.WaitGroup
	defer going.Wait()
	for {
		pause := time.Duration(1500+rng.IntN(6000)) * time.Millisecond
		if k.short() {
			pause /= 3
		}
		m, host, luck := draw(rng, total), k.names[rng.IntN(len(k.names))], rng.Float64()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if !m.steady && host == k.names[0] {
			continue
		}
		if strings.Contains(m.name, "control plane") {
			host = controlName
		}
		if !busy[host].TryLock() {
			continue // it has trouble enough
		}
		going.Go(func() {
			defer busy[host].Unlock()
			k.befall(context.WithoutCancel(ctx), m, host, luck)
		})
	}
}

// short tells a sample of a soak, in which as much should happen in less time.
func (k *Soak) short() bool { return k.o.For < 2*time.Minute }

func draw(rng *rand.Rand, total int) misfortune {
	n := rng.IntN(total)
	for _, m := range misfortunes {
		if n -= m.weight; n < 0 {
			return m
		}
	}
	panic("weights do not add up")
}

func (k *Soak) befall(ctx context.Context, m misfortune, host string, luck float64) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	h := k.s.Control
	if host != controlName {
		h = k.s.Hosts[host]
	}
	if err := m.happen(k, ctx, h, luck); err != nil {
		k.find("%s: %s: %v", host, m.name, err)
		return
	}
	k.count(m.name)
}

const (
	enforceUnit = "curfew-enforce.service"
	linkUnit    = "curfew-link.service"
	controlUnit = "curfew-controlplane.service"
)

// killUnit kills a unit's main process and waits for another that serves.
func killUnit(ctx context.Context, h *world.Host, unit string) error {
	_, err := h.Shell(ctx, `old=$(systemctl show -P MainPID `+unit+`)
systemctl kill --signal=KILL --kill-whom=main `+unit+`
for i in $(seq 600); do
  new=$(systemctl show -P MainPID `+unit+`)
  [ "$new" != "$old" ] && [ "$new" != 0 ] && systemctl -q is-active `+unit+` && exit 0
  sleep 0.1
done
systemctl status `+unit+` >&2; exit 1`)
	return err
}

func (k *Soak) killRootHalf(ctx context.Context, h *world.Host, _ float64) error {
	defer k.truth.disturb(agentDown, h.Name())()
	return killUnit(ctx, h, enforceUnit)
}

func (k *Soak) killLinkHalf(ctx context.Context, h *world.Host, _ float64) error {
	defer k.truth.disturb(linkDown, h.Name())()
	return killUnit(ctx, h, linkUnit)
}

func (k *Soak) stopRootHalf(ctx context.Context, h *world.Host, luck float64) error {
	defer k.truth.disturb(agentDown, h.Name())()
	if _, err := h.Exec(ctx, "systemctl", "stop", "curfew-gate.socket", enforceUnit); err != nil {
		return err
	}
	time.Sleep(time.Duration(luck * float64(8*time.Second)))
	_, err := h.Exec(ctx, "systemctl", "start", enforceUnit, linkUnit)
	return err
}

func (k *Soak) restartAgent(ctx context.Context, h *world.Host, _ float64) error {
	defer k.truth.disturb(agentDown, h.Name())()
	_, err := h.Exec(ctx, "systemctl", "restart", enforceUnit, linkUnit)
	return err
}

// freezeRootHalf stops the process: what it should have done is late until it goes on.
func (k *Soak) freezeRootHalf(ctx context.Context, h *world.Host, luck float64) error {
	defer k.truth.disturb(agentDown, h.Name())()
	_, stopped := h.Exec(ctx, "systemctl", "kill", "--signal=STOP", enforceUnit)
	time.Sleep(time.Second + time.Duration(luck*float64(6*time.Second)))
	_, err := h.Exec(ctx, "systemctl", "kill", "--signal=CONT", enforceUnit)
	return errors.Join(stopped, err)
}

func (k *Soak) reboot(ctx context.Context, h *world.Host, _ float64) error {
	defer k.truth.disturb(hostDown, h.Name())()
	if err := h.Reboot(ctx); err != nil {
		return err
	}
	return h.WaitUnit(ctx, enforceUnit)
}

// cutPower ends the host at once; its page cache lives on, so this is a crash and no loss of writes.
func (k *Soak) cutPower(ctx context.Context, h *world.Host, luck float64) error {
	defer k.truth.disturb(hostDown, h.Name())()
	if err := h.Kill(ctx); err != nil {
		return err
	}
	time.Sleep(time.Duration(luck * float64(10*time.Second)))
	if err := h.Start(ctx); err != nil {
		return err
	}
	return h.WaitUnit(ctx, enforceUnit)
}

func (k *Soak) partition(ctx context.Context, h *world.Host, luck float64) error {
	defer k.truth.disturb(cut, h.Name(), h.Name()+" cable")()
	if err := h.Disconnect(ctx); err != nil {
		return err
	}
	time.Sleep(time.Duration(luck * float64(25*time.Second)))
	return h.Reconnect(ctx)
}

// everywhere disturbs all hosts and the control plane itself.
func (k *Soak) everywhere() (over func()) {
	return k.truth.disturb(cut, append([]string{controlName}, k.names...)...)
}

func (k *Soak) restartControl(ctx context.Context, h *world.Host, _ float64) error {
	defer k.everywhere()()
	_, err := h.Exec(ctx, "systemctl", "restart", controlUnit)
	return err
}

func (k *Soak) killControl(ctx context.Context, h *world.Host, _ float64) error {
	defer k.everywhere()()
	return killUnit(ctx, h, controlUnit)
}

func (k *Soak) partitionControl(ctx context.Context, h *world.Host, luck float64) error {
	defer k.everywhere()()
	if err := h.Disconnect(ctx); err != nil {
		return err
	}
	time.Sleep(time.Duration(luck * float64(12*time.Second)))
	return h.Reconnect(ctx)
}

// comeToRest ends what is open and waits until nothing moves, then takes the last inventory.
func (k *Soak) comeToRest(ctx context.Context) (map[string]Inventory, error) {
	for _, name := range k.names {
		if err := k.s.Connected(ctx, name); err != nil {
			return nil, err
		}
	}
	for _, p := range k.people {
		if err := k.giveUp(ctx, p); err != nil {
			return nil, err
		}
	}
	if err := k.quiet(ctx); err != nil {
		k.find("nothing moves any more, and this is left: %v", err)
	}
	// user@0 and the like stop 10 s after the last session, and Go gives memory back when it idles.
	var after map[string]Inventory
	rest, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := stage.Eventually(rest, "systemd's user managers to stop", func() (bool, string) {
		time.Sleep(time.Second)
		all, err := k.inventories(ctx)
		if err != nil {
			return false, err.Error()
		}
		after = all
		for name, in := range all {
			if in.Processes["(sd-pam)"] > 0 {
				return false, name
			}
		}
		return true, ""
	})
	if after == nil {
		return nil, err
	}
	return after, nil // a manager that stays is a process too many
}

// giveUp ends whatever of a person's is pending or live.
func (k *Soak) giveUp(ctx context.Context, p *stage.Person) error {
	var all []struct{ ID, State, Requester string }
	if err := p.Query(ctx, &all, "ls"); err != nil {
		return err
	}
	for _, r := range all {
		if r.Requester != p.Name() {
			continue
		}
		verb := "done"
		if r.State == "pending" {
			verb = "withdraw"
		}
		if err := p.Must(ctx, verb, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// unended says which requests and grants the control plane knows no end of.
func (k *Soak) unended(ctx context.Context) (open []string) {
	var requests []struct {
		ID, State string
		Grants    []struct {
			Host    string
			EndedAt *string `json:"ended_at"`
		}
	}
	if err := k.s.Admin.Query(ctx, &requests, "ls", "--all"); err != nil {
		return []string{fmt.Sprintf("listing requests: %v", err)}
	}
	for _, r := range requests {
		if r.State == "pending" || r.State == "approved" || r.State == "granted" {
			open = append(open, fmt.Sprintf("request %s is %s at the end", r.ID, r.State))
		}
		for _, g := range r.Grants {
			if g.EndedAt == nil {
				open = append(open, fmt.Sprintf("the grant of request %s on %s has no end", r.ID, g.Host))
			}
		}
	}
	return open
}

// agree demands that the control plane and the hosts know of the same, and that the trail holds.
func (k *Soak) agree(ctx context.Context) {
	// A host's word of an end may take the trail's 10 s.
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var open []string
	_ = stage.Eventually(limited, "every request to have ended", func() (bool, string) {
		open = k.unended(ctx)
		return len(open) == 0, strings.Join(open, "; ")
	})
	for _, what := range open {
		k.find("%s", what)
	}
	var hosts []struct {
		Name, Refused   string
		Connected       bool
		Epoch, Sequence uint64
		LiveGrants      int `json:"live_grants"`
		Problems        []string
	}
	if err := k.s.Admin.Query(ctx, &hosts, "hosts"); err != nil {
		k.find("listing hosts: %v", err)
	}
	for _, h := range hosts {
		var own struct {
			Epoch, Sequence uint64
			Grants          []struct{ Request string }
			Ending          []string
			Problems        []string
		}
		if err := k.status(ctx, h.Name, &own); err != nil {
			k.find("%s: %v", h.Name, err)
			continue
		}
		if !h.Connected || h.Refused != "" || h.LiveGrants != 0 || len(h.Problems) > 0 {
			k.find("the control plane says of %s: %+v", h.Name, h)
		}
		if len(own.Grants)+len(own.Ending)+len(own.Problems) > 0 {
			k.find("%s says of itself: %+v", h.Name, own)
		}
		// The control plane keeps the number of an ack only when the ack says something new.
		if own.Epoch != h.Epoch || own.Sequence < h.Sequence {
			k.find("%s is at state (%d, %d), and the control plane thinks at (%d, %d)", h.Name,
				own.Epoch, own.Sequence, h.Epoch, h.Sequence)
		}
	}
	if r, err := k.s.Admin.Curfew(ctx, "log", "--verify"); err != nil || r.Exit != 0 {
		k.find("the trail does not verify: %v %s", err, r)
	} else {
		k.o.Log("soak: %s", strings.TrimSpace(r.Out+r.Err))
	}
}

func (k *Soak) status(ctx context.Context, name string, into any) error {
	out, err := k.s.Hosts[name].Exec(ctx, "curfew-agent", "status", "--json")
	if err != nil {
		return fmt.Errorf("asking the agent: %w", err)
	}
	return json.Unmarshal(out, into)
}
