// Package watch tells everybody in the process who waits that something durable changed.
//
// It carries names, never content: whoever hears of a change reads the store. Every watcher has a
// bounded queue, and one that does not keep up is dropped with an error, so that it never slows a
// change down. Data comes from package store after each commit.
package watch

import (
	"errors"
	"slices"
	"sync"

	"github.com/curfew-access/curfew/internal/grant"
)

// ErrSlow means that a watcher was dropped because it did not keep up.
var ErrSlow = errors.New("the watcher did not keep up with the changes; start it again")

// ErrClosed means that the server is stopping.
var ErrClosed = errors.New("the server is stopping; start the watch again")

// Change names what one commit touched.
type Change struct {
	Requests []string
	// Hosts whose set of live grants changed.
	Hosts []grant.HostID
	// Heard are hosts that said something: sessions, health, coming and going.
	Heard []grant.HostID
	// Records is set when the trail grew.
	Records bool
	// Messages is set when the outbox grew, Trust when the trust file changed.
	Messages, Trust bool
}

// Empty says whether nothing that anybody waits for changed.
func (c *Change) Empty() bool {
	return len(c.Requests) == 0 && len(c.Hosts) == 0 && len(c.Heard) == 0 && !c.Records && !c.Messages && !c.Trust
}

// AddRequest adds a request, once.
func (c *Change) AddRequest(id string) {
	if !slices.Contains(c.Requests, id) {
		c.Requests = append(c.Requests, id)
	}
}

// AddHost adds a host, once.
func (c *Change) AddHost(id grant.HostID) {
	if !slices.Contains(c.Hosts, id) {
		c.Hosts = append(c.Hosts, id)
	}
}

// Bell passes changes on to its subscribers. Its zero value is ready; safe for concurrent use.
type Bell struct {
	mu     sync.Mutex // guards all below
	subs   map[*Subscription]struct{}
	closed bool
}

// Subscription is one watcher's queue.
type Subscription struct {
	// C delivers changes; it is closed when the subscription ends, and Err says why.
	C    <-chan Change
	c    chan Change
	bell *Bell
	err  error // guarded by bell.mu
}

// Subscribe starts a watcher whose queue holds depth changes.
func (b *Bell) Subscribe(depth int) *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(chan Change, depth)
	s := &Subscription{C: c, c: c, bell: b}
	if b.closed {
		s.err = ErrClosed
		close(c)
		return s
	}
	if b.subs == nil {
		b.subs = make(map[*Subscription]struct{})
	}
	b.subs[s] = struct{}{}
	return s
}

// Ring passes a change on without waiting for anybody.
func (b *Bell) Ring(c Change) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		select {
		case s.c <- c:
		default:
			b.end(s, ErrSlow)
		}
	}
}

// Close ends every subscription and refuses new ones.
func (b *Bell) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for s := range b.subs {
		b.end(s, ErrClosed)
	}
}

func (b *Bell) end(s *Subscription, err error) {
	if _, ok := b.subs[s]; !ok {
		return
	}
	delete(b.subs, s)
	s.err = err
	close(s.c)
}

// Close ends the subscription. It may be called twice.
func (s *Subscription) Close() {
	s.bell.mu.Lock()
	defer s.bell.mu.Unlock()
	s.bell.end(s, nil)
}

// Err says why the subscription ended; nil while it runs or when its owner closed it.
func (s *Subscription) Err() error {
	s.bell.mu.Lock()
	defer s.bell.mu.Unlock()
	return s.err
}
