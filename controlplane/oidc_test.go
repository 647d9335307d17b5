package controlplane_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/oidctest"
	"github.com/curfew-access/curfew/internal/signin"
	"github.com/curfew-access/curfew/internal/sshsig"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// A first sign-in makes a user with a uid of their own, their groups, address and manager; later ones
// bring them up to date.
func TestSignInAtTheProvider(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{
		Name: "alice", Email: "alice@acme.org", Groups: []string{"sre", "Not A Group"}, Manager: "bob",
	})
	alice := o.sso("alice")
	if me := alice.me(); me.GetUser() != "alice" || !slices.Equal(me.GetGroups(), []string{"sre"}) {
		t.Errorf("alice is %v", me)
	}
	u := o.user("alice")
	if u.GetEmail() != "alice@acme.org" || u.GetManager() != "bob" || u.GetSource() != "oidc" ||
		u.GetUid() < 1900000000 || len(u.GetSshKeys()) != 0 {
		t.Errorf("alice is stored as %v", u)
	}
	_, err := o.admin.PutGroup(t.Context(), &apiv1.PutGroupRequest{
		Group: &apiv1.Group{Name: "sre", Members: []string{"dana"}},
	})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	o.provider.Change("alice", func(u *oidctest.User) { u.Groups, u.Manager = nil, "carol" })
	again := o.sso("alice")
	if me := again.me(); len(me.GetGroups()) != 0 || o.user("alice").GetManager() != "carol" {
		t.Errorf("alice is %v with manager %s", me, o.user("alice").GetManager())
	}
	if o.user("alice").GetUid() != u.GetUid() {
		t.Error("alice has another uid")
	}
	if !o.onTrail(`"kind":"signin.accepted"`, `"method":"oidc"`, `"subject":"sub-alice"`) ||
		!o.onTrail(`"kind":"user.linked"`, "sub-alice") {
		t.Error("the trail does not tell")
	}
}

// What was stolen on the way makes no key speak but the one that it was meant for.
func TestProviderSignInAttacks(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	attack := func(name string, spoil func(*browsing)) {
		t.Run(name, func(t *testing.T) {
			b, err := o.browse("alice", "")
			must(t, err)
			spoil(b)
			_, _, err = o.finish(b)
			refused(t, err, apiv1.Code_CODE_SIGN_IN)
		})
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	attack("another session key", func(b *browsing) { b.Session = pub })
	attack("another challenge", func(b *browsing) {
		c, err := apiv1.NewSignInClient(o.dial(nil)).Challenge(t.Context(), &apiv1.ChallengeRequest{})
		must(t, err)
		b.Challenge = c.GetChallenge()
	})
	attack("a challenge that was never given", func(b *browsing) { b.Challenge = make([]byte, 32) })
	attack("another verifier", func(b *browsing) { b.verifier = strings.Repeat("w", 43) })
	attack("no code", func(b *browsing) { b.code = "no" })
	t.Run("an ID token for another sign-in", func(t *testing.T) {
		b, err := o.browse("alice", "a nonce of somebody's")
		must(t, err)
		_, _, err = o.finish(b)
		refused(t, err, apiv1.Code_CODE_SIGN_IN)
	})
	t.Run("a code twice", func(t *testing.T) {
		b, err := o.browse("alice", "")
		must(t, err)
		_, _, err = o.finish(b)
		must(t, err)
		_, _, err = o.finish(b)
		refused(t, err, apiv1.Code_CODE_SIGN_IN)
	})
	for _, redirect := range []string{
		"http://evil.example/callback", "https://127.0.0.1/callback", "http://127.0.0.1.evil.example/",
		"http://user@127.0.0.1/", "callback", "",
	} {
		_, _, err := o.finish(&browsing{
			Binding: signin.Binding{Challenge: make([]byte, 32), Session: pub}, redirect: redirect,
		})
		refused(t, err, apiv1.Code_CODE_INVALID)
	}
	if o.user("alice") == nil {
		t.Error("even the good sign-in made no user")
	}
}

// Nobody gets hold of somebody who was here before, by a name that the provider lets them choose.
func TestNoTakeover(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "dana"}, oidctest.User{Name: "root"},
		oidctest.User{Name: "Alice"}, oidctest.User{Name: "аlice"}, oidctest.User{Name: "alice@evil.org"},
		oidctest.User{Name: "curfew"}, oidctest.User{Name: "bob"})
	for _, name := range []string{"dana", "root", "Alice", "аlice", "alice@evil.org", "curfew"} {
		err := o.trySSO(name)
		if err == nil {
			t.Fatalf("%s signed in", name)
		}
		if o.user(name) != nil && name != "dana" {
			t.Errorf("%s became a user", name)
		}
	}
	if !o.onTrail(`"kind":"signin.refused"`, `"actor":"dana"`, "sub-dana") {
		t.Error("the try to sign in as dana is not on the trail")
	}
	// An admin may say that they are the same.
	_, err := o.admin.identity().LinkUser(t.Context(),
		&apiv1.LinkUserRequest{User: "dana", Subject: "sub-dana"})
	must(t, err)
	if me := o.sso("dana").me(); !slices.Contains(me.GetApiRoles(), "admin") {
		t.Errorf("dana is %v", me)
	}
	// And a subject is one user's, a user one subject's.
	for _, bad := range []*apiv1.LinkUserRequest{
		{User: "dana", Subject: "sub-bob"}, {User: "bob", Subject: "sub-dana"},
	} {
		if _, err := o.admin.identity().LinkUser(t.Context(), bad); err == nil {
			t.Errorf("%v was linked", bad)
		}
	}
	o.sso("bob")
	_, err = o.admin.identity().UnlinkUser(t.Context(), &apiv1.UnlinkUserRequest{User: "bob"})
	must(t, err)
	refused(t, o.trySSO("bob"), apiv1.Code_CODE_SIGN_IN)
}

