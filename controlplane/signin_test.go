package controlplane_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
	"github.com/curfew-access/curfew/internal/sshsig"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// attempt is one sign-in, spoilt where a test says so.
type attempt struct {
	user      string
	key       ssh.Signer
	namespace string
	message   func(challenge []byte, pub ed25519.PublicKey) []byte
	challenge []byte
	session   ed25519.PublicKey
}

func (h *house) attempt(a attempt) error {
	h.t.Helper()
	c := apiv1.NewSignInClient(h.dial(nil))
	if a.challenge == nil {
		resp, err := c.Challenge(h.t.Context(), &apiv1.ChallengeRequest{})
		must(h.t, err)
		a.challenge = resp.GetChallenge()
	}
	if a.session == nil {
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		must(h.t, err)
		a.session = pub
	}
	if a.namespace == "" {
		a.namespace = sshsig.NamespaceLogin
	}
	message := loginMessage(a.challenge, a.session, h.pin)
	if a.message != nil {
		message = a.message(a.challenge, a.session)
	}
	sig, err := sshsig.Sign(a.key, a.namespace, message)
	must(h.t, err)
	_, err = c.Login(h.t.Context(), &apiv1.LoginRequest{
		User: a.user, Challenge: a.challenge, SessionPublicKey: a.session, Sshsig: sig,
	})
	return err
}

// A16 and its kin: nothing but the person's own key over this challenge, this session key and this
// CA signs in, once.
func TestSignInAttacks(t *testing.T) {
	h := build(t, nil)
	alice, bob := h.add("alice"), h.add("bob")
	good := attempt{user: "alice", key: alice.key}
	must(t, h.attempt(good))
	otherKey, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	for name, a := range map[string]attempt{
		"another person's key": {user: "alice", key: bob.key},
		"a stranger's key":     {user: "alice", key: newKey(t)},
		"an unknown user":      {user: "nobody", key: alice.key},
		"the approval namespace": {
			user: "alice", key: alice.key, namespace: sshsig.NamespaceApprove,
		},
		"another session key (a replay on another device)": {
			user: "alice", key: alice.key,
			message: func(c []byte, _ ed25519.PublicKey) []byte {
				return loginMessage(c, otherKey, h.pin)
			},
		},
		"another control plane's CA": {
			user: "alice", key: alice.key,
			message: func(c []byte, pub ed25519.PublicKey) []byte {
				return loginMessage(c, pub, [32]byte{1})
			},
		},
		"another challenge": {
			user: "alice", key: alice.key,
			message: func(_ []byte, pub ed25519.PublicKey) []byte {
				return loginMessage(make([]byte, 32), pub, h.pin)
			},
		},
		"a challenge that was never given": {
			user: "alice", key: alice.key, challenge: make([]byte, 32),
		},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, h.attempt(a), apiv1.Code_CODE_SIGN_IN)
		})
	}
	for _, name := range []string{"Alice", "аlice", "alice ", "../alice", "", strings.Repeat("a", 300)} {
		refused(t, h.attempt(attempt{user: name, key: alice.key}), apiv1.Code_CODE_INVALID)
	}
}

// A challenge is spent by its first use, good or bad.
func TestChallengeIsOneUse(t *testing.T) {
	h := build(t, nil)
	alice := h.add("alice")
	resp, err := apiv1.NewSignInClient(h.dial(nil)).Challenge(t.Context(), &apiv1.ChallengeRequest{})
	must(t, err)
	a := attempt{user: "alice", key: alice.key, challenge: resp.GetChallenge()}
	must(t, h.attempt(a))
	refused(t, h.attempt(a), apiv1.Code_CODE_SIGN_IN)
	resp, err = apiv1.NewSignInClient(h.dial(nil)).Challenge(t.Context(), &apiv1.ChallengeRequest{})
	must(t, err)
	a.challenge = resp.GetChallenge()
	spoilt := a
	spoilt.key = newKey(t)
	refused(t, h.attempt(spoilt), apiv1.Code_CODE_SIGN_IN)
	refused(t, h.attempt(a), apiv1.Code_CODE_SIGN_IN)
}

// What is stored or seen of a session opens nothing without its private key, and it ends.
func TestSessionIsItsKey(t *testing.T) {
	h := build(t, nil)
	alice := h.add("alice")
	_, err := h.person("alice", alice.key, h.dial(nil)).WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	stranger := h.person("alice", alice.key, h.dial(selfSigned(t, key)))
	_, err = stranger.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	// Alice's certificate without alice's key does not even connect.
	stolen := *selfSigned(t, key)
	_, other, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	stolen.PrivateKey = other
	thief := h.person("alice", alice.key, h.dial(&tls.Certificate{
		Certificate: stolen.Certificate, PrivateKey: other,
	}))
	if _, err := thief.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{}); err == nil {
		t.Error("a certificate without its key was let in")
	}
	me, err := alice.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	must(t, err)
	left := time.Until(time.UnixMilli(me.GetSessionExpiresMs()))
	if me.GetUser() != "alice" || left > 8*time.Hour || left < 7*time.Hour {
		t.Errorf("alice is %q for %s", me.GetUser(), left)
	}
	_, err = alice.Logout(t.Context(), &apiv1.LogoutRequest{})
	must(t, err)
	_, err = alice.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
}

