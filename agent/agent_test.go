package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// machine is a root half below a temporary folder, with the real sudo tools and no systemd.
type machine struct {
	t      *testing.T
	root   string
	plane  *plane
	cancel context.CancelFunc
	done   chan error
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes root's files and asks the real visudo; run it as root")
	}
	root, err := os.MkdirTemp("", "cf") // short: socket paths are
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: root}
	for dir, mode := range map[string]os.FileMode{
		"etc/sudoers.d": 0o755, "etc/curfew": 0o755, "run/curfew": 0o755, "var/lib/curfew": 0o700,
		"usr/bin": 0o755, "usr/sbin": 0o755, "home": 0o755,
	} {
		if err := os.MkdirAll(m.path(dir), mode); err != nil {
			t.Fatal(err)
		}
	}
	m.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nbob:x:1001:1001::/home/bob:/bin/bash\n"+
		"curfew-link:x:999:999::/:/usr/sbin/nologin\n")
	m.write("etc/group", "root:x:0:\nbob:x:1001:\ncurfew-users:x:990:\ncurfew-link:x:999:\n"+
		"curfew-breakglass:x:991:\n")
	m.write("etc/sudoers", "@includedir "+m.path("etc/sudoers.d")+"\n")
	m.write("etc/sudoers.d/curfew", "@includedir "+m.path(enforce.SudoersDir)+"\n")
	m.settings("mode: enforce\nelevate_users: [bob]\n")
	for link, target := range map[string]string{
		"usr/sbin/visudo": "/usr/sbin/visudo", "usr/bin/cvtsudoers": "/usr/bin/cvtsudoers",
	} {
		if err := os.Symlink(target, m.path(link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"usr/bin/true": "", "usr/bin/getent": getent} {
		m.write(name, text)
		if err := os.Chmod(m.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.write("etc/directory", "")
	m.join()
	return m
}

// getent is a name service that knows the host's own files and the accounts that have keys.
const getent = `#!/bin/sh
root=$(dirname "$0")/../..
case $2 in *[!0-9]*) ;; *) exit 2 ;; esac
grep "^$2:" "$root/etc/directory" && exit 0
grep "^$2:" "$root/etc/passwd" && exit 0
line=$(grep " $2\$" "$root/var/lib/curfew/gate.conf" | grep ^account) || exit 2
set -- $line
echo "$3:*:$2:$2:Curfew account:/home/$3:/bin/bash"
`

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

func (m *machine) write(name, data string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(data), 0o440); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) settings(text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(ConfigPath), []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// join is what curfew-agent join keeps.
func (m *machine) join() {
	m.t.Helper()
	s, err := store.Open(store.Config{Directory: m.path(enforce.StateDir)})
	if err != nil {
		m.t.Fatal(err)
	}
	key, err := s.NewKey(rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	m.plane = newPlane(m.t, key.Public().(ed25519.PublicKey))
	ledger, err := grant.NewLedger(m.plane.host, m.plane.sealedTrust())
	if err != nil {
		m.t.Fatal(err)
	}
	err = errors.Join(s.SaveHost(store.Host{Name: "web1", Organisation: "example"}),
		s.SaveLedger(ledger), s.Close())
	if err != nil {
		m.t.Fatal(err)
	}
}

// start runs the root half until stop or the test's end.
func (m *machine) start() {
	m.t.Helper()
	clock, err := expiry.SystemClock()
	if err != nil {
		m.t.Fatal(err)
	}
	log := hclog.New(&hclog.LoggerOptions{Output: testWriter{m.t}, Level: hclog.Debug})
	e, err := NewEnforce(EnforceConfig{
		Root: m.root, Program: "/usr/bin/curfew-agent", Version: "test", Clock: clock, Log: log,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(e.Run(ctx), e.Close()) }()
	m.cancel, m.done = cancel, done
	m.t.Cleanup(m.stop)
}

func (m *machine) stop() {
	m.t.Helper()
	if m.cancel == nil {
		return
	}
	m.cancel()
	select {
	case err := <-m.done:
		if err != nil {
			m.t.Errorf("the root half ends with %v", err)
		}
	case <-time.After(20 * time.Second):
		m.t.Error("the root half does not end")
	}
	m.cancel = nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func (m *machine) connect() *plane {
	m.t.Helper()
	m.plane.dial(m.path(enforce.RunDir))
	return m.plane
}

func (m *machine) has(name string) bool {
	_, err := os.Lstat(m.path(name))
	return err == nil
}

func (m *machine) dropin(id grant.ID) string { return enforce.SudoersDir + "/" + id.String() }

var rule = &curfewv1.SudoRule{RunAs: "root", Command: "/usr/bin/true", Args: []string{"x"}, Contained: true}

func withRule(t *curfewv1.Terms) { t.SudoRules = []*curfewv1.SudoRule{rule} }

func lasting(d time.Duration) func(*curfewv1.Terms) {
	return func(t *curfewv1.Terms) { t.DurationMs = d.Milliseconds() }
}

func resultOf(t *testing.T, a *curfewv1.Ack, id grant.ID) *curfewv1.GrantResult {
	t.Helper()
	for _, r := range a.GetGrants() {
		if grant.ID(r.GetGrantId()) == id {
			return r
		}
	}
	t.Fatalf("the ack does not name grant %s: %v", id.Short(), a)
	return nil
}

func TestGrantIsAppliedAcknowledgedAndRevoked(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	if p.hello.GetTrustVersion() != 1 || grant.HostID(p.hello.GetHostId()) != p.host {
		t.Errorf("hello %v", p.hello)
	}
	id, env := p.grant(p.terms(requestID("one"), "alice", withRule))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	ack := p.ack()
	r := resultOf(t, ack, id)
	if !ack.GetAccepted() || r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED ||
		r.GetStartMs() == 0 || r.GetEndMs() != r.GetStartMs()+time.Hour.Milliseconds() {
		t.Fatalf("ack %v", ack)
	}
	// The acknowledgement comes after the files.
	for _, f := range []string{m.dropin(id), enforce.KeysDir + "/alice", "run/curfew/nss.db"} {
		if !m.has(f) {
			t.Errorf("%s is missing after the ack", f)
		}
	}
	p.sendState(p.state([]*curfewv1.Ended{
		{GrantId: id[:], Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "anna"},
	}))
	if ack := p.ack(); !ack.GetAccepted() || len(ack.GetGrants()) != 0 {
		t.Errorf("ack %v", ack)
	}
	if m.has(m.dropin(id)) || m.has(enforce.KeysDir+"/alice") {
		t.Error("files of the revoked grant are there after the ack")
	}
	if e := p.event(trail.KindGrantEnded); e.GetDetails()["cause"] != "revoked" ||
		e.GetDetails()["by"] != "anna" || e.GetRequestId() != requestID("one") {
		t.Errorf("event %v", e)
	}
	// An approval is not spent twice.
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r = resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED ||
		!strings.Contains(r.GetDetail(), "cannot be spent twice") {
		t.Errorf("the ended grant again: %v", r)
	}
	if m.has(m.dropin(id)) {
		t.Error("the ended grant is back")
	}
}

func TestExpiryOnTime(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	id, env := p.grant(p.terms(requestID("short"), "alice", withRule, lasting(grant.MinDuration)))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r := resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
		t.Fatal(r)
	}
	end := time.UnixMilli(r.GetEndMs())
	for m.has(m.dropin(id)) && time.Since(end) < 5*time.Second {
		time.Sleep(5 * time.Millisecond)
	}
	if late := time.Since(end); late < 0 || late > time.Second {
		t.Errorf("the drop-in went %v after the end", late)
	}
	if e := p.event(trail.KindGrantEnded); e.GetDetails()["cause"] != "expired" {
		t.Errorf("event %v", e)
	}
}

// A4, A5 and what else a host refuses: nothing is applied, the host says why, and it is on the trail.
func TestRefusals(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	over := p.terms(requestID("over"), "alice")
	over.DurationMs = (48 * time.Hour).Milliseconds()
	over.HardEndMs = time.Now().Add(100 * time.Hour).UnixMilli()
	rootly := p.terms(requestID("rootly"), "alice", func(t *curfewv1.Terms) {
		t.SudoRules = []*curfewv1.SudoRule{{RunAs: "root", All: true}}
	})
	groups := p.terms(requestID("groups"), "alice", func(t *curfewv1.Terms) {
		t.Groups = []string{"docker"}
	})
	own := p.terms(requestID("own"), "anna")
	for want, terms := range map[string]*curfewv1.Terms{
		"a duration of 48h": over, "root-equivalent": rootly, "group docker": groups,
		"cannot approve their own": own,
	} {
		id, env := p.grant(terms)
		p.sendGrant(env)
		if e := p.event(trail.KindGrantRejected); !strings.Contains(e.GetDetails()["error"], want) {
			t.Errorf("event %v, want %q", e, want)
		}
		p.sendState(p.state(nil, id))
		r := resultOf(t, p.ack(), id)
		if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_REJECTED ||
			!strings.Contains(r.GetDetail(), want) {
			t.Errorf("%v, want %q", r, want)
		}
	}
	// One that verifies, but that the host cannot enforce.
	local := p.terms(requestID("local"), "games", withRule)
	m.write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\ngames:x:1005:1005::/:/bin/sh\n")
	id, env := p.grant(local)
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	r := resultOf(t, p.ack(), id)
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_FAILED ||
		!strings.Contains(r.GetDetail(), "list it in gated_users") {
		t.Errorf("%v", r)
	}
	// Not held.
	missing := grant.ID{1}
	p.sendState(p.state(nil, missing))
	if r := resultOf(t, p.ack(), missing); r.GetStatus() !=
		curfewv1.GrantStatus_GRANT_STATUS_MISSING {
		t.Errorf("%v", r)
	}
	// An older state.
	p.sequence -= 2
	p.sendState(p.state(nil))
	if ack := p.ack(); ack.GetAccepted() || !strings.Contains(ack.GetDetail(), "older") {
		t.Errorf("an older state: %v", ack)
	}
	p.event(trail.KindStateRejected)
}

// F1 and step 9 in small: killed with a live grant, the agent finds it in place; with one that ended
// meanwhile, it is gone before anything is served.
func TestRestart(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	long, env := p.grant(p.terms(requestID("long"), "alice", withRule))
	p.sendGrant(env)
	short, env := p.grant(p.terms(requestID("short"), "bob", withRule, lasting(grant.MinDuration),
		func(t *curfewv1.Terms) { t.Uid = 1900000002 }))
	p.sendGrant(env)
	p.sendState(p.state(nil, long, short))
	ack := p.ack()
	end := time.UnixMilli(resultOf(t, ack, short).GetEndMs())
	for _, id := range []grant.ID{long, short} {
		if r := resultOf(t, ack, id); r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			t.Fatal(r)
		}
	}
	m.stop()
	time.Sleep(time.Until(end))
	if !m.has(m.dropin(long)) || !m.has(m.dropin(short)) {
		t.Fatal("stopping the agent changed access")
	}
	m.start()
	p = m.connect()
	if m.has(m.dropin(short)) || !m.has(m.dropin(long)) {
		t.Error("after the restart: the ended one stands or the live one is gone")
	}
	if p.hello.GetSequence() != p.sequence || p.hello.GetEventCount() == 0 {
		t.Errorf("hello %v", p.hello)
	}
	if e := p.event(trail.KindGrantEnded); grant.ID(e.GetGrantId()) != short {
		t.Errorf("event %v", e)
	}
}

func TestExtensionKeepsTheRequest(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	terms := p.terms(requestID("one"), "alice", withRule)
	first, env := p.grant(terms)
	p.sendGrant(env)
	p.sendState(p.state(nil, first))
	start := resultOf(t, p.ack(), first).GetStartMs()
	raw, err := grant.MarshalTerms(terms)
	if err != nil {
		t.Fatal(err)
	}
	digest := grant.TermsDigest(raw)
	second, env := p.grant(p.terms(requestID("one"), "alice", withRule, func(t *curfewv1.Terms) {
		t.Revision, t.Follows = 2, digest[:]
		t.DurationMs = (2 * time.Hour).Milliseconds()
	}))
	p.sendGrant(env)
	gaps := m.watchGaps()
	p.sendState(p.state(nil, first, second))
	ack := p.ack()
	r := resultOf(t, ack, second)
	if n := gaps(); n > 0 {
		t.Errorf("%d times during the extension, there was no key or no rule", n)
	}
	if len(ack.GetGrants()) != 1 {
		t.Errorf("ack %v", ack)
	}
	if r.GetStatus() != curfewv1.GrantStatus_GRANT_STATUS_APPLIED || r.GetStartMs() != start ||
		r.GetEndMs() != start+(2*time.Hour).Milliseconds() {
		t.Errorf("%v", r)
	}
	if m.has(m.dropin(first)) || !m.has(m.dropin(second)) || !m.has(enforce.KeysDir+"/alice") {
		t.Error("the extension did not take the place of what it follows")
	}
	status, err := AskStatus(context.Background(), m.path("run/curfew/admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if len(status.Grants) != 1 || status.Grants[0].Request != requestID("one") ||
		status.Grants[0].Status != "applied" || len(status.Ending) != 0 || !status.Connected {
		t.Errorf("%+v", status)
	}
}

// watchGaps looks for moments without key or rule, until the returned function is called.
func (m *machine) watchGaps() (stop func() int) {
	done, found := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			entries, err := os.ReadDir(m.path(enforce.SudoersDir))
			rule := slices.ContainsFunc(entries, func(e os.DirEntry) bool {
				return !strings.Contains(e.Name(), ".")
			})
			if err != nil || !rule || !m.has(enforce.KeysDir+"/alice") {
				n++
			}
			select {
			case <-done:
				found <- n
				return
			default:
			}
		}
	}()
	return func() int { close(done); return <-found }
}

// A clone is told so, and opens nothing more; it is no problem once it is served again.
func TestRefusedHostOpensNothing(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	id, env := p.grant(p.terms(requestID("one"), "alice"))
	p.sendGrant(env)
	p.sendState(p.state(nil, id))
	p.ack()
	closed := func() string {
		t.Helper()
		s, err := AskStatus(context.Background(), m.path("run/curfew/admin.sock"))
		if err != nil {
			t.Fatal(err)
		}
		return s.MayOpen
	}
	if why := closed(); why != "" {
		t.Errorf("before: %s", why)
	}
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Refused{
		Refused: &curfewv1.Refused{Reason: "a clone"},
	}})
	for start := time.Now(); !strings.Contains(closed(), "a clone"); {
		if time.Since(start) > 5*time.Second {
			t.Fatal("a refused host still opens access")
		}
		time.Sleep(5 * time.Millisecond)
	}
	m.connect()
	for start := time.Now(); closed() != ""; {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("served again: %s", closed())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestSettingsChangeAtOnce(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	gate := func() string {
		data, err := os.ReadFile(m.path("var/lib/curfew/gate.conf"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if !strings.Contains(gate(), "mode enforce\n") || !strings.Contains(gate(), "elevate 1001 bob\n") {
		t.Errorf("gate table\n%s", gate())
	}
	m.settings("mode: enforced\n")
	if e := p.event(trail.KindConfigRejected); !strings.Contains(e.GetDetails()["error"], "line 1: mode") {
		t.Errorf("event %v", e)
	}
	if !strings.Contains(gate(), "mode enforce\n") {
		t.Error("a broken file changed something")
	}
	for _, vanish := range []func() error{
		func() error { return os.Truncate(m.path(ConfigPath), 0) },
		func() error { return os.Remove(m.path(ConfigPath)) },
	} {
		if err := vanish(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond) // longer than a change takes to be seen
		if !strings.Contains(gate(), "mode enforce\n") {
			t.Error("an empty or missing file took the mode away")
		}
	}
	m.settings("mode: observe\ngated_users: [bob]\n")
	p.event(trail.KindConfigLoaded)
	for start := time.Now(); !strings.Contains(gate(), "mode observe\ngated 1001 bob\n"); {
		if time.Since(start) > 5*time.Second {
			t.Fatalf("gate table\n%s", gate())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestEventsAreSentOnceAndGoWhenAcknowledged(t *testing.T) {
	m := newMachine(t)
	m.start()
	p := m.connect()
	var last uint64
	var chain trail.Chain
	for range 2 {
		id, env := p.grant(p.terms(requestID(fmt.Sprint("n", last)), "alice", withRule))
		p.sendGrant(env)
		p.sendState(p.state(nil, id))
		for kind := ""; kind != trail.KindGrantApplied; {
			e := p.next(func(m *curfewv1.HostMessage) bool { return m.GetEvent() != nil }).GetEvent()
			next, err := chain.Next(e)
			if err != nil {
				t.Fatal(err)
			}
			chain, last, kind = next, e.GetNumber(), e.GetKind()
		}
		p.sendState(p.state(nil))
	}
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_EventAck{
		EventAck: &curfewv1.EventAck{Count: last},
	}})
	m.stop()
	m.start()
	m.plane.conn.Close()
	m.connect()
	if got := p.hello.GetEventCount(); got < last {
		t.Errorf("hello counts %d events, %d were sent", got, last)
	}
}

// A10: the sockets are root's, and the link half's.
func TestSocketsAreClosedToOthers(t *testing.T) {
	m := newMachine(t)
	m.start()
	cmd := runAs(1001, "/bin/sh", "-c", "exec 3<>/dev/null; [ -w "+m.path("run/curfew/link.sock")+" ]")
	if err := cmd.Run(); err == nil {
		t.Error("an ordinary user may write to the link socket")
	}
	for _, sock := range []string{"link.sock", "admin.sock", "gate.sock"} {
		info, err := os.Stat(m.path("run/curfew/" + sock))
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o600)
		if sock == "link.sock" {
			want = 0o660
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", sock, info.Mode())
		}
	}
}

func TestCorruptStoreIsRefused(t *testing.T) {
	m := newMachine(t)
	for name, want := range map[string]error{
		"ledger.json": store.ErrCorrupt, "root.key": store.ErrCorrupt, "host.json": store.ErrCorrupt,
	} {
		good, err := os.ReadFile(m.path("var/lib/curfew/" + name))
		if err != nil {
			t.Fatal(err)
		}
		bad := append([]byte("x"), good...)
		if err := os.WriteFile(m.path("var/lib/curfew/"+name), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		clock, err := expiry.SystemClock()
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewEnforce(EnforceConfig{
			Root: m.root, Program: "/x", Version: "test", Clock: clock, Log: hclog.NewNullLogger(),
		})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "join anew") {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.WriteFile(m.path("var/lib/curfew/"+name), good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
