package stream

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	maxSealedCode = 64 << 10
	maxCustodians = 64
)

// CodesHealth is what a host last said of its break-glass codes: claims, in memory only.
type CodesHealth struct {
	Enabled     bool
	MaxDuration time.Duration
	// Open is how many grants codes have open.
	Open uint32
}

func codesHealth(h *curfewv1.BreakGlassHealth) CodesHealth {
	const longest = int64(365 * 24 * time.Hour / time.Millisecond)
	return CodesHealth{
		Enabled: h.GetEnabled(), Open: h.GetOpen(),
		MaxDuration: time.Duration(min(max(h.GetMaxDurationMs(), 0), longest)) * time.Millisecond,
	}
}

// takeCodes keeps a set of sealed codes. What is inside is for its custodians to judge.
func (c *conn) takeCodes(m *curfewv1.SignedHostMessage, b *curfewv1.BreakGlassSet) error {
	if c.lastFrom > 0 {
		return nil // made to void the codes that people hold; nobody gets these
	}
	set, err := codeSet(b)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "break-glass codes: %v", err)
	}
	if set.Message, err = proto.Marshal(m); err != nil {
		return fmt.Errorf("encoding the codes of host %s: %w", c.host.Name, err)
	}
	err = c.hub.store.PutCodeSet(c.ctx, c.host.ID, set, c.record(KindHostCodes, map[string]string{
		"set": set.ID.String(), "codes": fmt.Sprint(set.Codes),
		"custodians": strings.Join(set.Custodians, " "),
	}))
	if err != nil {
		return fmt.Errorf("keeping the codes of host %s: %w", c.host.Name, err)
	}
	c.hub.heard(c.host.ID)
	return nil
}

func codeSet(b *curfewv1.BreakGlassSet) (CodeSet, error) {
	set := CodeSet{
		Made: time.UnixMilli(b.GetMadeMs()), Custodians: b.GetCustodians(), Codes: len(b.GetCodes()),
	}
	switch {
	case len(b.GetSetId()) != breakglass.SetIDSize:
		return set, fmt.Errorf("set id of %d bytes", len(b.GetSetId()))
	case set.Codes < 1 || set.Codes > breakglass.MaxCodes:
		return set, fmt.Errorf("%d codes; 1 to %d", set.Codes, breakglass.MaxCodes)
	case len(set.Custodians) < 1 || len(set.Custodians) > maxCustodians:
		return set, fmt.Errorf("%d custodians; 1 to %d", len(set.Custodians), maxCustodians)
	case slices.ContainsFunc(b.GetCodes(), func(sealed []byte) bool { return len(sealed) > maxSealedCode }):
		return set, fmt.Errorf("a sealed code has more than %d bytes", maxSealedCode)
	}
	for _, name := range set.Custodians {
		if err := grant.CheckUserName(name); err != nil {
			return set, fmt.Errorf("custodian: %w", err)
		}
	}
	set.ID = breakglass.SetID(b.GetSetId())
	return set, nil
}

// RenewCodes says that somebody has asked for new codes of a host; a host that is away hears of it when
// it is back. It never blocks.
func (h *Hub) RenewCodes(id grant.HostID) {
	if s := h.known(id); s != nil {
		if c := s.present(); c != nil {
			c.renewCodes.Store(true)
			c.changed()
		}
	}
}

// queueRenewal asks the host for a new set, when somebody wants one. The host answers with the set.
func (c *conn) queueRenewal() {
	if c.host.RenewCodes {
		c.queue(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_BreakGlassRenew{
			BreakGlassRenew: &curfewv1.BreakGlassRenew{SetId: c.host.CodeSet},
		}})
	}
}