// Without create_users the provider makes nobody.
func TestProviderCreatesOnlyWhenTold(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, func(c *controlplane.Config) {
		c.OIDC.CreateUsers = false
		c.LoginNames = identity.LoginNames{Domains: []string{"acme.org"}, LowerCase: true}
	}, oidctest.User{Name: "Alice@ACME.org"})
	why := refused(t, o.trySSO("Alice@ACME.org"), apiv1.Code_CODE_SIGN_IN)
	if !strings.Contains(why.GetHint(), "curfew admin user add alice --subject sub-Alice@ACME.org") {
		t.Errorf("the hint is %q", why.GetHint())
	}
	if o.user("alice") != nil {
		t.Error("alice was made")
	}
}

// Somebody who is disabled at the provider loses sessions, live access and every other sign-in in
// time; an outage before that changes nothing.
func TestDisabledAtTheProvider(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	alice := o.sso("alice")
	key := newKey(t)
	alice.enrol(key)
	bob := o.add("bob")
	o.group("sre", "bob")
	o.role(opsRole(1))
	web1 := o.join("web1")
	bySSH := o.signIn("alice", key)
	r := bySSH.ask("web1")
	_, err := bob.approve(r)
	must(t, err)
	web1.eventually(1)

	// Nobody answers for longer than deprovision_after: nothing changes.
	o.provider.Down(true)
	time.Sleep(3 * time.Second)
	if o.user("alice").GetDisabled() || len(web1.grants()) != 1 {
		t.Fatal("an outage was read as an order")
	}
	alice.me()
	bySSH.me()

	o.provider.Change("alice", func(u *oidctest.User) { u.Disabled = true })
	o.provider.Down(false)
	began := time.Now()
	web1.eventually(0)
	for range 500 {
		if o.user("alice").GetDisabled() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	for _, p := range []*person{alice, bySSH} {
		_, err := p.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
		refused(t, err, apiv1.Code_CODE_SIGN_IN)
	}
	refused(t, o.attempt(attempt{user: "alice", key: key}), apiv1.Code_CODE_SIGN_IN)
	if u := o.user("alice"); u.GetDisabledBy() != "oidc" {
		t.Errorf("alice is disabled by %q", u.GetDisabledBy())
	}
	if !o.onTrail(`"kind":"user.disabled"`, `"word":"oidc"`, `"user":"alice"`) ||
		!o.onTrail(`"kind":"request.ended"`, r.GetId(), "revoked") {
		t.Error("the trail does not tell")
	}
	// Back at the provider, she is the same person here.
	uid := o.user("alice").GetUid()
	o.provider.Change("alice", func(u *oidctest.User) { u.Disabled = false })
	o.sso("alice").me()
	if u := o.user("alice"); u.GetDisabled() || u.GetUid() != uid {
		t.Errorf("alice is back as %v", u)
	}
	// An admin's word stands against the provider's.
	_, err = o.admin.DisableUser(t.Context(), &apiv1.DisableUserRequest{Name: "alice"})
	must(t, err)
	refused(t, o.trySSO("alice"), apiv1.Code_CODE_SIGN_IN)
}

// enrol makes an SSH key the person's own.
func (p *person) enrol(key ssh.Signer) {
	p.t.Helper()
	must(p.t, p.tryEnrol(key, p.name))
}

// The device flow gives a session to the key that began it, and to no other.
func TestDeviceFlow(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	begin := func() (*apiv1.StartDeviceResponse, ed25519.PrivateKey) {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		c, err := apiv1.NewSignInClient(o.dial(nil)).Challenge(t.Context(), &apiv1.ChallengeRequest{})
		must(t, err)
		d, err := apiv1.NewIdentityClient(o.dial(nil)).StartDevice(t.Context(),
			&apiv1.StartDeviceRequest{Challenge: c.GetChallenge(), SessionPublicKey: pub, Device: "server"})
		must(t, err)
		return d, key
	}
	finish := func(conn *grpc.ClientConn, flow []byte) (*apiv1.FinishDeviceResponse, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for {
			resp, err := apiv1.NewIdentityClient(conn).FinishDevice(ctx,
				&apiv1.FinishDeviceRequest{Flow: flow})
			if err != nil || resp.GetDone() {
				return resp, err
			}
		}
	}
	d, key := begin()
	denied, deniedKey := begin()
	conn := o.dial(selfSigned(t, key))
	_, other, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	for name, thief := range map[string]*grpc.ClientConn{
		"another key": o.dial(selfSigned(t, other)), "no key": o.dial(nil),
	} {
		_, err := apiv1.NewIdentityClient(thief).FinishDevice(t.Context(),
			&apiv1.FinishDeviceRequest{Flow: d.GetFlow()})
		if refused(t, err, apiv1.Code_CODE_SIGN_IN); err == nil {
			t.Errorf("%s finished it", name)
		}
	}
	alice := &oidctest.Browser{Name: "alice"}
	must(t, alice.Agree(t.Context(), d.GetVerificationUri(), d.GetUserCode(), "allowed"))
	must(t, alice.Agree(t.Context(), denied.GetVerificationUri(), denied.GetUserCode(), "denied"))
	resp, err := finish(conn, d.GetFlow())
	must(t, err)
	if me := o.person("alice", nil, conn).me(); resp.GetUser() != "alice" || me.GetUser() != "alice" {
		t.Errorf("it is %s, the session %s's", resp.GetUser(), me.GetUser())
	}
	_, err = finish(conn, d.GetFlow())
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	_, err = finish(o.dial(selfSigned(t, deniedKey)), denied.GetFlow())
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	// The provider is asked about who came this way as about everybody.
	before := o.provider.Asked()
	for range 800 {
		if o.provider.Asked() > before+1 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	o.person("alice", nil, conn).me()
	if o.provider.Asked() <= before+1 {
		t.Error("the provider is not asked about alice again")
	}
}

// Keys are added by their owners, soon after a sign-in at the provider, and are one person's.
func TestKeysOfOnesOwn(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"}, oidctest.User{Name: "mallory"})
	alice, mallory, key := o.sso("alice"), o.sso("mallory"), newKey(t)
	alice.enrol(key)
	refused(t, alice.tryEnrol(key, "alice"), apiv1.Code_CODE_CONFLICT)
	refused(t, mallory.tryEnrol(key, "mallory"), apiv1.Code_CODE_CONFLICT)
	// A signature that alice made for herself enrols nothing for mallory.
	refused(t, mallory.tryEnrol(newKey(t), "alice"), apiv1.Code_CODE_DENIED)
	line := grant.SSHKeyText(key.PublicKey())
	keys, err := alice.identity().ListKeys(t.Context(), &apiv1.ListKeysRequest{})
	must(t, err)
	if !slices.Equal(keys.GetSshKeys(), []string{line}) {
		t.Errorf("alice's keys are %v", keys.GetSshKeys())
	}
	bySSH := o.signIn("alice", key)
	why := refused(t, bySSH.tryEnrol(newKey(t), "alice"), apiv1.Code_CODE_SIGN_IN)
	if why.GetHint() != "curfew login --sso" {
		t.Errorf("the hint is %q", why.GetHint())
	}
	_, err = mallory.identity().RemoveKey(t.Context(),
		&apiv1.RemoveKeyRequest{Fingerprint: identity.Fingerprint(line)})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
	_, err = alice.identity().RemoveKey(t.Context(),
		&apiv1.RemoveKeyRequest{Fingerprint: identity.Fingerprint(line)})
	must(t, err)
	_, err = bySSH.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	alice.me()
	o.ahead.Store(int64(11 * time.Minute))
	refused(t, alice.tryEnrol(newKey(t), "alice"), apiv1.Code_CODE_SIGN_IN)
}

func (p *person) tryEnrol(key ssh.Signer, user string) error {
	p.t.Helper()
	c, err := p.Challenge(p.t.Context(), &apiv1.ChallengeRequest{})
	must(p.t, err)
	b := signin.Binding{Challenge: c.GetChallenge(), Session: p.session, CA: p.h.pin}
	sig, err := sshsig.Sign(key, sshsig.NamespaceKey, b.Key(user))
	must(p.t, err)
	_, err = p.identity().AddKey(p.t.Context(),
		&apiv1.AddKeyRequest{Challenge: c.GetChallenge(), Sshsig: sig})
	return err
}

// Somebody about whom the provider could not be asked does not come by an SSH key.
func TestLinkedSignInAtTheProviderFirst(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	alice := o.add("alice")
	_, err := o.admin.identity().LinkUser(t.Context(),
		&apiv1.LinkUserRequest{User: "alice", Subject: "sub-alice"})
	must(t, err)
	why := refused(t, o.attempt(attempt{user: "alice", key: alice.key}), apiv1.Code_CODE_SIGN_IN)
	if why.GetHint() != "curfew login --sso" {
		t.Errorf("the hint is %q", why.GetHint())
	}
	o.sso("alice")
	must(t, o.attempt(attempt{user: "alice", key: alice.key}))
	// What was sealed under a key that is lost asks nobody: the same again.
	o.stop()
	must(t, os.Remove(filepath.Join(o.dir, "seal.key")))
	o.start()
	for range 40 {
		if err = o.attempt(attempt{user: "alice", key: alice.key}); err != nil {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
}

// The refresh token, the one secret of a provider's that is kept, cannot be read from the store.
func TestRefreshTokensAreSealed(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil, oidctest.User{Name: "alice"})
	o.sso("alice")
	for _, token := range o.provider.RefreshTokens() {
		if o.inStore(token) {
			t.Errorf("the store holds the refresh token %q", token)
		}
	}
	if len(o.provider.RefreshTokens()) == 0 {
		t.Error("the provider gave none")
	}
}
