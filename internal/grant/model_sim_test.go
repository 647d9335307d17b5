package grant_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// history is one random life of a host: the real ledger and the model side by side, what is on disk
// of both, two control planes, and messages on their way.
type history struct {
	pool  *pool
	rng   *rand.Rand
	say   func(format string, args ...any)
	clock int // 0: honest, 1: within the skew, 2: forged

	now     int64 // true time
	bootAt  int64
	boots   int
	offset  int64 // of the wall clock
	ledger  *grant.Ledger
	facts   []fact
	onDisk  *grant.Ledger
	onDiskF []fact
	savedAt int64

	families  [][]*paper
	all       []*paper
	planes    [2]*plane
	onWay     []message
	nonceSeed uint64

	watch watch
	// met counts what befell messages, so that a history cannot stop trying it unnoticed.
	met map[string]int
}

// mishaps are what a network does to messages (fault F7).
var mishaps = []string{"lost", "doubled", "overtaken", "cut", "altered"}

// plane is one of two control planes with the same issuer key.
type plane struct {
	tree, trail int
	sequence    *uint64
	epoch       uint64
	issuer      string
	live        []*paper
	ended       map[string]curfewv1.EndCause
	endedPapers []*paper
	nonce       string
	lease       int64
	slow        int64 // added to its clock
}

// message is on its way to the host. A broken one was altered and must change nothing.
type message struct {
	paper  *paper
	list   *list
	trust  *trustPaper
	broken []byte
}

func newHistory(seed uint64, say func(string, ...any)) *history {
	p := thePool()
	h := &history{
		pool: p, rng: rand.New(rand.NewPCG(seed, 1)), say: say,
		now: granttest.Noon().UnixMilli(), ledger: p.ledger.Clone(), met: make(map[string]int),
	}
	h.clock = h.rng.IntN(3)
	h.bootAt = h.now - int64(h.rng.IntN(100_000))
	h.boots = 1
	for range 1 + h.rng.IntN(4) {
		f := p.families[h.rng.IntN(len(p.families))]
		if !slices.ContainsFunc(h.families, func(o []*paper) bool { return o[0] == f[0] }) {
			h.families = append(h.families, f)
			h.all = append(h.all, f...)
		}
	}
	h.all = append(h.all, p.hostile[h.rng.IntN(len(p.hostile))])
	var shared uint64
	for i := range h.planes {
		h.planes[i] = &plane{
			sequence: &shared, epoch: 1, issuer: "first", lease: 15 * 60_000,
			ended: make(map[string]curfewv1.EndCause),
		}
	}
	switch h.rng.IntN(3) {
	case 0: // the second is a stale copy that counts for itself, with a trail of its own
		h.planes[1].sequence, h.planes[1].tree = new(uint64), 1
	case 1: // strict
		h.planes[0].lease = 120_000
	}
	h.watch.init()
	h.save()
	return h
}

func (h *history) pick(n int) bool { return h.rng.IntN(n) == 0 }

func (h *history) plane() *plane {
	if h.pick(4) {
		return h.planes[1]
	}
	return h.planes[0]
}

func (h *history) read() (grant.Clock, reading) {
	r := reading{
		wall: h.now + h.offset, boot: h.now - h.bootAt, bootID: fmt.Sprint("boot-", h.boots),
	}
	return grant.Clock{
		Wall: time.UnixMilli(r.wall), Boot: time.Duration(r.boot) * time.Millisecond, BootID: r.bootID,
	}, r
}

// save makes what is in memory what is on disk.
func (h *history) save() {
	h.onDisk, h.onDiskF, h.savedAt = h.ledger.Clone(), slices.Clone(h.facts), h.now
	h.watch.saved(h)
}

