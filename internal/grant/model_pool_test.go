package grant_test

import (
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// pool is what all histories draw from; sealed once, because signing is slow.
type pool struct {
	world    *granttest.World
	other    *granttest.World // the same organisation, another host
	issuers  map[string]ed25519.PrivateKey
	trust    []*trustPaper // the first is in force at enrolment
	families [][]*paper    // a request's terms and its extensions
	hostile  []*paper      // what no host may take
	trails   [2]trailPool
	ledger   *grant.Ledger // of the freshly enrolled host; to be cloned
}

// trailPool has heads and proofs of one trail.
type trailPool struct {
	heads  [][]byte
	proofs map[[2]int][][]byte
}

const trailMax = 24

var thePool = sync.OnceValue(newPool)

func newPool() *pool {
	p := &pool{
		world: granttest.NewWorld(), other: granttest.NewWorld(),
		issuers: map[string]ed25519.PrivateKey{
			"first":  granttest.Key("issuer"),
			"second": granttest.Key("issuer 2"),
			"stolen": granttest.Key("issuer of nobody"),
		},
	}
	p.other.HostKey = granttest.Key("other host")
	p.other.Host = grant.HostIDOf(granttest.Public(p.other.HostKey))
	p.ledger = p.world.Ledger()
	p.addTrust()
	for i := range 24 {
		p.families = append(p.families, p.family(i))
	}
	p.addHostile()
	for tree := range p.trails {
		p.trails[tree] = newTrail(tree)
	}
	return p
}

func newTrail(tree int) trailPool {
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			out[i] = hashes[x]
		}
		return out, nil
	})
	t := trailPool{heads: [][]byte{nil}, proofs: make(map[[2]int][][]byte)}
	for n := range trailMax {
		leaf := fmt.Sprint("record ", n)
		if n >= forkAt {
			leaf += fmt.Sprint(" of trail ", tree)
		}
		more, err := trail.NewHashes(uint64(n), []byte(leaf), reader)
		must(err)
		hashes = append(hashes, more...)
		head, err := trail.Head(uint64(n+1), reader)
		must(err)
		t.heads = append(t.heads, head)
		for from := range n + 2 {
			proof, err := trail.Prove(uint64(from), uint64(n+1), reader)
			must(err)
			t.proofs[[2]int{from, n + 1}] = proof
		}
	}
	return t
}

func (p *pool) addTrust() {
	v1 := p.world.Trust
	v2 := granttest.CloneTrust(v1)
	v2.IssuerKeys = append(v2.IssuerKeys, grant.Key(granttest.Public(p.issuers["second"])))
	v2.Approvers[0].Groups = []string{"others"}
	v3 := granttest.CloneTrust(v2)
	v3.Epoch, v3.IssuerKeys = 2, v3.IssuerKeys[1:]
	v3.Quorums = v3.Quorums[:1]
	falls := granttest.CloneTrust(v1)
	falls.Version = 7
	moved := granttest.CloneTrust(v1)
	moved.Version, moved.Organisation = 8, "elsewhere.org"
	forged := granttest.CloneTrust(v2)
	forged.Version = 9
	forgedRoot := granttest.Key("root of nobody")
	for _, t := range []*grant.Trust{v1, v2, v3, falls, moved} {
		p.trust = append(p.trust, p.trustPaper(t, granttest.SealTrust(t, p.world.Root), true))
	}
	p.trust = append(p.trust,
		p.trustPaper(forged, granttest.SealTrust(forged, forgedRoot), false))
}

func (p *pool) trustPaper(t *grant.Trust, env []byte, genuine bool) *trustPaper {
	out := &trustPaper{
		version: t.Version, epoch: t.Epoch, organisation: t.Organisation, genuine: genuine, env: env,
		approvers: make(map[string][]string), quorums: make(map[string]int),
	}
	for name, key := range p.issuers {
		for _, k := range t.IssuerKeys {
			if string(k) == string(granttest.Public(key)) {
				out.issuers = append(out.issuers, name)
			}
		}
	}
	for _, a := range t.Approvers {
		out.approvers[a.Name] = a.Groups
	}
	for _, q := range t.Quorums {
		out.quorums[q.Role] = int(q.Approvals)
	}
	return out
}

