package faults

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/e2e/inject"
	"github.com/curfew-access/curfew/e2e/inject/power"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// trouble is something that is wrong with a host's disks, and how it is put right again.
type trouble struct {
	name       string
	begin, end string // scripts for the host
	words      string // what the control plane hears of a new grant
	keeps      bool   // ends can be kept on disk all the same
}

// fill writes to a file until nothing fits any more, byte by byte at the end.
const fill = `
fill() { for size in 1M 4k 1; do while dd if=/dev/zero bs=$size count=64 status=none >>"$1" 2>/dev/null; do :; done; done; }
`

var troubles = []trouble{
	{
		name: "full store", begin: fill + `fill /var/lib/curfew/fill`, end: `rm /var/lib/curfew/fill`,
		words: "no space left on device", keeps: true,
	},
	{
		name: "full run", begin: `mount -o remount,size=8M /run` + fill + `fill /run/fill`,
		end: `rm /run/fill`, words: "no space left on device", keeps: true,
	},
	{
		// The root half has mounts of its own, which stay read-only until it starts anew.
		name: "read-only store", begin: `mount -o remount,ro /var/lib/curfew`,
		end: `mount -o remount,rw /var/lib/curfew
systemctl kill --signal=KILL --kill-whom=main curfew-enforce.service`, words: "read-only file system",
	},
}

// F3: on a full or read-only disk a new grant is reported failed and leaves nothing, grants that stand
// stay as they are, their revocation takes everything away, also when the root half starts anew
// meanwhile, and with room again all is as if nothing had been.
func TestDisksInTrouble(t *testing.T) {
	r := newRig(t, rigOptions{disk: true})
	for _, trouble := range troubles {
		t.Logf("%s", trouble.name)
		old := r.new()
		r.ok(r.apply(old))
		r.use()
		r.settles(useLimit, "used", r.live, true)
		before := r.survey()

		r.on(trouble.begin)
		fresh := r.new(func(t *curfewv1.Terms) { t.AuthorizedKeys = nil })[:1]
		fresh[0] = r.other()
		r.ok(r.plane.deliver(append(fresh, old...)))
		ack, err := r.plane.ack(r.limit(15 * time.Second))
		r.ok(err)
		r.told(trouble, ack, fresh[0])
		if now := r.survey(); show(now) != show(before) {
			t.Fatalf("%s: a grant that failed left\n%s\nbefore\n%s", trouble.name, show(now), show(before))
		}

		r.ok(r.plane.deliver(nil, append(old, fresh...)...))
		nothing := func() []grant.Live { return nil }
		took := r.settles(convergence, trouble.name+": revoked", nothing, false)
		t.Logf("%s: revoked and gone within %v", trouble.name, took.Round(time.Millisecond))
		if kept := len(r.live()) == 0; kept != trouble.keeps {
			t.Errorf("%s: the end is on disk: %v, want %v", trouble.name, kept, trouble.keeps)
		}
		r.on(`systemctl kill --signal=KILL --kill-whom=main curfew-enforce.service`)
		r.connect()
		r.settles(convergence, trouble.name+": started anew", nothing, false)

		r.on(trouble.end)
		r.connect()
		r.heal(nil, append(old, fresh...))
		r.onTheTrail(old, trail.KindGrantEnded)
		again := r.new()
		r.ok(r.apply(again))
		r.settles(convergence, trouble.name+" is over", r.live, false)
		r.ok(r.revoke(again))
		r.settles(convergence, "revoked", r.live, false)
		r.ended = append(append(r.ended, old...), again...)
		r.best = r.plane.Sequence
		r.ok(r.plane.problem())
	}
	r.revives()
}

// other is a grant for bob's account.
func (r *rig) other() *access {
	return r.plane.grant("erin", func(t *curfewv1.Terms) {
		t.Uid, t.AuthorizedKeys = 1900000077, []string{r.plane.Carol.SSHKey}
		t.SudoRules[0].Args = []string{"1"}
	})
}

// told demands that the control plane hears that a grant failed, and why.
func (r *rig) told(what trouble, ack *curfewv1.Ack, a *access) {
	r.t.Helper()
	if !ack.GetAccepted() {
		if !strings.Contains(ack.GetDetail(), what.words) {
			r.t.Fatalf("%s: refused with %q, want %q", what.name, ack.GetDetail(), what.words)
		}
		return
	}
	for _, g := range ack.GetGrants() {
		mine := grant.ID(g.GetGrantId()) == a.id
		failed := g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_FAILED
		if mine != failed || failed && !strings.Contains(g.GetDetail(), what.words) {
			r.t.Fatalf("%s: %v, want that of %s failed with %q", what.name, g, a.id.Short(), what.words)
		}
	}
}