// restart loses what is not on disk, and proves that what is there can be read.
func (h *history) restart() error {
	data, err := json.Marshal(h.onDisk)
	if err != nil {
		return err
	}
	read := new(grant.Ledger)
	if err := json.Unmarshal(data, read); err != nil {
		return fmt.Errorf("what was saved cannot be read: %w", err)
	}
	h.ledger = read
	h.watch.restarted()
	h.facts = append(slices.Clone(h.onDiskF), fact{kind: factRestart})
	return nil
}

// issue has a plane grant something new: a request, an extension, or something hostile.
func (h *history) issue(c *plane) {
	p := h.families[h.rng.IntN(len(h.families))][0]
	if h.pick(10) {
		p = h.all[len(h.all)-1] // a hostile one
	} else if len(c.live) > 0 && h.pick(2) {
		if ext := h.extensionOf(c.live[h.rng.IntN(len(c.live))]); ext != nil {
			p = ext
		}
	}
	if h.pick(3) { // what is extended is no longer listed
		c.live = slices.DeleteFunc(slices.Clone(c.live), func(o *paper) bool {
			return o.digest == p.follows
		})
	}
	h.say("a control plane grants %s", p.name)
	if !slices.Contains(c.live, p) && !p.foreign {
		c.live = append(slices.Clone(c.live), p)
	}
	h.send(message{paper: p})
	h.state(c)
}

// extensionOf draws one of those that follow a grant, if there is one.
func (h *history) extensionOf(before *paper) *paper {
	var next []*paper
	for _, p := range h.all {
		if p.follows == before.digest {
			next = append(next, p)
		}
	}
	if len(next) == 0 {
		return nil
	}
	if h.pick(3) {
		return next[h.rng.IntN(len(next))]
	}
	return next[0]
}

// end has a plane revoke one grant, take it back, or leave it out without a word.
func (h *history) end(c *plane) {
	if len(c.live) == 0 {
		return
	}
	i := h.rng.IntN(len(c.live))
	p := c.live[i]
	c.live = slices.Delete(slices.Clone(c.live), i, i+1)
	causes := []curfewv1.EndCause{0, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 77}
	cause := causes[h.rng.IntN(len(causes))]
	h.say("a control plane ends %s: %s", p.name, cause)
	if cause != 0 {
		if _, known := c.ended[p.id]; !known {
			c.endedPapers = append(c.endedPapers, p)
		}
		c.ended[p.id] = cause
	}
	h.state(c)
}

// state has a plane seal its next list.
func (h *history) state(c *plane) {
	*c.sequence++
	c.trail = min(c.trail+h.rng.IntN(3), trailMax)
	s := &list{
		issuer: c.issuer, host: h.pool.world.Host.String(), epoch: c.epoch, sequence: *c.sequence,
		live: slices.Clone(c.live), ended: make(map[string]curfewv1.EndCause),
		issued: h.now + c.slow, lease: c.lease, nonce: c.nonce, trail: c.trail, tree: c.tree,
		proofWhole: true, proofFrom: int(h.ledger.TrailCount()),
	}
	host := h.pool.world.Host
	switch h.rng.IntN(40) {
	case 0:
		s.issuer = "stolen"
	case 1:
		s.host, host = h.pool.other.Host.String(), h.pool.other.Host
	case 2:
		s.epoch++
	case 3:
		s.proofFrom = h.rng.IntN(trailMax)
	}
	s.proofFrom = min(s.proofFrom, s.trail)
	slices.SortFunc(s.live, compare)
	m := &curfewv1.HostState{
		Version: grant.Version, HostId: host[:], Epoch: s.epoch, Sequence: s.sequence,
		IssuedAtMs: s.issued, ValidForMs: s.lease, Nonce: []byte(s.nonce),
		TrailCount: uint64(s.trail), TrailHead: h.pool.trails[s.tree].heads[s.trail],
	}
	for _, p := range s.live {
		m.Live = append(m.Live, p.realID[:])
	}
	slices.SortFunc(c.endedPapers, compare)
	for _, p := range c.endedPapers {
		if slices.Contains(s.live, p) {
			continue
		}
		s.ended[p.id] = c.ended[p.id]
		e := &curfewv1.Ended{GrantId: p.realID[:], Cause: c.ended[p.id], By: "bob"}
		if h.pick(2) {
			e.HardEndMs = p.hard
			s.buried = append(s.buried, p)
		}
		m.Ended = append(m.Ended, e)
	}
	s.msg = &curfewv1.State{
		Envelope:  granttest.SealState(m, h.pool.issuers[s.issuer]),
		ProofFrom: uint64(s.proofFrom), Proof: h.pool.trails[s.tree].proofs[[2]int{s.proofFrom, s.trail}],
	}
	if h.pick(40) {
		s.msg.Proof, s.proofWhole = nil, false
	}
	h.say("state (%d, %d) lists %s, trail %d/%d, nonce %x", s.epoch, s.sequence, names(s.live),
		s.tree, s.trail, s.nonce)
	h.send(message{list: s})
}

