package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/pace"
)

// crowd is promise 2's number of ends at once.
const crowd = 50

// bash runs a script on a person's laptop, which must succeed, and returns the lines it printed.
func (s *story) bash(who *stage.Person, script string) []string {
	s.t.Helper()
	r, err := who.Command(s.ctx, "bash", "-euo", "pipefail", "-c", script)
	s.ok(err)
	s.expect(r, "a script on "+who.Name()+"'s laptop", 0)
	return strings.Split(strings.TrimSpace(r.Out), "\n")
}

// Fifty requests of fifty people end within the same second or two, each with an ssh connection, a
// user manager, a process that left its session and a root child: none outlives its own end by 2 s.
func TestFiftyRequestsEndAtOnce(t *testing.T) {
	s := tell(t, stage.Options{Name: "crowd"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	began := time.Now()
	// Two laptops, since sign-ins are limited by address.
	homes := []*stage.Person{alice, bob}
	half := crowd / len(homes)
	for i, home := range homes {
		users := fmt.Sprintf("for n in $(seq %d %d); do u=u$n; ", i*half+1, (i+1)*half)
		keys := s.bash(home, users+`ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/$u; cat ~/.ssh/$u.pub; done`)
		var add strings.Builder
		for j, key := range keys {
			fmt.Fprintf(&add, "curfew admin user add u%d --key %q\n", i*half+j+1, key)
		}
		s.bash(s.Admin, add.String())
		s.bash(home, users+`CURFEW_CONFIG_DIR=~/$u curfew login --server `+stage.Server+` --ca-pin `+
			s.Pin+` --user $u --key ~/.ssh/$u; done`)
	}
	// What follows takes about as long as what was; the ends must come after it on a slow machine too.
	last := time.Now().Add(30*time.Second + 4*time.Since(began))
	ends := make([]time.Time, crowd)
	var ids []string
	for i, home := range homes {
		ids = append(ids, s.bash(home, fmt.Sprintf(`for n in $(seq %d %d); do
CURFEW_CONFIG_DIR=~/u$n curfew request web1 --role root --for $((%d-$(date +%%s)))s --reason crowd --no-wait
done`, i*half+1, (i+1)*half, last.Unix()))...)
	}
	s.bash(bob, "for id in "+strings.Join(ids, " ")+"; do curfew approve $id --yes; done")
	for i, id := range ids {
		s.within(20*time.Second, "request "+id+" to be applied", func() (bool, string) {
			ends[i] = s.endOf(bob, id)
			return !ends[i].IsZero(), ""
		})
	}
	slow := fmt.Sprintf("from %s on, within %s", last.Format(time.TimeOnly),
		slices.MaxFunc(ends, time.Time.Compare).Sub(slices.MinFunc(ends, time.Time.Compare)))
	t.Logf("%d ends %s; to here it took %s", crowd, slow, time.Since(began).Round(time.Second))

	for i, home := range homes {
		go func() {
			// Ends with the connections, or with the world; what is open counts, below.
			_, _ = home.Command(s.ctx, "bash", "-c", fmt.Sprintf(`for n in $(seq %d %d); do
until test -e ~/all-open; do
  ssh -n -i ~/.ssh/u$n -o IdentitiesOnly=yes -o BatchMode=yes u$n@web1 \
    "setsid -f sleep 87${n}1; sudo -b sleep 87${n}2; exec sleep 87${n}3"
  sleep 1
done 2>>~/crowd.log & sleep 0.3
done; wait`, i*half+1, (i+1)*half))
		}()
	}
	s.within(time.Until(slices.MinFunc(ends, time.Time.Compare))-time.Second, "all sessions to open",
		func() (bool, string) {
			seen, _ := s.crowdSeen()
			if seen < 3*crowd {
				return false, fmt.Sprintf("%d of %d processes; ssh says %s", seen, 3*crowd,
					s.bash(alice, "tail -n 5 ~/crowd.log || true"))
			}
			return true, ""
		})
	for _, home := range homes {
		s.bash(home, "touch ~/all-open") // nobody knocks again after the end
	}
	lags := make([]time.Duration, crowd)
	time.Sleep(time.Until(slices.MinFunc(ends, time.Time.Compare)))
	first, watch := time.Now(), pace.Start()
	for left := 1; left > 0; {
		now := time.Now()
		var alive []int
		left, alive = s.crowdSeen()
		kept := watch.Elapsed().Seconds() / time.Since(first).Seconds()
		for _, i := range alive {
			lags[i] = max(lags[i], time.Duration(float64(now.Sub(ends[i]))*kept))
		}
		if now.Sub(ends[crowd-1]) > time.Minute {
			t.Fatalf("%d processes are left", left)
		}
	}
	slices.Sort(lags)
	t.Logf("last seen alive after its end: median %s, worst %s", lags[crowd/2], lags[crowd-1])
	if worst := lags[crowd-1]; worst > 2*time.Second {
		t.Errorf("a process was seen %s after its end, want at most 2 s", worst)
	}
}

// crowdSeen counts the crowd's processes and says whose they are.
func (s *story) crowdSeen() (seen int, alive []int) {
	s.t.Helper()
	all, err := s.Hosts["web1"].Processes(s.ctx)
	s.ok(err)
	for _, p := range all {
		rest, ok := strings.CutPrefix(strings.TrimPrefix(p.Cmdline, "/usr/bin/"), "sleep 87")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(rest)
		s.ok(err)
		seen++
		alive = append(alive, n/10-1)
	}
	return seen, alive
}