// The disk under the store breaks: everything there is an I/O error. Nothing new opens, what is
// revoked goes, and what expires goes on time.
func TestDiskBreaks(t *testing.T) {
	r := newRig(t, rigOptions{disk: true})
	r.failingSync()
	old := r.new(func(t *curfewv1.Terms) {
		if t.GetLogin() == "carol" {
			t.DurationMs = (20 * time.Second).Milliseconds()
		}
	})
	r.ok(r.apply(old))
	end := time.Now().Add(20 * time.Second)
	r.use()
	r.settles(useLimit, "used", r.live, true)
	r.ok(power.Cut(r.disk.path()))
	r.ok(r.plane.deliver(append([]*access{r.other()}, old...)))
	ack, err := r.plane.ack(r.limit(15 * time.Second))
	r.ok(err)
	if ack.GetAccepted() || !strings.Contains(ack.GetDetail(), "input/output error") {
		t.Errorf("on a broken disk: %v", ack)
	}
	r.ok(r.plane.deliver(old[1:], old[0]))
	r.within(convergence, "alice's access to be gone", func() bool {
		return !strings.Contains(strings.Join(r.survey(), "\n"), "alice") &&
			!strings.Contains(strings.Join(r.survey(), "\n"), nap("alice"))
	})
	if !strings.Contains(strings.Join(r.survey(), "\n"), nap("carol")) {
		t.Error("carol's access went with alice's")
	}
	time.Sleep(time.Until(end))
	r.settles(2*time.Second+convergence, "expired on a broken disk",
		func() []grant.Live { return nil }, false)
}

// failingSync makes single syncs of the store fail with an I/O error, each once: the state that could
// not be kept is refused and opens nothing, and the next one is taken.
func (r *rig) failingSync() {
	r.t.Helper()
	for _, key := range []string{ // which calls fail; the others are the kernel's to do
		"fsync /var/lib/curfew/.ledger.json.new",
		"renameat /var/lib/curfew/.ledger.json.new -> /var/lib/curfew/ledger.json",
		"fsync /var/lib/curfew/.uids.json.new", "fsync /run/curfew/.nss.db.new",
		"fsync /run/curfew/sudoers.d/.*.new",
	} {
		r.script.Act = func(inject.Call) inject.Verdict { return inject.Fail(unix.EIO) }
		grants := r.new()
		if key == "fsync /var/lib/curfew/.uids.json.new" { // a login that never was here
			grants[0] = r.other()
		}
		r.script.Begin(&inject.Point{Key: key, N: 1})
		r.ok(r.plane.deliver(grants))
		ack, err := r.plane.ack(r.limit(15 * time.Second))
		r.ok(err)
		r.script.End()
		if !r.script.Hit() {
			r.t.Fatalf("%s did not come by", key)
		}
		if refused := strings.Contains(key, "ledger"); refused == ack.GetAccepted() {
			r.t.Errorf("%s failed, and the state is accepted: %v: %v", key, ack.GetAccepted(), ack)
		}
		applied := make(map[grant.ID]bool)
		for _, g := range ack.GetGrants() {
			applied[grant.ID(g.GetGrantId())] = g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_APPLIED
			if !applied[grant.ID(g.GetGrantId())] && !strings.Contains(g.GetDetail(), "input/output error") {
				r.t.Errorf("%s: %v", key, g)
			}
		}
		r.t.Logf("%s fails once: accepted %v, applied %v", key, ack.GetAccepted(), applied)
		// What is said to be applied is there in full, what is not leaves nothing but PID 1's timers.
		live := slices.DeleteFunc(r.live(), func(l grant.Live) bool { return !applied[l.ID] })
		if got, want := show(untimed(r.survey())), show(untimed(r.expected(live, false))); got != want {
			r.t.Errorf("%s failed once: the host has\n%s\nand should have\n%s", key, got, want)
		}
		r.script.Act = nil
		r.ok(r.plane.deliver(nil, grants...))
		ack, err = r.plane.ack(r.limit(15 * time.Second))
		r.ok(err)
		if !ack.GetAccepted() {
			r.t.Errorf("after %s failed once: %v", key, ack)
		}
		r.settles(convergence, "after "+key, func() []grant.Live { return nil }, false)
	}
}

