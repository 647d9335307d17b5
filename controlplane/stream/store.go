package stream

import (
	"context"
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Refusals of a Store that this package tells apart.
var (
	// ErrNoHost means that no host has this id, or that it was removed.
	ErrNoHost = errors.New("unknown host")
	// ErrChainMoved means that PutEvents was called with a chain that is not the stored one:
	// another stream of the same host stored events meanwhile.
	ErrChainMoved = errors.New("the host's event chain has moved on")
)

// Host is what the Hub needs to know of an enrolled host.
type Host struct {
	ID      grant.HostID
	Name    string
	RootKey ed25519.PublicKey
	// Refused is why the host is not served; empty when it is.
	Refused string
	// Chain is where the durable events of the host stand.
	Chain trail.Chain
	// Restored is true until the first events after a restore of the control plane: the host may have
	// been promised that events are durable which the restore lost, and may have dropped them.
	Restored bool
	// Unheard: it was not heard since that restore; see PutHeard.
	Unheard bool
	// CodeSet names the set of break-glass codes that is held for it; empty when none is.
	CodeSet []byte
	// RenewCodes: somebody has asked for another set than that.
	RenewCodes bool
}

// CodeSet is a host's set of break-glass codes, sealed for people.
type CodeSet struct {
	ID         breakglass.SetID
	Made       time.Time
	Custodians []string
	Codes      int
	// Message is the SignedHostMessage that brought it.
	Message []byte
}

// HostEvent is one verified event, ready for the trail.
type HostEvent struct {
	Event *curfewv1.Event
	// Record lacks only its number, which the store gives.
	Record trail.Record
	// Ended is set for events of kind grant.ended: the host says that this grant is over.
	Ended *GrantEnd
}

// GrantEnd is a host's word that a grant of its own is over.
type GrantEnd struct {
	ID    grant.ID
	Cause curfewv1.EndCause
	By    string
	At    time.Time
}

// Ack is a host's verified answer to one State. Its results name grants that the host may only
// speak about when they are its own: the store ignores results whose grant is not this host's.
type Ack struct {
	Epoch, Sequence uint64
	Accepted        bool
	Detail          string
	Results         []Result
	At              time.Time
}

// Result is what a host did with one grant.
type Result struct {
	ID         grant.ID
	Status     curfewv1.GrantStatus
	Detail     string
	Start, End time.Time // zero when the host gave none
}

// Seen is what outlives a connection of the host's health.
type Seen struct {
	At              time.Time
	AgentVersion    string
	Mode            string
	Epoch, Sequence uint64
}

// Store persists what hosts say. Implementations are safe for concurrent use.
type Store interface {
	// LinkedHost returns an enrolled host, or one that was removed and has not parted yet; ErrNoHost.
	LinkedHost(ctx context.Context, id grant.HostID) (Host, error)

	// EventDigest returns the digest (trail.EventDigest) of a stored event of the host by number.
	EventDigest(ctx context.Context, id grant.HostID, number uint64) ([]byte, error)

	// RefuseHost marks a host refused, durably, and appends the record, in one transaction. A host
	// that is refused already keeps its first reason.
	RefuseHost(ctx context.Context, id grant.HostID, reason string, r trail.Record) error

	// PutEvents does, in ONE transaction: check that the host's stored chain equals from
	// (ErrChainMoved), append the records in order, remember each event's digest, apply Ended to
	// this host's grants, and store the chain to. At most MaxBatch events.
	PutEvents(ctx context.Context, id grant.HostID, from, to trail.Chain, events []HostEvent) error

	// PutAck stores what the host said of its grants: status, detail, start, end, and when it was
	// heard. An Ack that repeats what is stored changes nothing.
	PutAck(ctx context.Context, id grant.HostID, a Ack) error

	// PutCodeSet keeps a host's set of break-glass codes in place of the one before it, and appends the
	// record, in one transaction.
	PutCodeSet(ctx context.Context, id grant.HostID, set CodeSet, r trail.Record) error

	// PutSeen remembers when and how a host was last seen; called at connect and disconnect.
	PutSeen(ctx context.Context, id grant.HostID, s Seen) error

	// PutHeard notes, once after a restore of the control plane, that the host was heard: the grants that
	// it holds and trailSeen, how many records of the trail it had seen. When the restore lost any of
	// either it appends the record, with what. It returns how many grants are lost.
	PutHeard(ctx context.Context, id grant.HostID, held []grant.ID, trailSeen uint64, r trail.Record) (
		lost int, err error)

	// Part notes that a removed host has accepted its last state. It says gone, and appends the record
	// with PartedDetails, once the host has said that nothing of what the removal ended is left, or when
	// it was told longest ago. A host that parts no more is gone.
	Part(ctx context.Context, id grant.HostID, longest time.Duration, r trail.Record) (
		gone bool, err error)

	// AppendRecord puts one record on the trail; the store gives its number.
	AppendRecord(ctx context.Context, r trail.Record) error

	// TrustAfter returns the signed trust envelopes of all versions greater than version, in order.
	TrustAfter(ctx context.Context, version uint64) ([]Trust, error)

	// GrantEnvelopes returns the sealed grants of this host by id, in the order of ids; ids that
	// are not this host's are left out. At most grantsAtOnce ids.
	GrantEnvelopes(ctx context.Context, id grant.HostID, ids []grant.ID) ([]Envelope, error)
}

// Trust is one signed version of the trust file.
type Trust struct {
	Version  uint64
	Envelope []byte
}

// Envelope is one sealed grant.
type Envelope struct {
	ID    grant.ID
	Bytes []byte
}
