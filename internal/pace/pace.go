// Package pace lets tests hold promises of seconds on machines that are short of time. The product does
// not use it.
package pace

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// A Pace measures time as a machine at rest would have lived it: while something waited for a core, a
// disk or memory, or the machine's hypervisor gave its cores to others, it stands still. Promises of
// seconds are about hosts that keep up; stories share two cores with each other and with strangers.
type Pace struct {
	began   time.Time
	stalled time.Duration
}

// Start begins to measure.
func Start() Pace { return Pace{time.Now(), stalled()} }

// Elapsed is how long it took. A tenth of the time on the wall always counts.
func (p Pace) Elapsed() time.Duration {
	wall := time.Since(p.began)
	return max(wall-(stalled()-p.stalled), wall/10)
}

// stalled is for how long since its boot this machine had something waiting.
func stalled() (sum time.Duration) {
	for _, what := range []string{"cpu", "io", "memory"} {
		// A kernel without pressure figures lets all time count.
		text, _ := os.ReadFile("/proc/pressure/" + what)
		some, _, _ := strings.Cut(string(text), "\n")
		_, total, _ := strings.Cut(some, "total=")
		var us int64
		_, _ = fmt.Sscan(total, &us)
		sum += time.Duration(us) * time.Microsecond
	}
	text, _ := os.ReadFile("/proc/stat")
	var user, nice, system, idle, wait, irq, soft, steal int64
	_, _ = fmt.Sscanf(string(text), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq,
		&soft, &steal)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on all that Go runs on
	return sum + time.Duration(steal)*tick
}
