package oidc

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	oidclib "github.com/coreos/go-oidc/v3/oidc"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
)

// Limits on a pipeline's token.
const (
	maxTokenLife = 24 * time.Hour
	clockSlack   = 5 * time.Minute
	maxClaims    = 64
	maxClaimName = 64
	maxValue     = 512
	maxIssuers   = 64
)

// Pipelines verifies ID tokens of pipelines by their issuers' published keys. Safe for concurrent
// use.
type Pipelines struct {
	http *http.Client
	now  func() time.Time

	mu      sync.Mutex // guards issuers
	issuers map[string]*discovery
}

// NewPipelines makes a verifier.
func NewPipelines(client *http.Client, now func() time.Time) *Pipelines {
	return &Pipelines{http: client, now: now, issuers: make(map[string]*discovery)}
}

// Peek reads a token's issuer and believes nothing.
func (p *Pipelines) Peek(token string) (string, error) {
	payload, err := payloadOf(token)
	if err != nil {
		return "", err
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(payload, &c); err != nil || c.Issuer == "" {
		return "", errors.New("its payload names no issuer")
	}
	return c.Issuer, nil
}

func payloadOf(token string) ([]byte, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("it is not a signed JWT")
	}
	return base64.RawURLEncoding.DecodeString(parts[1])
}

func (p *Pipelines) discovery(issuer string) *discovery {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, known := p.issuers[issuer]
	if !known {
		if len(p.issuers) >= maxIssuers {
			clear(p.issuers)
		}
		d = &discovery{issuer: issuer, http: p.http, now: p.now}
		p.issuers[issuer] = d
	}
	return d
}

// Verify checks a token of an issuer that an admin named; a token that does not hold is ErrRefused.
func (p *Pipelines) Verify(ctx context.Context, issuer, raw string, audiences ...string) (
	out identity.WorkloadToken, err error,
) {
	f, err := p.discovery(issuer).get(ctx)
	if err != nil {
		return out, err
	}
	v := f.VerifierContext(oidclib.ClientContext(context.WithoutCancel(ctx), p.http),
		&oidclib.Config{SkipClientIDCheck: true, Now: p.now})
	token, err := v.Verify(oidclib.ClientContext(ctx, p.http), raw)
	if err != nil {
		if outage(err) {
			return out, fmt.Errorf("verifying a token of %s: %w", issuer, err)
		}
		return out, fmt.Errorf("%w: the token does not hold: %w", identity.ErrRefused, err)
	}
	if !slices.ContainsFunc(token.Audience, func(a string) bool {
		return slices.Contains(audiences, a)
	}) {
		return out, fmt.Errorf("%w: the token's audience is %q; want %s", identity.ErrRefused,
			token.Audience, audiences[0])
	}
	now := p.now()
	switch life := token.Expiry.Sub(token.IssuedAt); {
	case token.Subject == "":
		return out, fmt.Errorf("%w: the token names no subject", identity.ErrRefused)
	case token.IssuedAt.Unix() <= 0 || life <= 0 || life > maxTokenLife:
		return out, fmt.Errorf("%w: the token lives %s; at most %s", identity.ErrRefused, life,
			maxTokenLife)
	case token.IssuedAt.After(now.Add(clockSlack)):
		return out, fmt.Errorf("%w: the token is from the future", identity.ErrRefused)
	}
	all := map[string]any{}
	if err := token.Claims(&all); err != nil {
		return out, fmt.Errorf("the token's claims: %w", err)
	}
	out = identity.WorkloadToken{
		Issuer: token.Issuer, Subject: token.Subject, Expires: token.Expiry, Claims: flat(all),
	}
	out.Once, err = once(issuer, raw, all)
	return out, err
}

// outage tells keys that could not be fetched from a token that does not hold.
func outage(err error) bool { return strings.Contains(err.Error(), "fetching keys") }

// once is the same for every copy of a token, also for one whose signature was written differently.
func once(issuer, raw string, c map[string]any) ([32]byte, error) {
	if jti, ok := c["jti"].(string); ok && jti != "" {
		return sha256.Sum256([]byte("jti\x00" + issuer + "\x00" + jti)), nil
	}
	payload, err := payloadOf(raw)
	return sha256.Sum256(append([]byte("payload\x00"+issuer+"\x00"), payload...)), err
}

// flat keeps the claims that are one plain value, as text.
func flat(all map[string]any) map[string]string {
	out := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text := ""
		switch v := all[name].(type) {
		case string:
			text = v
		case bool:
			text = strconv.FormatBool(v)
		case float64:
			text = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			continue
		}
		if len(out) < maxClaims && len(name) <= maxClaimName && len(text) <= maxValue &&
			grant.VisibleText(name) == name && grant.VisibleText(text) == text {
			out[name] = text
		}
	}
	return out
}