// Taking a key from a user ends the sessions that it signed in, and the grants that carry it.
func TestRemovedKeyEndsItsSessionsAndGrants(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	r := alice.ask("web1")
	_, err := bob.approve(r)
	must(t, err)
	web1.eventually(1)
	fresh := newKey(t)
	_, err = h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "alice", SshKeys: []string{grant.SSHKeyText(fresh.PublicKey())},
	}})
	must(t, err)
	_, err = alice.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	web1.eventually(0)
	again := h.signIn("alice", fresh)
	me, err := again.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	must(t, err)
	if !slices.Equal(me.GetApiRoles(), []string{"user"}) {
		t.Errorf("alice is %v", me.GetApiRoles())
	}
}

// A13 and quotas: what a request may hold.
func TestBadRequests(t *testing.T) {
	h := build(t, nil)
	alice, _, _, _ := h.cast(1)
	minute := time.Minute.Milliseconds()
	for name, c := range map[string]struct {
		req  *apiv1.CreateRequestRequest
		code apiv1.Code
	}{
		"no host":         {&apiv1.CreateRequestRequest{Role: "ops", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"unknown host":    {&apiv1.CreateRequestRequest{Hosts: []string{"web9"}, Role: "ops", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_NOT_FOUND},
		"homoglyph host":  {&apiv1.CreateRequestRequest{Hosts: []string{"wеb1"}, Role: "ops", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"upper-case host": {&apiv1.CreateRequestRequest{Hosts: []string{"WEB1"}, Role: "ops", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"host twice":      {&apiv1.CreateRequestRequest{Hosts: []string{"web1", "web1"}, Role: "ops", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"100 hosts":       {&apiv1.CreateRequestRequest{Hosts: make([]string, 101), Role: "ops", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_LIMIT},
		"unknown role":    {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "boss", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_NOT_FOUND},
		"zero-width role": {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops\u200b", DurationMs: minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"zero duration":   {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", Reason: "x"}, apiv1.Code_CODE_INVALID},
		"negative":        {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", DurationMs: -minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"huge":            {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", DurationMs: 1<<63 - 1, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"over the role":   {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", DurationMs: 61 * minute, Reason: "x"}, apiv1.Code_CODE_INVALID},
		"no reason":       {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", DurationMs: minute}, apiv1.Code_CODE_INVALID},
		"blank reason":    {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", DurationMs: minute, Reason: " \n"}, apiv1.Code_CODE_INVALID},
		"long reason":     {&apiv1.CreateRequestRequest{Hosts: []string{"web1"}, Role: "ops", DurationMs: minute, Reason: strings.Repeat("x", 4097)}, apiv1.Code_CODE_INVALID},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := alice.CreateRequest(t.Context(), c.req)
			refused(t, err, c.code)
		})
	}
	if _, err := alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: minute, Reason: strings.Repeat("x", 2<<20),
	}); err == nil {
		t.Error("a message of 2 MiB was read")
	}
	for range 16 {
		alice.ask("web1")
	}
	_, err := alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: minute, Reason: "x",
	})
	refused(t, err, apiv1.Code_CODE_LIMIT)
}

// A18: a reason with line breaks, JSON and escape sequences is one record, and shows what it holds.
func TestReasonIsOneRecord(t *testing.T) {
	h := build(t, nil)
	alice, _, _, _ := h.cast(1)
	before := len(h.admin.records())
	nasty := "restart\n{\"number\":0,\"kind\":\"forged\"}\x1b[31m\u202e\x00"
	_, err := alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: 60000, Reason: nasty,
	})
	must(t, err)
	after := h.admin.records()
	if len(after) != before+1 {
		t.Fatalf("one request made %d records", len(after)-before)
	}
	leaf := string(after[before].GetLeaf())
	if strings.ContainsAny(leaf, "\n\x1b\x00\u202e") || !strings.Contains(leaf, `\\x1b[31m`) {
		t.Errorf("the record is %q", leaf)
	}
}

// Hosts are told of a changed trust file at once, and without the root key it waits.
func TestTrustWithoutTheRootKey(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	moved := h.dir + ".root.key"
	must(t, rename(h.dir+"/root.key", moved))
	carol := h.add("carol")
	h.group("sre", "bob", "carol")
	trust, err := h.admin.GetTrust(t.Context(), &apiv1.GetTrustRequest{})
	must(t, err)
	if trust.GetUnsigned() == nil {
		t.Fatal("a trust change without the root key does not wait")
	}
	r := alice.ask("web1")
	_, err = carol.approve(r)
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	key, err := keyfile.Load(moved, "root key")
	must(t, err)
	o, err := controlplane.OpenOffline(t.Context(), h.dir, time.Now, quietLog())
	must(t, err)
	_, waiting, err := o.People.SignTrust(t.Context(), "curfew", []ed25519.PrivateKey{key})
	must(t, err)
	must(t, o.Close())
	if waiting.Text != "" {
		t.Fatalf("signed by its only root key it still waits: %s", waiting.Text)
	}
	signed, err := h.admin.GetTrust(t.Context(), &apiv1.GetTrustRequest{})
	must(t, err)
	next, err := grant.OpenTrust(signed.GetEnvelope(), nil)
	must(t, err)
	if next.Approver("carol") == nil || next.Approver("erin") != nil {
		t.Errorf("the signed trust file has approvers %v", next.Approvers)
	}
	// The server hears of what another process wrote, and so does the host.
	for range 400 {
		web1.mu.Lock()
		got := web1.ledger.TrustVersion()
		web1.mu.Unlock()
		if got == next.Version {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, err = carol.approve(r)
	must(t, err)
	web1.eventually(1)
	_ = bob
}
