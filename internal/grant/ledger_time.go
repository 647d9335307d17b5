package grant

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// Clock is one reading of both clocks of a host. Boot is CLOCK_BOOTTIME, which counts suspend and
// which nobody can set; BootID names the boot it counts from.
type Clock struct {
	Wall   time.Time
	Boot   time.Duration
	BootID string
}

// timeBase is what the host knows of time: a wall time that was believed at a boot time, and the
// highest wall time that is beyond doubt.
type timeBase struct {
	BootID string `json:"boot_id"`
	BootMS int64  `json:"boot_ms"`
	WallMS int64  `json:"wall_ms"`
	HighMS int64  `json:"high_ms"`
	// Confirmed: a signed state agreed with the wall clock in this boot. Until then the wall clock
	// closes access but tombstones nothing, so that a forged date bricks nothing.
	Confirmed bool `json:"confirmed"`
}

// observe takes a reading in: it rebases after a boot and tells jumps from steps.
func (l *Ledger) observe(now Clock) {
	t := &l.data.Time
	wall := now.Wall.UnixMilli()
	if t.BootID != now.BootID {
		*t = timeBase{
			BootID: now.BootID, BootMS: now.Boot.Milliseconds(), WallMS: max(wall, t.HighMS),
			HighMS: t.HighMS,
		}
		l.rebaseDeadlines(now)
	}
	if l.jumped = abs(wall-l.derived(now)) > MaxClockSkew.Milliseconds(); l.jumped {
		return
	}
	t.BootMS, t.WallMS = now.Boot.Milliseconds(), wall
	if t.Confirmed {
		t.HighMS = max(t.HighMS, wall)
	}
}

// derived is what the wall clock should say: the last believed time plus what the boot clock ran.
func (l *Ledger) derived(now Clock) int64 {
	t := l.data.Time
	return t.WallMS + now.Boot.Milliseconds() - t.BootMS
}

// effective is the wall time that decides: never before the highest known, and unmoved by jumps.
func (l *Ledger) effective(now Clock) int64 {
	if l.jumped {
		return max(l.derived(now), l.data.Time.HighMS)
	}
	return max(now.Wall.UnixMilli(), l.data.Time.HighMS)
}

// confirm takes a freshly signed time in: one that answers a nonce of ours.
func (l *Ledger) confirm(issuedMS int64, now Clock) {
	t := &l.data.Time
	t.HighMS = max(t.HighMS, issuedMS)
	wall := now.Wall.UnixMilli()
	agrees := abs(wall-issuedMS) <= MaxClockSkew.Milliseconds()
	l.jumped, t.Confirmed = !agrees, agrees
	t.BootMS, t.WallMS = now.Boot.Milliseconds(), issuedMS
	if agrees {
		t.WallMS = wall
		l.tightenDeadlines(now)
	}
}

// rebaseDeadlines gives every open window a deadline on the clock of a new boot. It counts from the
// highest time beyond doubt, the latest that the deadline can be; tightenDeadlines corrects it.
func (l *Ledger) rebaseDeadlines(now Clock) {
	for id, h := range l.held {
		if h.StartMS == 0 {
			continue
		}
		h.BootID = now.BootID
		h.BootMS = now.Boot.Milliseconds() + h.EndMS - max(l.data.Time.HighMS, h.StartMS)
		l.held[id] = h
	}
}

func (l *Ledger) tightenDeadlines(now Clock) {
	for id, h := range l.held {
		if h.StartMS == 0 {
			continue
		}
		h.BootMS = min(h.BootMS, now.Boot.Milliseconds()+h.EndMS-l.effective(now))
		l.held[id] = h
	}
}

// over tells whether a window is closed, and whether that is beyond doubt.
func (l *Ledger) over(h held, now Clock) (closed, certain bool) {
	byBoot := now.Boot.Milliseconds() >= h.BootMS
	byWall := l.effective(now) >= h.EndMS
	return byBoot || byWall,
		byBoot || byWall && (l.data.Time.Confirmed || l.data.Time.HighMS >= h.EndMS)
}

// Reasons for which no new access opens.
var (
	ErrClock = errors.New("the host's clock jumped; access opens again after the next word " +
		"from the control plane")
	ErrLease = errors.New("the host has not heard from the control plane for too long")
)

// MayOpen returns nil when new logins and elevations may open under live grants, else why not.
// Sessions that run already are not its business.
func (l *Ledger) MayOpen(now Clock) error {
	l.observe(now)
	if l.jumped {
		return ErrClock
	}
	if !l.leased(now) {
		return ErrLease
	}
	return nil
}

func (l *Ledger) leased(now Clock) bool {
	le := l.data.Lease
	if le.BootID == now.BootID {
		return now.Boot.Milliseconds() < le.BootMS
	}
	return l.effective(now) < le.WallMS
}

// NewNonce draws the nonce of a Hello or Heartbeat that is sent now; the lease that answers it runs
// from this moment.
func (l *Ledger) NewNonce(now Clock, random io.Reader) ([]byte, error) {
	nonce := make([]byte, NonceSize)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("drawing a nonce: %w", err)
	}
	l.nonces = append(l.nonces, sentNonce{nonce, now.Boot})
	if len(l.nonces) > maxNonces {
		l.nonces = l.nonces[1:]
	}
	return nonce, nil
}

func abs(n int64) int64 { return max(n, -n) }
