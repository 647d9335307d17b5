package enrol

import (
	"context"
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Refusals of a Store that this package tells apart.
var (
	// ErrNoToken means that no join token has this hash.
	ErrNoToken = errors.New("unknown join token")
	// ErrTokenUsed means that another enrolment consumed the token first.
	ErrTokenUsed = errors.New("join token is used")
	// ErrNameTaken means that a host which is not removed has this name.
	ErrNameTaken = errors.New("host name is taken")
	// ErrKeyKnown means that a host, removed or not, was enrolled with this root key.
	ErrKeyKnown = errors.New("root key is enrolled already")
	// ErrInstanceKnown means that this instance of a cloud has joined before.
	ErrInstanceKnown = errors.New("cloud instance has joined already")
	// ErrNoHost means that no host has this id.
	ErrNoHost = errors.New("unknown host")
)

// JoinToken is a token at rest. The token itself is shown once and never stored.
type JoinToken struct {
	Hash [32]byte
	// Name of the host to come; empty lets the host say it.
	Name   string
	Labels map[string]string
	// CreatedBy is the admin's user name.
	CreatedBy string
	ExpiresAt time.Time
	// UsedAt is zero until the token is consumed.
	UsedAt time.Time
}

// Host is an enrolled machine.
type Host struct {
	ID            grant.HostID
	Name, Address string
	Labels        map[string]string
	// SSHHostKeys are canonical: "type base64".
	SSHHostKeys []string
	RootKey     ed25519.PublicKey
	// LinkKey is the SHA-256 of the link key's DER SubjectPublicKeyInfo.
	LinkKey         [32]byte
	AgentVersion    string
	EnrolledAt      time.Time
	CertificateEnds time.Time
	// CertifiedBy is the Name of the CA that its newest certificate is from; empty: not known.
	CertifiedBy string
	// Refused is why the host is not served; empty when it is.
	Refused string
	// Removed is true once an admin removed the host. Its key never enrols again.
	Removed bool
}

// Store persists enrolment. Implementations are safe for concurrent use.
type Store interface {
	// PutJoinToken keeps a fresh token and its trail record in one transaction.
	PutJoinToken(ctx context.Context, t JoinToken, r trail.Record) error

	// EnrolHost does, in ONE transaction: read the token with this hash (ErrNoToken), call decide,
	// mark the token used at the returned host's EnrolledAt if and only if it is still unused
	// (ErrTokenUsed), insert the host (ErrNameTaken, ErrKeyKnown) and append the record. Any error,
	// decide's included, rolls all of it back and is returned so that errors.Is finds it. decide
	// is pure; it may be called again when the transaction is retried.
	EnrolHost(
		ctx context.Context, hash [32]byte, decide func(JoinToken) (Host, trail.Record, error),
	) error

	// EnrolInstance does, in ONE transaction: keep the instance's key for good (ErrInstanceKnown), insert
	// the host (ErrNameTaken, ErrKeyKnown) and append the record. Any error rolls all of it back and is
	// returned so that errors.Is finds it.
	EnrolInstance(ctx context.Context, instance [32]byte, h Host, r trail.Record) error

	// EnrolledHost returns a host by id, removed ones included; ErrNoHost.
	EnrolledHost(ctx context.Context, id grant.HostID) (Host, error)

	// PutCertificate remembers when the host's newest certificate ends and the Name of its CA.
	PutCertificate(ctx context.Context, id grant.HostID, end time.Time, by string) error

	// PutAccepted remembers the Names of the CAs that the host accepts the control plane by.
	PutAccepted(ctx context.Context, id grant.HostID, names []string) error

	// NewestTrust returns the newest signed trust envelope.
	NewestTrust(ctx context.Context) ([]byte, error)
}
