package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const deskConfig = "mode: enforce\nceiling:\n  max_duration: 8h\n  allow_root_equivalent: true\n"

// seat makes the desk's root half serve, once.
func (l *lab) seat(ctx context.Context) error {
	if _, err := l.desk.Exec(ctx, "systemctl", "-q", "is-active", "curfew-enforce.service"); err == nil {
		return nil
	}
	if err := l.desk.Write("/etc/curfew/agent.yaml", []byte(deskConfig), 0o644); err != nil {
		return err
	}
	if _, err := l.desk.Exec(ctx, tool, "inside", "desk", "prepare"); err != nil {
		return err
	}
	_, err := l.desk.Exec(ctx, "systemctl", "start", "curfew-enforce.service")
	return err
}

// part runs one of the desk's parts and reads its result.
func (l *lab) part(ctx context.Context, into any, name ...string) error {
	if err := l.seat(ctx); err != nil {
		return err
	}
	out, err := l.desk.Exec(ctx, append([]string{tool, "inside", "desk"}, name...)...)
	if err != nil {
		return l.why(ctx, err)
	}
	return json.Unmarshal(out, into)
}

// why adds to an error what the desk's root half had to say last.
func (l *lab) why(ctx context.Context, err error) error {
	log, errLog := l.desk.Exec(ctx, "journalctl", "--no-pager", "--quiet", "--lines=12",
		"--unit=curfew-enforce.service")
	return errors.Join(err, errLog, errors.New(string(log)))
}

// expiryLag tells how long after their ends 200 grants are denied, without files, and dead.
func expiryLag(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	var ends []endOf
	if err := l.part(ctx, &ends, "lag"); err != nil {
		return err
	}
	var closed, dead samples
	for _, e := range ends {
		closed, dead = append(closed, max(e.Denied, e.Files)), append(dead, e.Dead)
	}
	b.Print(Line{
		Name: "expiry_lag_closed_p99", Value: ms(closed.at(0.99)), Unit: "ms", Bar: 250, BarUnit: "ms",
		N: len(ends),
	})
	b.Print(Line{
		Name: "expiry_lag_dead_p99", Value: ms(dead.at(0.99)), Unit: "ms", Bar: 1000, BarUnit: "ms",
		N: len(ends),
	})
	b.Print(Line{Name: "expiry_lag_dead_p50", Value: ms(dead.median()), Unit: "ms", N: len(ends)})
	return nil
}

// thousand is what a host with a thousand live grants costs: look-ups, memory, and all ends at once.
func thousand(ctx context.Context, b *Bench) error {
	l, err := b.hosts(ctx)
	if err != nil {
		return err
	}
	if err := l.seat(ctx); err != nil {
		return err
	}
	applied, err := l.held(ctx, b)
	if err != nil {
		return err
	}
	var end crowdEnd
	enough := min(2*applied+30*time.Second, applyLimit)
	if err := l.part(ctx, &end, "crowd", enough.String()); err != nil {
		return err
	}
	for _, line := range []Line{
		{Name: "expire_1000_denied", Value: ms(end.Denied), Bar: 50},
		{Name: "expire_1000_files", Value: ms(end.Files), Bar: 2000},
		{
			Name: "expire_1000_dead", Value: ms(end.Dead), Bar: 1500, Peer: ms(end.Bare),
			Against: "cgroup.kill",
		},
	} {
		line.Unit, line.BarUnit, line.N = "ms", "ms", 1
		b.Print(line)
	}
	return nil
}

// held measures while a thousand grants live, and tells how long they took to be applied.
func (l *lab) held(ctx context.Context, b *Bench) (applied time.Duration, err error) {
	holder, err := start(l.desk.Cmd(ctx, tool, "inside", "desk", "hold"))
	if err != nil {
		return 0, err
	}
	defer holder.close()
	text, err := holder.out.ReadString('\n')
	if err != nil {
		return 0, l.why(ctx, fmt.Errorf("holding %d grants: %w: %s", crowdSize, err, holder.say))
	}
	took, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0, err
	}
	applied = time.Duration(took)
	b.Print(Line{Name: "apply_1000", Value: ms(applied), Unit: "ms", N: 1})
	if err := l.lookups(ctx, b); err != nil {
		return 0, err
	}
	mib, err := resident(ctx, l.desk, "curfew-enforce.service")
	if err != nil {
		return 0, err
	}
	b.Print(Line{Name: "memory_1000_grants", Value: mib, Unit: "MiB", Bar: 24, BarUnit: "MiB"})
	return applied, nil
}

// A lookup is one kind of question to one service.
type lookup struct{ database, service, name, passwd, expect string }

// rounds of look-ups: each is a process of its own, and the services take turns.
const (
	lookupRounds = 21
	perRound     = 200
)

func (l *lab) lookups(ctx context.Context, b *Bench) error {
	if _, err := l.desk.Shell(ctx, manyPasswds); err != nil {
		return err
	}
	hit := lookup{"passwd", "curfew", "held0999", "/etc/passwd", "found"}
	miss := lookup{"passwd", "curfew", "nobody-at-all", "/etc/passwd", "missing"}
	asks := []lookup{
		hit, miss,
		{"passwd", "files", "p30", "/root/passwd30", "found"},
		{"passwd", "files", "p1000", "/root/passwd1000", "found"},
		{"passwd", "files", "nobody-at-all", "/root/passwd1000", "missing"},
		{"initgroups", "curfew", "held0999", "/etc/passwd", "found"},
		{"initgroups", "files", "held0999", "/root/passwd30", "found"},
	}
	took := make([]samples, len(asks))
	for range lookupRounds {
		for i, a := range asks {
			d, err := l.look(ctx, a)
			if err != nil {
				return err
			}
			took[i] = append(took[i], d)
		}
	}
	median := func(i int) float64 { return us(took[i].median()) }
	n := lookupRounds * perRound
	for _, line := range []Line{
		{Name: "nss_getpwnam", Value: median(0), Peer: median(2), Against: "files_30", Bar: 1.5},
		{
			Name: "nss_getpwnam_last", Value: median(0), Peer: median(3), Against: "files_1000_last",
			Ratio: median(3) / median(0), Bar: 10, AtLeast: true,
		},
		{
			Name: "nss_getpwnam_miss", Value: median(1), Peer: median(4), Against: "files_1000_miss",
			Ratio: median(4) / median(1), Bar: 10, AtLeast: true,
		},
		{Name: "nss_initgroups", Value: median(5), Peer: median(6), Against: "files_30"},
	} {
		line.Unit, line.N = "us", n
		b.Print(line)
	}
	return nil
}

// look runs one round, with another /etc/passwd where the question wants one.
func (l *lab) look(ctx context.Context, a lookup) (time.Duration, error) {
	const script = `mount --bind "$5" /etc/passwd; exec nssloop "$1" "$2" "$3" "$4" "$6"`
	out, err := l.desk.Exec(ctx, "unshare", "-m", "sh", "-euc", script, "sh", a.database, a.service,
		a.name, strconv.Itoa(perRound), a.passwd, a.expect)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(out)))
	return time.Duration(n), err
}

const manyPasswds = `
head -n 1 /etc/passwd >/root/passwd30; head -n 1 /etc/passwd >/root/passwd1000
for i in $(seq 2 30); do echo "p$i:x:$((5000+i)):100:Somebody Local,,,:/home/p$i:/bin/bash"; done >>/root/passwd30
for i in $(seq 2 1000); do echo "p$i:x:$((5000+i)):100:Somebody Local,,,:/home/p$i:/bin/bash"; done >>/root/passwd1000
chmod 644 /root/passwd30 /root/passwd1000`
