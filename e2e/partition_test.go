package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

// healLimit is how soon after its cause is gone a cut-off host must be as if nothing had been.
const healLimit = 5 * time.Second

// sees tells whether the control plane says that a host is connected.
func (s *story) sees(host string) (connected bool, out string) {
	s.t.Helper()
	r := s.curfew(s.Admin, 0, []string{"hosts", "--json"})
	for line := range strings.Lines(r.Out) {
		if strings.Contains(line, `"name":"`+host+`"`) {
			return strings.Contains(line, `"connected":true`), line
		}
	}
	s.t.Fatalf("curfew hosts does not know %s: %s", host, r.Out)
	return false, ""
}

// holds tells whether a host enforces a request's grant.
func (s *story) holds(host, request string) bool {
	s.t.Helper()
	for _, g := range s.status(host).Grants {
		if g.Request == request && g.Status == "applied" {
			return true
		}
	}
	return false
}

// localKey puts alice's own key on a host, for logging in there while nothing reaches it.
func (s *story) localKey(alice *stage.Person, host string) {
	s.t.Helper()
	r, err := alice.Command(s.ctx, "sh", "-c", "cat ~/.ssh/id_ed25519")
	s.ok(err)
	s.expect(r, "reading alice's key", 0, "PRIVATE KEY")
	s.ok(s.Hosts[host].Write("/root/alice.key", []byte(r.Out), 0o600))
}

// opensLocally tries a new login and an elevation in it, without any network.
func (s *story) opensLocally(host string) (bool, string) {
	s.t.Helper()
	out := s.on(host, `ssh -i /root/alice.key -o BatchMode=yes -o StrictHostKeyChecking=no \
  alice@127.0.0.1 'sudo -n /usr/bin/systemctl restart nginx.service && echo "it opens"' 2>&1 || true`)
	return strings.Contains(out, "it opens"), out
}

// F5 and F6 with the cable taken out: after a second nothing has happened; after half a minute both
// sides have long noticed, and what was decided meanwhile is there at once; and past the lease
// nothing new opens while everything that is open stays. Each time it heals within 5 s.
func TestPartitionsAroundTheLease(t *testing.T) {
	s := tell(t, stage.Options{Control: "lease: 45s\n"})
	alice, bob, id := s.openFor(10 * time.Minute)
	s.ok(s.Admin.Must(s.ctx, "admin", "group", "set", "sre", "bob", "dana"))
	web := s.Hosts["web1"]
	s.localKey(alice, "web1")
	s.session(alice, "web1")
	heals := func(from string) {
		t.Helper()
		took := s.within(healLimit, "the host to heal from "+from, func() (bool, string) {
			if ok, line := s.sees("web1"); !ok {
				return false, line
			}
			return s.opensLocally("web1")
		})
		t.Logf("healed from %s in %s", from, took.Round(time.Millisecond))
		if !s.runs("web1") {
			t.Errorf("%s ended a session", from)
		}
		if !s.holds("web1", id) {
			t.Errorf("%s took a valid grant away", from)
		}
	}

	s.ok(web.Disconnect(s.ctx))
	time.Sleep(time.Second)
	s.ok(web.Reconnect(s.ctx))
	heals("a second without network")

	s.ok(web.Disconnect(s.ctx))
	cut := time.Now()
	// 20 s is the promise; the rest is what it takes to look.
	noticed := s.within(20*time.Second+time.Second, "both sides to notice", func() (bool, string) {
		there, line := s.sees("web1")
		return !there && !s.status("web1").Connected, line
	})
	t.Logf("both sides have noticed after %s", noticed.Round(time.Millisecond))
	second, err := bob.Ask(s.ctx, "web1", "docs", 10*time.Minute)
	s.ok(err)
	s.ok(s.Admin.Must(s.ctx, "approve", second, "--yes"))
	time.Sleep(time.Until(cut.Add(30 * time.Second)))
	s.ok(web.Reconnect(s.ctx))
	back := time.Now()
	heals("30 s without network")
	s.within(time.Until(back.Add(healLimit)), "what was approved meanwhile to be applied",
		func() (bool, string) {
			r, err := bob.Curfew(s.ctx, "show", second, "--json")
			return err == nil && strings.Contains(r.Out, `"applied"`), r.String()
		})

	s.ok(web.Disconnect(s.ctx))
	end := s.status("web1").LeaseEnd
	if left := time.Until(end); left > 45*time.Second {
		t.Fatalf("a lease of 45 s has %s to go", left)
	}
	for _, at := range []struct {
		after time.Duration
		opens bool
	}{{-time.Second, true}, {time.Second, false}} {
		time.Sleep(time.Until(end.Add(at.after)))
		opens, out := s.opensLocally("web1")
		late := time.Since(end)
		if opens != at.opens && (late > 0) == (at.after > 0) {
			t.Errorf("%s from the lease's end, new access opens: %v\n%s", at.after, opens, out)
		}
	}
	if why := s.status("web1").MayOpen; !strings.Contains(why, "not heard from the control plane") {
		t.Errorf("past the lease the host says %q", why)
	}
	s.ok(web.Reconnect(s.ctx))
	heals("a partition longer than the lease")
}
