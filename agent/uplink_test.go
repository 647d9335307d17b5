package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// What a host kept while its control plane was away goes out beside what it has to say now, however
// slowly that is taken.
func TestABacklogCrowdsNothingOut(t *testing.T) {
	const kept = 600
	m := newMachine(t)
	m.start()
	p := m.connect()
	for i := range kept {
		p.sendGrant(fmt.Appendf(nil, "no grant, %d", i)) // its refusal is an event
	}
	p.sendState(p.state(nil))
	p.ack()
	_ = p.conn.Close()

	p.taking.Lock()
	take := sync.OnceFunc(p.taking.Unlock)
	defer take()    // also when the test gives up
	p = m.connect() // which holds none of these events
	waiting := 0
	m.within(10*time.Second, "the host to get rid of no more", func() bool {
		before := waiting
		time.Sleep(50 * time.Millisecond)
		waiting = p.untaken()
		return waiting > 0 && waiting == before
	})
	p.sendState(p.state(nil))
	m.within(10*time.Second, "the state to be accepted", func() bool {
		var sequence uint64
		err := m.half.owner.do(t.Context(), func(context.Context) { sequence = m.half.owner.ledger.Sequence() })
		return err == nil && sequence == p.sequence
	})
	take()
	p.ack()
	for range kept {
		p.next(func(m *curfewv1.HostMessage) bool { return m.GetEvent().GetKind() == "grant.rejected" })
	}
}

// untaken is how many bytes the host has sent that the plane has not taken.
func (p *plane) untaken() (n int) {
	p.t.Helper()
	raw, err := p.conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		p.t.Fatal(err)
	}
	errControl := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err := errors.Join(errControl, err); err != nil {
		p.t.Fatal(err)
	}
	return n
}
