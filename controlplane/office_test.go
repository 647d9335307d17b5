package controlplane_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/controlplane/oidc"
	"github.com/curfew-access/curfew/internal/oidctest"
	"github.com/curfew-access/curfew/internal/signin"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// office is a control plane with a real OpenID provider beside it.
type office struct {
	*house
	provider *oidctest.Provider
	issuer   string
}

func buildOffice(t *testing.T, tune func(*controlplane.Config), users ...oidctest.User) *office {
	t.Helper()
	var o office
	srv := httptest.NewUnstartedServer(nil)
	o.issuer = "http://" + srv.Listener.Addr().String()
	o.provider = oidctest.New(o.issuer, users...)
	srv.Config.Handler = o.provider
	srv.Start()
	t.Cleanup(srv.Close)
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte(oidctest.ClientSecret+"\n"), 0o600))
	o.house = build(t, func(c *controlplane.Config) {
		c.OIDC = &controlplane.OIDC{
			Issuer: o.issuer, ClientID: oidctest.ClientID, SecretFile: secret,
			Scopes: []string{"openid", "profile", "email", "offline_access"},
			Claims: oidc.ClaimNames{
				User: "preferred_username", Email: "email", Groups: "groups", Manager: "manager",
			},
			CreateUsers: true, DeviceFlow: true, DeprovisionAfter: 2 * time.Second,
		}
		if tune != nil {
			tune(c)
		}
	})
	return &o
}

// browsing is one sign-in in a browser, up to the code.
type browsing struct {
	signin.Binding
	key      ed25519.PrivateKey
	verifier string
	redirect string
	code     string
}

// browse plays CLI and person up to the code. nonce, when it is set, takes the place of ours.
func (o *office) browse(name, nonce string) (*browsing, error) {
	o.t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	must(o.t, err)
	stranger := o.dial(nil)
	c, err := apiv1.NewSignInClient(stranger).Challenge(o.t.Context(), &apiv1.ChallengeRequest{})
	must(o.t, err)
	m, err := apiv1.NewIdentityClient(stranger).Methods(o.t.Context(), &apiv1.MethodsRequest{})
	must(o.t, err)
	b := &browsing{
		Binding: signin.Binding{Challenge: c.GetChallenge(), Session: pub, CA: o.pin}, key: key,
		verifier: strings.Repeat("v", 43),
	}
	if nonce == "" {
		nonce = b.Nonce()
	}
	// What waits on loopback: it only keeps the code.
	codes := make(chan string, 1)
	back := httptest.NewServer(keep(codes))
	defer back.Close()
	b.redirect = back.URL + "/callback"
	sum := sha256.Sum256([]byte(b.verifier))
	q := url.Values{
		"response_type": {"code"}, "client_id": {m.GetOidc().GetClientId()},
		"redirect_uri": {b.redirect}, "scope": {strings.Join(m.GetOidc().GetScopes(), " ")},
		"state": {"s"}, "nonce": {nonce}, "code_challenge_method": {"S256"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])},
	}
	_, err = (&oidctest.Browser{Name: name}).SignIn(o.t.Context(),
		m.GetOidc().GetAuthorizationEndpoint()+"?"+q.Encode())
	if err != nil {
		return b, err
	}
	select {
	case b.code = <-codes:
	default:
	}
	return b, nil
}

// finish sends the code; the person comes back on a connection of the session key.
func (o *office) finish(b *browsing) (*person, string, error) {
	o.t.Helper()
	resp, err := apiv1.NewIdentityClient(o.dial(nil)).LoginOIDC(o.t.Context(),
		&apiv1.LoginOIDCRequest{
			Challenge: b.Challenge, SessionPublicKey: b.Session, Code: b.code,
			CodeVerifier: b.verifier, RedirectUri: b.redirect, Device: "laptop",
		})
	if err != nil {
		return nil, "", err
	}
	p := o.person(resp.GetUser(), nil, o.dial(selfSigned(o.t, b.key)))
	p.session = b.Session
	return p, resp.GetUser(), nil
}

// keep takes the code that the browser brings back.
func keep(codes chan<- string) http.Handler {
	return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if code := r.URL.Query().Get("code"); code != "" {
			codes <- code
		}
	})
}

// sso signs a person in at the provider.
func (o *office) sso(name string) *person {
	o.t.Helper()
	b, err := o.browse(name, "")
	must(o.t, err)
	p, _, err := o.finish(b)
	must(o.t, err)
	return p
}

// tryAt signs in and returns the refusal.
func (o *office) trySSO(name string) error {
	o.t.Helper()
	b, err := o.browse(name, "")
	must(o.t, err)
	_, _, err = o.finish(b)
	return err
}

func (p *person) me() *apiv1.WhoAmIResponse {
	p.t.Helper()
	me, err := p.WhoAmI(p.t.Context(), &apiv1.WhoAmIRequest{})
	must(p.t, err)
	return me
}

func (p *person) identity() apiv1.IdentityClient { return apiv1.NewIdentityClient(p.conn) }

func (h *house) user(name string) *apiv1.User {
	h.t.Helper()
	all, err := h.admin.ListUsers(h.t.Context(), &apiv1.ListUsersRequest{})
	must(h.t, err)
	for _, u := range all.GetUsers() {
		if u.GetName() == name {
			return u
		}
	}
	return nil
}

// trail says whether some record holds all these texts.
func (h *house) onTrail(texts ...string) bool {
	h.t.Helper()
	return slices.ContainsFunc(h.admin.records(), func(r *apiv1.Record) bool {
		return !slices.ContainsFunc(texts, func(text string) bool {
			return !strings.Contains(string(r.GetLeaf()), text)
		})
	})
}
