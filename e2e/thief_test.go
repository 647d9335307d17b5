package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/frame"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// A thief has taken the control plane: its database and its issuer key. The root key had been moved
// away. What he says reaches the root half over the link socket, as the control plane's word does.
type thief struct {
	*story
	db     *sql.DB
	issuer ed25519.PrivateKey
	own    ssh.Signer // a key of his own
	trail  int64
}

// keepRootKeyAway moves the root key off the control plane, as docs/operate.md says to.
func (s *story) keepRootKeyAway() {
	s.t.Helper()
	_, err := s.Control.Shell(s.ctx, "mv /var/lib/curfew-controlplane/root.key /root/root.key")
	s.ok(err)
}

// cutLinks stops the link halves, so that nobody but the thief speaks to the root halves.
func (s *story) cutLinks() {
	s.t.Helper()
	for name := range s.Hosts {
		s.on(name, "systemctl stop curfew-link.service")
	}
}

// steal stops the control plane and takes what it has.
func (s *story) steal() *thief {
	s.t.Helper()
	_, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane")
	s.ok(err)
	const dir = "/var/lib/curfew-controlplane/"
	_, err = s.Control.Shell(s.ctx, "test ! -e "+dir+"root.key")
	s.ok(err)
	v := &thief{story: s}
	key, err := s.Control.Read(dir + "issuer.key")
	s.ok(err)
	block, _ := pem.Decode(key)
	if block == nil {
		s.t.Fatal("issuer.key is no PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	s.ok(err)
	v.issuer = parsed.(ed25519.PrivateKey)
	data, err := s.Control.Read(dir + "curfew.db")
	s.ok(err)
	beside := filepath.Join(s.t.TempDir(), "curfew.db")
	s.ok(os.WriteFile(beside, data, 0o600))
	v.db, err = sql.Open("sqlite", beside)
	s.ok(err)
	s.t.Cleanup(func() { v.db.Close() })
	s.ok(v.db.QueryRowContext(s.ctx, "SELECT count(*) FROM trail").Scan(&v.trail))
	_, own, err := ed25519.GenerateKey(rand.Reader)
	s.ok(err)
	v.own, err = ssh.NewSignerFromKey(own)
	s.ok(err)
	return v
}

// host is the id of a host.
func (v *thief) host(name string) (id grant.HostID) {
	v.t.Helper()
	var raw []byte
	v.ok(v.db.QueryRowContext(v.ctx, "SELECT id FROM hosts WHERE name = ?", name).Scan(&raw))
	return grant.HostID(raw)
}

// terms are the bytes of a request's newest revision.
func (v *thief) terms(request string) (raw []byte) {
	v.t.Helper()
	v.ok(v.db.QueryRowContext(v.ctx,
		"SELECT terms FROM revisions WHERE request = ? ORDER BY number DESC LIMIT 1", request).Scan(&raw))
	return raw
}

// changed are a request's terms with a change.
func (v *thief) changed(request string, edit func(*curfewv1.Terms)) []byte {
	v.t.Helper()
	terms, err := grant.ParseTerms(v.terms(request))
	v.ok(err)
	edit(terms)
	raw, err := grant.MarshalTerms(terms)
	v.ok(err)
	return raw
}

// approval is bob's signature for a request, as it lies in the database.
func (v *thief) approval(request string) []*curfewv1.Approval {
	v.t.Helper()
	a := new(curfewv1.Approval)
	v.ok(v.db.QueryRowContext(v.ctx, "SELECT approver, sshsig FROM decisions "+
		"WHERE request = ? AND approved = 1", request).Scan(&a.Approver, &a.Sshsig))
	return []*curfewv1.Approval{a}
}

// signs is an approval by the thief's own key under somebody's name.
func (v *thief) signs(terms []byte, name string) []*curfewv1.Approval {
	v.t.Helper()
	sig, err := sshsig.Sign(v.own, sshsig.NamespaceApprove, terms)
	v.ok(err)
	return []*curfewv1.Approval{{Approver: name, Sshsig: sig}}
}

// ReadHashes reads the trail's tree.
func (v *thief) ReadHashes(at []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(at))
	for i, p := range at {
		var raw []byte
		err := v.db.QueryRowContext(v.ctx, "SELECT hash FROM trail_hashes WHERE position = ?", p).Scan(&raw)
		if err != nil {
			return nil, err
		}
		out[i] = tlog.Hash(raw)
	}
	return out, nil
}

// A wire is the thief's connection to one root half.
type wire struct {
	*thief
	name string
	id   grant.HostID
	conn net.Conn
	mu   sync.Mutex
	said *curfewv1.Hello
	// sequence is that of his newest state; nonce is the host's newest.
	sequence uint64
	nonce    []byte
	acks     []*curfewv1.Ack
	refusals []string
	err      error
}

// dial takes the link half's place at a host.
func (v *thief) dial(name string) *wire {
	v.t.Helper()
	path := fmt.Sprintf("/proc/%d/root/run/curfew/link.sock", v.Hosts[name].PID())
	conn, err := net.Dial("unix", path)
	v.ok(err)
	v.t.Cleanup(func() { conn.Close() })
	w := &wire{thief: v, name: name, id: v.host(name), conn: conn}
	m, err := w.receive()
	v.ok(err)
	w.said = m.GetHello()
	w.sequence, w.nonce = w.said.GetSequence(), w.said.GetNonce()
	go w.listen()
	w.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Welcome{
		Welcome: &curfewv1.Welcome{HostName: name, EventCount: w.said.GetEventCount()},
	}})
	return w
}

