// Package stream is the Hub: one bidirectional gRPC stream per host (PROTOCOL.md section 2).
//
// Downstream it carries sealed objects that package issue made; upstream it takes what the host's
// root half signed. It may not make, alter or judge a grant: a host believes the seals, and the Hub
// believes the host only about the host itself. What hosts say goes to the Store (events, acks) and,
// for health and sessions, into memory, where package api reads it.
//
// Every host has one goroutine that owns its connection and does its work in order. Nothing of one
// host waits for another, except that all share the Store.
package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Sealer seals a host's next state; *issue.Issuer is the one.
type Sealer interface {
	SealState(ctx context.Context, host grant.HostID, nonce []byte, trailFrom uint64) (
		*issue.Sealed, error)
}

// Config is what a Hub needs.
type Config struct {
	Store  Store
	Issuer Sealer
	// Identify returns the host that the call's verified client certificate names;
	// (*enrol.Authority).HostOf does.
	Identify func(ctx context.Context) (grant.HostID, error)
	Now      func() time.Time
	Log      hclog.Logger
	// Timing overrides the defaults; its zero value takes all of them.
	Timing Timing
}

// Timing bounds what a connection waits for.
type Timing struct {
	// Hello is how long a new stream may stay silent: 10 s.
	Hello time.Duration
	// Probe is how long the present connection of a host has to prove that it is alive when another
	// machine presents the same key: 5 s.
	Probe time.Duration
	// Send is how long a host may leave a message untaken while more wait: 20 s.
	Send time.Duration
	// MinGap is the least time between two states to one host after the first: 50 ms.
	MinGap time.Duration
	// Ping and PingTimeout are gRPC's keep-alive: 10 s and 8 s.
	Ping, PingTimeout time.Duration
}
