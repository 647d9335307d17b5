package api

import (
	"sync"
	"time"

	"github.com/curfew-access/curfew/controlplane/reason"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// rate is a token bucket: burst calls at once, then one per gap.
type rate struct {
	burst int
	gap   time.Duration
}

// Rates of people by their name, of strangers by their address. Enrolment has its own in package
// enrol, and a host's stream is one call.
var (
	personRate  = rate{burst: 200, gap: 20 * time.Millisecond}
	signInRate  = rate{burst: 60, gap: time.Second}
	maxBuckets  = 10000
	signInCalls = map[string]bool{
		apiv1.SignIn_Challenge_FullMethodName: true,
		apiv1.SignIn_Login_FullMethodName:     true,

		apiv1.Identity_Methods_FullMethodName:       true,
		apiv1.Identity_LoginOIDC_FullMethodName:     true,
		apiv1.Identity_StartDevice_FullMethodName:   true,
		apiv1.Identity_FinishDevice_FullMethodName:  true,
		apiv1.Identity_LoginWorkload_FullMethodName: true,
	}
)

// limits holds one bucket per caller. Its zero value is not ready; see newLimits.
type limits struct {
	mu sync.Mutex // guards the rest
	// full is when each caller's bucket is full again; a caller that is not here has a full one.
	full map[string]time.Time
}

func newLimits() *limits { return &limits{full: make(map[string]time.Time)} }

// take spends one call of the caller.
func (l *limits) take(c *caller, method string, now time.Time) error {
	switch {
	case c.person != nil:
		return l.spend("user "+c.person.Name, personRate, now)
	case signInCalls[method]:
		return l.spend("addr "+c.addr, signInRate, now)
	}
	return nil
}

func (l *limits) spend(key string, r rate, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := l.full[key]
	if full.Before(now) {
		full = now
	}
	full = full.Add(r.gap)
	if full.Sub(now) > time.Duration(r.burst)*r.gap {
		return reason.Limit("too many calls at once").WithHint("wait a moment and try again")
	}
	if len(l.full) >= maxBuckets {
		l.sweep(now)
	}
	l.full[key] = full
	return nil
}

// sweep forgets callers whose bucket is full, and everybody when that frees nothing.
func (l *limits) sweep(now time.Time) {
	for key, full := range l.full {
		if !full.After(now) {
			delete(l.full, key)
		}
	}
	if len(l.full) >= maxBuckets {
		clear(l.full)
	}
}
