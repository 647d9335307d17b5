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
	// BootMS and WallMS are the anchor: the first reading of this boot, then each signed time that
	// answers a nonce. Steps of the wall clock do not move it, or many small ones would add up.
	BootMS int64 `json:"boot_ms"`
	WallMS int64 `json:"wall_ms"`
	HighMS int64 `json:"high_ms"`
	// FloorMS was HighMS when this boot began; what the boot-time clock ran has passed since.
	FloorMS int64 `json:"floor_ms"`
	// SeenMS is the boot-time clock's newest reading: what a window has left then, it has at most
	// after the next boot.
	SeenMS int64 `json:"seen_ms"`
	// Confirmed: the anchor is of a signed time. Until then the wall clock closes access but
	// tombstones nothing, so that a forged date bricks nothing.
	Confirmed bool `json:"confirmed"`
}

// observe takes a reading in: it rebases after a boot and tells jumps from steps.
func (l *Ledger) observe(now Clock) {
	t := &l.data.Time
	if t.BootID != now.BootID {
		l.rebaseDeadlines(now.BootID)
		boot := now.Boot.Milliseconds()
		*t = timeBase{
			BootID: now.BootID, BootMS: boot, WallMS: max(now.Wall.UnixMilli(), t.HighMS+boot),
			HighMS: t.HighMS, FloorMS: t.HighMS,
		}
	}
	t.SeenMS = now.Boot.Milliseconds()
	l.jumped = abs(now.Wall.UnixMilli()-l.derived(now)) > MaxClockSkew.Milliseconds()
	t.HighMS = max(t.HighMS, t.FloorMS+now.Boot.Milliseconds())
	if t.Confirmed {
		t.HighMS = l.effective(now)
	}
}

// derived is what the wall clock should say: the anchor plus what the boot-time clock ran since.
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

// confirm takes a freshly signed time in: one that answers a nonce of ours, which was sent ageMS
// ago. It was signed after that and before now, so now is between it and it plus the age; an answer
// that was long on its way, through a suspend say, does not make an honest clock wrong.
func (l *Ledger) confirm(issuedMS, ageMS int64, now Clock) {
	t := &l.data.Time
	skew := MaxClockSkew.Milliseconds()
	wall := now.Wall.UnixMilli()
	believed := wall
	if wall < issuedMS-skew || wall > issuedMS+ageMS+skew {
		believed = min(max(l.derived(now), issuedMS), issuedMS+ageMS)
	}
	t.BootMS, t.WallMS, t.Confirmed = now.Boot.Milliseconds(), believed, true
	t.HighMS = max(t.HighMS, issuedMS)
	l.observe(now)
	l.tightenDeadlines(now)
}

// rebaseDeadlines gives every open window a deadline on the clock of a new boot: what it had left
// when that of the last boot was read for the last time, by that clock or by the highest time
// beyond doubt. The new clock began after that, so this is the latest that the deadline can be,
// however late in the boot this runs. tightenDeadlines corrects it.
func (l *Ledger) rebaseDeadlines(bootID string) {
	t := l.data.Time
	for id, h := range l.held {
		if !h.open() {
			continue
		}
		h.BootID = bootID
		h.BootMS = min(h.BootMS-t.SeenMS, h.EndMS-max(t.HighMS, h.since()))
		l.held[id] = h
	}
}

func (l *Ledger) tightenDeadlines(now Clock) {
	for id, h := range l.held {
		if !h.open() {
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
