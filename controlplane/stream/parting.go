package stream

import (
	"fmt"
	"strings"
	"time"
)

// partingLimit is how long a removed host that has taken its last state may take to say that nothing of
// its grants is left: it looks over its disks for what they left there.
const partingLimit = 5 * time.Minute

// PartedDetails is what the record of a host's parting says; left are requests of which the host has
// not said that nothing is left.
func PartedDetails(left []string) map[string]string {
	if len(left) == 0 {
		return map[string]string{"left": "nothing"}
	}
	return map[string]string{"left": "not confirmed for: " + strings.Join(left, " ")}
}

// beginParting is the moment in which a connection learns that its host was removed. New break-glass
// codes, which nobody gets, void those that people hold.
func (c *conn) beginParting(sequence uint64) error {
	c.lastFrom = sequence
	if err := c.lookUp(); err != nil {
		return err
	}
	c.log.Info("the host was removed: it gets its last state", "host", c.host.Name)
	c.queueRenewal()
	return nil
}

// part has the stream of a removed host end, after what waits for it, once the host has ended everything.
func (c *conn) part() error {
	if !c.told || c.parted {
		return nil
	}
	gone, err := c.hub.store.Part(c.ctx, c.host.ID, partingLimit, c.record(KindHostParted, nil))
	if err != nil {
		return fmt.Errorf("noting that host %s parts: %w", c.host.Name, err)
	}
	c.parted = gone
	c.hub.heard(c.host.ID)
	return nil
}
