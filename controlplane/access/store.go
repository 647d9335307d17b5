// Package access is the main job: ask, decide, end. It is where request, policy and approval meet
// the store, one transaction per call, each with its record on the trail.
//
// It holds no key and seals nothing: package issue does, once a request is approved here. Data comes
// from package api and from the clock, and goes to the Store.
package access

import (
	"context"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Grant is one host's grant of a request and what the host said of it.
type Grant struct {
	ID        grant.ID
	Host      grant.HostID
	HostName  string
	RequestID string
	Revision  uint32
	Issued    time.Time
	HardEnd   time.Time
	// Live is whether host states list it.
	Live bool
	// Cause, EndedBy and EndedAt are set when it left the live set here.
	Cause   curfewv1.EndCause
	EndedBy string
	EndedAt time.Time
	// What the host said; zero values before it did.
	Status    curfewv1.GrantStatus
	Detail    string
	Confirmed time.Time
	Start     time.Time
	End       time.Time
	HostEnded time.Time
}

// Host is an enrolled host as people see it.
type Host struct {
	ID              grant.HostID
	Name            string
	Address         string
	Labels          map[string]string
	SSHHostKeys     []string
	AgentVersion    string
	Mode            string
	Refused         string
	LastSeen        time.Time
	CertificateEnds time.Time
	Epoch           uint64
	Sequence        uint64
	LiveGrants      uint32
	// CodesUsed of its present set of break-glass codes have been used, the last at CodeUsed.
	CodesUsed uint32
	CodeUsed  time.Time
}

// Filter chooses requests, newest first.
type Filter struct {
	Requester string // empty: anybody's
	Host      string // name; empty: any
	Open      bool   // only pending, approved and granted
	Waiting   bool   // only those that wait for decisions
	Limit     int    // at most this many; 1 to 1000
}

// Message is a notice for approvers; its JSON is what webhooks receive. Package notify delivers it.
type Message struct {
	// ID is the same at every delivery of one message, so that receivers can drop doubles.
	ID             string   `json:"id"`
	Event          string   `json:"event"`
	Organisation   string   `json:"organisation"`
	AtMS           int64    `json:"at_ms"`
	RequestID      string   `json:"request_id"`
	Revision       uint32   `json:"revision"`
	Requester      string   `json:"requester"`
	Role           string   `json:"role"`
	RootEquivalent bool     `json:"root_equivalent"`
	Hosts          []string `json:"hosts"`
	DurationMS     int64    `json:"duration_ms"`
	Reason         string   `json:"reason"`
	// LapsesMS is until when it can be approved.
	LapsesMS int64  `json:"lapses_ms"`
	By       string `json:"by,omitempty"`
	// Text is all of it in one line; Command is what an approver types.
	Text    string `json:"text"`
	Command string `json:"command,omitempty"`
	// To are the addresses that get it by mail.
	To []string `json:"-"`
}

// Record is one stored leaf of the trail.
type Record struct {
	Number uint64
	Leaf   []byte
}

// Tx is one transaction. Reads see what the transaction wrote. Things that are not there are
// identity.ErrNone.
type Tx interface {
	identity.Tx

	Request(id string) (*request.Request, error)
	HasRequest(id string) (bool, error)
	PutRequest(r *request.Request) error
	Requests(f Filter) ([]*request.Request, error)
	// RequestsSince lists requests from a moment on, oldest first; of those made at that moment, only
	// those whose id is greater than after.
	RequestsSince(since time.Time, after string, limit int) ([]*request.Request, error)
	// Outcomes lists what became of a requester's requests for a role that people decided, made before
	// a moment, newest first.
	Outcomes(requester, role string, before time.Time, limit int) ([]request.Outcome, error)
	// DisabledUsers lists the names of all who are disabled.
	DisabledUsers() ([]string, error)
	// WaitingOf counts the requester's revisions that wait for decisions.
	WaitingOf(requester string) (int, error)
	// Lapsed lists ids of requests whose waiting revision lapsed before now, at most 100.
	Lapsed(now time.Time) ([]string, error)
	// Unissued lists ids of requests with an approved revision without grants, at most 100.
	Unissued() ([]string, error)

	// DropRequestHosts forgets which hosts a request names; PutRequest writes them anew.
	DropRequestHosts(id string) error
	// ReviewsDue lists emergencies nobody has reviewed or was reminded of since, at most 100.
	ReviewsDue(remindedBefore time.Time) ([]string, error)

	// Unreleased tells whether grants' time to start has come; Release lets host states list them.
	Unreleased(now time.Time) (bool, error)
	Release(now time.Time) error

	Grants(requestID string) ([]Grant, error)
	// GrantsDue lists live grants whose end, confirmed or hard, was before the moment; at most 100.
	GrantsDue(before time.Time) ([]Grant, error)
	// EndGrant takes a live grant out of the live set; it leaves one that is not live alone.
	EndGrant(id grant.ID, cause curfewv1.EndCause, by string, at time.Time) error

	// LabelledHost finds a host that is not removed, with what policy knows of it.
	LabelledHost(name string) (policy.Host, error)
	// HostNamed finds a host that is not removed.
	HostNamed(name string) (Host, error)
	Hosts() ([]Host, error)
	PutHostLabels(id grant.HostID, labels map[string]string) error
	// RemoveHost frees the name; the key never enrols again. What is left is one last state.
	RemoveHost(id grant.HostID, at time.Time) error
	// Parting is how far a removed host has got with its last state.
	Parting(id grant.HostID) (Parting, error)
	LiveGrantsOf(host grant.HostID) ([]Grant, error)

	// CodeSet is a host's break-glass codes; SealedCode is one of them, by its number.
	CodeSet(host grant.HostID) (CodeSet, error)
	SealedCode(host grant.HostID, number int) ([]byte, error)
	PutFetched(host grant.HostID, number int, by string, at time.Time) error
	PutRotation(host grant.HostID, by string) error

	// Records returns records from a number on, in order, at most limit. A request id narrows them;
	// about narrows them to what concerns a user: their own deeds and their own requests. It is an
	// error in a transaction that made records.
	Records(from uint64, requestID, about string, limit int) ([]Record, error)
	TrailHead() (count uint64, head []byte, err error)

	// Notify puts a message into the outbox.
	Notify(m Message) error
}

// Store runs transactions. f may be called again when the transaction is retried; an error of f
// rolls everything back and is returned.
type Store interface {
	Update(ctx context.Context, f func(Tx) error) error
	View(ctx context.Context, f func(Tx) error) error
}
