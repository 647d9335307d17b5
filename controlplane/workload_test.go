package controlplane_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/oidctest"
	"github.com/curfew-access/curfew/internal/signin"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const audience = "curfew://127.0.0.1:7443"

func (o *office) workload(w *apiv1.Workload) (*apiv1.Workload, error) {
	if w.GetIssuer() == "" {
		w.Issuer = o.issuer
	}
	resp, err := o.admin.identity().PutWorkload(o.t.Context(), &apiv1.PutWorkloadRequest{Workload: w})
	return resp.GetWorkload(), err
}

// runner is one sign-in of a pipeline under way.
func (o *office) runner() (signin.Binding, ed25519.PrivateKey) {
	o.t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	must(o.t, err)
	c, err := apiv1.NewSignInClient(o.dial(nil)).Challenge(o.t.Context(), &apiv1.ChallengeRequest{})
	must(o.t, err)
	return signin.Binding{Challenge: c.GetChallenge(), Session: pub, CA: o.pin}, key
}

func (o *office) bring(b signin.Binding, token, user string) (*apiv1.LoginWorkloadResponse, error) {
	return apiv1.NewIdentityClient(o.dial(nil)).LoginWorkload(o.t.Context(),
		&apiv1.LoginWorkloadRequest{
			Challenge: b.Challenge, SessionPublicKey: b.Session, Token: token, User: user,
		})
}

// A pipeline signs in with its token, once, and is a workload with the claims of that token.
func TestWorkloadSignsIn(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil)
	const sub = "repo:acme/shop:ref:refs/heads/main"
	w, err := o.workload(&apiv1.Workload{
		Name: "deploy", Subject: "repo:acme/shop:*", Claims: map[string]string{"repository_owner": "acme"},
	})
	must(t, err)
	if w.GetUid() < 1900000000 || o.user("deploy").GetKind() != "workload" {
		t.Fatalf("the workload is %v, its user %v", w, o.user("deploy"))
	}
	good := map[string]any{"sub": sub, "aud": audience, "repository_owner": "acme"}
	mint := func(change map[string]any) string {
		claims := maps.Clone(good)
		maps.Copy(claims, change)
		token, err := o.provider.Mint(claims)
		must(t, err)
		return token
	}
	token := mint(nil)
	b, key := o.runner()
	resp, err := o.bring(b, token, "")
	must(t, err)
	deploy := o.person("deploy", nil, o.dial(selfSigned(t, key)))
	if me := deploy.me(); me.GetUser() != "deploy" || resp.GetUser() != "deploy" ||
		time.Until(time.UnixMilli(resp.GetExpiresMs())) > time.Hour {
		t.Errorf("it is %v until %v", me, resp)
	}
	// Bound to the session key, where the pipeline can have that.
	b, _ = o.runner()
	bound := mint(map[string]any{"aud": b.Audience(audience)})
	other, _ := o.runner()
	_, err = o.bring(other, bound, "")
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	_, err = o.bring(b, bound, "deploy")
	must(t, err)

	now := time.Now()
	forged := token[:strings.LastIndex(token, ".")] + ".AAAA"
	stranger := oidctest.New("https://elsewhere.example")
	foreign, err := stranger.Mint(map[string]any{"sub": sub, "aud": audience, "iss": o.issuer})
	must(t, err)
	for name, bad := range map[string]string{
		"used before":           token,
		"used before, bound":    bound,
		"of another repository": mint(map[string]any{"sub": "repo:acme/shop2:ref:refs/heads/main"}),
		"of a look-alike":       mint(map[string]any{"sub": "xrepo:acme/shop:ref"}),
		"another claim":         mint(map[string]any{"repository_owner": "evil"}),
		"a claim left out":      mint(map[string]any{"repository_owner": nil}),
		"another audience":      mint(map[string]any{"aud": "curfew://other.example:7443"}),
		"a prefix of ours":      mint(map[string]any{"aud": audience + "0"}),
		"no audience":           mint(map[string]any{"aud": nil}),
		"expired":               mint(map[string]any{"iat": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(-time.Hour).Unix()}),
		"good for a week":       mint(map[string]any{"exp": now.Add(7 * 24 * time.Hour).Unix()}),
		"from the future":       mint(map[string]any{"iat": now.Add(time.Hour).Unix(), "exp": now.Add(2 * time.Hour).Unix()}),
		"not signed":            forged,
		"signed by somebody":    foreign,
		"of an unknown issuer":  mint(map[string]any{"iss": "https://unknown.example"}),
		"of an issuer's cousin": mint(map[string]any{"iss": o.issuer + "/"}),
	} {
		b, _ := o.runner()
		if _, err := o.bring(b, bad, ""); err == nil {
			t.Errorf("a token that is %s signed in", name)
		} else {
			refused(t, err, apiv1.Code_CODE_SIGN_IN)
		}
	}
	for _, garbage := range []string{"", "a.b.c", "a.b", strings.Repeat("x", 20<<10)} {
		b, _ := o.runner()
		if _, err := o.bring(b, garbage, ""); err == nil {
			t.Errorf("%.20q signed in", garbage)
		}
	}
	if !o.onTrail(`"kind":"signin.accepted"`, `"method":"workload"`, sub) ||
		!o.onTrail(`"kind":"signin.refused"`, "used before") {
		t.Error("the trail does not tell")
	}
}

