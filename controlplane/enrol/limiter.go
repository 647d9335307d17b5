package enrol

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// A peer may fail maxTries times at once and once more every tryEvery. With 128 random bits and 30
// minutes no guess succeeds anyway; the limit keeps guessing from costing the Store.
const (
	maxTries   = 10
	tryEvery   = 6 * time.Second
	maxLimited = 4096
)

// limiter is a table of token buckets by key, bounded: a full table forgets its fullest buckets
// first, those of whoever tried least.
type limiter struct {
	burst float64
	every time.Duration

	mu      sync.Mutex // guards buckets
	buckets map[string]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

func newLimiter(burst int, every time.Duration) *limiter {
	return &limiter{burst: float64(burst), every: every, buckets: make(map[string]bucket)}
}

// take spends one try of key and says whether there was one.
func (l *limiter) take(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.left(key, now)
	if left < 1 {
		return false
	}
	if _, known := l.buckets[key]; !known && len(l.buckets) >= maxLimited {
		l.forget(now)
	}
	l.buckets[key] = bucket{left: left - 1, at: now}
	return true
}

// giveBack returns a try that turned out to be honest.
func (l *limiter) giveBack(key string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := l.left(key, now) + 1
	if left >= l.burst {
		delete(l.buckets, key)
		return
	}
	l.buckets[key] = bucket{left: left, at: now}
}

func (l *limiter) left(key string, now time.Time) float64 {
	b, known := l.buckets[key]
	if !known {
		return l.burst
	}
	refill := max(0, now.Sub(b.at).Seconds()/l.every.Seconds())
	return min(l.burst, b.left+refill)
}

// forget drops what is full again, and when nothing is, the fullest.
func (l *limiter) forget(now time.Time) {
	fullest, most := "", -1.0
	for key := range l.buckets {
		left := l.left(key, now)
		if left >= l.burst {
			delete(l.buckets, key)
			continue
		}
		if left > most {
			fullest, most = key, left
		}
	}
	if len(l.buckets) >= maxLimited {
		delete(l.buckets, fullest)
	}
}

// peerKey is what tries are counted by: an IPv4 address, or the /64 that one machine can roam in.
func peerKey(addr net.Addr) string {
	if addr == nil {
		return "unknown"
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.Network()
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
