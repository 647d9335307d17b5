// Package oidc asks OpenID providers: who signed in, whether they still may, and whose pipeline a
// token is. It is a leaf: it holds no rule about who is let in and stores nothing.
//
// Every answer is verified before it is believed: issuer, signature, audience, times, nonce. What a
// provider answered clearly is told from what it did not answer: only identity.ErrRefused and
// identity.ErrGone say no, anything else is an outage. Data comes from package identity and from the
// providers over HTTPS.
package oidc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	oidclib "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
)

// Limits on what a provider may say and how long it may take.
const (
	timeout    = 10 * time.Second
	maxAnswer  = 1 << 20
	retryAfter = 2 * time.Second // after a discovery that failed
)

// CheckIssuer accepts an issuer's URL: https, or http on loopback.
func CheckIssuer(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q is not an issuer: want https://HOST[/PATH]", grant.VisibleText(raw))
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "https" && !(u.Scheme == "http" && ip != nil && ip.IsLoopback()) {
		return fmt.Errorf("issuer %q is not https", grant.VisibleText(raw))
	}
	return nil
}

// NewClient makes the HTTP client for providers. cas are trusted beside the system's; nil for none.
func NewClient(cas []byte) (*http.Client, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's CA certificates: %w", err)
	}
	if cas != nil && !pool.AppendCertsFromPEM(cas) {
		return nil, errors.New("the file of CA certificates holds none in PEM")
	}
	return &http.Client{
		Timeout: timeout,
		Transport: &capped{&http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: timeout, ForceAttemptHTTP2: true,
			MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		}},
		// A redirect could carry a client secret or a token to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// capped cuts answers off that are too long.
type capped struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c *capped) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// ClaimNames are where the provider says what.
type ClaimNames struct{ User, Email, Groups, Manager string }

// Config is what a Provider needs.
type Config struct {
	Issuer       string
	ClientID     string
	ClientSecret string // empty for a public client
	Scopes       []string
	// Audiences are accepted beside the client id.
	Audiences    []string
	Claims       ClaimNames
	Device       bool
	RedirectPort int
	HTTP         *http.Client
	Now          func() time.Time
}

// Provider is one OpenID provider. Safe for concurrent use. It is asked for its metadata when it is
// first needed, so that a provider that is down keeps no control plane from starting.
type Provider struct {
	c     Config
	cache discovery
}

// New checks the configuration.
func New(c Config) (*Provider, error) {
	if err := CheckIssuer(c.Issuer); err != nil {
		return nil, err
	}
	if c.ClientID == "" || c.Claims.User == "" || c.HTTP == nil || c.Now == nil {
		return nil, errors.New("oidc: client id, user claim, HTTP client or clock is missing")
	}
	return &Provider{c: c, cache: discovery{issuer: c.Issuer, http: c.HTTP, now: c.Now}}, nil
}

// discovery is an issuer's metadata, fetched once.
type discovery struct {
	issuer string
	http   *http.Client
	now    func() time.Time

	mu     sync.Mutex // guards the rest
	found  *found
	err    error
	failed time.Time
}

// found is what discovery says.
type found struct {
	*oidclib.Provider
	meta struct {
		TokenAuth []string `json:"token_endpoint_auth_methods_supported"`
		Device    string   `json:"device_authorization_endpoint"`
	}
}

func (d *discovery) get(ctx context.Context) (*found, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found != nil {
		return d.found, nil
	}
	if d.err != nil && d.now().Sub(d.failed) < retryAfter {
		return nil, d.err
	}
	// The key set that is made here outlives the call, and so must its client.
	ctx = oidclib.ClientContext(context.WithoutCancel(ctx), d.http)
	p, err := oidclib.NewProvider(ctx, d.issuer)
	f := &found{Provider: p}
	if err == nil {
		err = p.Claims(&f.meta)
	}
	if err != nil {
		d.err, d.failed = fmt.Errorf("asking issuer %s for its metadata: %w", d.issuer, err), d.now()
		return nil, d.err
	}
	d.found, d.err = f, nil
	return f, nil
}

// Issuer is the provider's.
func (p *Provider) Issuer() string { return p.c.Issuer }

// Method is how a browser sign-in begins.
func (p *Provider) Method(ctx context.Context) (identity.OIDCMethod, error) {
	f, err := p.cache.get(ctx)
	if err != nil {
		return identity.OIDCMethod{}, err
	}
	return identity.OIDCMethod{
		Issuer: p.c.Issuer, AuthorizationEndpoint: f.Endpoint().AuthURL, ClientID: p.c.ClientID,
		Scopes: p.c.Scopes, Device: p.c.Device && f.meta.Device != "", RedirectPort: p.c.RedirectPort,
	}, nil
}

// oauth is the client for the provider's endpoints. How it authenticates is read from the metadata
// and never probed: a second try would spend a code twice.
func (p *Provider) oauth(f *found) *oauth2.Config {
	endpoint := f.Endpoint()
	endpoint.AuthStyle = oauth2.AuthStyleInParams
	if p.c.ClientSecret != "" {
		basic := len(f.meta.TokenAuth) == 0 // RFC 8414: the default is client_secret_basic
		for _, m := range f.meta.TokenAuth {
			basic = basic || m == "client_secret_basic"
		}
		if basic {
			endpoint.AuthStyle = oauth2.AuthStyleInHeader
		}
	}
	return &oauth2.Config{
		ClientID: p.c.ClientID, ClientSecret: p.c.ClientSecret, Endpoint: endpoint, Scopes: p.c.Scopes,
	}
}