// draft is a grant to be sealed.
type draft struct {
	name      string
	edit      func(*curfewv1.Terms)
	world     *granttest.World
	issuer    string
	approvers []granttest.Person
	// signOther has approvers sign another revision's bytes.
	signOther   bool
	overCeiling bool
}

func (p *pool) seal(d draft) *paper {
	if d.world == nil {
		d.world = p.world
	}
	if d.issuer == "" {
		d.issuer = "first"
	}
	t := d.world.Terms(granttest.Noon(), d.edit)
	raw := granttest.Raw(t)
	id, _ := d.world.Grant(t)
	out := &paper{
		id: id.String(), realID: id, digest: fmt.Sprintf("%x", grant.TermsDigest(raw)),
		request: t.GetRequestId(), login: t.GetLogin(), requester: t.GetRequester(), uid: t.GetUid(),
		revision: t.GetRevision(), earliest: t.GetStartEarliestMs(), latest: t.GetStartLatestMs(),
		hard: t.GetHardEndMs(), duration: t.GetDurationMs(), issuer: d.issuer,
		host: d.world.Host.String(), organisation: t.GetOrganisation(), role: t.GetRole(),
		needed: int(t.GetApprovalsNeeded()), group: t.GetApproverGroup(), overCeiling: d.overCeiling,
		badApproval: d.signOther, name: d.name, foreign: d.world != p.world,
		firstUse: t.GetStartMode() == curfewv1.StartMode_START_MODE_FIRST_USE,
		single:   t.GetSingleUse(),
	}
	if len(t.GetFollows()) > 0 {
		out.follows = fmt.Sprintf("%x", t.GetFollows())
	}
	signed := raw
	if d.signOther {
		t.Revision++
		signed = granttest.Raw(t)
	}
	g := &curfewv1.Grant{
		Version: grant.Version, HostId: d.world.Host[:], Terms: raw,
		IssuedAtMs: granttest.Noon().UnixMilli(),
	}
	for _, by := range d.approvers {
		g.Approvals = append(g.Approvals, by.Approve(signed))
		out.approvers = append(out.approvers, by.Name)
	}
	out.env = granttest.SealGrant(g, p.issuers[d.issuer])
	return out
}

// family is request number i with two extensions, in every mix of times that the rules tell apart.
func (p *pool) family(i int) []*paper {
	w := p.world
	minute := time.Minute.Milliseconds()
	opens := []int64{-minute, -minute, 10 * minute}[i%3]
	late := []int64{10 * minute, 120 * minute, 26 * 60 * minute}[i/3%3]
	lasts := []int64{30_000, 5 * minute, 60 * minute, 8 * 60 * minute}[i%4]
	two := i%5 == 4
	issuer := []string{"first", "first", "second"}[i%3]
	edit := func(t *curfewv1.Terms) {
		t.RequestId = fmt.Sprintf("request%05d", i)
		noon := granttest.Noon().UnixMilli()
		t.StartEarliestMs, t.StartLatestMs = noon+opens, noon+opens+late
		t.DurationMs, t.HardEndMs = lasts, noon+opens+late+lasts
		if i%4 == 3 {
			t.HardEndMs = t.StartLatestMs + minute
		}
		if two {
			t.Role, t.ApprovalsNeeded = granttest.RoleRoot, 2
		}
		if i%6 >= 4 {
			t.StartMode = curfewv1.StartMode_START_MODE_FIRST_USE
		}
		t.SingleUse = i%6 == 5 || i%6 == 0
	}
	by := []granttest.Person{[]granttest.Person{w.Bob, w.Carol, w.Dave}[i%3]}
	if two {
		by = []granttest.Person{w.Carol, w.Dave}
	}
	first := p.seal(draft{
		name: fmt.Sprintf("r%d", i), edit: edit, issuer: issuer, approvers: by,
	})
	family := []*paper{first}
	raw := granttest.Raw(w.Terms(granttest.Noon(), edit))
	for n, factor := range []int64{2, 3} {
		before := raw
		extend := func(t *curfewv1.Terms) {
			edit(t)
			granttest.Follow(before, time.Duration(lasts*factor)*time.Millisecond)(t)
			t.StartLatestMs += 26 * 60 * minute
			t.HardEndMs = t.StartLatestMs + t.DurationMs
			if i%7 == 6 {
				t.DurationMs = 10_000 // an extension that shortens
			}
		}
		family = append(family, p.seal(draft{
			name: fmt.Sprintf("r%d+%d", i, n+1), edit: extend, issuer: issuer, approvers: by,
		}))
		raw = granttest.Raw(w.Terms(granttest.Noon(), extend))
	}
	// Two that spend the first's place a second time: a sibling, and another person's.
	family = append(family, p.rivals(i, edit, by)...)
	return family
}

