package agent

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// plane is a control plane as far as a host can tell: it has the keys, seals what it likes, and talks
// over the link socket.
type plane struct {
	t        *testing.T
	root     ed25519.PrivateKey
	issuer   ed25519.PrivateKey
	approver ssh.Signer
	trust    *grant.Trust
	host     grant.HostID
	hostKey  ed25519.PublicKey
	sequence uint64
	nonce    []byte
	ahead    time.Duration // of its clock

	conn  net.Conn
	hello *curfewv1.Hello
	in    chan *curfewv1.HostMessage
	// taking is held by who has the plane take nothing but the hello for a while.
	taking sync.Mutex
	// earlier are messages that nobody has asked for yet.
	earlier []*curfewv1.HostMessage
	lease   time.Duration // 15 min when zero
	// rollout is what its states want of the host.
	rollout *curfewv1.Rollout
}

func seeded(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

func sshText(t *testing.T, key ed25519.PrivateKey) string {
	t.Helper()
	pub, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return grant.SSHKeyText(pub)
}

func newPlane(t *testing.T, hostKey ed25519.PublicKey) *plane {
	t.Helper()
	p := &plane{
		t: t, root: seeded(1), issuer: seeded(2), hostKey: hostKey, host: grant.HostIDOf(hostKey),
	}
	signer, err := ssh.NewSignerFromKey(seeded(3))
	if err != nil {
		t.Fatal(err)
	}
	p.approver = signer
	p.trust = &grant.Trust{
		Version: 1, Organisation: "example", Epoch: 1, RootThreshold: 1,
		RootKeys:   []grant.Key{grant.Key(p.root.Public().(ed25519.PublicKey))},
		IssuerKeys: []grant.Key{grant.Key(p.issuer.Public().(ed25519.PublicKey))},
		Approvers: []grant.Approver{
			{Name: "anna", Groups: []string{"leads"}, SSHKeys: []string{sshText(t, seeded(3))}},
		},
		Quorums: []grant.Quorum{{Role: "ops", Group: "leads", Approvals: 1}},
	}
	return p
}

func (p *plane) sealedTrust() []byte {
	p.t.Helper()
	env, err := grant.SealTrust(p.trust, p.root)
	if err != nil {
		p.t.Fatal(err)
	}
	return env
}

// terms are a request's for this host, from now for an hour.
func (p *plane) terms(request, login string, edit ...func(*curfewv1.Terms)) *curfewv1.Terms {
	now := time.Now()
	hash := sha256.Sum256([]byte("why"))
	t := &curfewv1.Terms{
		Version: 1, Organisation: "example", RequestId: request, Revision: 1, Requester: login,
		Hosts: []*curfewv1.HostRef{{Id: p.host[:], Name: "web1"}}, Role: "ops", Login: login,
		Uid: 1900000001, AllowLogin: true, StartMode: curfewv1.StartMode_START_MODE_CONFIRMATION,
		AuthorizedKeys:  []string{sshText(p.t, seeded(9))},
		StartEarliestMs: now.Add(-time.Minute).UnixMilli(),
		StartLatestMs:   now.Add(time.Hour).UnixMilli(), DurationMs: time.Hour.Milliseconds(),
		HardEndMs: now.Add(3 * time.Hour).UnixMilli(), ApprovalsNeeded: 1, ApproverGroup: "leads",
		PolicyHash: hash[:], ReasonHash: hash[:],
	}
	for _, e := range edit {
		e(t)
	}
	t.RootEquivalent = grant.RootEquivalent(t.GetSudoRules(), t.GetGroups())
	return t
}

// grant seals terms with anna's approval.
func (p *plane) grant(t *curfewv1.Terms) (grant.ID, []byte) {
	p.t.Helper()
	raw, err := grant.MarshalTerms(t)
	if err != nil {
		p.t.Fatal(err)
	}
	sig, err := sshsig.Sign(p.approver, sshsig.NamespaceApprove, raw)
	if err != nil {
		p.t.Fatal(err)
	}
	env, err := grant.SealGrant(&curfewv1.Grant{
		Version: 1, HostId: p.host[:], Terms: raw, IssuedAtMs: time.Now().UnixMilli(),
		Approvals: []*curfewv1.Approval{{Approver: "anna", Sshsig: sig}},
	}, p.issuer)
	if err != nil {
		p.t.Fatal(err)
	}
	return grant.IDOf(raw, p.host), env
}

// state seals the next complete list of live grants.
func (p *plane) state(ended []*curfewv1.Ended, live ...grant.ID) []byte {
	p.t.Helper()
	p.sequence++
	s := &curfewv1.HostState{
		Version: 1, HostId: p.host[:], Epoch: 1, Sequence: p.sequence,
		IssuedAtMs: time.Now().Add(p.ahead).UnixMilli(),
		ValidForMs: cmp.Or(p.lease, 15*time.Minute).Milliseconds(),
		Nonce:      p.nonce, Ended: ended, Rollout: p.rollout,
	}
	for _, id := range live {
		s.Live = append(s.Live, id[:])
	}
	slices.SortFunc(s.Live, bytes.Compare)
	env, err := grant.SealState(s, p.issuer)
	if err != nil {
		p.t.Fatal(err)
	}
	return env
}

// dial connects as the link half would, takes the hello and welcomes the host.
func (p *plane) dial(run string) {
	p.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(run, "link.sock"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.conn = conn
	p.t.Cleanup(func() { _ = conn.Close() })
	// The host cuts off who takes nothing for 10 s, and a test that sends thousands of grants takes
	// nothing meanwhile.
	p.in, p.earlier = make(chan *curfewv1.HostMessage, 4*grant.MaxLive), nil
	go p.read(conn, p.in)
	p.hello = p.next(func(m *curfewv1.HostMessage) bool { return m.GetHello() != nil }).GetHello()
	p.nonce = p.hello.GetNonce()
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Welcome{
		Welcome: &curfewv1.Welcome{HostName: "web1"},
	}})
}

