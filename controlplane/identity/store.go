// Package identity knows people: who they are, which groups they are in, what roles exist, and which
// key of theirs speaks now.
//
// It signs people in by their SSH keys (PROTOCOL.md section 7), keeps the directory that admins
// change, and builds from it the trust file that hosts obey. It grants nothing. Data comes from
// package api, and goes to the Store and, as the trust file, to the hosts.
package identity

import (
	"context"
	"errors"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// ErrNone means that the Store holds nothing of that name.
var ErrNone = errors.New("nothing of that name")

// Kind is what a user is.
type Kind string

// The kinds. A workload is a pipeline: it asks and never decides.
const (
	KindPerson   Kind = "person"
	KindWorkload Kind = "workload"
)

// Source is whose word a user or a group is.
type Source string

// The sources, and, as whose word disabled a user, Admin.
const (
	SourceLocal Source = "local"
	SourceOIDC  Source = "oidc"
	SourceSCIM  Source = "scim"
	SourceAdmin Source = "admin"
)

// User is a person or a workload known to the control plane. Users are disabled, never deleted: the
// uid stays theirs.
type User struct {
	Name string
	UID  uint32
	// Kind never changes.
	Kind   Kind
	Source Source
	Admin  bool
	// Auditor sees everything and changes nothing, whatever groups hold them.
	Auditor bool
	// Disabled is whether DisabledBy is set: admin, scim or oidc.
	Disabled   bool
	DisabledBy Source
	// Email is where mail for them goes; empty for none.
	Email string
	// VerifyRequired: approvals of theirs count only by a security key that verified its user.
	VerifyRequired bool
	// Manager is a user name; empty for none. Nobody of that name need exist.
	Manager string
	SSHKeys []string // canonical
	Groups  []string // from the groups; read only
}

// Group is a named set of users. One that is not local is kept by its provider, not by hand.
type Group struct {
	Name    string
	Source  Source
	Members []string // sorted
}

// Session is a client key that speaks for a user until it ends. Key is the SHA-256 of the session's
// Ed25519 public key.
type Session struct {
	Key    [32]byte
	User   string
	Method Method
	SSHKey string // the key that signed in; empty for other methods
	// Device is what the device called itself, Address where it signed in from.
	Device  string
	Address string
	Created time.Time
	Expires time.Time
	// Used and UsedFrom are of the last call, at most a minute old.
	Used     time.Time
	UsedFrom string
	// Claims are what a workload's token said. They belong to this sign-in and not to the user: two
	// pipelines of one workload differ.
	Claims map[string]string
}

// Method is how a session was signed in.
type Method string

// The methods.
const (
	MethodSSH      Method = "ssh"
	MethodOIDC     Method = "oidc"
	MethodDevice   Method = "oidc-device"
	MethodWorkload Method = "workload"
)

// Claim is a version and an epoch of a trust file, each the highest by a host's word.
type Claim struct {
	Version uint64 `json:"version"`
	Epoch   uint64 `json:"epoch"`
}

// TrustRow is one signed version of the trust file.
type TrustRow struct {
	Version  uint64
	Envelope []byte
}

// Tx is one transaction. Reads see what the transaction wrote.
type Tx interface {
	// User returns ErrNone for a name that is not known.
	User(name string) (User, error)
	Users() ([]User, error)
	// PutUser writes all but groups. A user whose UID is 0 gets the next uid, which was never
	// anybody's; the user is returned as stored.
	PutUser(u User, now time.Time) (User, error)
	// KeyOwner returns the user under whom an SSH key stands; empty for none.
	KeyOwner(key string) (string, error)

	Group(name string) (Group, error)
	Groups() ([]Group, error)
	PutGroup(g Group) error
	DeleteGroup(name string) error

	Role(name string) (policy.Role, error)
	Roles() ([]policy.Role, error)
	PutRole(r policy.Role) error
	DeleteRole(name string) error

	// PutChallenge keeps the hash of a challenge. Challenges reports how many are kept.
	PutChallenge(hash [32]byte, expires time.Time) error
	Challenges() (int, error)
	// TakeChallenge removes a challenge and reports whether it was there and had not expired.
	TakeChallenge(hash [32]byte, now time.Time) (bool, error)

	// Link and LinkOf return ErrNone when there is none; PutLink writes one by issuer and subject.
	Link(issuer, subject string) (Link, error)
	LinkOf(user, issuer string) (Link, error)
	PutLink(l Link) error
	DeleteLinks(user string) error
	// DueLinks lists those of enabled users with a refresh token, last checked at since or before,
	// who have a session that lives now, or an open request; longest ago first.
	DueLinks(issuer string, since, now time.Time, limit int) ([]Link, error)

	Workload(name string) (Workload, error)
	Workloads() ([]Workload, error)
	PutWorkload(w Workload) error
	DeleteWorkload(name string) error
	// SpendToken remembers a token until it expires and reports whether it was new.
	SpendToken(hash [32]byte, expires time.Time) (bool, error)

	PutSCIMToken(hash [32]byte, by string, at time.Time) error
	SCIMToken(hash [32]byte) (bool, error)
	DeleteSCIMTokens() (int, error)
	// SCIM resources by id; ErrNone when there is none. A user or group of the directory has one at
	// most.
	SCIMUser(id string) (SCIMUser, error)
	SCIMUserNamed(userName string) (SCIMUser, error)
	SCIMUserOf(user string) (SCIMUser, error)
	SCIMUsers() ([]SCIMUser, error)
	PutSCIMUser(u SCIMUser) error
	DeleteSCIMUserOf(user string) error
	SCIMGroup(id string) (SCIMGroup, error)
	SCIMGroups() ([]SCIMGroup, error)
	PutSCIMGroup(g SCIMGroup) error
	DeleteSCIMGroup(id string) error

	PutSession(s Session) error
	// TouchSession notes a use.
	TouchSession(key [32]byte, at time.Time, from string) error
	// Sessions lists everybody's, by user, oldest first.
	Sessions() ([]Session, error)
	// Session returns ErrNone for a key that is not known.
	Session(key [32]byte) (Session, error)
	DeleteSession(key [32]byte) error
	// SessionsOf lists a user's sessions, oldest first.
	SessionsOf(user string) ([]Session, error)
	// DeleteExpired drops sessions and challenges that are over.
	DeleteExpired(now time.Time) error

	// NewestPolicy says which policy file is in force; ErrNone before the first.
	NewestPolicy() (PolicyVersion, error)
	// PolicyOf returns a version by the hash of its text; ErrNone for one that never was.
	PolicyOf(hash [32]byte) (PolicyVersion, []byte, error)
	// Policies lists every version, newest first.
	Policies(limit int) ([]PolicyVersion, error)
	// PutPolicy keeps a version under the next number and returns it with that.
	PutPolicy(v PolicyVersion, text []byte) (PolicyVersion, error)
	// LabelledHosts lists the hosts that are not removed.
	LabelledHosts() ([]policy.Host, error)
	// Reports lists the users whose manager somebody is.
	Reports(manager string) ([]string, error)

	// NewestTrust returns ErrNone before the first.
	NewestTrust() (TrustRow, error)
	PutTrust(t TrustRow) error
	// UnsignedTrust is content that waits for the root key; nil for none.
	UnsignedTrust() ([]byte, error)
	// TrustSignatures are the root keys' over it; PutUnsignedTrust drops them.
	TrustSignatures() ([]grant.RootSignature, error)
	PutTrustSignatures(list []grant.RootSignature) error
	// PutUnsignedTrust replaces it; nil drops it.
	PutUnsignedTrust(content []byte) error
	// Claim is the highest that hosts have said they saw and this control plane never gave out.
	Claim() (Claim, error)
	PutClaim(c Claim) error

	// Append puts a record on the trail; the store gives its number.
	Append(r trail.Record) error
}

// Store runs transactions. f may be called again when the transaction is retried; an error of f
// rolls everything back and is returned.
type Store interface {
	Update(ctx context.Context, f func(Tx) error) error
	View(ctx context.Context, f func(Tx) error) error
}
