package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// purgeAt ends a request without the root half, by the clocks as they are, ahead and set back.
func (m *machine) purgeAt(request string, ahead, back time.Duration) error {
	m.t.Helper()
	clock, err := expiry.SystemClock()
	if err != nil {
		m.t.Fatal(err)
	}
	return Purge(m.t.Context(), PurgeConfig{
		Root: m.root, Program: "/bin/false", Log: hclog.NewNullLogger(), RequestID: request,
		Clock: func() grant.Clock {
			now := clock()
			now.Wall, now.Boot = now.Wall.Add(ahead-back), now.Boot+ahead
			return now
		},
	})
}

// napping starts a process of a uid and says whether it lives.
func (m *machine) napping(uid uint32) (lives func() bool) {
	m.t.Helper()
	cmd := runAs(uid, "/bin/sleep", "3600")
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	m.t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	return func() bool {
		select {
		case <-ended:
			return false
		case <-time.After(200 * time.Millisecond):
			return true
		}
	}
}

// Without the root half a purge ends what is over and nothing that lives, also with the wall clock
// set back to where the grant was open.
func TestPurgeGoesByTheLedger(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	const uid = 1900000077
	request := requestID("long")
	id, env := p.grant(p.terms(request, "alice", withRule, func(t *curfewv1.Terms) { t.Uid = uid }))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	p.ack()
	m.stop()
	lives := m.napping(uid)
	if err := m.purgeAt(request, 0, 0); !errors.Is(err, ErrLives) || !lives() {
		t.Errorf("before the end: %v, it lives: %v", err, lives())
	}
	if err := m.purgeAt("000000000000", 2*time.Hour, 0); err == nil || !lives() {
		t.Errorf("of a request that nobody knows: %v, alice's lives: %v", err, lives())
	}
	if err := m.purgeAt(request, 61*time.Minute, 61*time.Minute); err != nil || lives() {
		t.Errorf("after the end, the clock set back: %v, it lives: %v", err, lives())
	}
}

// When the root half died between closing the ledger and killing, the records of sessions say whose
// the request was.
func TestPurgeGoesByTheSessions(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	const uid = 1900000078
	request := requestID("short")
	id, env := p.grant(p.terms(request, "alice", withRule, lasting(5*time.Second),
		func(t *curfewv1.Terms) { t.Uid = uid }))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	end := time.UnixMilli(resultOf(t, p.ack(), id).GetEndMs())
	time.Sleep(time.Until(end))
	p.event("grant.purged")
	m.stop()

	lives := m.napping(uid)
	if err := m.purgeAt(request, 0, 0); err == nil || !lives() {
		t.Errorf("without a record: %v, it lives: %v", err, lives())
	}
	monitor := exec.Command("/bin/sleep", "3600")
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = monitor.Process.Kill(); _ = monitor.Wait() })
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.path(enforce.RunDir+"/sessions"), 0o700); err != nil {
		t.Fatal(err)
	}
	m.write(enforce.RunDir+"/sessions/00112233445566aa.json", fmt.Sprintf(`{"version":1,"boot_id":%q,
"session":{"id":"00112233445566aa","request_id":%q,"login":"alice","uid":%d,"service":"sshd",
"pid":%d,"start_ticks":1,"login_uid":4294967295,"audit_session":4294967295}}`,
		string(boot[:36]), request, uid, monitor.Process.Pid))
	if err := m.purgeAt(request, 0, 0); err != nil || lives() {
		t.Errorf("with a record: %v, it lives: %v", err, lives())
	}
}
