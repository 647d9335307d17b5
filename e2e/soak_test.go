package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/soak"
	"github.com/curfew-access/curfew/e2e/stage"
)

// A bad day in short: see package soak. SOAK=1h makes it long, SOAK_SEED=N repeats its plans,
// SOAK_HOSTS=N and SOAK_PEOPLE=N change its size. `make soak` is the long one.
func TestSoak(t *testing.T) {
	t.Parallel()
	o := soak.Options{Name: "soak", For: 20 * time.Second, Hosts: 2, People: 3, Log: t.Logf}
	if long := os.Getenv("SOAK"); long != "" {
		d, err := time.ParseDuration(long)
		if err != nil {
			t.Fatal(err)
		}
		o.For, o.Hosts, o.People = d, 8, 6
		o.Log = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	}
	o.Hosts = int(fromEnv(t, "SOAK_HOSTS", uint64(o.Hosts)))
	o.People = int(fromEnv(t, "SOAK_PEOPLE", uint64(o.People)))
	o.Seed = fromEnv(t, "SOAK_SEED", rand.Uint64N(1e6))
	ctx, cancel := context.WithTimeout(t.Context(), o.For+15*time.Minute)
	defer cancel()
	findings, err := soak.Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Error(f)
	}
	if t.Failed() {
		t.Logf("the same plans again: SOAK=%s SOAK_SEED=%d SOAK_HOSTS=%d SOAK_PEOPLE=%d "+
			"go test -v -timeout 0 -run '^TestSoak$' ./e2e", o.For, o.Seed, o.Hosts, o.People)
	}
}

func fromEnv(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// What the soak compares at its end would be found: each kind is planted on a real host, whose agent
// is stopped lest it clears away.
func TestSoakFindsStrays(t *testing.T) {
	s := tell(t, stage.Options{})
	before, err := soak.Take(s.ctx, s.Hosts["web1"])
	s.ok(err)
	s.on("web1", plantStrays)
	found := make(map[string]bool)
	after, err := soak.Take(s.ctx, s.Hosts["web1"])
	s.ok(err)
	all := soak.Compare("web1", before, after, nil)
	for _, want := range []string{
		"file /run/curfew/sudoers.d/stray", "file /run/curfew/keys/zoe", "account zoe", "group zoe",
		"passwd line zoe", "processes sleep", "unit curfew-stray-1.scope", "unit curfew-end-stray.timer",
		"linger zoe", "spool zoe", "at job", "setuid file /tmp/stray", "ipc", "new file /etc/cron.d/stray",
		"the uid table has zoe", "root half has", "/run/curfew has", "/var/lib/curfew has",
		"folder /run/user/1900000777", "mount /home/zoe",
	} {
		for _, f := range all {
			found[want] = found[want] || strings.Contains(f, want)
		}
		if !found[want] {
			t.Errorf("nobody found %q", want)
		}
	}
	if t.Failed() {
		t.Logf("found:\n%s", strings.Join(all, "\n"))
	}
}

const plantStrays = `
for i in $(seq 6); do sleep 60 2>/dev/null | nc -U /run/curfew/admin.sock >/dev/null 2>&1 & done
sleep 0.3
systemctl kill --signal=STOP curfew-enforce.service
touch /etc/curfew/.soak; sleep 0.02
echo 'zoe ALL=(ALL) NOPASSWD: ALL' >/run/curfew/sudoers.d/stray
echo key >/run/curfew/keys/zoe
echo 'zoe:x:1900000777:1900000777::/home/zoe:/bin/sh' >>/etc/passwd
echo 'zoe:x:1900000777:' >>/etc/group
systemd-run --quiet --scope --unit=curfew-stray-1 sleep 60 >/dev/null 2>&1 &
systemd-run --quiet --unit=curfew-end-stray --on-active=1h true
touch /var/lib/systemd/linger/zoe /var/spool/cron/crontabs/zoe /etc/cron.d/stray
touch /var/spool/cron/atjobs/a0000101c5e0d1
mkdir -p /home/zoe /run/user/1900000777; mount -t tmpfs none /home/zoe
setpriv --reuid 1900000777 --clear-groups sh -c 'cp /bin/true /tmp/stray; chmod u+s /tmp/stray; ipcmk -Q' >/dev/null
echo '{"version":1,"uids":{"zoe":1900000777}}' >/var/lib/curfew/uids.json
head -c 1M /dev/zero >/run/curfew/big; head -c 3M /dev/zero >/var/lib/curfew/big
for i in $(seq 50); do systemctl -q is-active curfew-stray-1.scope && exit 0; sleep 0.1; done; exit 1`
