package grant_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// host is a ledger with its clocks: wall and boot run together until a test parts them.
type host struct {
	*granttest.World
	t      *testing.T
	ledger *grant.Ledger
	clock  grant.Clock
	drawn  byte
}

func newHost(t *testing.T) *host {
	t.Helper()
	w := granttest.NewWorld()
	return &host{
		World: w, t: t, ledger: w.Ledger(),
		clock: grant.Clock{Wall: granttest.Noon(), Boot: time.Hour, BootID: "boot-1"},
	}
}

// pass lets d pass on both clocks.
func (h *host) pass(d time.Duration) {
	h.clock.Wall, h.clock.Boot = h.clock.Wall.Add(d), h.clock.Boot+d
}

func (h *host) nonce() []byte {
	h.t.Helper()
	h.drawn++
	n, err := h.ledger.NewNonce(h.clock, bytes.NewReader(bytes.Repeat([]byte{h.drawn}, 16)))
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func (h *host) accept(env []byte) grant.ID {
	h.t.Helper()
	id, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling())
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *host) state(msg *curfewv1.State) grant.Change {
	h.t.Helper()
	change, err := h.ledger.AcceptState(msg, h.clock)
	if err != nil {
		h.t.Fatal(err)
	}
	return change
}

// refused wants a state to be refused, for a reason, without a trace.
func (h *host) refused(what string, msg *curfewv1.State, want error) {
	h.t.Helper()
	before, err := h.ledger.MarshalJSON()
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.ledger.AcceptState(msg, h.clock); err == nil || want != nil && !errors.Is(err, want) {
		h.t.Errorf("%s: %v, want a refusal (%v)", what, err, want)
	}
	after, err := h.ledger.MarshalJSON()
	if err != nil || !bytes.Equal(before, after) {
		h.t.Errorf("%s: the refused state changed the ledger (%v)", what, err)
	}
}

// live wants exactly these grants to be live.
func (h *host) live(what string, want ...grant.ID) {
	h.t.Helper()
	got := h.ledger.Live(h.clock)
	ok := len(got) == len(want)
	for i, id := range granttest.SortIDs(want) {
		ok = ok && got[i].ID == grant.ID(id)
	}
	if !ok {
		h.t.Errorf("%s: %d grants are live, want %d", what, len(got), len(want))
	}
}

// granted opens one grant of an hour.
func (h *host) granted() grant.ID {
	h.t.Helper()
	id, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), id))
	h.live("a grant that was listed", id)
	return id
}

func TestAGrantLives(t *testing.T) {
	h := newHost(t)
	id, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
	h.accept(env)
	h.live("accepted but not listed")
	if h.accept(env) != id {
		t.Error("a known grant is not a no-op")
	}
	change := h.state(h.State(h.clock.Wall, h.nonce(), id))
	if len(change.Started) != 1 || change.Started[0].ID != id || !change.LeaseRenewed ||
		len(change.Missing) != 0 || len(change.Ended) != 0 {
		t.Errorf("the state's change is %+v", change)
	}
	l := h.ledger.Live(h.clock)[0]
	if !l.Start.Equal(h.clock.Wall) || !l.End.Equal(h.clock.Wall.Add(time.Hour)) ||
		l.BootDeadline != h.clock.Boot+time.Hour {
		t.Errorf("window %s to %s, boot %s", l.Start, l.End, l.BootDeadline)
	}
	if wall, boot, ok := h.ledger.Next(h.clock); !ok || !wall.Equal(l.End) || boot != l.BootDeadline {
		t.Errorf("next deadline %s %s %v", wall, boot, ok)
	}
	if err := h.ledger.MayOpen(h.clock); err != nil {
		t.Error(err)
	}
	h.pass(time.Hour - time.Millisecond)
	if change := h.ledger.Tick(h.clock); len(change.Ended) != 0 {
		t.Errorf("ended 1 ms early: %+v", change.Ended)
	}
	h.live("1 ms before the end", id)
	h.pass(time.Millisecond)
	h.live("at the end")
	change = h.ledger.Tick(h.clock)
	if len(change.Ended) != 1 || change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_EXPIRED ||
		change.Ended[0].Login != "alice" || change.Ended[0].RequestID != "0123456789ab" {
		t.Errorf("the end's change is %+v", change)
	}
	if _, _, ok := h.ledger.Next(h.clock); ok {
		t.Error("a deadline is left over")
	}
}

