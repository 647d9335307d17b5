package enrol

import (
	"fmt"
	"net"
	"testing"
	"time"
)

func TestLimiterRefills(t *testing.T) {
	l, now := newLimiter(3, time.Second), time.Now()
	for i := range 5 {
		if got, want := l.take("a", now), i < 3; got != want {
			t.Errorf("try %d: %v, want %v", i, got, want)
		}
	}
	if !l.take("b", now) {
		t.Error("another peer is limited")
	}
	if l.take("a", now.Add(900*time.Millisecond)) || !l.take("a", now.Add(1100*time.Millisecond)) {
		t.Error("a try comes back after a second, not earlier")
	}
	if l.take("a", now.Add(-time.Hour)) {
		t.Error("a clock that was set back gives tries")
	}
	later := now.Add(time.Hour)
	for i := range 4 {
		if got, want := l.take("a", later), i < 3; got != want {
			t.Errorf("after an hour, try %d: %v, want %v", i, got, want)
		}
	}
}

// Whoever comes from a million addresses does not fill the memory, and does not push out the memory
// of those who are limited.
func TestLimiterIsBounded(t *testing.T) {
	l, now := newLimiter(3, time.Minute), time.Now()
	for range 3 {
		l.take("guesser", now)
	}
	for i := range 3 * maxLimited {
		l.take(fmt.Sprint("peer", i), now)
	}
	if len(l.buckets) > maxLimited {
		t.Errorf("%d buckets, at most %d", len(l.buckets), maxLimited)
	}
	if l.take("guesser", now) {
		t.Error("the guesser was forgotten")
	}
}

func TestPeersAreKnownByAddress(t *testing.T) {
	key := func(ip string, port int) string {
		return peerKey(&net.TCPAddr{IP: net.ParseIP(ip), Port: port})
	}
	one := key("192.0.2.1", 1)
	if one != key("192.0.2.1", 2) || one != key("::ffff:192.0.2.1", 1) {
		t.Error("one IPv4 peer has two keys")
	}
	if key("192.0.2.1", 1) == key("192.0.2.2", 1) {
		t.Error("two IPv4 peers have one key")
	}
	if key("2001:db8::1", 1) != key("2001:db8::ffff:2", 1) {
		t.Error("one machine roams within its /64")
	}
	if key("2001:db8::1", 1) == key("2001:db8:0:1::1", 1) {
		t.Error("two networks have one key")
	}
	if peerKey(nil) == "" {
		t.Error("no key for an unknown peer")
	}
}