func (w *wire) receive() (*curfewv1.HostMessage, error) {
	raw, err := frame.Read(w.conn, frame.Max)
	if err != nil {
		return nil, err
	}
	signed, m := new(curfewv1.SignedHostMessage), new(curfewv1.HostMessage)
	return m, errors.Join(proto.Unmarshal(raw, signed), proto.Unmarshal(signed.GetBody(), m))
}

func (w *wire) listen() {
	for {
		m, err := w.receive()
		w.mu.Lock()
		w.err = err
		switch body := m.GetBody().(type) {
		case *curfewv1.HostMessage_Ack:
			w.acks = append(w.acks, body.Ack)
		case *curfewv1.HostMessage_Heartbeat:
			w.nonce = body.Heartbeat.GetNonce()
		case *curfewv1.HostMessage_Event:
			if e := body.Event; strings.HasSuffix(e.GetKind(), ".rejected") {
				w.refusals = append(w.refusals, e.GetKind()+": "+e.GetDetails()["error"])
			}
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (w *wire) send(m *curfewv1.ControlMessage) {
	w.t.Helper()
	raw, err := proto.Marshal(m)
	w.ok(err)
	w.ok(frame.Write(w.conn, raw))
}

// seals puts terms and approvals into a grant for a host and sends it.
func (w *wire) seals(terms []byte, by []*curfewv1.Approval, edits ...func(*curfewv1.Grant)) grant.ID {
	w.t.Helper()
	g := &curfewv1.Grant{
		Version: grant.Version, HostId: w.id[:], Terms: terms, Approvals: by,
		IssuedAtMs: time.Now().UnixMilli(),
	}
	for _, edit := range edits {
		edit(g)
	}
	// Curfew's own issuer would refuse to seal some of what he makes; he has the key and needs nobody.
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(g)
	w.ok(err)
	env, err := grant.Seal(grant.TypeGrant, raw, w.issuer)
	w.ok(err)
	w.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_Grant{
		Grant: &curfewv1.GrantEnvelope{Envelope: env},
	}})
	return grant.IDOfWindow(terms, w.id, g.GetWindow())
}

// lists sends a state that lists grants and returns the host's answer about each.
func (w *wire) lists(renew bool, live ...grant.ID) *curfewv1.Ack {
	w.t.Helper()
	head, err := trail.Head(uint64(w.trail), w)
	w.ok(err)
	proof, err := trail.Prove(w.said.GetTrailCount(), uint64(w.trail), w)
	w.ok(err)
	w.mu.Lock()
	w.sequence++
	state := &curfewv1.HostState{
		Version: grant.Version, HostId: w.id[:], Epoch: w.said.GetEpoch(), Sequence: w.sequence,
		IssuedAtMs: time.Now().UnixMilli(), ValidForMs: (10 * time.Minute).Milliseconds(),
		TrailCount: uint64(w.trail), TrailHead: head,
	}
	if renew {
		state.Nonce = w.nonce
	}
	w.mu.Unlock()
	for _, id := range live {
		state.Live = append(state.Live, id[:])
	}
	slices.SortFunc(state.Live, slices.Compare[[]byte])
	w.sendState(state, w.said.GetTrailCount(), proof)
	var ack *curfewv1.Ack
	w.within(20*time.Second, w.name+" to answer a state", func() (bool, string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, a := range w.acks {
			if a.GetSequence() == state.Sequence {
				ack = a
			}
		}
		return ack != nil, fmt.Sprint(w.acks, w.refusals, w.err)
	})
	w.said.TrailCount = uint64(w.trail)
	return ack
}

func (w *wire) sendState(s *curfewv1.HostState, from uint64, proof [][]byte) {
	w.t.Helper()
	env, err := grant.SealState(s, w.issuer)
	w.ok(err)
	w.send(&curfewv1.ControlMessage{Body: &curfewv1.ControlMessage_State{
		State: &curfewv1.State{Envelope: env, ProofFrom: from, Proof: proof},
	}})
}

// status is what a host says of one grant.
func statusOf(a *curfewv1.Ack, id grant.ID) curfewv1.GrantStatus {
	for _, g := range a.GetGrants() {
		if grant.ID(g.GetGrantId()) == id {
			return g.GetStatus()
		}
	}
	return curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED
}

// refusedFor demands that the host put a refusal with these words on its trail.
func (w *wire) refusedFor(what, words string) {
	w.t.Helper()
	w.within(10*time.Second, w.name+" to refuse "+what+", since "+words, func() (bool, string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.ContainsFunc(w.refusals, func(r string) bool { return strings.Contains(r, words) }),
			strings.Join(w.refusals, "\n")
	})
	w.mu.Lock()
	w.t.Logf("%s: %s", what, strings.Join(w.refusals, "; "))
	w.refusals = nil
	w.mu.Unlock()
}

// closed demands that alice has nothing on a host.
func (w *wire) closed(what string) {
	w.t.Helper()
	out := w.on(w.name, "ls /run/curfew/keys /run/curfew/sudoers.d; getent passwd alice | grep -v nologin || true")
	if strings.Contains(out, "alice") {
		w.t.Errorf("%s opened %s: %s", what, w.name, out)
	}
}
