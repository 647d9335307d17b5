package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	chainFile        = "chain.json"
	segmentSuffix    = ".log"
	segmentBytes     = 128 << 10
	defaultMaxEvents = 16 << 20
	maxChainFile     = 64 << 10
)

// ErrFull means that no event fits any more until the control plane acknowledges some. Nothing new
// may be opened then: what is not recorded must not happen.
var ErrFull = errors.New("the event log is full until the control plane takes some")

// Events is the host's chained event log. An event is durable when Append returns. The file grows in
// segments; a segment goes once it is full and all of it acknowledged, and the chain's head stays for
// ever. So an event whose predecessors are acknowledged costs one fsync, and an acknowledgement none.
//
// The log is bounded. Events that anybody can cause at will (refused logins, repaired files) may fill
// half of it, so that they cannot crowd out what grants do; beyond their share they are counted by
// kind, and the next event that is kept is an events.lost with the counts. When even the rest is
// full, Append fails with ErrFull.
type Events struct {
	dir      *folder.Folder
	max      int64
	chain    trail.Chain
	acked    trail.Chain
	lost     map[string]uint64
	segments []segment
	// unsaved: lost is not what the disk says.
	unsaved bool
}

// segment is one file; its name is the number of its first event.
type segment struct {
	first uint64
	bytes int64
	// events are encoded, as on disk: few are sent twice, and decoded they take four times the room.
	events [][]byte
}

func (s segment) last() uint64 { return s.first + uint64(len(s.events)) - 1 }

type chainData struct {
	Version int               `json:"version"`
	Acked   trail.Chain       `json:"acked"`
	Lost    map[string]uint64 `json:"lost"`
}

// cheap are the kinds that whoever reaches the host can cause at will.
var cheap = map[string]bool{
	trail.KindLoginDenied: true, trail.KindSudoDenied: true, trail.KindWouldDeny: true,
	trail.KindDriftRepaired: true, trail.KindStateRejected: true, trail.KindGrantRejected: true,
	trail.KindTrustRejected: true, trail.KindProblem: true, trail.KindConfigRejected: true,
	trail.KindConfigLoaded: true, trail.KindAgentStarted: true, trail.KindAgentStopped: true,
	trail.KindLeaseRenewed: true, trail.KindLeaseExpired: true, trail.KindClockJumped: true,
	trail.KindBreakGlassRefused: true, trail.KindAccessSeen: true,
}