func (p *pool) rivals(i int, edit func(*curfewv1.Terms), by []granttest.Person) []*paper {
	raw := granttest.Raw(p.world.Terms(granttest.Noon(), edit))
	sibling := p.seal(draft{
		name: fmt.Sprintf("r%d+sibling", i), approvers: by,
		edit: func(t *curfewv1.Terms) {
			edit(t)
			granttest.Follow(raw, 2*time.Hour)(t)
			t.StartLatestMs += time.Hour.Milliseconds()
			t.HardEndMs = t.StartLatestMs + t.DurationMs
		},
	})
	thief := p.seal(draft{
		name: fmt.Sprintf("r%d+thief", i), approvers: by,
		edit: func(t *curfewv1.Terms) {
			edit(t)
			granttest.Follow(raw, 2*time.Hour)(t)
			t.HardEndMs = t.StartLatestMs + t.DurationMs
			t.Login, t.Requester, t.Uid = "mallory", "mallory", 1900000066
		},
	})
	return []*paper{sibling, thief}
}

func (p *pool) addHostile() {
	w := p.world
	bob := []granttest.Person{w.Bob}
	id := func(n int) func(*curfewv1.Terms) {
		return func(t *curfewv1.Terms) { t.RequestId = fmt.Sprintf("hostile%05d", n) }
	}
	with := func(n int, edit func(*curfewv1.Terms)) func(*curfewv1.Terms) {
		return func(t *curfewv1.Terms) { id(n)(t); edit(t) }
	}
	for _, d := range []draft{
		{name: "another host's", edit: id(1), world: p.other, approvers: bob},
		{name: "no issuer's", edit: id(2), issuer: "stolen", approvers: bob},
		{name: "unapproved", edit: id(3)},
		{name: "self-approved", edit: id(4), approvers: []granttest.Person{w.Alice}},
		{
			name: "stranger's approval", edit: id(5),
			approvers: []granttest.Person{granttest.NewPerson("mallory", 1900000066)},
		},
		{name: "approved in another revision", edit: id(6), approvers: bob, signOther: true},
		{
			name: "another organisation's", approvers: bob,
			edit: with(7, func(t *curfewv1.Terms) { t.Organisation = "elsewhere.org" }),
		},
		{
			name: "one person twice", approvers: []granttest.Person{w.Bob, w.Bob},
			edit: with(8, func(t *curfewv1.Terms) { t.Role, t.ApprovalsNeeded = "root", 2 }),
		},
		{
			name: "fewer than the quorum", approvers: bob,
			edit: with(9, func(t *curfewv1.Terms) { t.Role = "root" }),
		},
		{
			name: "role without quorum", approvers: bob,
			edit: with(10, func(t *curfewv1.Terms) { t.Role = "docs" }),
		},
		{
			name: "group over the ceiling", approvers: bob, overCeiling: true,
			edit: with(11, func(t *curfewv1.Terms) { t.Groups = []string{"web"} }),
		},
		{
			name: "duration over the ceiling", approvers: bob, overCeiling: true,
			edit: with(12, func(t *curfewv1.Terms) { t.DurationMs = 25 * 3600 * 1000 }),
		},
		{
			name: "root over the ceiling", approvers: bob, overCeiling: true,
			edit: with(13, func(t *curfewv1.Terms) {
				t.SudoRules, t.RootEquivalent = []*curfewv1.SudoRule{{RunAs: "root", All: true}}, true
			}),
		},
		{
			name: "expired", approvers: bob,
			edit: with(14, func(t *curfewv1.Terms) {
				t.StartEarliestMs -= 48 * 3600 * 1000
				t.StartLatestMs, t.HardEndMs = t.StartEarliestMs+1, t.StartEarliestMs+2
			}),
		},
	} {
		p.hostile = append(p.hostile, p.seal(d))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
