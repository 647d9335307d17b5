package controlplane_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func rootKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return key
}

// trust is the trust file in force, and what waits.
func (p *person) trust() (inForce, waiting *grant.Trust, text string) {
	p.t.Helper()
	answer, err := p.GetTrust(p.t.Context(), &apiv1.GetTrustRequest{})
	must(p.t, err)
	inForce, err = grant.OpenTrust(answer.GetEnvelope(), nil)
	must(p.t, err)
	if len(answer.GetUnsigned()) > 0 {
		waiting, err = grant.ParseTrust(answer.GetUnsigned())
		must(p.t, err)
	}
	return inForce, waiting, answer.GetWaiting()
}

// signTrust signs what waits.
func (p *person) signTrust(key ed25519.PrivateKey) (string, error) {
	p.t.Helper()
	answer, err := p.GetTrust(p.t.Context(), &apiv1.GetTrustRequest{})
	must(p.t, err)
	s := grant.SignTrust(answer.GetUnsigned(), key)
	done, err := p.SignTrust(p.t.Context(), &apiv1.SignTrustRequest{
		Content: answer.GetUnsigned(), PublicKey: s.Key, Signature: s.Sig,
	})
	return done.GetWaiting(), err
}

// Root keys change only by the threshold of the old and of the new; a key that is not of either counts
// for nothing; changes of the directory meanwhile keep what was proposed and void the signatures.
func TestRootKeysRotateByBothThresholds(t *testing.T) {
	h := build(t, nil)
	local, err := keyfile.Load(filepath.Join(h.dir, controlplane.RootFile), "root key")
	must(t, err)
	r2, r3 := rootKey(t), rootKey(t)
	_, err = h.admin.ProposeTrust(t.Context(), &apiv1.ProposeTrustRequest{
		RootKeys: [][]byte{
			local.Public().(ed25519.PublicKey), r2.Public().(ed25519.PublicKey),
			r3.Public().(ed25519.PublicKey),
		},
		RootThreshold: 2,
	})
	must(t, err)
	before, waiting, text := h.admin.trust()
	if waiting == nil || len(waiting.RootKeys) != 3 || len(before.RootKeys) != 1 ||
		!strings.Contains(text, "1 of 2 of the new ones") {
		t.Fatalf("the new root keys: in force %d, waiting %v, %q", len(before.RootKeys), waiting, text)
	}
	_, err = h.admin.signTrust(rootKey(t))
	refused(t, err, apiv1.Code_CODE_DENIED)
	_, err = h.admin.SignTrust(t.Context(), &apiv1.SignTrustRequest{
		Content: []byte("{}"), PublicKey: r2.Public().(ed25519.PublicKey), Signature: make([]byte, 64),
	})
	refused(t, err, apiv1.Code_CODE_CONFLICT)

	h.add("bob")
	h.group("sre", "bob")
	h.role(&apiv1.Role{Name: "docs", AllowLogin: true, MaxDurationMs: 3600_000, ApproverGroup: "sre", Approvals: 1})
	if _, waiting, _ = h.admin.trust(); waiting == nil || waiting.RootThreshold != 2 ||
		len(waiting.Quorums) != 1 {
		t.Fatalf("after a change of the directory %+v waits", waiting)
	}
	left, err := h.admin.signTrust(r2)
	must(t, err)
	after, waiting, _ := h.admin.trust()
	if left != "" || waiting != nil || len(after.RootKeys) != 3 || after.RootThreshold != 2 {
		t.Fatalf("after the second signature %q, %d root keys", left, len(after.RootKeys))
	}

	// From now on the key that lies here is one of two.
	h.add("carol")
	h.group("sre", "bob", "carol")
	if _, _, text = h.admin.trust(); text != "1 of 2 root keys in force have signed" {
		t.Fatalf("a change of approvers: %q", text)
	}
	if _, err = h.admin.signTrust(r3); err != nil {
		t.Fatal(err)
	}
	if after, _, _ = h.admin.trust(); after.Approver("carol") == nil {
		t.Error("carol is no approver")
	}
}

// A stolen grant key is worth nothing once hosts have heard of the new one, which the server takes up by
// itself; what is live stays, on hosts that were away too.
func TestStolenGrantKey(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	stolen, err := keyfile.Load(filepath.Join(h.dir, "issuer.key"), "grant key")
	must(t, err)
	web2 := h.join("web2")
	r := alice.ask("web1")
	_, err = bob.approve(r)
	must(t, err)
	id := web1.eventually(1)[0].ID
	web1.disconnect()
	web2.disconnect()
	away := alice.ask("web2")
	_, err = bob.approve(away)
	must(t, err)

	o, err := controlplane.OpenOffline(t.Context(), h.dir, time.Now, quietLog())
	must(t, err)
	waiting, err := o.RotateIssuer(t.Context(), "curfew")
	must(t, err)
	must(t, o.Close())
	if waiting.Text != "" {
		t.Fatalf("it waits: %s", waiting.Text)
	}
	if err := <-h.done; err == nil || !strings.Contains(err.Error(), "another grant key") {
		t.Fatalf("the server ended with %v", err)
	}
	h.start()
	web1.connect()
	web2.connect()
	if live := web1.eventually(1); live[0].ID != id {
		t.Error("the live grant is another one")
	}
	web2.eventually(1) // sealed before by the old key, and accepted
	for _, m := range []*host{web1, web2} {
		deadline := time.Now().Add(10 * time.Second)
		for m.obeys(stolen) {
			if time.Now().After(deadline) {
				t.Fatal("a host obeys the stolen key still")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// obeys tells whether the host's trust file names a grant key.
func (m *host) obeys(key ed25519.PrivateKey) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range m.ledger.Trust().Issuers() {
		if k.Equal(key.Public()) {
			return true
		}
	}
	return false
}
