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
	"github.com/curfew-access/curfew/internal/trail"
)

// ErrNone means that the Store holds nothing of that name.
var ErrNone = errors.New("nothing of that name")

// User is a person known to the control plane. Users are disabled, never deleted: the uid stays
// theirs.
type User struct {
	Name     string
	UID      uint32
	Admin    bool
	Disabled bool
	SSHKeys  []string // canonical
	Groups   []string // from the groups; read only
}

// Group is a named set of users.
type Group struct {
	Name    string
	Members []string // sorted
}

// Session is a client key that speaks for a user until it ends. Key is the SHA-256 of the session's
// Ed25519 public key.
type Session struct {
	Key     [32]byte
	User    string
	SSHKey  string // the key that signed in
	Created time.Time
	Expires time.Time
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

	PutSession(s Session) error
	// Session returns ErrNone for a key that is not known.
	Session(key [32]byte) (Session, error)
	DeleteSession(key [32]byte) error
	// SessionsOf lists a user's sessions, oldest first.
	SessionsOf(user string) ([]Session, error)
	// DeleteExpired drops sessions and challenges that are over.
	DeleteExpired(now time.Time) error

	// NewestTrust returns ErrNone before the first.
	NewestTrust() (TrustRow, error)
	PutTrust(t TrustRow) error
	// UnsignedTrust is content that waits for the root key; nil for none.
	UnsignedTrust() ([]byte, error)
	// PutUnsignedTrust replaces it; nil drops it.
	PutUnsignedTrust(content []byte) error

	// Append puts a record on the trail; the store gives its number.
	Append(r trail.Record) error
}

// Store runs transactions. f may be called again when the transaction is retried; an error of f
// rolls everything back and is returned.
type Store interface {
	Update(ctx context.Context, f func(Tx) error) error
	View(ctx context.Context, f func(Tx) error) error
}