func (p *plane) read(conn net.Conn, in chan<- *curfewv1.HostMessage) {
	defer close(in)
	for {
		b, err := frame.Read(conn, frame.Max)
		if err != nil {
			return
		}
		signed := new(curfewv1.SignedHostMessage)
		if err := proto.Unmarshal(b, signed); err != nil {
			p.t.Errorf("a frame is no message: %v", err)
			return
		}
		m, err := grant.OpenHostMessage(signed, p.hostKey)
		if err != nil {
			p.t.Errorf("a message is not the host's: %v", err)
			return
		}
		if m.GetHello() != nil {
			in <- m
			continue
		}
		p.taking.Lock()
		in <- m
		p.taking.Unlock()
	}
}

func (p *plane) send(m *curfewv1.ControlMessage) {
	p.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := frame.Write(p.conn, b); err != nil {
		p.t.Fatalf("the host closed the connection: %v", err)
	}
}

func (p *plane) sendGrant(env []byte) {
	p.t.Helper()
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Grant{
		Grant: &curfewv1.GrantEnvelope{Envelope: env},
	}})
}

func (p *plane) sendState(env []byte) {
	p.t.Helper()
	p.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_State{
		State: &curfewv1.State{Envelope: env},
	}})
}

// next returns the first message that fits; others are kept for who asks for them.
func (p *plane) next(fits func(*curfewv1.HostMessage) bool) *curfewv1.HostMessage {
	p.t.Helper()
	for i, m := range p.earlier {
		if fits(m) {
			p.earlier = slices.Delete(p.earlier, i, i+1)
			return m
		}
	}
	deadline := time.After(15 * time.Second)
	for {
		select {
		case m, ok := <-p.in:
			if !ok {
				p.t.Fatal("the host closed the connection")
			}
			if fits(m) {
				return m
			}
			p.earlier = append(p.earlier, m)
		case <-deadline:
			p.t.Fatal("the host does not say what is waited for")
		}
	}
}

func (p *plane) ack() *curfewv1.Ack {
	p.t.Helper()
	return p.next(func(m *curfewv1.HostMessage) bool { return m.GetAck() != nil }).GetAck()
}

func (p *plane) event(kind string) *curfewv1.Event {
	p.t.Helper()
	return p.next(func(m *curfewv1.HostMessage) bool {
		return m.GetEvent().GetKind() == kind
	}).GetEvent()
}

// isEvent fits events of these kinds.
func isEvent(kinds ...string) func(*curfewv1.HostMessage) bool {
	return func(m *curfewv1.HostMessage) bool { return slices.Contains(kinds, m.GetEvent().GetKind()) }
}

func requestID(name string) string {
	return (name + strings.Repeat("0", 12))[:12]
}
