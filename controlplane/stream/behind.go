package stream

import (
	"context"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/internal/grant"
)

// Ahead is what a host has seen that this control plane never gave out: it, or its store, went back in
// time.
type Ahead struct {
	Host grant.HostID
	Name string
	// Epoch and TrustVersion are the host's own, by its signed word.
	Epoch, TrustVersion uint64
	// Restored: by a restore, and this is the first word of the host since.
	Restored bool
}

// Behind says what came of an Ahead.
type Behind int

const (
	// BehindStepped: hosts get a trust file above all that the host has seen.
	BehindStepped Behind = iota
	// BehindWaits: that trust file waits for root keys.
	BehindWaits
	// BehindTold: nobody but an admin does anything about it.
	BehindTold
)

// behindText is what admins read of a host that has seen a newer control plane.
func behindText(b Behind) string {
	const seen = "this host has seen a newer control plane than this one and obeys nothing older: "
	if b == BehindWaits {
		return seen + "this one was restored; the trust file that steps above it waits for root keys: " +
			"curfew admin trust sign --root-key FILE"
	}
	return seen + "if this one was restored or set back to an older disk: " +
		"curfew admin trust propose --bump-epoch"
}

// compareWithHost holds what a host says it has seen against the first state that it gets. A control
// plane that was restored has every host's word for that.
func (c *conn) compareWithHost(sealed *issue.Sealed) error {
	if c.compared {
		return nil
	}
	if c.seenNewer(sealed) {
		if err := c.stepAbove(sealed); err != nil {
			return err
		}
	}
	if c.host.Unheard {
		if err := c.tellLost(); err != nil {
			return err
		}
	}
	c.compared = true
	return nil
}

func (c *conn) seenNewer(sealed *issue.Sealed) bool {
	h := c.hello
	return h.GetEpoch() > sealed.Epoch || h.GetTrustVersion() > sealed.TrustVersion ||
		h.GetEpoch() == sealed.Epoch && (sealed.Behind || h.GetSequence() >= sealed.Sequence)
}

func (c *conn) stepAbove(sealed *issue.Sealed) error {
	h := c.hello
	c.log.Error("the host has seen a newer control plane than this one", "host", c.host.Name,
		"epoch", h.GetEpoch(), "here", sealed.Epoch, "trust", h.GetTrustVersion())
	became, err := c.hub.ahead(c.ctx, Ahead{
		Host: c.host.ID, Name: c.host.Name, Epoch: h.GetEpoch(), TrustVersion: h.GetTrustVersion(),
		Restored: c.host.Unheard,
	})
	if err != nil {
		return fmt.Errorf("stepping above what host %s has seen: %w", c.host.Name, err)
	}
	if became != BehindStepped {
		c.slot.note(behindText(became))
	}
	return nil
}

// tellLost puts on the trail what this host had from the control plane that a restore has lost.
func (c *conn) tellLost() error {
	held := make([]grant.ID, 0, len(c.held))
	for id := range c.held {
		held = append(held, id)
	}
	lost, err := c.hub.store.PutHeard(c.ctx, c.host.ID, held, c.hello.GetTrailCount(),
		c.record(KindHostLost, nil))
	if err != nil {
		return fmt.Errorf("noting what a restore lost of host %s: %w", c.host.Name, err)
	}
	if lost > 0 {
		c.slot.note(fmt.Sprintf("%d grants that it held were issued after the backup that this control plane "+
			"was restored from; they are not known here and have ended there: ask anew", lost))
	}
	return nil
}

// noAhead is the answer of a Hub that nobody told what to do.
func noAhead(context.Context, Ahead) (Behind, error) { return BehindTold, nil }
