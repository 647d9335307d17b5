package expiry

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// SystemClock returns a reader of the machine's clocks. The boot id is read once: it cannot change
// under a running process.
func SystemClock() (func() grant.Clock, error) {
	id, err := os.ReadFile(bootIDFile)
	if err != nil {
		return nil, fmt.Errorf("reading the boot id: %w", err)
	}
	bootID := strings.TrimSpace(string(id))
	if len(bootID) != 36 {
		return nil, fmt.Errorf("%s holds %q, not a boot id", bootIDFile, bootID)
	}
	return func() grant.Clock {
		// Round strips Go's own monotonic reading, which stands still in suspend.
		return grant.Clock{Wall: time.Now().Round(0), Boot: bootTime(), BootID: bootID}
	}, nil
}

// bootTime reads CLOCK_BOOTTIME, which on Linux fails for no valid pointer.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("reading CLOCK_BOOTTIME: %v", err))
	}
	return time.Duration(ts.Nano())
}
