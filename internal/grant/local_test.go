package grant_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// glass is a ledger with codes, and the time.
type glass struct {
	t      *testing.T
	w      *granttest.World
	ledger *grant.Ledger
	codes  []breakglass.Code
	now    grant.Clock
}

var localRules = []*curfewv1.SudoRule{{
	RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "nginx.service"}, Contained: true,
}}

func localCeiling() grant.LocalCeiling {
	return grant.LocalCeiling{Enabled: true, MaxDuration: 30 * time.Minute, Rules: localRules}
}

func code(n byte) (c breakglass.Code) {
	for i := range c {
		c[i] = (n + byte(i)) % 32
	}
	return c
}

func newGlass(t *testing.T) *glass {
	t.Helper()
	w := granttest.NewWorld()
	g := &glass{
		t: t, w: w, ledger: w.Ledger(),
		now: grant.Clock{Wall: granttest.Noon(), Boot: time.Hour, BootID: "boot"},
	}
	g.install(1, 2, 3)
	return g
}

func (g *glass) install(numbers ...byte) {
	g.t.Helper()
	var set breakglass.SetID
	set[0] = numbers[0]
	var hashes []breakglass.Hash
	g.codes = nil
	for _, n := range numbers {
		g.codes = append(g.codes, code(n))
		hashes = append(hashes, breakglass.HashOf(g.ledger.Host(), set, code(n)))
	}
	if err := g.ledger.InstallCodes(set, hashes, "here", g.now); err != nil {
		g.t.Fatal(err)
	}
}

func (g *glass) draw(d time.Duration) *curfewv1.Terms {
	g.t.Helper()
	terms, err := g.ledger.DrawLocal(grant.Wish{
		Request: "0123456789ab", Login: "bob", UID: 1001, HostName: "web1", Reason: "INC-7", Duration: d,
	}, g.now, localCeiling())
	if err != nil {
		g.t.Fatal(err)
	}
	return terms
}

func (g *glass) pass(d time.Duration) {
	g.now.Wall, g.now.Boot = g.now.Wall.Add(d), g.now.Boot+d
}

// again is the ledger as a restart finds it.
func (g *glass) again() {
	g.t.Helper()
	raw, err := json.Marshal(g.ledger)
	if err != nil {
		g.t.Fatal(err)
	}
	next := new(grant.Ledger)
	if err := json.Unmarshal(raw, next); err != nil {
		g.t.Fatal(err)
	}
	g.ledger = next
}

func (g *glass) state(ended ...*curfewv1.Ended) grant.Change {
	g.t.Helper()
	s := g.w.HostState(g.now.Wall, nil)
	s.Ended = ended
	change, err := g.ledger.AcceptState(
		&curfewv1.State{Envelope: granttest.SealState(s, g.w.Issuer)}, g.now)
	if err != nil {
		g.t.Fatal(err)
	}
	return change
}