// A workload asks and never decides, whatever groups hold it; deleting it ends what it has.
func TestWorkloadOnlyAsks(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil)
	alice, bob, _, web1 := o.cast(1)
	_, err := o.workload(&apiv1.Workload{Name: "deploy", Subject: "job-7"})
	must(t, err)
	o.group("sre", "bob", "deploy")
	token, err := o.provider.Mint(map[string]any{"sub": "job-7", "aud": audience})
	must(t, err)
	b, key := o.runner()
	_, err = o.bring(b, token, "deploy")
	must(t, err)
	deploy := o.person("deploy", newKey(t), o.dial(selfSigned(t, key)))
	// Its SSH keys open hosts and sign nobody in.
	key2 := newKey(t)
	_, err = o.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "deploy", SshKeys: []string{grant.SSHKeyText(key2.PublicKey())},
	}})
	must(t, err)
	refused(t, o.attempt(attempt{user: "deploy", key: key2}), apiv1.Code_CODE_SIGN_IN)
	deploy.me()
	_, err = deploy.approve(alice.ask("web1"))
	refused(t, err, apiv1.Code_CODE_DENIED)
	for _, u := range []*apiv1.User{{Name: "deploy", Admin: true}, {Name: "deploy", Auditor: true}} {
		_, err = o.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: u})
		refused(t, err, apiv1.Code_CODE_INVALID)
	}
	role := opsRole(1)
	role.Name, role.AllowLogin = "restart", false
	o.role(role)
	r, err := deploy.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "restart", DurationMs: 60000, Reason: "deploy 1.2",
	})
	must(t, err)
	_, err = bob.approve(r.GetRequest())
	must(t, err)
	web1.eventually(1)
	_, err = o.admin.identity().DeleteWorkload(t.Context(), &apiv1.DeleteWorkloadRequest{Name: "deploy"})
	must(t, err)
	web1.eventually(0)
	_, err = deploy.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
}

// Many jobs of one pipeline run side by side: none ends another's session.
func TestManyJobsOfOnePipeline(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil)
	_, err := o.workload(&apiv1.Workload{Name: "deploy", Subject: "job-*"})
	must(t, err)
	var first *person
	for i := range 24 {
		token, err := o.provider.Mint(map[string]any{"sub": fmt.Sprintf("job-%d", i), "aud": audience})
		must(t, err)
		b, key := o.runner()
		_, err = o.bring(b, token, "")
		must(t, err)
		if first == nil {
			first = o.person("deploy", nil, o.dial(selfSigned(t, key)))
		}
	}
	first.me()
}

// Two workloads for one token need a name; a pattern that lets strangers in is refused.
func TestWorkloadPatterns(t *testing.T) {
	t.Parallel()
	o := buildOffice(t, nil)
	for _, w := range []*apiv1.Workload{
		{Name: "one", Subject: "job-*"},
		{Name: "two", Subject: "*7"},
		{Name: "two", Subject: "job-7"},
		{Name: "dana", Subject: "job-7"},
		{Name: "three", Subject: ""},
		{Name: "four", Subject: "*"},
		{Name: "five", Subject: "repo:*", Issuer: "https://token.actions.githubusercontent.com"},
		{Name: "six", Subject: "repo:acm*", Issuer: "https://token.actions.githubusercontent.com"},
		{Name: "seven", Subject: "repo:acme/*", Issuer: "https://token.actions.githubusercontent.com"},
		{Name: "eight", Subject: "x", Issuer: "http://gitlab.example.org"},
		{Name: "Nine", Subject: "x"},
	} {
		_, err := o.workload(w)
		ok := w.GetName() == "one" || w.GetSubject() == "job-7" && w.GetName() == "two" ||
			w.GetName() == "seven"
		if (err == nil) != ok {
			t.Errorf("%v: %v", w, err)
		}
	}
	login := func(user string) error {
		token, err := o.provider.Mint(map[string]any{"sub": "job-7", "aud": audience})
		must(t, err)
		b, _ := o.runner()
		_, err = o.bring(b, token, user)
		return err
	}
	refused(t, login(""), apiv1.Code_CODE_INVALID)
	must(t, login("two"))
	refused(t, login("seven"), apiv1.Code_CODE_SIGN_IN)
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"a", "a", true},
		{"a", "ab", false},
		{"a*", "a", true},
		{"a*c", "abc", true},
		{"a*c", "acb", false},
		{"a*b*c", "a1b2b3c", true},
		{"a*b*c", "a1c", false},
		{"*a", "ba", true},
		{"ab*ba", "aba", false},
		{"a**b", "ab", true},
	} {
		if identity.Match(c.pattern, c.text) != c.want {
			t.Errorf("%q fits %q: %v", c.pattern, c.text, !c.want)
		}
	}
}
