package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// robbed is the policy at the time of the theft: a rule that opens at once, signed by the root key,
// beside roles that bob approves.
const robbed = `policy: 1
roles:
  ops:
    login: true
    max: 4h
    sudo: [{command: /usr/bin/systemctl, args: [restart, nginx.service], contained: true}]
  root: {login: true, max: 1h, sudo: [{all: true}]}
  docs: {login: true, max: 8h}
  look: {login: true, max: 8h}
rules:
  - name: look-at-once
    who: [dev]
    roles: [look]
    then: {auto: true, max_duration: 30m}
  - name: asked
    then: {approvals: [sre]}
`

// A control plane that is wholly in a thief's hands mints nothing on hosts that know their approvers:
// whatever he seals lacks what bob signed. He cannot replay an approval once its grant ended, nor
// revive what was revoked. He can deny, and he can delay.
func TestStolenControlPlaneMintsNothing(t *testing.T) {
	s := tell(t, stage.Options{
		Name: "stolen", Hosts: []string{"web1", "web2"},
		// All that a host's own file could refuse is allowed: what refuses is the approvals.
		Agent: strings.Replace(stage.DefaultAgent, "ceiling:\n", "ceiling:\n  standing: any\n", 1),
	})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.ok(s.Admin.Must(s.ctx, "admin", "group", "set", "dev", "alice"))
	s.apply(robbed, "web1", "web2")
	s.keepRootKeyAway()
	looked := s.asks(alice, "web1", "--role", "look", "--for", "10m")
	s.ok(s.Applied(s.ctx, alice, looked))
	s.curfew(alice, 0, []string{"done", looked})
	spent, err := s.Grant(s.ctx, alice, bob, "web1", "docs", 10*time.Minute)
	s.ok(err)
	s.curfew(alice, 0, []string{"done", spent})
	revoked, err := s.Grant(s.ctx, alice, bob, "web1", "ops", 10*time.Minute)
	s.ok(err)
	s.ssh(alice, "web1", 0, "true")
	s.curfew(bob, 0, []string{"revoke", revoked, "--reason", "wrong host"})
	s.gone("web1", "alice", mark, purgeLimit)
	s.cutLinks()
	waits, err := alice.Ask(s.ctx, "web1", "root", 10*time.Minute)
	s.ok(err)
	late, err := alice.Ask(s.ctx, "web1", "ops", 10*time.Minute)
	s.ok(err)
	s.curfew(bob, 0, []string{"approve", late, "--yes"})
	ahead := s.asks(alice, "web1", "--role", "docs", "--for", "10m", "--at", "+1h")
	s.curfew(bob, 0, []string{"approve", ahead, "--yes"})

	v := s.steal()
	web1, web2 := v.dial("web1"), v.dial("web2")
	his := grant.SSHKeyText(v.own.PublicKey())
	edited := func(request string, edit func(*curfewv1.Terms)) []byte { return v.changed(request, edit) }
	longer := edited(late, func(t *curfewv1.Terms) { t.DurationMs++ })
	swapped := edited(late, func(t *curfewv1.Terms) { t.AuthorizedKeys = []string{his} })
	moved := edited(late, func(t *curfewv1.Terms) {
		t.Hosts[0] = &curfewv1.HostRef{Id: web2.id[:], Name: "web2"}
	})
	rule := edited(waits, func(t *curfewv1.Terms) {
		t.StandingRule, t.ApprovalsNeeded, t.ApproverGroup = "mine", 0, ""
	})
	lower := edited(waits, func(t *curfewv1.Terms) { t.ApproverGroup = "thieves" })
	again := func(edit func(*curfewv1.Terms)) []byte {
		return edited(looked, func(t *curfewv1.Terms) { t.RequestId = late; edit(t) })
	}
	posing := again(func(t *curfewv1.Terms) { t.AuthorizedKeys = []string{his} })
	widened := again(func(t *curfewv1.Terms) {
		t.SudoRules = []*curfewv1.SudoRule{{RunAs: "root", Command: "/usr/bin/id", Contained: true}}
	})
	stretched := again(func(t *curfewv1.Terms) { t.DurationMs, t.HardEndMs = 3_600_000, t.HardEndMs+3_600_000 })
	at := func(h grant.HostID) func(*curfewv1.Grant) {
		return func(g *curfewv1.Grant) { g.HostId = h[:] }
	}
	for _, c := range []struct {
		what  string
		on    *wire
		terms []byte
		by    []*curfewv1.Approval
		edit  func(*curfewv1.Grant)
		words string
	}{
		{"a request that nobody approved", web1, v.terms(waits), nil, nil, "0 of 1 approvals"},
		{"an approval of another request", web1, v.terms(waits), v.approval(late), nil, "does not verify"},
		{"a longer time than was approved", web1, longer, v.approval(late), nil, "does not verify"},
		{"his own key in the terms", web1, swapped, v.approval(late), nil, "does not verify"},
		{"his own signature under bob's name", web1, v.terms(waits), v.signs(v.terms(waits), "bob"), nil, "not theirs"},
		{"his own signature under his name", web1, v.terms(waits), v.signs(v.terms(waits), "mallory"), nil, "not an approver"},
		{"a group of his own", web1, lower, v.signs(lower, "mallory"), nil, "needs 1 approval of group sre"},
		{"a standing rule of his own", web1, rule, nil, nil, "standing rule mine"},
		{"his own key under a signed rule", web1, posing, nil, nil, "a key that is not theirs"},
		{"other rights under a signed rule", web1, widened, nil, nil, "is for other rights"},
		{"a longer time under a signed rule", web1, stretched, nil, nil, "gives at most 1800 s"},
		{"an approval ahead of its time", web1, v.terms(ahead), v.approval(ahead), nil, "earliest start is ahead"},
		{"an approval for another host", web2, v.terms(late), v.approval(late), nil, "terms do not name"},
		{"another host in the terms", web2, moved, v.approval(late), nil, "does not verify"},
		{"another host's grant", web2, v.terms(late), v.approval(late), at(web1.id), "another host"},
		{"an approval that was spent", web1, v.terms(spent), v.approval(spent), nil, "cannot be spent twice"},
		{"what was revoked", web1, v.terms(revoked), v.approval(revoked), nil, "cannot be spent twice"},
		{
			"what was revoked, as a window", web1, v.terms(revoked), v.approval(revoked),
			func(g *curfewv1.Grant) { g.Window = 1 }, "window",
		},
	} {
		edits := []func(*curfewv1.Grant){}
		if c.edit != nil {
			edits = append(edits, c.edit)
		}
		id := c.on.seals(c.terms, c.by, edits...)
		ack := c.on.lists(true, id)
		if got := statusOf(ack, id); got != curfewv1.GrantStatus_GRANT_STATUS_REJECTED &&
			got != curfewv1.GrantStatus_GRANT_STATUS_MISSING {
			t.Errorf("%s: the host says %v", c.what, got)
		}
		c.on.closed(c.what)
		c.on.refusedFor(c.what, c.words)
	}
	v.bringsTrust(web1, his)
	v.rewritesTrail(web1)
	s.ssh(alice, "web1", 255, "true", "Permission denied")
	s.ssh(alice, "web2", 255, "true", "Permission denied")

	// What root keys signed he can open unasked, for whom they name and with that person's keys.
	unasked := web1.seals(again(func(*curfewv1.Terms) {}), nil)
	if got := statusOf(web1.lists(true, unasked), unasked); got != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Errorf("what a signed rule opens is %v", got)
	}
	s.ssh(alice, "web1", 1, restart)
	web1.lists(true)
	s.gone("web1", "alice", mark, purgeLimit)

	// What bob did sign, he can bring late, and take away.
	id := web1.seals(v.terms(late), v.approval(late))
	if got := statusOf(web1.lists(true, id), id); got != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Fatalf("what was approved is %v", got)
	}
	s.ssh(alice, "web1", 0, restart)
	if end := s.endOn("web1"); end.After(time.Now().Add(10 * time.Minute)) {
		t.Errorf("brought late, it ends %s", end)
	}
	web1.lists(true)
	s.gone("web1", "alice", mark, purgeLimit)
	if got := statusOf(web1.lists(true, id), id); got != curfewv1.GrantStatus_GRANT_STATUS_REJECTED {
		t.Errorf("what he took away himself and lists again is %v", got)
	}
	web1.closed("what he took away himself")
}

