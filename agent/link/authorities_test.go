package link_test

import (
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/join"
)

// become makes a control plane show certificates from another one's CA, at its own address.
func (c *control) become(other *control) {
	c.t.Helper()
	c.server.Stop()
	c.mu.Lock()
	c.ca, c.key, c.announced = other.ca, other.key, nil
	c.mu.Unlock()
	c.listen(c.address)
}

// A link goes over to another CA by the word of the one that it accepts, keeps that across a restart, and
// renews a certificate that is from the one before.
func TestGoesOverToAnotherCA(t *testing.T) {
	c, next, r := newControl(t), newControl(t), newRootHalf(t)
	dir := c.joined()
	stop := c.run(dir, r, nil)
	r.accept()
	s := c.accept()
	eventually(t, "the link says what it accepts", func() bool { return c.says() == 1 })
	c.mu.Lock()
	c.announced = [][]byte{c.ca.Raw, next.ca.Raw}
	c.mu.Unlock()
	s.end <- nil
	r.accept()
	c.accept()
	eventually(t, "the link accepts both", func() bool { return c.says() == 2 })
	stop()
	c.become(next)
	c.staleCert = true
	c.run(dir, r, nil)
	r.accept()
	c.accept()
	eventually(t, "the link accepts the new one alone", func() bool { return c.says() == 1 })
	eventually(t, "the certificate is renewed", func() bool { return c.renewed() > 0 })
}

// A CA that nobody announced is none: neither by showing it, nor by announcing garbage.
func TestAcceptsNoOtherCA(t *testing.T) {
	c, other, r := newControl(t), newControl(t), newRootHalf(t)
	dir := c.joined()
	before, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	c.announced = [][]byte{c.ca.Raw, []byte("garbage")}
	stop := c.run(dir, r, nil)
	r.accept()
	c.accept()
	eventually(t, "the link has asked", func() bool { return c.says() == 1 })
	stop()
	if after, err := os.ReadFile(filepath.Join(dir, "ca.crt")); err != nil || string(after) != string(before) {
		t.Errorf("the CAs on the disk changed: %v", err)
	}
	if err := link.TrustCA(context.Background(), dir, sha256.Sum256([]byte("x")), c.clock.now); err == nil {
		t.Error("a pin of nobody's is trusted")
	}
	if err := link.TrustCA(context.Background(), dir, join.Pin(other.ca.Raw), c.clock.now); err == nil {
		t.Error("the pin of another control plane is trusted")
	}
	// By hand, with the right pin.
	c.become(other)
	if err := link.TrustCA(context.Background(), dir, join.Pin(other.ca.Raw), c.clock.now); err != nil {
		t.Fatal(err)
	}
	c.run(dir, r, nil)
	r.accept()
	c.accept()
}
