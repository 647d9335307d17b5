// Package link is the unprivileged half of the agent: it holds the TLS identity, keeps one gRPC
// stream to the control plane and relays frames between it and the root half's socket (PROTOCOL.md
// sections 2 and 3).
//
// It understands none of what it carries: it can read, delay and drop messages, not alter them. It is
// the only package of the agent that links gRPC, and it may not touch anything outside its own folder
// and the link socket.
package link

import (
	"crypto/ed25519"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config is what a Link needs.
type Config struct {
	// Directory holds what Join wrote: link.key, link.crt, ca.crt, link.json. 0700, the link's own.
	Directory string
	// Socket is the root half's link socket; empty takes /run/curfew/link.sock.
	Socket string
	// Server overrides the address that Join wrote, as host:port.
	Server string
	Now    func() time.Time
	Log    hclog.Logger
	// Timing overrides the defaults; its zero value takes all of them.
	Timing Timing
}

// JoinConfig is what Join needs to make this machine a host.
type JoinConfig struct {
	// Server is the control plane's host:port, Token the one-use invitation.
	Server, Token string
	// Name is the host's name; empty takes the token's. Address is where ssh reaches the host;
	// empty takes the name.
	Name, Address string
	Labels        map[string]string
	// SSHHostKeys are the contents of /etc/ssh/ssh_host_*_key.pub, one key each.
	SSHHostKeys []string
	// RootKey is the root half's key, made by the caller, who has stored it durably.
	RootKey      ed25519.PrivateKey
	AgentVersion string
	// Directory gets the link's files, owned by UID and GID (-1: the caller's).
	Directory string
	UID, GID  int
	Now       func() time.Time
}

// Joined is what enrolment gave.
type Joined struct {
	// HostID is hex.
	HostID             string
	Name, Organisation string
	// TrustEnvelope is the first trust version, for the root half's ledger.
	TrustEnvelope []byte
}
