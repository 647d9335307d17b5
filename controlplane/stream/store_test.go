package stream_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// memory is the Store of the Hub and of a real Issuer, kept under one mutex.
type memory struct {
	mu      sync.Mutex
	hosts   map[grant.HostID]*hostRow
	trust   []stream.Trust
	records []trail.Record
	hashes  []tlog.Hash
	broken  error // what every call answers while it is set
}

type hostRow struct {
	stream.Host
	sequence uint64
	digests  [][32]byte
	live     map[grant.ID][]byte
	acks     []stream.Ack
	events   []stream.HostEvent
	batches  int
	seen     stream.Seen
	codes    stream.CodeSet
	reads    int // sealed grants that were read
	removed  bool
	left     int // grants of a removed host of which something is left
	parted   bool
}

func newMemory() *memory {
	return &memory{
		hosts: make(map[grant.HostID]*hostRow),
		trust: []stream.Trust{{Version: 1, Envelope: []byte("trust 1")}},
	}
}

func (m *memory) row(id grant.HostID) (*hostRow, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	h, ok := m.hosts[id]
	if !ok || h.parted {
		return nil, stream.ErrNoHost
	}
	return h, nil
}

func (m *memory) PutHeard(
	_ context.Context, id grant.HostID, _ []grant.ID, _ uint64, _ trail.Record,
) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err == nil {
		h.Unheard = false
	}
	return 0, err
}

func (m *memory) Part(
	_ context.Context, id grant.HostID, _ time.Duration, r trail.Record,
) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil || h.left > 0 {
		return false, err
	}
	h.parted = true
	m.append(r)
	return true, nil
}

func (m *memory) append(r trail.Record) {
	r.Number = uint64(len(m.records))
	leaf, err := r.Leaf()
	if err != nil {
		panic(err)
	}
	more, err := trail.NewHashes(r.Number, leaf, tlog.HashReaderFunc(m.readHashes))
	if err != nil {
		panic(err)
	}
	m.records, m.hashes = append(m.records, r), append(m.hashes, more...)
}

func (m *memory) readHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, 0, len(indexes))
	for _, x := range indexes {
		out = append(out, m.hashes[x])
	}
	return out, nil
}

func (m *memory) LinkedHost(_ context.Context, id grant.HostID) (stream.Host, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil {
		return stream.Host{}, err
	}
	return h.Host, nil
}

func (m *memory) EventDigest(_ context.Context, id grant.HostID, n uint64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil {
		return nil, err
	}
	if n == 0 || n > uint64(len(h.digests)) {
		return nil, fmt.Errorf("no event %d", n)
	}
	return h.digests[n-1][:], nil
}

func (m *memory) RefuseHost(
	_ context.Context, id grant.HostID, why string, r trail.Record,
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil {
		return err
	}
	if h.Refused == "" {
		h.Refused = why
	}
	m.append(r)
	return nil
}

func (m *memory) PutEvents(
	_ context.Context, id grant.HostID, from, to trail.Chain, events []stream.HostEvent,
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil {
		return err
	}
	if from.Count != h.Chain.Count || !bytes.Equal(from.Head, h.Chain.Head) {
		return stream.ErrChainMoved
	}
	if len(events) == 0 || len(events) > stream.MaxBatch ||
		to.Count != from.Count+uint64(len(events)) {
		return errors.New("a batch that does not fit its chain")
	}
	for _, e := range events {
		d, err := trail.EventDigest(e.Event)
		if err != nil {
			return err
		}
		h.digests = append(h.digests, d)
		m.append(e.Record)
	}
	h.Chain, h.events, h.batches = to, append(h.events, events...), h.batches+1
	return nil
}

func (m *memory) PutAck(_ context.Context, id grant.HostID, a stream.Ack) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err == nil {
		h.acks = append(h.acks, a)
	}
	return err
}

func (m *memory) PutSeen(_ context.Context, id grant.HostID, s stream.Seen) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err == nil {
		h.seen = s
	}
	return err
}

func (m *memory) PutCodeSet(
	_ context.Context, id grant.HostID, set stream.CodeSet, r trail.Record,
) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil {
		return err
	}
	h.CodeSet, h.codes = set.ID[:], set
	m.append(r)
	return nil
}

func (m *memory) AppendRecord(_ context.Context, r trail.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.append(r)
	return nil
}

func (m *memory) TrustAfter(_ context.Context, version uint64) ([]stream.Trust, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return nil, m.broken
	}
	var out []stream.Trust
	for _, t := range m.trust {
		if t.Version > version {
			out = append(out, t)
		}
	}
	return out, nil
}

func (m *memory) GrantEnvelopes(
	_ context.Context, id grant.HostID, ids []grant.ID,
) ([]stream.Envelope, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if err != nil {
		return nil, err
	}
	var out []stream.Envelope
	for _, g := range ids {
		if env, ok := h.live[g]; ok {
			out = append(out, stream.Envelope{ID: g, Bytes: env})
			h.reads++
		}
	}
	return out, nil
}

// The Issuer's half.

func (m *memory) ApprovedRequest(context.Context, string) (issue.Approved, error) {
	return issue.Approved{}, issue.ErrNotApproved
}

func (m *memory) PutGrants(
	context.Context, string, uint32, []issue.SealedGrant, trail.Record,
) error {
	return issue.ErrNotApproved
}

func (m *memory) NextState(
	_ context.Context, id grant.HostID, _ time.Time, _ int,
) (issue.StateFacts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.row(id)
	if errors.Is(err, stream.ErrNoHost) {
		return issue.StateFacts{}, issue.ErrNoHost
	}
	if err != nil {
		return issue.StateFacts{}, err
	}
	h.sequence++
	f := issue.StateFacts{
		Epoch: 1, Sequence: h.sequence, TrailCount: uint64(len(m.records)), Last: h.removed,
		TrustVersion: m.trust[len(m.trust)-1].Version,
	}
	for id := range h.live {
		f.Live = append(f.Live, id)
	}
	return f, nil
}

func (m *memory) TrailHashes(context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.readHashes(indexes)
	})
}

// What tests look at and change.

func (m *memory) enrol(id grant.HostID, name string, root ed25519.PublicKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hosts[id] = &hostRow{
		Host: stream.Host{ID: id, Name: name, RootKey: root}, live: make(map[grant.ID][]byte),
	}
}

func (m *memory) grant(id grant.HostID, grants ...grant.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range grants {
		m.hosts[id].live[g] = fmt.Appendf(nil, "grant %d %d", g[0], g[1])
	}
}

func (m *memory) revoke(id grant.HostID, grants ...grant.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range grants {
		delete(m.hosts[id].live, g)
	}
}

// look runs f on a host's row under the lock.
func look[T any](m *memory, id grant.HostID, f func(*hostRow) T) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	return f(m.hosts[id])
}

func (m *memory) setBroken(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

func (m *memory) addTrust(version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trust = append(m.trust, stream.Trust{
		Version: version, Envelope: fmt.Appendf(nil, "trust %d", version),
	})
}

func (m *memory) kinds() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, r := range m.records {
		out = append(out, r.Kind)
	}
	return out
}

func (m *memory) has(kind string) bool { return slices.Contains(m.kinds(), kind) }