// Attack A1: a grant replayed to another host, in each way in which the issuer could write it.
func TestA1GrantOfAnotherHost(t *testing.T) {
	h := newHost(t)
	other := granttest.NewWorld()
	other.Host = grant.HostID{7}
	_, env := other.Grant(other.Terms(h.clock.Wall), h.Bob)
	if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrWrongHost) {
		t.Errorf("a grant of another host: %v", err)
	}
	raw := granttest.Raw(other.Terms(h.clock.Wall))
	if _, err := grant.SealGrant(&curfewv1.Grant{
		Version: 1, HostId: h.Host[:], Terms: raw, IssuedAtMs: 1,
		Approvals: []*curfewv1.Approval{h.Bob.Approve(raw)},
	}, h.Issuer); err == nil {
		t.Error("another host's terms are sealed for this host")
	}
	s := other.HostState(h.clock.Wall, nil)
	h.refused("a state of another host", &curfewv1.State{Envelope: granttest.SealState(s, h.Issuer)},
		grant.ErrWrongHost)
	h.live("after all that")
	// For both hosts, the approval is good on each and the ids differ.
	both := h.Terms(h.clock.Wall, func(x *curfewv1.Terms) {
		x.Hosts = append([]*curfewv1.HostRef{{Id: other.Host[:], Name: "web2"}}, x.Hosts...)
		if bytes.Compare(x.Hosts[0].GetId(), x.Hosts[1].GetId()) > 0 {
			x.Hosts[0], x.Hosts[1] = x.Hosts[1], x.Hosts[0]
		}
	})
	here, env := h.Grant(both, h.Bob)
	there, theirs := other.Grant(both, h.Bob)
	if here == there {
		t.Error("two hosts share a grant id")
	}
	h.accept(env)
	if _, err := h.ledger.AcceptGrant(theirs, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrWrongHost) {
		t.Errorf("the other host's half: %v", err)
	}
}

// Attack A24: a group that is as good as root is for hosts that list it and permit root-equivalent
// rights as well. A host whose ceiling is empty gives no group at all.
func TestA24GroupsThatAreRoot(t *testing.T) {
	for _, c := range []struct {
		group string
		root  bool
	}{
		{"docker", true},
		{"lxd", true},
		{"incus-admin", true},
		{"libvirt", true},
		{"disk", true},
		{"shadow", true},
		{"sudo", true},
		{"wheel", true},
		{"staff", true},
		{"adm", false},
		{"kvm", false},
		{"web", false},
	} {
		for _, listed := range []bool{false, true} {
			for _, permits := range []bool{false, true} {
				h := newHost(t)
				ceiling := grant.Ceiling{MaxDuration: time.Hour, RootEquivalent: permits}
				if listed {
					ceiling.AllowedGroups = []string{"a", c.group}
				}
				_, env := h.Grant(h.Terms(granttest.Noon(), func(x *curfewv1.Terms) {
					x.Groups, x.RootEquivalent = []string{c.group}, c.root
				}), h.Bob)
				_, err := h.ledger.AcceptGrant(env, h.clock, ceiling)
				if may := listed && (permits || !c.root); may != (err == nil) ||
					err != nil && !errors.Is(err, grant.ErrCeiling) {
					t.Errorf("group %s, listed %v, root permitted %v: %v", c.group, listed, permits, err)
				}
			}
		}
	}
}

// Attack A2: expired, future, over the ceiling.
func TestA2TimeAndCeiling(t *testing.T) {
	ms := time.Millisecond
	day := (24 * time.Hour).Milliseconds()
	root := func(x *curfewv1.Terms) {
		x.SudoRules = []*curfewv1.SudoRule{{RunAs: "root", All: true}}
		x.RootEquivalent = true
	}
	for _, c := range []struct {
		name string
		edit func(*curfewv1.Terms)
		at   time.Duration // after noon
		want error
	}{
		{"in time", func(*curfewv1.Terms) {}, 0, nil},
		{"at the latest start", func(*curfewv1.Terms) {}, 24 * time.Hour, nil},
		{"past the latest start", func(*curfewv1.Terms) {}, 24*time.Hour + ms, grant.ErrWindow},
		{"past the hard end", func(*curfewv1.Terms) {}, 25 * time.Hour, grant.ErrWindow},
		{"in the skew before the earliest start", func(*curfewv1.Terms) {}, -5 * time.Minute, nil},
		{"before that", func(*curfewv1.Terms) {}, -5*time.Minute - ms, grant.ErrWindow},
		{"as long as the ceiling", func(x *curfewv1.Terms) { x.DurationMs = day }, 0, nil},
		{"longer", func(x *curfewv1.Terms) { x.DurationMs = day + 1 }, 0, grant.ErrCeiling},
		{"a permitted group", func(x *curfewv1.Terms) { x.Groups = []string{"adm"} }, 0, nil},
		{"another group", func(x *curfewv1.Terms) { x.Groups = []string{"adm", "web"} }, 0, grant.ErrCeiling},
		{"root", root, 0, grant.ErrCeiling},
	} {
		h := newHost(t)
		h.clock.Wall = h.clock.Wall.Add(c.at)
		id, env := h.Grant(h.Terms(granttest.Noon(), c.edit), h.Bob)
		_, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling())
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if (h.ledger.Refusal(id) != "") != (c.want != nil) {
			t.Errorf("%s: remembered as %q", c.name, h.ledger.Refusal(id))
		}
		change := h.state(h.State(h.clock.Wall, h.nonce(), id))
		if c.want != nil {
			h.live(c.name)
			if len(change.Missing) != 1 || change.Missing[0] != id {
				t.Errorf("%s: not named as missing", c.name)
			}
		}
	}
	h := newHost(t)
	_, env := h.Grant(h.Terms(h.clock.Wall, root), h.Bob)
	if _, err := h.ledger.AcceptGrant(env, h.clock, grant.Ceiling{}); !errors.Is(err, grant.ErrCeiling) {
		t.Errorf("a ceiling that nobody filled permits: %v", err)
	}
	open := grant.Ceiling{MaxDuration: time.Hour, RootEquivalent: true}
	if _, err := h.ledger.AcceptGrant(env, h.clock, open); err != nil {
		t.Error(err)
	}
}

