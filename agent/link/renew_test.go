package link_test

import (
	"testing"
	"time"
)

func TestRenewsBeforeItsCertificateEnds(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	dir := c.joined()
	stop := c.run(dir, r, nil)
	root, s := r.accept(), c.accept()
	time.Sleep(100 * time.Millisecond)
	if n := c.renewed(); n != 0 {
		t.Fatalf("%d renewals of a fresh certificate", n)
	}
	c.clock.pass(c.life*2/3 + time.Second)
	eventually(t, "the certificate is renewed", func() bool { return c.renewed() == 1 })
	// The stream goes on.
	if err := s.Send(downMessage(1)); err != nil {
		t.Fatal(err)
	}
	readFrame(t, root)
	time.Sleep(100 * time.Millisecond)
	if n := c.renewed(); n != 1 {
		t.Errorf("%d renewals, want 1", n)
	}
	stop()
	// What is on the disk is the new one.
	c.run(dir, r, nil)
	r.accept()
	c.accept()
	time.Sleep(100 * time.Millisecond)
	if n := c.renewed(); n != 1 {
		t.Errorf("%d renewals after a restart, want 1: the new certificate was not kept", n)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.certs) != 2 {
		t.Errorf("the link showed %d certificates, want the old and the new", len(c.certs))
	}
}

// A host that was off until long after its certificate's end renews at once.
func TestRenewsWhenOverdue(t *testing.T) {
	c, r := newControl(t), newRootHalf(t)
	dir := c.joined()
	c.clock.pass(4 * c.life)
	c.run(dir, r, nil)
	eventually(t, "the certificate is renewed", func() bool { return c.renewed() == 1 })
	r.accept()
	c.accept()
}
