// Package oidctest is a real OpenID provider for tests: zitadel's, with people who have groups and
// managers, who can be disabled, and who come to the browser and to the device page. It also mints the
// tokens that pipelines get. What a test wants of it can be told in the process or over HTTP, below
// /test/.
package oidctest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// What clients and people need to know.
const (
	ClientID     = "curfew"
	ClientSecret = "a secret between two programs"
	Password     = "verysecure"
	// Runner is what a pipeline of the Actions kind presents to get its token.
	Runner = "what a runner presents"
)

// User is a person whom the provider knows. The subject is "sub-" and the name.
type User struct {
	Name     string
	Email    string
	Groups   []string
	Manager  string
	Disabled bool
}

// Provider is the provider. Safe for concurrent use.
type Provider struct {
	*storage.Storage
	issuer string
	pages  http.Handler

	mu     sync.Mutex // guards the rest
	users  map[string]*User
	down   bool
	actual map[string]any // claims of tokens for Actions
	asked  int            // refresh tokens redeemed
	given  []string       // refresh tokens
	serial int
}

// New makes a provider for an issuer's URL.
func New(issuer string, users ...User) *Provider {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // its example pages log every call
	p := &Provider{issuer: issuer, users: make(map[string]*User)}
	for _, u := range users {
		p.users[u.Name] = &u
	}
	p.Storage = storage.NewStorageWithClients(p, map[string]*storage.Client{
		ClientID: storage.NativeClient(ClientID, "http://127.0.0.1/callback"),
	})
	p.pages = exampleop.SetupServer(issuer, p, nil, false)
	return p
}

// Subject is the sub claim of a user.
func Subject(name string) string { return "sub-" + name }

// GetUserByID implements storage.UserStore.
func (p *Provider) GetUserByID(id string) *storage.User {
	return p.GetUserByUsername(strings.TrimPrefix(id, "sub-"))
}

// GetUserByUsername implements storage.UserStore; nobody disabled is found.
func (p *Provider) GetUserByUsername(name string) *storage.User {
	p.mu.Lock()
	defer p.mu.Unlock()
	u, ok := p.users[name]
	if !ok || u.Disabled {
		return nil
	}
	return &storage.User{
		ID: Subject(name), Username: name, Password: Password, Email: u.Email,
		EmailVerified: u.Email != "",
	}
}

// ExampleClientID implements storage.UserStore.
func (p *Provider) ExampleClientID() string { return "service" }

// client is a confidential client that may do everything which Curfew does. Its redirects are those of
// a native one: loopback at any port.
type client struct{ *storage.Client }

func (client) ApplicationType() op.ApplicationType  { return op.ApplicationTypeWeb }
func (client) DevMode() bool                        { return true }
func (client) RedirectURIGlobs() []string           { return []string{"http://127.0.0.1:*/callback"} }
func (client) PostLogoutRedirectURIGlobs() []string { return nil }

func (client) AuthMethod() oidc.AuthMethod { return oidc.AuthMethodBasic }
func (client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken, oidc.GrantTypeDeviceCode}
}
func (client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (client) IsScopeAllowed(string) bool           { return true }

// GetClientByClientID implements op.Storage.
func (p *Provider) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := p.Storage.GetClientByClientID(ctx, id)
	if err != nil {
		return nil, err
	}
	native, ok := c.(*storage.Client)
	if !ok {
		return nil, errors.New("not our client")
	}
	return client{native}, nil
}

// AuthorizeClientIDSecret implements op.Storage.
func (p *Provider) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	if id != ClientID || secret != ClientSecret {
		return errors.New("wrong client secret")
	}
	return nil
}

// TokenRequestByRefreshToken implements op.Storage: nobody disabled is vouched for.
func (p *Provider) TokenRequestByRefreshToken(ctx context.Context, token string) (
	op.RefreshTokenRequest, error,
) {
	r, err := p.Storage.TokenRequestByRefreshToken(ctx, token)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.asked++
	p.mu.Unlock()
	if p.GetUserByID(r.GetSubject()) == nil {
		return nil, errors.New("the user is disabled")
	}
	return r, nil
}

// CreateAccessAndRefreshTokens implements op.Storage; the example forgets whose a device's token is.
func (p *Provider) CreateAccessAndRefreshTokens(
	ctx context.Context, r op.TokenRequest, current string,
) (string, string, time.Time, error) {
	if d, ok := r.(*op.DeviceAuthorizationState); ok {
		r = &storage.AuthRequest{ApplicationID: d.ClientID, UserID: d.Subject, Scopes: d.Scopes}
	}
	access, refresh, expires, err := p.Storage.CreateAccessAndRefreshTokens(ctx, r, current)
	p.mu.Lock()
	p.given = append(p.given, refresh)
	p.mu.Unlock()
	return access, refresh, expires, err
}

