// Package granttest makes the objects that tests of hosts and control planes need: keys, people, a
// trust file, and an issuer that seals grants and host states. Everything is derived from names, so
// that two runs make the same bytes. It belongs in tests only and panics where a fixture is wrong;
// programs never import it.
package granttest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Organisation of every fixture.
const Organisation = "example.org"

// Roles that the fixture's trust file knows: RoleOps needs one approval of GroupLeads, RoleRoot
// two.
const (
	RoleOps    = "ops"
	RoleRoot   = "root"
	GroupLeads = "leads"
)

// Noon is when the fixtures' stories begin.
func Noon() time.Time { return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC) }

// Key derives an Ed25519 key from a name.
func Key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("granttest key " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// Public returns the public half.
func Public(key ed25519.PrivateKey) ed25519.PublicKey {
	return ed25519.PublicKey(key[ed25519.SeedSize:])
}

// Person is a user with one SSH key.
type Person struct {
	Name   string
	UID    uint32
	Signer ssh.Signer
	// SSHKey is the key's canonical text.
	SSHKey string
}

// NewPerson derives a person from a name.
func NewPerson(name string, uid uint32) Person {
	signer, err := ssh.NewSignerFromKey(Key("person " + name))
	must(err)
	return Person{Name: name, UID: uid, Signer: signer, SSHKey: grant.SSHKeyText(signer.PublicKey())}
}

// Approve signs terms as an approver does.
func (p Person) Approve(rawTerms []byte) *curfewv1.Approval {
	sig, err := sshsig.Sign(p.Signer, sshsig.NamespaceApprove, rawTerms)
	must(err)
	return &curfewv1.Approval{Approver: p.Name, Sshsig: sig}
}

// World is one organisation with one host: alice asks, bob, carol and dave may approve.
type World struct {
	Root, Issuer, HostKey   ed25519.PrivateKey
	Host                    grant.HostID
	Alice, Bob, Carol, Dave Person
	// Trust is version 1; change a Clone of it for the next.
	Trust         *grant.Trust
	TrustEnvelope []byte
	// Sequence counts the states that State sealed, in epoch Trust.Epoch.
	Sequence uint64
}

// NewWorld makes a world.
func NewWorld() *World {
	w := &World{
		Root: Key("root"), Issuer: Key("issuer"), HostKey: Key("host"),
		Alice: NewPerson("alice", 1900000001), Bob: NewPerson("bob", 1900000002),
		Carol: NewPerson("carol", 1900000003), Dave: NewPerson("dave", 1900000004),
	}
	w.Host = grant.HostIDOf(Public(w.HostKey))
	w.Trust = &grant.Trust{
		Version: 1, Organisation: Organisation, Epoch: 1, RootThreshold: 1,
		RootKeys:   []grant.Key{grant.Key(Public(w.Root))},
		IssuerKeys: []grant.Key{grant.Key(Public(w.Issuer))},
		Quorums: []grant.Quorum{
			{Role: RoleOps, Group: GroupLeads, Approvals: 1},
			{Role: RoleRoot, Group: GroupLeads, Approvals: 2},
		},
	}
	for _, p := range []Person{w.Bob, w.Carol, w.Dave} {
		w.Trust.Approvers = append(w.Trust.Approvers, grant.Approver{
			Name: p.Name, Groups: []string{GroupLeads}, SSHKeys: []string{p.SSHKey},
		})
	}
	w.TrustEnvelope = SealTrust(w.Trust, w.Root)
	return w
}

// SealTrust signs a trust file.
func SealTrust(t *grant.Trust, roots ...ed25519.PrivateKey) []byte {
	env, err := grant.SealTrust(t, roots...)
	must(err)
	return env
}

// CloneTrust returns a deep copy of the next version, to be changed.
func CloneTrust(t *grant.Trust) *grant.Trust {
	next := *t
	next.Version++
	next.RootKeys = slices.Clone(t.RootKeys)
	next.IssuerKeys = slices.Clone(t.IssuerKeys)
	next.Quorums = slices.Clone(t.Quorums)
	next.Approvers = slices.Clone(t.Approvers)
	for i, a := range next.Approvers {
		next.Approvers[i].Groups = slices.Clone(a.Groups)
		next.Approvers[i].SSHKeys = slices.Clone(a.SSHKeys)
	}
	return &next
}

// Ledger returns the ledger of the freshly enrolled host.
func (w *World) Ledger() *grant.Ledger {
	l, err := grant.NewLedger(w.Host, w.TrustEnvelope)
	must(err)
	return l
}

// Ceiling permits what the fixtures ask for, and no root-equivalent rule.
func (w *World) Ceiling() grant.Ceiling {
	return grant.Ceiling{MaxDuration: 24 * time.Hour, AllowedGroups: []string{"adm"}}
}

// Terms are alice's, of role ops on the world's host for an hour, as asked for at now; edits change
// them.
func (w *World) Terms(now time.Time, edits ...func(*curfewv1.Terms)) *curfewv1.Terms {
	t := &curfewv1.Terms{
		Version: grant.Version, Organisation: Organisation, RequestId: "0123456789ab", Revision: 1,
		Requester: w.Alice.Name, Hosts: []*curfewv1.HostRef{{Id: w.Host[:], Name: "web1"}},
		Role: RoleOps, Login: w.Alice.Name, Uid: w.Alice.UID, AllowLogin: true,
		SudoRules: []*curfewv1.SudoRule{{
			RunAs: "root", Command: "/usr/bin/systemctl", Args: []string{"restart", "nginx.service"},
			Contained: true,
		}},
		AuthorizedKeys:  []string{w.Alice.SSHKey},
		StartMode:       curfewv1.StartMode_START_MODE_CONFIRMATION,
		StartEarliestMs: now.UnixMilli(), StartLatestMs: now.Add(24 * time.Hour).UnixMilli(),
		DurationMs:      time.Hour.Milliseconds(),
		HardEndMs:       now.Add(25 * time.Hour).UnixMilli(),
		ApprovalsNeeded: 1, ApproverGroup: GroupLeads,
		PolicyHash: grant.ReasonHash("policy"), ReasonHash: grant.ReasonHash("nginx is down"),
	}
	for _, edit := range edits {
		edit(t)
	}
	return t
}

// Follow makes terms the extension of others, with a new whole duration.
func Follow(before []byte, whole time.Duration) func(*curfewv1.Terms) {
	return func(t *curfewv1.Terms) {
		old, err := grant.ParseTerms(before)
		must(err)
		digest := grant.TermsDigest(before)
		t.Follows, t.Revision = digest[:], old.GetRevision()+1
		t.RequestId, t.DurationMs = old.GetRequestId(), whole.Milliseconds()
	}
}

// Raw returns the canonical bytes of terms.
func Raw(t *curfewv1.Terms) []byte {
	raw, err := grant.MarshalTerms(t)
	must(err)
	return raw
}

// Grant seals terms for the world's host with the approvals of people. Approvals are made as asked,
// also by people who may not approve.
func (w *World) Grant(terms *curfewv1.Terms, by ...Person) (grant.ID, []byte) {
	return w.WindowGrant(terms, 0, by...)
}

// WindowGrant is Grant for one of the terms' windows, from 1.
func (w *World) WindowGrant(
	terms *curfewv1.Terms, window uint32, by ...Person,
) (grant.ID, []byte) {
	raw := Raw(terms)
	g := &curfewv1.Grant{
		Version: grant.Version, HostId: w.Host[:], Terms: raw, IssuedAtMs: terms.GetStartEarliestMs(),
		Window: window,
	}
	for _, p := range by {
		g.Approvals = append(g.Approvals, p.Approve(raw))
	}
	return grant.IDOfWindow(raw, w.Host, window), SealGrant(g, w.Issuer)
}

// Windows makes terms of a list of windows, each from so long after now to so long after now.
func Windows(now time.Time, spans ...[2]time.Duration) func(*curfewv1.Terms) {
	return func(t *curfewv1.Terms) {
		t.Windows, t.DurationMs = nil, 0
		for _, s := range spans {
			t.Windows = append(t.Windows, &curfewv1.Span{
				StartMs: now.Add(s[0]).UnixMilli(), EndMs: now.Add(s[1]).UnixMilli(),
			})
			t.DurationMs = max(t.GetDurationMs(), (s[1] - s[0]).Milliseconds())
		}
		last := t.GetWindows()[len(spans)-1].GetEndMs()
		t.StartEarliestMs, t.StartLatestMs = t.GetWindows()[0].GetStartMs(), last-1
		t.HardEndMs = last
	}
}

// SealGrant seals a grant.
func SealGrant(g *curfewv1.Grant, issuer ed25519.PrivateKey) []byte {
	env, err := grant.SealGrant(g, issuer)
	must(err)
	return env
}

// HostState is the world's next state: it lists live and answers nonce. Change it before SealState.
func (w *World) HostState(now time.Time, nonce []byte, live ...grant.ID) *curfewv1.HostState {
	w.Sequence++
	return &curfewv1.HostState{
		Version: grant.Version, HostId: w.Host[:], Epoch: w.Trust.Epoch, Sequence: w.Sequence,
		Live: SortIDs(live), IssuedAtMs: now.UnixMilli(),
		ValidForMs: (15 * time.Minute).Milliseconds(), Nonce: nonce,
	}
}

// State is the sealed HostState, as the control plane sends it.
func (w *World) State(now time.Time, nonce []byte, live ...grant.ID) *curfewv1.State {
	return &curfewv1.State{Envelope: SealState(w.HostState(now, nonce, live...), w.Issuer)}
}

// SealState seals a host state.
func SealState(s *curfewv1.HostState, issuer ed25519.PrivateKey) []byte {
	env, err := grant.SealState(s, issuer)
	must(err)
	return env
}

// SortIDs returns ids as host states carry them.
func SortIDs(ids []grant.ID) [][]byte {
	out := make([][]byte, 0, len(ids))
	for _, id := range ids {
		out = append(out, id[:])
	}
	slices.SortFunc(out, bytes.Compare)
	return out
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("granttest: %v", err))
	}
}
