package identity

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/curfew-access/curfew/controlplane/reason"
)

const (
	flowSize    = 16
	maxFlows    = 1000
	maxFlowLife = 15 * time.Minute
	minInterval = time.Second
	maxInterval = 30 * time.Second
	longestWait = 10 * time.Second // of one call; callers give up after 20
)

// flow is one device sign-in under way. The device code never leaves this process: a restart ends
// the flow, and nobody else can redeem it.
type flow struct {
	session Session
	key     [32]byte // SHA-256 of the session key that may finish it
	code    string
	expires time.Time
	next    time.Time // when the provider may be asked again
	every   time.Duration
	busy    bool
}

// flows holds what is under way. Its zero value is ready.
type flows struct {
	mu sync.Mutex // guards all below
	m  map[[flowSize]byte]*flow
}

// StartDevice begins a device sign-in for a session key. The challenge is spent.
func (s *Service) StartDevice(
	ctx context.Context, challenge, sessionKey []byte, device, address string,
) (id []byte, code DeviceCode, err error) {
	if s.c.Federation.Provider == nil {
		return nil, code, s.noProvider()
	}
	m, _, err := s.Methods(ctx)
	if err != nil {
		return nil, code, err
	}
	if !m.Device {
		return nil, code, reason.Invalid("device sign-in is not offered here").
			WithHint("an admin turns it on with oidc.device_flow; or use a browser: curfew login --sso")
	}
	b, err := s.spend(ctx, challenge, sessionKey)
	if err != nil {
		return nil, code, err
	}
	if code, err = s.c.Federation.Provider.StartDevice(ctx); err != nil {
		return nil, code, s.outage(err)
	}
	now := s.c.Now()
	f := &flow{
		session: s.newSession(b.Session, MethodDevice, device, address), key: SessionKey(b.Session),
		code: code.Code, every: min(max(code.Interval, minInterval), maxInterval),
	}
	f.expires, f.next = code.Expires, now.Add(f.every)
	if latest := now.Add(maxFlowLife); f.expires.After(latest) {
		f.expires = latest
	}
	var key [flowSize]byte
	if _, err := io.ReadFull(s.c.Rand, key[:]); err != nil {
		return nil, code, fmt.Errorf("drawing a flow id: %w", err)
	}
	return key[:], code, s.flows.put(key, f, now)
}

func (fs *flows) put(id [flowSize]byte, f *flow, now time.Time) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for id, f := range fs.m {
		if !now.Before(f.expires) {
			delete(fs.m, id)
		}
	}
	if len(fs.m) >= maxFlows {
		return reason.Limit("too many people are signing in at once").WithHint("try again in a while")
	}
	if fs.m == nil {
		fs.m = make(map[[flowSize]byte]*flow)
	}
	fs.m[id] = f
	return nil
}

// begin takes a flow for one question to the provider, and how long to wait before it.
func (fs *flows) begin(id []byte, pub ed25519.PublicKey, now time.Time) (*flow, time.Duration, error) {
	over := reason.SignIn("this sign-in is over, or it is not yours").WithHint("sign in again")
	if len(id) != flowSize {
		return nil, 0, over
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f, known := fs.m[[flowSize]byte(id)]
	if !known || !now.Before(f.expires) || f.key != SessionKey(pub) {
		return nil, 0, over
	}
	if f.busy {
		return nil, 0, reason.Conflict("this sign-in is being looked at already")
	}
	f.busy = true
	return f, f.next.Sub(now), nil
}

func (fs *flows) end(id []byte, f *flow, over, slower, early bool, now time.Time) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.busy = false; early {
		return
	}
	if over {
		delete(fs.m, [flowSize]byte(id))
		return
	}
	if slower {
		f.every = min(f.every+5*time.Second, maxInterval) // RFC 8628, section 3.5
	}
	f.next = now.Add(f.every)
}

// FinishDevice asks the provider once whether the person has agreed, when it may be asked. pub is the
// key that the connection proved.
func (s *Service) FinishDevice(ctx context.Context, id []byte, pub ed25519.PublicKey) (
	session Session, done bool, err error,
) {
	f, wait, err := s.flows.begin(id, pub, s.c.Now())
	if err != nil {
		return session, false, err
	}
	over, slower, early := false, false, false
	defer func() { s.flows.end(id, f, over, slower, early, s.c.Now()) }()
	timer := time.NewTimer(min(max(wait, 0), longestWait))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return session, false, ctx.Err()
	case <-timer.C:
	}
	if wait > longestWait {
		early = true // the caller asks again; the provider is not asked yet
		return session, false, nil
	}
	// An answer with a token is given once: it must not be lost because the caller hangs up.
	ctx = context.WithoutCancel(ctx)
	p, pending, slow, err := s.c.Federation.Provider.PollDevice(ctx, f.code)
	slower = slow
	if pending {
		return session, false, nil
	}
	if err != nil {
		over = errors.Is(err, ErrRefused)
		return session, false, s.outage(err)
	}
	over = true
	f.session.Created = s.c.Now()
	f.session.Expires, f.session.Used = f.session.Created.Add(s.c.SessionTTL), f.session.Created
	session, err = s.welcome(ctx, p, f.session)
	return session, err == nil, err
}