// bringsTrust tries a trust file in which he approves, sealed with the one key that he has.
func (v *thief) bringsTrust(w *wire, key string) {
	v.t.Helper()
	var env []byte
	v.ok(v.db.QueryRowContext(v.ctx,
		"SELECT envelope FROM trust ORDER BY version DESC LIMIT 1").Scan(&env))
	trust, err := grant.OpenTrust(env, nil)
	v.ok(err)
	trust.Version++
	trust.Approvers = []grant.Approver{{Name: "mallory", Groups: []string{"sre"}, SSHKeys: []string{key}}}
	mine, err := grant.SealTrust(trust, v.issuer)
	v.ok(err)
	w.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Trust{
		Trust: &curfewv1.TrustUpdate{Envelope: mine},
	}})
	w.refusedFor("a trust file that no root key signed", "trust.rejected")
}

// rewritesTrail tries another past.
func (v *thief) rewritesTrail(w *wire) {
	v.t.Helper()
	w.sendState(&curfewv1.HostState{
		Version: grant.Version, HostId: w.id[:], Epoch: w.said.GetEpoch(), Sequence: w.sequence + 1,
		IssuedAtMs: time.Now().UnixMilli(), ValidForMs: 60_000,
		TrailCount: uint64(v.trail), TrailHead: make([]byte, 32),
	}, uint64(v.trail), nil)
	w.refusedFor("a trail that was rewritten", "state.rejected")
}

