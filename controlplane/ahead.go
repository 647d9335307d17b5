package controlplane

import (
	"context"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/stream"
)

// stepAbove is what happens when a host has seen what this control plane never gave out. After a restore
// the trust file steps above it by itself: the restore's own step goes by the clock, which may have been
// set back since an earlier restore. A store that went back in any other way is for an admin to look at:
// what a restore forgets is not forgotten there.
func (s *Server) stepAbove(ctx context.Context, a stream.Ahead) (stream.Behind, error) {
	above, waits, err := s.people.StepAbove(ctx, identity.Ahead{
		Host: a.Host, Name: a.Name, Version: a.TrustVersion, Epoch: a.Epoch, Step: a.Restored,
	})
	switch {
	case err == nil && above:
		return stream.BehindStepped, nil
	case err == nil && waits:
		return stream.BehindWaits, nil
	}
	return stream.BehindTold, err
}