func TestCodeOpensOneLocalGrant(t *testing.T) {
	g := newGlass(t)
	terms := g.draw(10 * time.Minute)
	before := g.ledger.Clone()
	live, err := g.ledger.OpenLocal(g.codes[1], terms, g.now, localCeiling())
	if err != nil {
		t.Fatal(err)
	}
	if !live.Local || !live.End.Equal(g.now.Wall.Add(10*time.Minute)) ||
		live.BootDeadline != g.now.Boot+10*time.Minute || live.Terms.GetLogin() != "bob" {
		t.Errorf("%+v", live)
	}
	if n, err := before.CheckCode(g.codes[1]); n != 2 || err != nil {
		t.Errorf("the clone it was worked on shares what was spent: %d, %v", n, err)
	}
	g.again()
	if got := g.ledger.Live(g.now); len(got) != 1 || got[0].ID != live.ID || !got[0].Local {
		t.Errorf("live after a restart: %+v", got)
	}
	if _, err := g.ledger.OpenLocal(g.codes[1], g.draw(time.Minute), g.now, localCeiling()); !errors.Is(err,
		grant.ErrCodeSpent) {
		t.Errorf("a second use: %v", err)
	}
	if c := g.ledger.Codes(); c.Left() != 2 || !c.Spent[1] || c.Place != "here" {
		t.Errorf("%+v", c)
	}
	for name, c := range map[string]struct {
		code breakglass.Code
		want error
	}{"of nobody": {code(9), grant.ErrWrongCode}, "empty": {breakglass.Code{}, grant.ErrWrongCode}} {
		if _, err := g.ledger.CheckCode(c.code); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The end comes on both clocks, is final, and survives a boot.
	g.pass(10*time.Minute - time.Millisecond)
	if len(g.ledger.Live(g.now)) != 1 {
		t.Error("it ended early")
	}
	g.pass(time.Millisecond)
	if len(g.ledger.Live(g.now)) != 0 {
		t.Error("it is live at its end")
	}
	change := g.ledger.Tick(g.now)
	if len(change.Ended) != 1 || change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_EXPIRED {
		t.Errorf("%+v", change)
	}
	if _, ended := g.ledger.Ended(live.ID); !ended {
		t.Error("there is no tombstone")
	}
	g.again()
}

func TestLocalGrantEndsByEitherClock(t *testing.T) {
	for name, turn := range map[string]func(*glass){
		"the wall clock set back":    func(g *glass) { g.now.Wall = g.now.Wall.Add(-24 * time.Hour) },
		"a boot meanwhile":           func(g *glass) { g.now.BootID, g.now.Boot = "next", time.Minute },
		"a boot and the clock is 0":  func(g *glass) { g.now = grant.Clock{Wall: time.Unix(0, 0), BootID: "next"} },
		"a boot, and it ran on then": func(g *glass) { g.now.BootID = "next" },
	} {
		g := newGlass(t)
		if _, err := g.ledger.OpenLocal(g.codes[0], g.draw(10*time.Minute), g.now, localCeiling()); err != nil {
			t.Fatal(err)
		}
		g.pass(5 * time.Minute)
		g.ledger.Tick(g.now)
		g.again()
		turn(g)
		g.ledger.Tick(g.now)
		g.pass(10 * time.Minute)
		if live := g.ledger.Live(g.now); len(live) != 0 {
			t.Errorf("%s: live for %v more", name, live[0].BootDeadline-g.now.Boot)
		}
	}
}

// A fresh state neither ends, lists, revives nor names it as missing; only naming it as ended ends it.
func TestLocalGrantStandsBesideTheHostState(t *testing.T) {
	g := newGlass(t)
	live, err := g.ledger.OpenLocal(g.codes[0], g.draw(10*time.Minute), g.now, localCeiling())
	if err != nil {
		t.Fatal(err)
	}
	id, env := g.w.Grant(g.w.Terms(g.now.Wall), g.w.Bob)
	if _, err := g.ledger.AcceptGrant(env, g.now, g.w.Ceiling()); err != nil {
		t.Fatal(err)
	}
	s := g.w.HostState(g.now.Wall, nil, id)
	if _, err := g.ledger.AcceptState(&curfewv1.State{
		Envelope: granttest.SealState(s, g.w.Issuer),
	}, g.now); err != nil {
		t.Fatal(err)
	}
	both := g.ledger.Live(g.now)
	if len(both) != 2 || bytes.Compare(both[0].ID[:], both[1].ID[:]) >= 0 ||
		both[0].Local == both[1].Local {
		t.Errorf("live %+v", both)
	}
	if change := g.state(); len(change.Ended) != 1 || change.Ended[0].ID != id || len(change.Missing) != 0 {
		t.Errorf("a state that lists nothing: %+v", change)
	}
	change := g.state(&curfewv1.Ended{GrantId: live.ID[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "anna"})
	if len(change.Ended) != 1 || change.Ended[0].ID != live.ID || change.Ended[0].By != "anna" ||
		change.Ended[0].Cause != curfewv1.EndCause_END_CAUSE_REVOKED {
		t.Errorf("a state that ends it: %+v", change)
	}
	if len(g.ledger.Live(g.now)) != 0 {
		t.Error("it is live after all")
	}
}

// An extension is of a sealed grant: approvers have not seen what a code opened.
func TestNothingExtendsALocalGrant(t *testing.T) {
	g := newGlass(t)
	terms := g.draw(10 * time.Minute)
	live, err := g.ledger.OpenLocal(g.codes[0], terms, g.now, localCeiling())
	if err != nil {
		t.Fatal(err)
	}
	_, env := g.w.Grant(g.w.Terms(g.now.Wall, func(next *curfewv1.Terms) {
		next.RequestId, next.Revision, next.Login, next.Uid = terms.GetRequestId(), 2, "bob", 1001
		next.Requester, next.Follows = terms.GetRequester(), live.TermsDigest[:]
	}), g.w.Carol, g.w.Dave)
	if _, err := g.ledger.AcceptGrant(env, g.now, g.w.Ceiling()); err == nil ||
		!strings.Contains(err.Error(), "not live on this host") {
		t.Errorf("got %v", err)
	}
}

func TestLocalCeiling(t *testing.T) {
	root := []*curfewv1.SudoRule{{RunAs: "root", All: true}}
	for want, edit := range map[string]func(*grant.LocalCeiling, *curfewv1.Terms){
		"not enabled":     func(c *grant.LocalCeiling, _ *curfewv1.Terms) { c.Enabled = false },
		"at most":         func(c *grant.LocalCeiling, _ *curfewv1.Terms) { c.MaxDuration = time.Minute },
		"does not open":   func(c *grant.LocalCeiling, _ *curfewv1.Terms) { c.Rules = nil },
		"root-equivalent": func(_ *grant.LocalCeiling, t *curfewv1.Terms) { t.SudoRules, t.RootEquivalent = root, true },
		"neither groups":  func(_ *grant.LocalCeiling, t *curfewv1.Terms) { t.Groups = []string{"web"} },
		"latest start has": func(_ *grant.LocalCeiling, t *curfewv1.Terms) {
			t.StartLatestMs = t.StartEarliestMs - 1
			t.StartEarliestMs -= 2
		},
		"not the terms of":  func(_ *grant.LocalCeiling, t *curfewv1.Terms) { t.Role = "ops" },
		"does not fit":      func(_ *grant.LocalCeiling, t *curfewv1.Terms) { t.Hosts[0].Id = bytes.Repeat([]byte{7}, 32) },
		"person's login":    func(_ *grant.LocalCeiling, t *curfewv1.Terms) { t.Login = "root" },
		"label does not ag": func(_ *grant.LocalCeiling, t *curfewv1.Terms) { t.RootEquivalent = true },
	} {
		g := newGlass(t)
		terms, c := g.draw(10*time.Minute), localCeiling()
		edit(&c, terms)
		if _, err := g.ledger.OpenLocal(g.codes[0], terms, g.now, c); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if g.ledger.Codes().Left() != 3 || len(g.ledger.Live(g.now)) != 0 {
			t.Errorf("%s: a code was spent, or something opened", want)
		}
	}
	g := newGlass(t)
	c := localCeiling()
	c.Rules, c.RootEquivalent = root, true
	terms, err := g.ledger.DrawLocal(grant.Wish{
		Request: "0123456789ab", Login: "bob", UID: 1001, HostName: "web1", Reason: "x", Duration: time.Minute,
	}, g.now, c)
	if err != nil || !terms.GetRootEquivalent() || !terms.GetEmergency() {
		t.Errorf("%v, %v", terms, err)
	}
}

func TestNewCodesVoidTheOld(t *testing.T) {
	g := newGlass(t)
	old := g.codes
	g.install(4, 5)
	for _, c := range old {
		if _, err := g.ledger.CheckCode(c); !errors.Is(err, grant.ErrWrongCode) {
			t.Errorf("an old code: %v", err)
		}
	}
	if n, err := g.ledger.CheckCode(g.codes[0]); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if g.ledger.Codes().Set == (breakglass.SetID{}) {
		t.Error("the set has no name")
	}
	set := g.ledger.Codes().Set
	for name, hashes := range map[string][]breakglass.Hash{
		"none": nil, "doubled": {{1}, {1}}, "too many": make([]breakglass.Hash, breakglass.MaxCodes+1),
	} {
		if err := g.ledger.InstallCodes(breakglass.SetID{9}, hashes, "here", g.now); err == nil {
			t.Errorf("%s: installed", name)
		}
	}
	if err := g.ledger.InstallCodes(set, []breakglass.Hash{{1}}, "here", g.now); err == nil {
		t.Error("the same set twice: what was spent would be good again")
	}
}

// What was persisted is read back exactly, or not at all.
func TestPersistedLocalGrantsAreReadStrictly(t *testing.T) {
	g := newGlass(t)
	if _, err := g.ledger.OpenLocal(g.codes[0], g.draw(time.Minute), g.now, localCeiling()); err != nil {
		t.Fatal(err)
	}
	good := string(mustJSON(t, g.ledger))
	for name, edit := range map[string][2]string{
		"an envelope beside terms": {`"envelope":null`, `"envelope":"e30="`},
		"a spent code without":     {`"spent_ms":` + stamp(g), `"spent_ms":0`},
		"another id":               {`"grant":"`, `"grant":"00`},
		"no start":                 {`"start_ms":` + stamp(g), `"start_ms":0`},
		"upper case":               {`"set":"01`, `"set":"0A`},
	} {
		bad := resealed(t, strings.Replace(good, edit[0], edit[1], 1))
		if bad == good {
			t.Errorf("%s: nothing was changed", name)
		}
		if err := json.Unmarshal([]byte(bad), new(grant.Ledger)); !errors.Is(err, grant.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := json.Unmarshal([]byte(resealed(t, good)), new(grant.Ledger)); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func stamp(g *glass) string { return strconv.FormatInt(g.now.Wall.UnixMilli(), 10) }

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// resealed gives an edited ledger the checksum that fits it.
func resealed(t *testing.T, text string) string {
	t.Helper()
	var sealed struct {
		Ledger json.RawMessage `json:"ledger"`
		SHA256 string          `json:"sha256"`
	}
	if err := json.Unmarshal([]byte(text), &sealed); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(sealed.Ledger)
	sealed.SHA256 = hex.EncodeToString(sum[:])
	return string(mustJSON(t, sealed))
}