// Attack A3: rollback and freeze.
func TestA3OlderStatesAreRefused(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	old := h.State(h.clock.Wall, nil, id) // sequence 2: alice's grant is live
	ended := h.State(h.clock.Wall, nil)   // sequence 3: it is not
	change := h.state(ended)
	if len(change.Ended) != 1 || change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_WITHDRAWN {
		t.Errorf("left out of a newer state: %+v", change)
	}
	h.refused("an older sequence", old, grant.ErrOld)
	h.refused("the same state again", ended, grant.ErrOld)
	equal := h.HostState(h.clock.Wall, nil, id)
	equal.Sequence = h.ledger.Sequence()
	h.refused("another state of the same sequence",
		&curfewv1.State{Envelope: granttest.SealState(equal, h.Issuer)}, grant.ErrOld)
	epoch := h.HostState(h.clock.Wall, nil, id)
	for name, e := range map[string]uint64{"a newer epoch than the trust file's": 2, "epoch 9": 9} {
		epoch.Epoch = e
		h.refused(name, &curfewv1.State{Envelope: granttest.SealState(epoch, h.Issuer)}, grant.ErrOld)
	}
	h.live("after every replay")
	if h.ledger.Sequence() != 3 || h.ledger.Epoch() != 1 {
		t.Errorf("at (%d, %d)", h.ledger.Epoch(), h.ledger.Sequence())
	}
}

// Attack A3: the root keys' way back after a restore, and nobody else's.
func TestA3OnlyTheTrustFileMovesTheEpoch(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	h.Sequence = 40
	h.state(h.State(h.clock.Wall, nil, id))
	next := granttest.CloneTrust(h.Trust)
	next.Epoch = 2
	if err := h.ledger.AcceptTrust(granttest.SealTrust(next, h.Root)); err != nil {
		t.Fatal(err)
	}
	h.live("after a new trust file", id)
	h.refused("a state of the old epoch", h.State(h.clock.Wall, nil, id), grant.ErrOld)
	h.Trust, h.Sequence = next, 0
	h.state(h.State(h.clock.Wall, nil, id))
	h.live("in the new epoch", id)
	if h.ledger.Epoch() != 2 || h.ledger.Sequence() != 1 {
		t.Errorf("at (%d, %d)", h.ledger.Epoch(), h.ledger.Sequence())
	}
	if err := h.ledger.AcceptTrust(h.TrustEnvelope); err == nil {
		t.Error("an older trust file is accepted")
	}
}

