package seal

import (
	"fmt"
	"io"
	"time"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// maxSet bounds all sealed codes of a set: they travel in one host message.
const maxSet = 200 << 10

// Set is a new set of codes in its three forms: as people read it, as the host keeps it, and sealed.
type Set struct {
	ID     breakglass.SetID
	Codes  []breakglass.Code
	Hashes []breakglass.Hash
	// Sealed is nil when the codes were sealed to nobody, because they are printed.
	Sealed *curfewv1.BreakGlassSet
}

// Draw makes n codes for a host. Without recipients they are sealed to nobody.
func Draw(
	host grant.HostID, n int, to *Recipients, now time.Time, random io.Reader,
) (*Set, error) {
	if n < 1 || n > breakglass.MaxCodes {
		return nil, fmt.Errorf("%d break-glass codes; want 1 to %d", n, breakglass.MaxCodes)
	}
	id, err := breakglass.NewSetID(random)
	if err != nil {
		return nil, err
	}
	s := &Set{ID: id}
	if to != nil {
		s.Sealed = &curfewv1.BreakGlassSet{
			SetId: id[:], MadeMs: now.UnixMilli(), Custodians: to.Names,
		}
	}
	size := 0
	for i := range n {
		c, err := breakglass.NewCode(random)
		if err != nil {
			return nil, err
		}
		s.Codes = append(s.Codes, c)
		s.Hashes = append(s.Hashes, breakglass.HashOf(host, id, c))
		if to == nil {
			continue
		}
		sealed, err := to.Seal(Label{Host: host, Set: id, Number: i + 1}, c)
		if err != nil {
			return nil, err
		}
		s.Sealed.Codes = append(s.Sealed.Codes, sealed)
		size += len(sealed)
	}
	if size > maxSet {
		return nil, fmt.Errorf("the sealed codes take %d bytes, at most %d: name a smaller group in "+
			"break_glass.custodians", size, maxSet)
	}
	return s, nil
}
