// Package trail is the tamper-evident record, used by both sides.
//
// A host chains its events by hash and numbers them, so that a clone or a restored disk shows as a
// fork. The control plane keeps every record as a leaf of an RFC 6962 tree (golang.org/x/mod's
// tlog), whose head stands in every host state, so that each host demands that the next head
// extends the last. The package computes and checks; it stores nothing and knows no clock.
package trail

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Kinds of host events: a closed list, so that nobody has to guess what to search for.
const (
	KindAgentStarted   = "agent.started"
	KindAgentStopped   = "agent.stopped"
	KindConfigLoaded   = "config.loaded"
	KindConfigRejected = "config.rejected"
	KindModeChanged    = "host.mode" // observing, on trial, enforcing
	KindTrustAccepted  = "trust.accepted"
	KindTrustRejected  = "trust.rejected"
	KindStateRejected  = "state.rejected"
	KindGrantAccepted  = "grant.accepted"
	KindGrantRejected  = "grant.rejected"
	KindGrantApplied   = "grant.applied"
	KindGrantStarted   = "grant.started" // the first use of one that waited for it
	KindGrantFailed    = "grant.failed"
	KindGrantEnded     = "grant.ended"
	KindGrantPurged    = "grant.purged"
	KindGrantResidue   = "grant.residue"
	KindLoginAllowed   = "login.allowed"
	KindLoginDenied    = "login.denied"
	KindSudoAllowed    = "sudo.allowed"
	KindSudoDenied     = "sudo.denied"
	KindWouldDeny      = "gate.would_deny"
	KindAccessSeen     = "access.seen" // who used a host that observes
	KindSessionOpened  = "session.opened"
	KindSessionClosed  = "session.closed"
	KindSessionKilled  = "session.killed"
	KindGrantLeft      = "grant.left_behind"
	KindProcessKilled  = "process.killed"
	KindRootManager    = "host.root_manager"
	KindDriftRepaired  = "drift.repaired"
	KindLeaseWarning   = "lease.warning"
	KindLeaseExpired   = "lease.expired"
	KindLeaseRenewed   = "lease.renewed"
	KindClockJumped    = "clock.jumped"
	KindProblem        = "host.problem"
	KindEventsLost     = "events.lost"

	KindBreakGlassUsed    = "break_glass.used"    // a code opened a local grant
	KindBreakGlassRefused = "break_glass.refused" // one was tried
	KindBreakGlassRenewed = "break_glass.renewed" // a new set of codes is in force
)

// Limits on one event. MaxDetail is in bytes per value.
const (
	MaxDetails = 16
	MaxDetail  = 1 << 10
)

// EventDigest is the SHA-256 of an event's deterministic encoding; the next event names it.
func EventDigest(e *curfewv1.Event) ([32]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encoding event %d: %w", e.GetNumber(), err)
	}
	return sha256.Sum256(b), nil
}

// Chain is where a host's events stand: how many, and the digest of the last.
type Chain struct {
	Count uint64 `json:"count"`
	Head  []byte `json:"head"`
}

// Append numbers an event, ties it to the one before and moves the chain on.
func (c *Chain) Append(e *curfewv1.Event) error {
	e.Number, e.Previous = c.Count+1, c.Head
	digest, err := EventDigest(e)
	if err != nil {
		return err
	}
	c.Count, c.Head = e.Number, digest[:]
	return nil
}

// ErrFork means that an event is not the next of this chain: lost, altered, or another machine's.
var ErrFork = errors.New("event does not continue the chain")

// Next checks that an event continues the chain and returns the chain with it.
func (c Chain) Next(e *curfewv1.Event) (Chain, error) {
	if e.GetNumber() != c.Count+1 {
		return c, fmt.Errorf("%w: number %d after %d", ErrFork, e.GetNumber(), c.Count)
	}
	if !bytes.Equal(e.GetPrevious(), c.Head) {
		return c, fmt.Errorf("%w: event %d names another predecessor", ErrFork, e.GetNumber())
	}
	if err := CheckEvent(e); err != nil {
		return c, err
	}
	digest, err := EventDigest(e)
	if err != nil {
		return c, err
	}
	return Chain{Count: e.GetNumber(), Head: digest[:]}, nil
}

// CheckEvent refuses events that are out of bounds.
func CheckEvent(e *curfewv1.Event) error {
	if len(e.GetDetails()) > MaxDetails {
		return fmt.Errorf("event %d has %d details; at most %d",
			e.GetNumber(), len(e.GetDetails()), MaxDetails)
	}
	for k, v := range e.GetDetails() {
		if len(k) > 64 || len(v) > MaxDetail {
			return fmt.Errorf("event %d: detail %.64q is over its limit", e.GetNumber(), k)
		}
	}
	if len(e.GetKind()) > 64 || len(e.GetLogin()) > 64 || len(e.GetRequestId()) > 64 ||
		len(e.GetBootId()) > 64 || len(e.GetGrantId()) != 0 && len(e.GetGrantId()) != sha256.Size {
		return fmt.Errorf("event %d: a field is over its limit", e.GetNumber())
	}
	return nil
}

// Record is one leaf of the control plane's trail.
type Record struct {
	Number uint64 `json:"number"` // from 0
	TimeMS int64  `json:"time_ms"`
	Kind   string `json:"kind"`
	// Actor is the user name, "host NAME" or "curfew" that caused it.
	Actor     string            `json:"actor"`
	RequestID string            `json:"request_id,omitempty"`
	GrantID   string            `json:"grant_id,omitempty"`
	HostID    string            `json:"host_id,omitempty"`
	Host      string            `json:"host,omitempty"`
	Details   map[string]string `json:"details,omitempty"`
	// HostEvent is the SignedHostMessage as it came, for records that a host reported.
	HostEvent []byte `json:"host_event,omitempty"`
}

// MaxLeaf bounds a record's encoding in bytes.
const MaxLeaf = 64 << 10

// Leaf returns the record's bytes: JSON with sorted keys, so that one record is one line whatever
// its text holds.
func (r *Record) Leaf() ([]byte, error) {
	leaf, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding trail record %d: %w", r.Number, err)
	}
	if len(leaf) > MaxLeaf {
		return nil, fmt.Errorf("trail record %d has %d bytes; at most %d", r.Number, len(leaf), MaxLeaf)
	}
	return leaf, nil
}

// ParseRecord reads a leaf strictly: its re-encoding must equal it.
func ParseRecord(leaf []byte) (*Record, error) {
	if len(leaf) > MaxLeaf {
		return nil, fmt.Errorf("trail record of %d bytes; at most %d", len(leaf), MaxLeaf)
	}
	r := new(Record)
	if err := json.Unmarshal(leaf, r); err != nil {
		return nil, fmt.Errorf("parsing a trail record: %w", err)
	}
	again, err := json.Marshal(r)
	if err != nil || !bytes.Equal(again, leaf) {
		return nil, fmt.Errorf("trail record %d is not in canonical form", r.Number)
	}
	return r, nil
}

// DetailKeys returns the keys of a record's details in order.
func (r *Record) DetailKeys() []string { return slices.Sorted(maps.Keys(r.Details)) }