func names(ps []*paper) []string {
	out := make([]string, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.name)
	}
	return out
}

// send puts a message on its way; few are lost at once, some come twice.
func (h *history) send(m message) {
	if h.pick(12) {
		h.say("  lost")
		h.met["lost"]++
		return
	}
	h.onWay = append(h.onWay, m)
	if h.pick(10) {
		h.onWay = append(h.onWay, m)
		h.met["doubled"]++
	}
	if h.pick(10) {
		h.onWay = append(h.onWay, h.alter(m))
	}
	if len(h.onWay) > 12 {
		h.onWay = h.onWay[1:]
		h.met["lost"]++
	}
}

// alter cuts a message short or flips one bit of it.
func (h *history) alter(m message) message {
	var env []byte
	switch {
	case m.paper != nil:
		env = m.paper.env
	case m.list != nil:
		env = m.list.msg.GetEnvelope()
	default:
		env = m.trust.env
	}
	at := h.rng.IntN(len(env))
	if h.pick(3) {
		m.broken = slices.Clone(env[:at])
		h.met["cut"]++
	} else {
		h.met["altered"]++
		m.broken = slices.Clone(env)
		m.broken[at] ^= 1 << h.rng.IntN(8)
	}
	return m
}

// heartbeat sends a nonce up and, unless it is lost, an answer down. Sometimes a row of them is lost.
func (h *history) heartbeat() error {
	if h.pick(12) {
		for range modelNonces - 1 + h.rng.IntN(3) {
			if _, err := h.beat(); err != nil {
				return err
			}
		}
		return nil
	}
	nonce, err := h.beat()
	if err != nil || h.pick(10) {
		return err
	}
	c := h.plane()
	c.nonce = nonce
	h.state(c)
	return nil
}

// beat draws the nonce of one heartbeat.
func (h *history) beat() (string, error) {
	clock, at := h.read()
	h.nonceSeed++
	var seed [32]byte
	seed[0], seed[1] = byte(h.nonceSeed), byte(h.nonceSeed>>8)
	nonce, err := h.ledger.NewNonce(clock, rand.NewChaCha8(seed))
	if err != nil {
		return "", err
	}
	h.facts = append(h.facts, fact{kind: factNonce, at: at, nonce: string(nonce)})
	h.watch.sent[string(nonce)] = h.now
	h.say("heartbeat %x", nonce)
	return string(nonce), nil
}

// trust sends one of the trust files; the planes follow when it is a genuine one.
func (h *history) trust() {
	t := h.pool.trust[h.rng.IntN(len(h.pool.trust))]
	h.say("trust version %d", t.version)
	h.send(message{trust: t})
	if h.pick(4) {
		return
	}
	for _, c := range h.planes {
		if t.genuine && t.organisation == granttest.Organisation && t.epoch >= c.epoch {
			c.epoch = t.epoch
			c.issuer = t.issuers[h.rng.IntN(len(t.issuers))]
			if t.epoch == 2 && h.pick(2) {
				*c.sequence, c.trail = 0, 0
			}
		}
	}
}