const (
	grantRefresh = "refresh_token"
	grantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
)

// token asks the token endpoint once.
func (p *Provider) token(ctx context.Context, f *found, code string, params map[string]string) (
	*oauth2.Token, error,
) {
	options := make([]oauth2.AuthCodeOption, 0, len(params))
	for name, value := range params {
		options = append(options, oauth2.SetAuthURLParam(name, value))
	}
	ctx, cancel := context.WithTimeout(oidclib.ClientContext(ctx, p.c.HTTP), timeout)
	defer cancel()
	return p.oauth(f).Exchange(ctx, code, options...)
}

// oauthError is the error code of a clear answer (RFC 6749, section 5.2); empty for an outage.
func oauthError(err error) string {
	var e *oauth2.RetrieveError
	if !errors.As(err, &e) || e.Response == nil {
		return ""
	}
	if s := e.Response.StatusCode; s != http.StatusBadRequest && s != http.StatusUnauthorized {
		return ""
	}
	return e.ErrorCode
}

// RedeemCode turns an authorization code into what the provider says of the person.
func (p *Provider) RedeemCode(ctx context.Context, code, verifier, redirect, nonce string) (
	identity.Proof, error,
) {
	f, err := p.cache.get(ctx)
	if err != nil {
		return identity.Proof{}, err
	}
	token, err := p.token(ctx, f, code, map[string]string{
		"code_verifier": verifier, "redirect_uri": redirect,
	})
	if oauthError(err) == "invalid_grant" {
		return identity.Proof{}, fmt.Errorf("%w: the code is spent, expired or not for this sign-in",
			identity.ErrRefused)
	}
	if err != nil {
		return identity.Proof{}, fmt.Errorf("redeeming a code: %w", err)
	}
	return p.proof(ctx, f, token, &nonce)
}

// StartDevice begins a device flow.
func (p *Provider) StartDevice(ctx context.Context) (code identity.DeviceCode, err error) {
	f, err := p.cache.get(ctx)
	if err != nil {
		return code, err
	}
	ctx, cancel := context.WithTimeout(oidclib.ClientContext(ctx, p.c.HTTP), timeout)
	defer cancel()
	conf := p.oauth(f)
	conf.Endpoint.DeviceAuthURL = f.meta.Device
	var secret []oauth2.AuthCodeOption
	if p.c.ClientSecret != "" {
		// x/oauth2 sends the client id alone; a confidential client authenticates here as well (RFC
		// 8628, section 3.1).
		secret = append(secret, oauth2.SetAuthURLParam("client_secret", p.c.ClientSecret))
	}
	resp, err := conf.DeviceAuth(ctx, secret...)
	if err != nil {
		return code, fmt.Errorf("beginning a device sign-in: %w", err)
	}
	if resp.DeviceCode == "" || resp.UserCode == "" || resp.VerificationURI == "" {
		return code, errors.New("beginning a device sign-in: the answer is not whole")
	}
	code = identity.DeviceCode{
		Code: resp.DeviceCode, UserCode: resp.UserCode, URI: resp.VerificationURI,
		Complete: resp.VerificationURIComplete, Expires: resp.Expiry,
		Interval: time.Duration(resp.Interval) * time.Second,
	}
	if code.Interval == 0 {
		code.Interval = 5 * time.Second // RFC 8628, section 3.2
	}
	return code, nil
}

// PollDevice asks once whether the person has agreed.
func (p *Provider) PollDevice(ctx context.Context, device string) (
	proof identity.Proof, pending, slower bool, err error,
) {
	f, err := p.cache.get(ctx)
	if err != nil {
		return proof, false, false, err
	}
	token, err := p.token(ctx, f, "", map[string]string{
		"grant_type": grantDevice, "device_code": device,
	})
	switch code := oauthError(err); {
	case code == "authorization_pending", code == "slow_down":
		return proof, true, code == "slow_down", nil
	case code == "access_denied":
		return proof, false, false, fmt.Errorf("%w: it was denied there", identity.ErrRefused)
	case code == "expired_token", code == "invalid_grant":
		return proof, false, false, fmt.Errorf("%w: nobody agreed in time", identity.ErrRefused)
	case err != nil:
		return proof, false, false, fmt.Errorf("asking about a device sign-in: %w", err)
	}
	proof, err = p.proof(ctx, f, token, nil)
	return proof, false, false, err
}

// Refresh asks whether the provider still vouches for somebody. Only invalid_grant is a no.
func (p *Provider) Refresh(ctx context.Context, refresh string) (identity.Proof, error) {
	f, err := p.cache.get(ctx)
	if err != nil {
		return identity.Proof{}, err
	}
	token, err := p.token(ctx, f, "", map[string]string{
		"grant_type": grantRefresh, "refresh_token": refresh,
	})
	if oauthError(err) == "invalid_grant" {
		return identity.Proof{}, identity.ErrGone
	}
	if err != nil {
		return identity.Proof{}, fmt.Errorf("redeeming a refresh token: %w", err)
	}
	return p.again(ctx, f, token)
}