// F10: a visudo that is missing, hangs or lies lets no new grant in; what stands stays, and goes when
// it is revoked or over. F3: a read-only /etc changes nothing.
func TestVisudoFails(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, script := range map[string]string{
		"missing":          `rm /usr/sbin/visudo`,
		"not executable":   `chmod 644 /usr/sbin/visudo`,
		"hangs":            `printf '#!/bin/sh\nexec sleep 1000\n' >/usr/sbin/visudo`,
		"says yes to all":  `printf '#!/bin/sh\nexit 0\n' >/usr/sbin/visudo`,
		"says no to all":   `printf '#!/bin/sh\necho bad >&2; exit 1\n' >/usr/sbin/visudo`,
		"dies of a signal": `printf '#!/bin/sh\nkill -9 $$\n' >/usr/sbin/visudo`,
	} {
		old := r.new()
		r.ok(r.apply(old))
		r.use()
		r.settles(useLimit, "used", r.live, true)
		r.on("cp -a /usr/sbin/visudo /root/visudo; " + script)
		fresh := r.other()
		r.ok(r.plane.deliver(append([]*access{fresh}, old...)))
		ack, err := r.plane.ack(r.limit(20 * time.Second))
		r.ok(err)
		for _, g := range ack.GetGrants() {
			mine := grant.ID(g.GetGrantId()) == fresh.id
			failed := g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_FAILED
			if mine != failed || failed && !strings.Contains(g.GetDetail(), "visudo") {
				t.Errorf("visudo %s: %v", name, g)
			}
			if mine {
				t.Logf("visudo %s: %s", name, g.GetDetail())
			}
		}
		stands := func() []grant.Live {
			var list []grant.Live
			for _, l := range r.live() {
				if l.ID != fresh.id {
					list = append(list, l)
				}
			}
			return list
		}
		r.has(stands)
		r.ok(r.plane.deliver(nil, append(old, fresh)...))
		took := r.settles(convergence, "visudo "+name+": revoked", r.live, false)
		t.Logf("visudo %s: revoked and gone within %v", name, took.Round(time.Millisecond))
		r.on("mv /root/visudo /usr/sbin/visudo")
	}
	r.on(`mount --bind /etc /etc; mount -o remount,bind,ro /etc`)
	grants := r.new()
	r.ok(r.apply(grants))
	r.settles(convergence, "read-only /etc", r.live, false)
	r.ok(r.revoke(grants))
	r.settles(convergence, "read-only /etc", r.live, false)
}

// has demands that all of these grants' things are there, whatever PID 1's timers are.
func (r *rig) has(live func() []grant.Live) {
	r.t.Helper()
	got := strings.Join(r.survey(), "\n")
	for _, line := range r.expected(live(), true) {
		if !strings.Contains(got, line) {
			r.t.Errorf("%.90s is gone", line)
		}
	}
	if strings.Contains(got, "erin") { // a key, a rule or an account
		r.t.Errorf("something of a refused grant is there:\n%s", got)
	}
}

// F12: with logind and the message bus dead, what runs under a grant ends on time all the same, by
// its cgroups and by pidfd.
func TestWithoutLogindAndBus(t *testing.T) {
	r := newRig(t, rigOptions{})
	const window = 15 * time.Second
	grants := r.new(func(t *curfewv1.Terms) { t.DurationMs = window.Milliseconds() })
	r.ok(r.apply(grants))
	end := time.Now().Add(window)
	r.use()
	r.settles(time.Until(end), "used", r.live, true)
	r.on(`
systemctl mask --runtime --now systemd-logind.service dbus.service dbus.socket 2>/dev/null || true
systemctl kill --signal=KILL systemd-logind.service dbus.service 2>/dev/null || true`)
	r.within(5*time.Second, "logind and the bus to be dead", func() bool {
		out, _ := r.host.Exec(r.ctx, "bash", "-c", `pgrep -xa 'systemd-logind|dbus-daemon'`)
		return strings.TrimSpace(string(out)) == ""
	})
	ctx, cancel := context.WithDeadline(r.ctx, end.Add(2*time.Second))
	defer cancel()
	time.Sleep(time.Until(end) - 200*time.Millisecond)
	for {
		out, err := r.host.Exec(r.ctx, "bash", "-c", `pgrep -a sleep | grep -oE '7777[123]'; pgrep -u alice || true`)
		if err == nil && strings.TrimSpace(string(out)) == "" {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("2 s after the end there is still\n%s", out)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("the last process went %v after the end", time.Since(end).Round(time.Millisecond))
	r.settles(convergence, "expired without logind", r.live, false)
	r.onTheTrail(grants, trail.KindGrantEnded, trail.KindGrantPurged)
}
