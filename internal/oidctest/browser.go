package oidctest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
)

// A Browser is a person at the provider's pages.
type Browser struct {
	Name   string
	Client *http.Client // nil for a plain one
}

func (b *Browser) do(ctx context.Context, method, at string, form url.Values) (
	*http.Response, string, error,
) {
	if b.Client == nil {
		b.Client = &http.Client{}
	}
	if b.Client.Jar == nil {
		jar, err := cookiejar.New(nil)
		if err != nil {
			return nil, "", err
		}
		b.Client.Jar = jar
	}
	req, err := http.NewRequestWithContext(ctx, method, at, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, "", err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := b.Client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp, string(text), err
}

// SignIn opens an address, types name and password, and goes where the provider sends it: to the
// program that waits on loopback. It returns what that page says.
func (b *Browser) SignIn(ctx context.Context, address string) (string, error) {
	resp, text, err := b.do(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", err
	}
	id := resp.Request.URL.Query().Get("authRequestID")
	if id == "" {
		return "", fmt.Errorf("no login page at %s: %s %s", resp.Request.URL, resp.Status, text)
	}
	login := resp.Request.URL.ResolveReference(&url.URL{Path: "/login/username"})
	resp, text, err = b.do(ctx, http.MethodPost, login.String(),
		url.Values{"id": {id}, "username": {b.Name}, "password": {Password}})
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return text, err
}

// Agree types a user code on the provider's device page and agrees, or denies.
func (b *Browser) Agree(ctx context.Context, page, code, action string) error {
	u, err := url.Parse(page)
	if err != nil {
		return err
	}
	login := u.ResolveReference(&url.URL{Path: "/device/login"})
	resp, text, err := b.do(ctx, http.MethodPost, login.String(),
		url.Values{"user_code": {code}, "username": {b.Name}, "password": {Password}})
	if err != nil {
		return err
	}
	if !strings.Contains(text, "Welcome back") {
		return fmt.Errorf("the device page says %s: %s", resp.Status, text)
	}
	confirm := u.ResolveReference(&url.URL{Path: "/device/confirm", RawQuery: "action=" + action})
	resp, text, err = b.do(ctx, http.MethodGet, confirm.String(), nil)
	if err == nil && !strings.Contains(text, "Device authorization "+action) {
		err = fmt.Errorf("the device page says %s: %s", resp.Status, text)
	}
	return err
}