func openEvents(dir *folder.Folder, limit int64) (*Events, error) {
	if limit == 0 {
		limit = defaultMaxEvents
	}
	if limit < 4*maxRecord {
		return nil, fmt.Errorf("event log: a limit of %d bytes is less than %d", limit, 4*maxRecord)
	}
	e := &Events{dir: dir, max: limit, lost: make(map[string]uint64)}
	if err := e.readChain(); err != nil {
		return nil, err
	}
	names, err := dir.List()
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, name := range names {
		if first, ok := parseSegment(name); ok {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	for i, first := range firsts {
		if err := e.readSegment(first, i == 0, i == len(firsts)-1); err != nil {
			return nil, err
		}
	}
	return e, e.skipAcknowledged()
}

// skipAcknowledged goes on after what was acknowledged, when the disk holds nothing newer.
func (e *Events) skipAcknowledged() error {
	if e.chain.Count >= e.acked.Count {
		return nil
	}
	for _, s := range e.segments {
		if err := e.dir.Remove(segmentName(s.first)); err != nil {
			return err
		}
	}
	e.chain, e.segments = e.acked, nil
	return nil
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

func parseSegment(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && first > 0
}

func (e *Events) corrupt(name, why string) error { return corrupt(e.dir.Path()+"/"+name, why) }

func (e *Events) readChain() error {
	data, err := e.dir.Read(chainFile, maxChainFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the event chain: %w", err)
	}
	var d chainData
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return e.corrupt(chainFile, err.Error())
	}
	if d.Version != 1 || d.Acked.Count > 1<<62 || (d.Acked.Count == 0) != (len(d.Acked.Head) == 0) ||
		d.Acked.Count > 0 && len(d.Acked.Head) != sha256.Size {
		return e.corrupt(chainFile, "it is not an event chain of this version")
	}
	e.acked = d.Acked
	maps.Copy(e.lost, d.Lost)
	return nil
}

func (e *Events) saveChain() error {
	data, err := json.Marshal(chainData{Version: 1, Acked: e.acked, Lost: e.lost})
	if err != nil {
		return fmt.Errorf("keeping the event chain: %w", err)
	}
	if err := e.dir.Write(chainFile, folder.File{Data: data, Mode: 0o600}); err != nil {
		return err
	}
	e.unsaved = false
	return nil
}

// readSegment checks and decodes a segment, and cuts off what a power cut left of the last append.
func (e *Events) readSegment(first uint64, oldest, newest bool) error {
	name := segmentName(first)
	data, err := e.dir.Read(name, e.max+segmentBytes)
	if err != nil {
		return fmt.Errorf("reading the events: %w", err)
	}
	records, good, err := splitRecords(data)
	if err != nil {
		return e.corrupt(name, err.Error())
	}
	if good < int64(len(data)) {
		if !newest {
			return e.corrupt(name, "it is cut short")
		}
		if err := e.dir.Truncate(name, good); err != nil {
			return err
		}
	}
	s := segment{first: first, bytes: good}
	for _, raw := range records {
		event := new(curfewv1.Event)
		if err := proto.Unmarshal(raw, event); err != nil {
			return e.corrupt(name, err.Error())
		}
		if oldest && len(s.events) == 0 {
			// The oldest segment's first event names a predecessor that is gone; the rest must follow.
			if event.GetNumber() != first || first > e.acked.Count+1 {
				return e.corrupt(name, fmt.Sprintf("event %d follows %d", event.GetNumber(), e.acked.Count))
			}
			e.chain = trail.Chain{Count: first - 1, Head: event.GetPrevious()}
			if e.chain.Count == e.acked.Count && !bytes.Equal(e.chain.Head, e.acked.Head) {
				return e.corrupt(name, "it does not follow what was acknowledged")
			}
		}
		if e.chain, err = e.chain.Next(event); err != nil {
			return e.corrupt(name, err.Error())
		}
		if e.chain.Count == e.acked.Count && !bytes.Equal(e.chain.Head, e.acked.Head) {
			return e.corrupt(name, fmt.Sprintf("event %d is not the one acknowledged", e.chain.Count))
		}
		if s.events = append(s.events, raw); s.last() != e.chain.Count {
			return e.corrupt(name, fmt.Sprintf("event %d stands in it", e.chain.Count))
		}
	}
	e.segments = append(e.segments, s)
	return nil
}

// Chain returns how many events there were, and the digest of the last.
func (e *Events) Chain() trail.Chain { return e.chain }

// Append chains the event, keeps it and fsyncs. It sets the event's number and predecessor. A nil
// event with a nil error means that the event was left out and counted (see Events).
func (e *Events) Append(event *curfewv1.Event) (*curfewv1.Event, error) {
	if kept, err := e.AppendAll([]*curfewv1.Event{event}); err != nil || kept == 0 {
		return nil, err
	}
	return event, nil
}

// AppendAll is Append for many events, which are fsynced together. It returns how many were kept; one
// that cannot be kept does not hold up the others.
func (e *Events) AppendAll(events []*curfewv1.Event) (kept int, err error) {
	var errs []error
	var fit []*curfewv1.Event
	var pending int64
	for _, event := range events {
		size, err := e.admit(event, pending)
		errs = append(errs, err)
		if size > 0 {
			pending += size
			fit = append(fit, event)
		}
	}
	for batch := range slices.Chunk(fit, maxBatch) {
		if err := e.write(batch); err != nil {
			return kept, errors.Join(append(errs, err)...)
		}
		kept += len(batch)
	}
	return kept, errors.Join(errs...)
}

// maxBatch bounds what is written at once.
const maxBatch = 256

// admit tells how many bytes an event will take, beside those that wait to be written; 0 when it is
// not to be kept.
func (e *Events) admit(event *curfewv1.Event, pending int64) (int64, error) {
	if err := trail.CheckEvent(event); err != nil {
		return 0, fmt.Errorf("keeping an event: %w", err)
	}
	// Its number and predecessor may not stand in it yet.
	size := int64(proto.Size(event)) + recordOverhead
	room := e.max - e.size() - pending
	if cheap[event.GetKind()] && room-size < e.max/2 {
		e.lost[event.GetKind()]++
		e.unsaved = true
		// Durable with the next acknowledgement; a crash before forgets some counts, not that events
		// are missing, because what is kept stays chained.
		if e.lost[event.GetKind()] == 1 {
			return 0, e.saveChain()
		}
		return 0, nil
	}
	if room < size+maxRecord { // an events.lost must fit as well
		return 0, ErrFull
	}
	return size, nil
}

// Full tells whether nothing that opens access may be done, because it could not be recorded.
func (e *Events) Full() bool { return e.max-e.size() < 4*maxRecord }

// Unsent is how many events nobody has acknowledged yet.
func (e *Events) Unsent() uint64 { return e.chain.Count - e.acked.Count }

// TakeLost returns how many events of each kind were left out since it was last called, when there
// is room again to say so; else nil.
func (e *Events) TakeLost() map[string]uint64 {
	if len(e.lost) == 0 || e.max-e.size() < e.max/2+2*maxRecord {
		return nil
	}
	lost := e.lost
	e.lost, e.unsaved = make(map[string]uint64), true
	return lost
}

// size is what counts against the limit. A segment that only waits to be filled does not.
func (e *Events) size() (n int64) {
	for _, s := range e.segments {
		if s.last() > e.acked.Count {
			n += s.bytes
		}
	}
	return n
}

// write chains events and appends them to the newest segment, all or none.
func (e *Events) write(events []*curfewv1.Event) error {
	next := e.chain
	var bodies [][]byte
	var records []byte
	for _, event := range events {
		if err := next.Append(event); err != nil {
			return err
		}
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(event)
		if err != nil {
			return fmt.Errorf("keeping an event: %w", err)
		}
		record, err := encodeRecord(body)
		if err != nil {
			return err
		}
		bodies, records = append(bodies, body), append(records, record...)
	}
	if n := len(e.segments); n == 0 || e.segments[n-1].bytes >= segmentBytes {
		e.segments = append(e.segments, segment{first: events[0].GetNumber()})
	}
	s := &e.segments[len(e.segments)-1]
	if err := e.dir.Append(segmentName(s.first), records, 0o600); err != nil {
		return fmt.Errorf("keeping an event: %w", err)
	}
	s.bytes += int64(len(records))
	s.events = append(s.events, bodies...)
	e.chain = next
	return nil
}

// After returns the events with numbers above n, in order, at most limit of them.
func (e *Events) After(n uint64, limit int) ([]*curfewv1.Event, error) {
	var out []*curfewv1.Event
	for _, s := range e.segments {
		for i, raw := range s.events {
			if s.first+uint64(i) <= n || len(out) >= limit {
				continue
			}
			event := new(curfewv1.Event)
			if err := proto.Unmarshal(raw, event); err != nil {
				return nil, fmt.Errorf("reading event %d: %w", s.first+uint64(i), err)
			}
			out = append(out, event)
		}
	}
	return out, nil
}

// Acknowledged takes the control plane's word that its first n events are durable there, and drops
// segments that are needed no more. A smaller n than before changes nothing.
func (e *Events) Acknowledged(n uint64) error {
	if n > e.chain.Count {
		return fmt.Errorf("the control plane acknowledges %d events, this host has %d", n, e.chain.Count)
	}
	if n <= e.acked.Count {
		return nil
	}
	head, err := e.headAt(n)
	if err != nil {
		return err
	}
	e.acked = trail.Chain{Count: n, Head: head}
	over := 0
	for _, s := range e.segments {
		if s.last() > n || s.bytes < segmentBytes && s.last() == e.chain.Count {
			break
		}
		over++
	}
	if over == 0 && !e.unsaved {
		return nil // after a crash it is the control plane that says how many it has
	}
	if err := e.saveChain(); err != nil {
		return err
	}
	for ; over > 0; over-- {
		if err := e.dir.Remove(segmentName(e.segments[0].first)); err != nil {
			return err
		}
		e.segments = e.segments[1:]
	}
	return nil
}

// headAt is the digest of event n: its successor names it, or it is the last.
func (e *Events) headAt(n uint64) ([]byte, error) {
	if n == e.chain.Count {
		return e.chain.Head, nil
	}
	next, err := e.After(n, 1)
	if err != nil {
		return nil, err
	}
	if len(next) == 0 || next[0].GetNumber() != n+1 {
		return nil, fmt.Errorf("event %d is not held any more", n)
	}
	return next[0].GetPrevious(), nil
}
