package identity

import (
	"context"
	"errors"
	"fmt"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// KindTrustBehind is the trail record of a host that has seen what this control plane never gave out.
const KindTrustBehind = "trust.behind"

// maxClaim bounds what a host's word moves: half of what there is. A host that lies can make numbers
// large, and never use them up.
const maxClaim = 1 << 62

// Ahead is a host's word of a trust file, or of states, that this control plane never gave out.
type Ahead struct {
	Host    grant.HostID
	Name    string
	Version uint64
	Epoch   uint64
	// Step has a trust file drawn up that is above it. Otherwise the next one that begins a new epoch is.
	Step bool
}

// StepAbove takes such a word. Its answer is whether the trust file in force is above it, or one that
// is waits for root keys.
func (s *Service) StepAbove(ctx context.Context, a Ahead) (above, waits bool, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		current, next, err := s.draft(tx)
		if err != nil {
			return err
		}
		// Another host may have said the same a moment ago.
		if above = current.Version > a.Version && current.Epoch > a.Epoch; above {
			return nil
		}
		claim, err := tx.Claim()
		if err != nil {
			return err
		}
		believed := a.Version < maxClaim && a.Epoch < maxClaim
		if believed {
			claim.Version, claim.Epoch = max(claim.Version, a.Version), max(claim.Epoch, a.Epoch)
		}
		err = errors.Join(tx.PutClaim(claim), tx.Append(trail.Record{
			TimeMS: s.c.Now().UnixMilli(), Kind: KindTrustBehind, Actor: "host " + a.Name,
			HostID: a.Host.String(), Host: a.Name, Details: map[string]string{
				"epoch_seen": fmt.Sprint(a.Epoch), "epoch": fmt.Sprint(current.Epoch),
				"version_seen": fmt.Sprint(a.Version), "version": fmt.Sprint(current.Version),
			},
		}))
		if err != nil || !a.Step || !believed {
			return err
		}
		waiting, err := tx.UnsignedTrust()
		if waits = waiting != nil && next.Version > a.Version && next.Epoch > a.Epoch; waits || err != nil {
			return err // signatures that it has stay good
		}
		raise(next, current, claim, s.c.Now())
		w, err := s.propose(tx, current, next, "curfew")
		above, waits = w.Text == "", w.Text != ""
		return err
	})
	return above, waits, err
}