// RefreshTokens are all that were given out.
func (p *Provider) RefreshTokens() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.given)
}

// CompleteDeviceAuthorization implements the device page's storage; the page knows names only.
func (p *Provider) CompleteDeviceAuthorization(ctx context.Context, code, name string) error {
	return p.Storage.CompleteDeviceAuthorization(ctx, code, Subject(name))
}

// SetUserinfoFromRequest implements op.CanSetUserinfoFromRequest.
func (p *Provider) SetUserinfoFromRequest(
	ctx context.Context, info *oidc.UserInfo, r op.IDTokenRequest, scopes []string,
) error {
	if err := p.Storage.SetUserinfoFromRequest(ctx, info, r, scopes); err != nil {
		return err
	}
	p.more(info, r.GetSubject())
	return nil
}

// SetUserinfoFromToken implements op.Storage.
func (p *Provider) SetUserinfoFromToken(
	ctx context.Context, info *oidc.UserInfo, token, subject, origin string,
) error {
	if err := p.Storage.SetUserinfoFromToken(ctx, info, token, subject, origin); err != nil {
		return err
	}
	p.more(info, subject)
	return nil
}

func (p *Provider) more(info *oidc.UserInfo, subject string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u, ok := p.users[strings.TrimPrefix(subject, "sub-")]
	if !ok {
		return
	}
	if u.Groups != nil {
		info.AppendClaims("groups", slices.Clone(u.Groups))
	}
	if u.Manager != "" {
		info.AppendClaims("manager", u.Manager)
	}
}

// Change changes a user.
func (p *Provider) Change(name string, f func(*User)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u, ok := p.users[name]
	if !ok {
		u = &User{Name: name}
		p.users[name] = u
	}
	f(u)
}

// Down makes the provider answer everything with 503, or not any more.
func (p *Provider) Down(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = yes
}

// Asked is how many refresh tokens were presented.
func (p *Provider) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Mint signs a token with these claims over the usual ones.
func (p *Provider) Mint(claims map[string]any) (string, error) {
	key, err := p.SigningKey(context.Background())
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	p.serial++
	now := time.Now()
	all := map[string]any{
		"iss": p.issuer, "iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
		"jti": fmt.Sprintf("token-%d-%d", now.UnixNano(), p.serial),
	}
	p.mu.Unlock()
	for name, value := range claims {
		if all[name] = value; value == nil {
			delete(all, name)
		}
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: key.SignatureAlgorithm(), Key: key.Key()},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", key.ID()))
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// ServeHTTP serves the provider's pages, the tests' wishes, and tokens as GitHub Actions hands them
// out.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if wish, ok := strings.CutPrefix(r.URL.Path, "/test/"); ok {
		if err := p.wish(w, wish, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
		return
	}
	p.mu.Lock()
	down := p.down
	p.mu.Unlock()
	switch {
	case down:
		http.Error(w, "down for maintenance", http.StatusServiceUnavailable)
	case r.URL.Path == "/actions/token":
		p.actions(w, r)
	default:
		p.pages.ServeHTTP(w, r)
	}
}

func (p *Provider) wish(w http.ResponseWriter, wish string, r *http.Request) error {
	q := r.URL.Query()
	switch wish {
	case "disable", "enable":
		p.Change(q.Get("user"), func(u *User) { u.Disabled = wish == "disable" })
	case "groups":
		p.Change(q.Get("user"), func(u *User) { u.Groups = strings.Fields(q.Get("groups")) })
	case "down", "up":
		p.Down(wish == "down")
	case "actions", "mint":
		claims := map[string]any{}
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&claims); err != nil {
			return err
		}
		if wish == "actions" {
			p.Actions(claims)
			return nil
		}
		token, err := p.Mint(claims)
		fmt.Fprint(w, token)
		return err
	default:
		return fmt.Errorf("no such wish: %s", wish)
	}
	return nil
}

// Actions says what the tokens of a pipeline of the Actions kind claim.
func (p *Provider) Actions(claims map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.actual = claims
}

// actions hands out a token for an audience, as GitHub does for ACTIONS_ID_TOKEN_REQUEST_URL.
func (p *Provider) actions(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+Runner {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	p.mu.Lock()
	claims := map[string]any{"aud": r.URL.Query().Get("audience")}
	for name, value := range p.actual {
		claims[name] = value
	}
	p.mu.Unlock()
	token, err := p.Mint(claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"count": len(token), "value": token})
}