// Attack A3: the trail of a newer state must extend the one that the host has seen.
func TestA3TrailMustExtend(t *testing.T) {
	pool := thePool()
	send := func(h *host, count, tree, proofFrom, proofTree int) *curfewv1.State {
		s := h.HostState(h.clock.Wall, nil)
		s.TrailCount, s.TrailHead = uint64(count), pool.trails[tree].heads[count]
		return &curfewv1.State{
			Envelope: granttest.SealState(s, h.Issuer), ProofFrom: uint64(proofFrom),
			Proof: pool.trails[proofTree].proofs[[2]int{proofFrom, count}],
		}
	}
	h := newHost(t)
	h.state(send(h, 10, 0, 0, 0))
	h.refused("fewer records", send(h, 9, 0, 9, 0), trail.ErrRewritten)
	h.refused("no records", send(h, 0, 0, 0, 0), trail.ErrRewritten)
	h.refused("as many, others", send(h, 10, 1, 10, 1), trail.ErrRewritten)
	h.refused("more, forked", send(h, 15, 1, 10, 1), trail.ErrRewritten)
	h.refused("more, with a proof of another length", send(h, 15, 0, 9, 0), nil)
	bare := send(h, 15, 0, 10, 0)
	bare.Proof = nil
	h.refused("more, without proof", bare, trail.ErrRewritten)
	long := send(h, 15, 0, 10, 0)
	long.Proof = append(long.Proof, long.Proof[0])
	h.refused("more, with a proof too long", long, trail.ErrRewritten)
	h.state(send(h, 10, 0, 10, 0))
	h.state(send(h, 15, 0, 10, 0))
	if h.ledger.TrailCount() != 15 || !bytes.Equal(h.ledger.TrailHead(), pool.trails[0].heads[15]) {
		t.Errorf("the host keeps %d records", h.ledger.TrailCount())
	}
}

// Attack A5: the issuer's key alone gives nothing, and neither does a key that was rotated away.
func TestA5StolenIssuerKey(t *testing.T) {
	h := newHost(t)
	for name, by := range map[string][]granttest.Person{
		"nobody": nil, "the requester": {h.Alice}, "a stranger": {granttest.NewPerson("eve", 1900000077)},
	} {
		id, env := h.Grant(h.Terms(h.clock.Wall), by...)
		if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); err == nil {
			t.Errorf("approved by %s: accepted", name)
		}
		h.state(h.State(h.clock.Wall, h.nonce(), id))
		h.live("approved by " + name)
	}
	held, env := h.Grant(h.Terms(h.clock.Wall), h.Bob)
	h.accept(env)
	h.state(h.State(h.clock.Wall, h.nonce(), held))
	next := granttest.CloneTrust(h.Trust)
	stolen := h.Issuer
	h.Issuer = granttest.Key("issuer 2")
	next.IssuerKeys = keysOf(h.Issuer)
	if err := h.ledger.AcceptTrust(granttest.SealTrust(next, h.Root)); err != nil {
		t.Fatal(err)
	}
	s := h.HostState(h.clock.Wall, nil)
	h.refused("a state of the old issuer", &curfewv1.State{Envelope: granttest.SealState(s, stolen)},
		grant.ErrSignature)
	h.live("a grant of the old issuer goes on", held)
	restarted(t, h)
	h.live("also after a restart", held)
	for _, k := range []ed25519.PrivateKey{stolen, granttest.Key("mallory"), h.Root, h.HostKey} {
		raw := granttest.Raw(h.Terms(h.clock.Wall, func(x *curfewv1.Terms) { x.Revision = 5 }))
		env := granttest.SealGrant(&curfewv1.Grant{
			Version: 1, HostId: h.Host[:], Terms: raw, IssuedAtMs: 1,
			Approvals: []*curfewv1.Approval{h.Bob.Approve(raw)},
		}, k)
		if _, err := h.ledger.AcceptGrant(env, h.clock, h.Ceiling()); !errors.Is(err, grant.ErrSignature) {
			t.Errorf("sealed by a key that is no issuer's: %v", err)
		}
	}
}

// Attack A3: a restored image starts from its older ledger. It takes back nothing that the image
// knew, opens nothing without fresh word, and what it shows at Hello is older than what was
// acknowledged.
func TestA3RestoredImage(t *testing.T) {
	h := newHost(t)
	id := h.granted()
	before := h.State(h.clock.Wall, nil, id)
	h.state(h.State(h.clock.Wall, h.nonce()))
	image, err := h.ledger.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	nonce := h.nonce()
	revive := h.State(h.clock.Wall, nonce, id)
	h.state(h.State(h.clock.Wall, nonce))
	newest := h.ledger.Sequence()
	h.pass(2 * time.Hour)
	restored := new(grant.Ledger)
	if err := restored.UnmarshalJSON(image); err != nil {
		t.Fatal(err)
	}
	h.ledger, h.clock.BootID, h.clock.Boot = restored, "boot-2", 30*time.Second
	if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrLease) {
		t.Errorf("may open: %v", err)
	}
	h.refused("a state of before the image", before, grant.ErrOld)
	if change := h.state(revive); len(change.Started) != 0 || change.LeaseRenewed {
		t.Errorf("a recorded state revives: %+v", change)
	}
	h.live("in the restored image")
	if h.ledger.Sequence() >= newest {
		t.Error("the control plane cannot tell that the host is restored")
	}
	if err := h.ledger.MayOpen(h.clock); !errors.Is(err, grant.ErrLease) {
		t.Errorf("after a recorded state: may open: %v", err)
	}
}
