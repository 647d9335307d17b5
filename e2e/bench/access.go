package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/e2e/world"
)

// pamAccount compares one answer of the gate's, without what PAM itself costs, with the same exchange
// with nothing behind it; pam_unix stands beside.
func pamAccount(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	const dir, socket = "/etc/curfew-bench", "/run/curfew-bench.sock"
	for stack, module := range map[string]string{
		"ours": "pam_curfew.so", "permit": "pam_permit.so", "unix": "pam_unix.so",
	} {
		text := "account required " + module + "\n"
		for _, service := range []string{"sshd", "other"} { // without the second libpam complains
			if err := l.web.Write(dir+"/"+stack+"/"+service, []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	// As a service, so that its use of the processors can be told.
	_, err = l.web.Exec(ctx, "systemd-run", "--quiet", "--collect", "--unit=curfew-bench", tool, "inside",
		"exchange", socket)
	if err != nil {
		return err
	}
	defer func() { _, _ = l.web.Exec(ctx, "systemctl", "stop", "curfew-bench.service") }()
	if err := stage.Eventually(ctx, "the exchange's server", func() (bool, string) {
		_, err := l.web.Exec(ctx, "test", "-S", socket)
		return err == nil, ""
	}); err != nil {
		return err
	}
	const rounds = 1000
	units := []string{"curfew-enforce.service", "curfew-bench.service"}
	var used [2]time.Duration
	for i, unit := range units {
		if used[i], err = cpuOf(ctx, l.web, unit); err != nil {
			return err
		}
	}
	out, err := l.web.Exec(ctx, "pamloop", strconv.Itoa(rounds), dir, "alice", "lou", socket)
	if err != nil {
		return err
	}
	for i, unit := range units {
		now, err := cpuOf(ctx, l.web, unit)
		if err != nil {
			return err
		}
		used[i] = (now - used[i]) / (rounds + 1)
	}
	var all [4]samples
	for line := range strings.Lines(string(out)) {
		for i, field := range strings.Fields(line) {
			n, err := strconv.Atoi(field)
			if err != nil || i > 3 {
				return fmt.Errorf("pamloop printed %q", line)
			}
			all[i] = append(all[i], time.Duration(n))
		}
	}
	ours, permit, unix, bare := all[0].median(), all[1].median(), all[2].median(), all[3].median()
	b.Print(Line{
		Name: "pam_account", Value: us(ours - permit), Unit: "us", Peer: us(bare),
		Against: "seqpacket_exchange", Bar: 1.3, N: len(all[0]),
	})
	b.Print(Line{
		Name: "pam_account_cpu", Value: us(used[0]), Unit: "us", Peer: us(used[1]),
		Against: "exchange_server", N: rounds,
	})
	b.Print(Line{
		Name: "pam_account_whole", Value: us(ours), Unit: "us", Peer: us(unix), Against: "pam_unix",
		N: len(all[0]),
	})
	return nil
}

// sshLogin compares a whole `ssh HOST true` by a grant with one by a local account elsewhere.
func sshLogin(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	login := func(host string) side {
		return func() (time.Duration, error) {
			began := time.Now()
			r, err := l.alice.SSH(ctx, host, "true")
			took := time.Since(began)
			if err == nil && r.Exit != 0 {
				err = fmt.Errorf("ssh %s: %s", host, r)
			}
			return took, err
		}
	}
	ours, peer, err := Pairs(120, rested(login("web1")), rested(login("plain")))
	if err != nil {
		return err
	}
	b.Print(Line{
		Name: "ssh_login", Value: ms(ours.median()), Unit: "ms", Peer: ms(peer.median()),
		Against: "no_curfew", Bar: 1.05, N: len(ours),
	})
	return nil
}

// sudoPair are laps of `sudo true` in sessions of a person's on both hosts.
func (l *lab) sudoPair(ctx context.Context, p *stage.Person) (ours, peer *helper, err error) {
	lap := []string{tool, "inside", "lap", "/usr/bin/sudo", "-n", "/usr/bin/true"}
	if ours, err = overSSH(ctx, p, "web1", lap...); err != nil {
		return nil, nil, err
	}
	peer, err = overSSH(ctx, p, "plain", lap...)
	return ours, peer, err
}

// sudoTrue compares sudo in a session of its own grant, which needs no scope of its own.
func sudoTrue(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	web, plain, err := l.sudoPair(ctx, l.alice)
	if err != nil {
		return err
	}
	defer web.close()
	defer plain.close()
	ours, peer, err := Pairs(150, rested(web.lap), rested(plain.lap))
	if err != nil {
		return err
	}
	b.Print(Line{
		Name: "sudo_true", Value: ms(ours.median()), Unit: "ms", Peer: ms(peer.median()),
		Against: "sudo_alone", Bar: 1.2, N: len(ours),
	})
	return nil
}

// sudoScope compares sudo that is moved into a scope with sudo and the making of a scope.
func sudoScope(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	web, plain, err := l.sudoPair(ctx, l.carol)
	if err != nil {
		return err
	}
	defer web.close()
	defer plain.close()
	unit, err := start(l.plain.Cmd(ctx, tool, "inside", "scope"))
	if err != nil {
		return err
	}
	defer unit.close()
	ours, peer, err := Pairs(100, rested(web.lap), rested(func() (time.Duration, error) {
		sudo, err := plain.lap()
		if err != nil {
			return 0, err
		}
		bare, err := unit.lap()
		return sudo + bare, err
	}))
	if err != nil {
		return err
	}
	b.Print(Line{
		Name: "sudo_scope", Value: ms(ours.median()), Unit: "ms", Peer: ms(peer.median()),
		Against: "sudo+StartTransientUnit", Bar: 1.5, N: len(ours),
	})
	return nil
}

// visits is how many requests approveAndRevoke makes: as many as a p99 needs.
const visits = 100

// approveAndRevoke has amy ask, bob approve, amy leave a process behind, and bob revoke.
//
// Enforced is when the control plane has the host's word for it; the approval counts from the moment
// that stands in the trail. A revocation counts from before bob's command starts, until the last
// process is dead.
func approveAndRevoke(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	least, err := start(l.web.Cmd(ctx, tool, "inside", "floor", stage.Server))
	if err != nil {
		return err
	}
	defer least.close()
	var enforced, floors, dead samples
	for i := range visits {
		f, err := least.lap()
		if err != nil {
			return err
		}
		e, d, err := l.visit(ctx)
		if err != nil {
			return fmt.Errorf("visit %d: %w", i, err)
		}
		enforced, floors, dead = append(enforced, e), append(floors, f), append(dead, d)
	}
	for name, q := range map[string]float64{"p50": 0.5, "p99": 0.99} {
		bar := map[string]float64{"p50": 20, "p99": 100}[name]
		b.Print(Line{
			Name: "approve_to_enforced_" + name, Value: ms(enforced.at(q)), Unit: "ms",
			Peer: ms(floors.at(q)), Against: "fsyncs+dial+visudo+cvtsudoers", Bar: bar, BarUnit: "ms",
			N: visits,
		})
	}
	b.Print(Line{
		Name: "revoke_to_dead_p99", Value: ms(dead.at(0.99)), Unit: "ms", Bar: 1000, BarUnit: "ms",
		N: visits,
	})
	b.Print(Line{Name: "revoke_to_dead_p50", Value: ms(dead.median()), Unit: "ms", N: visits})
	return nil
}

// quiet waits until the host has looked after an ended request, which goes on at low priority for a
// while after the last process is dead.
func (l *lab) quiet(ctx context.Context, request string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := l.web.Shell(ctx, "while test -e /var/lib/curfew/residue/"+request+".record.json || "+
		"systemctl show -P ActiveState curfew-residue | grep -q ^activ; do sleep 0.05; done")
	return err
}

func (l *lab) visit(ctx context.Context) (enforced, dead time.Duration, err error) {
	id, err := l.amy.Ask(ctx, "web1", "bench", time.Hour)
	if err != nil {
		return 0, 0, err
	}
	if err := l.bob.Must(ctx, "approve", id, "--yes"); err != nil {
		return 0, 0, err
	}
	time.Sleep(rest) // who looks whether it is enforced takes the processor that enforces
	if err := l.Applied(ctx, l.amy, id); err != nil {
		return 0, 0, err
	}
	var r struct {
		Decisions []struct{ At time.Time }
		Grants    []struct {
			ConfirmedAt time.Time `json:"confirmed_at"`
		}
	}
	if err := l.amy.Query(ctx, &r, "show", id); err != nil {
		return 0, 0, err
	}
	if len(r.Decisions) != 1 || len(r.Grants) != 1 {
		return 0, 0, fmt.Errorf("request %s: %+v", id, r)
	}
	enforced = r.Grants[0].ConfirmedAt.Sub(r.Decisions[0].At)
	if out, err := l.amy.SSH(ctx, "web1", "setsid -f sleep 86421 </dev/null >/dev/null 2>&1"); err != nil ||
		out.Exit != 0 {
		return 0, 0, fmt.Errorf("%w: %s", err, out)
	}
	left, err := processesOf(ctx, l.web, l.uids["amy"])
	if err != nil || len(left) == 0 {
		return 0, 0, errors.Join(err, fmt.Errorf("amy left %d processes", len(left)))
	}
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- l.bob.Must(ctx, "revoke", id, "--reason", "bench") }()
	for alive := true; alive; time.Sleep(time.Millisecond) {
		alive = false
		for _, pid := range left {
			alive = alive || runs(pid)
		}
		if time.Since(began) > time.Minute {
			return 0, 0, errors.New("a process outlives its revocation by a minute")
		}
	}
	dead = time.Since(began)
	if err := <-done; err != nil {
		return 0, 0, err
	}
	left, err = processesOf(ctx, l.web, l.uids["amy"])
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("processes %v came back", left))
	}
	return enforced, dead, errors.Join(err, l.quiet(ctx, id))
}

// processesOf lists what runs under a uid or began in its logins, by the machine's ids.
func processesOf(ctx context.Context, h *world.Host, uid int) ([]int, error) {
	all, err := h.Processes(ctx)
	var pids []int
	for _, p := range all {
		if p.UID == uid || p.EUID == uid || p.LoginUID == uid {
			pids = append(pids, p.OuterPID)
		}
	}
	return pids, err
}

// runs tells whether a process is there and not a zombie.
func runs(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
