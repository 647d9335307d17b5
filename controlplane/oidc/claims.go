package oidc

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"

	oidclib "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
)

const maxClaim = 1024

type claims map[string]any

// text is a claim that is one string; a string in a list of one counts as well.
func (c claims) text(name string) string {
	v := c[name]
	if l, ok := v.([]any); ok && len(l) == 1 {
		v = l[0]
	}
	s, ok := v.(string)
	if !ok || len(s) > maxClaim {
		return ""
	}
	return s
}

// texts is a claim that is a list of strings; a single string is a list of one.
func (c claims) texts(name string) []string {
	switch v := c[name].(type) {
	case string:
		return []string{v}
	case []any:
		out := make([]string, 0, len(v))
		for _, x := range v {
			if s, ok := x.(string); ok && len(s) <= maxClaim {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

func (c claims) has(name string) bool { _, ok := c[name]; return name != "" && ok }

// verify checks an ID token's signature, issuer, audience and times.
func (p *Provider) verify(ctx context.Context, f *found, raw string) (*oidclib.IDToken, claims, error) {
	v := f.VerifierContext(oidclib.ClientContext(context.WithoutCancel(ctx), p.c.HTTP),
		&oidclib.Config{SkipClientIDCheck: true, Now: p.c.Now})
	token, err := v.Verify(oidclib.ClientContext(ctx, p.c.HTTP), raw)
	if err != nil {
		return nil, nil, fmt.Errorf("the ID token does not hold: %w", err)
	}
	ours := func(aud string) bool {
		return aud == p.c.ClientID || slices.Contains(p.c.Audiences, aud)
	}
	if !slices.ContainsFunc(token.Audience, ours) {
		return nil, nil, fmt.Errorf("the ID token is for %q and not for us", token.Audience)
	}
	c := claims{}
	if err := token.Claims(&c); err != nil {
		return nil, nil, fmt.Errorf("the ID token's claims: %w", err)
	}
	if azp := c.text("azp"); azp != "" && !ours(azp) {
		return nil, nil, fmt.Errorf("the ID token was asked for by %q", grant.VisibleText(azp))
	}
	if token.Subject == "" || len(token.Subject) > 255 {
		return nil, nil, errors.New("the ID token names no subject")
	}
	return token, c, nil
}

// proof reads who signed in from the ID token beside an access token, and from the userinfo endpoint
// what the ID token leaves out. A nonce, where one is due, must be there.
func (p *Provider) proof(ctx context.Context, f *found, token *oauth2.Token, nonce *string) (
	proof identity.Proof, err error,
) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return proof, errors.New("the provider sent no ID token; is openid among oidc.scopes?")
	}
	id, c, err := p.verify(ctx, f, raw)
	if err != nil {
		return proof, err
	}
	if nonce != nil && subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(*nonce)) != 1 {
		return proof, fmt.Errorf("%w: the ID token is for another sign-in", identity.ErrRefused)
	}
	if err := p.complete(ctx, f, token, id.Subject, c); err != nil {
		return proof, err
	}
	proof = p.read(id.Subject, c)
	// A provider that leaves an empty list out must not leave somebody in the groups they were in.
	proof.HasGroups, proof.HasManager = p.c.Claims.Groups != "", p.c.Claims.Manager != ""
	if !c.has(p.c.Claims.User) {
		return proof, fmt.Errorf("%w: neither ID token nor userinfo has the claim %s",
			identity.ErrRefused, p.c.Claims.User)
	}
	proof.Refresh = token.RefreshToken
	return proof, nil
}

// again reads what a refreshed token says. Many providers say less then: what is left out says
// nothing.
func (p *Provider) again(ctx context.Context, f *found, token *oauth2.Token) (
	proof identity.Proof, err error,
) {
	c, subject := claims{}, ""
	if raw, _ := token.Extra("id_token").(string); raw != "" {
		id, found, err := p.verify(ctx, f, raw)
		if err != nil {
			return proof, err
		}
		subject, c = id.Subject, found
	}
	if subject != "" {
		if err := p.complete(ctx, f, token, subject, c); err != nil {
			return proof, err
		}
		proof = p.read(subject, c)
	}
	proof.Refresh = token.RefreshToken
	return proof, nil
}

// complete adds what the userinfo endpoint knows to claims that lack something configured.
func (p *Provider) complete(
	ctx context.Context, f *found, token *oauth2.Token, subject string, c claims,
) error {
	names := []string{p.c.Claims.User, p.c.Claims.Email, p.c.Claims.Groups, p.c.Claims.Manager}
	missing := slices.ContainsFunc(names, func(n string) bool { return n != "" && !c.has(n) })
	if !missing || f.UserInfoEndpoint() == "" {
		return nil
	}
	info, err := f.UserInfo(oidclib.ClientContext(ctx, p.c.HTTP), oauth2.StaticTokenSource(token))
	if err != nil {
		return fmt.Errorf("asking the userinfo endpoint: %w", err)
	}
	if info.Subject != subject {
		return fmt.Errorf("userinfo is about %q, the ID token about %q", info.Subject, subject)
	}
	more := claims{}
	if err := info.Claims(&more); err != nil {
		return fmt.Errorf("userinfo: %w", err)
	}
	for name, value := range more {
		if _, known := c[name]; !known {
			c[name] = value
		}
	}
	return nil
}

func (p *Provider) read(subject string, c claims) identity.Proof {
	names := p.c.Claims
	verified, _ := c["email_verified"].(bool)
	if s, ok := c["email_verified"].(string); ok {
		verified = s == "true" // as some providers write it
	}
	proof := identity.Proof{
		Issuer: p.c.Issuer, Subject: subject, Name: c.text(names.User),
		NameUnverified: names.User == "email" && !verified,
		Groups:         c.texts(names.Groups), HasGroups: c.has(names.Groups),
		Manager: c.text(names.Manager), HasManager: c.has(names.Manager),
	}
	if names.Email != "" && verified {
		proof.Email = c.text(names.Email)
	}
	return proof
}
