package rollout

import (
	"context"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Tx is one transaction. Things that are not there are identity.ErrNone.
type Tx interface {
	Hosts() ([]access.Host, error)
	Users() ([]identity.User, error)
	Append(r trail.Record) error
	Notify(m access.Message) error

	// Rollouts lists all, newest first; RolloutNamed finds one.
	Rollouts() ([]Rollout, error)
	RolloutNamed(name string) (Rollout, error)
	// RolloutsDue lists those that are open, and those of which something is outstanding.
	RolloutsDue() ([]Rollout, error)
	// AddRollout stores a new one, PutProgress how far it has got.
	AddRollout(r Rollout) error
	PutProgress(id string, p Progress) error
	// RolloutHosts are the hosts of one, removed ones included.
	RolloutHosts(id string) ([]Host, error)
	// PutRolloutHost stores how far it has got with a host, and has the host told when the wish is
	// another; DropRolloutHost forgets a host.
	PutRolloutHost(id string, h Host) error
	DropRolloutHost(id string, host grant.HostID) error
}

// Store runs transactions. f may be called again when the transaction is retried; an error of f rolls
// everything back and is returned.
type Store interface {
	Update(ctx context.Context, f func(Tx) error) error
	View(ctx context.Context, f func(Tx) error) error
}