// He can withhold a revocation. While he is silent nothing new opens past the lease; while he
// answers it does, and either way all of it ends when what bob signed ends.
func TestStolenControlPlaneWithholdsOnlyUntilTheEnd(t *testing.T) {
	s := tell(t, stage.Options{Name: "withheld", Control: "lease: 20s\n"})
	alice, bob, err := s.Cast(s.ctx)
	s.ok(err)
	s.keepRootKeyAway()
	whole := s.lasting(70 * time.Second)
	request, err := s.Grant(s.ctx, alice, bob, "web1", "ops", whole)
	s.ok(err)
	end := s.endOn("web1")
	s.session(alice, "web1")
	s.cutLinks()
	s.curfew(bob, 0, []string{"revoke", request, "--reason", "enough"})
	v := s.steal()
	w := v.dial("web1")
	id := grant.IDOf(v.terms(request), w.id)
	if got := statusOf(w.lists(false, id), id); got != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Fatalf("with the revocation withheld the grant is %v", got)
	}
	lease := s.status("web1").LeaseEnd
	if lease.After(time.Now().Add(20 * time.Second)) {
		t.Fatalf("the lease ends %s", lease)
	}
	time.Sleep(time.Until(lease.Add(time.Second)))
	s.denied(alice, "web1", "past the lease")
	if !s.runs("web1") {
		t.Error("the lease ended a session")
	}
	w.lists(true, id) // he answers the host's nonce, as an honest one would
	s.ssh(alice, "web1", 0, restart)
	if now := s.endOn("web1"); !now.Equal(end) {
		t.Errorf("he moved the end from %s to %s", end, now)
	}
	if time.Now().After(end) {
		t.Fatal("it took longer than the grant lasts; nothing was shown")
	}
	time.Sleep(time.Until(end))
	s.gone("web1", "alice", mark, purgeLimit)
	w.seals(v.terms(request), v.approval(request))
	if got := statusOf(w.lists(true, id), id); got == curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Error("after its end he opened it again")
	}
	w.closed("a grant past its end")
	s.ssh(alice, "web1", 255, "true", "Permission denied")
}
