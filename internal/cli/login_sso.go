package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const (
	browserTime  = 5 * time.Minute
	callbackPath = "/callback"
	pollPause    = 200 * time.Millisecond
)

// methods asks how people may sign in at the provider.
func (c *client) methods(ctx context.Context) (*apiv1.OIDCMethod, error) {
	answer, err := call(ctx, c, c.identity.Methods, &apiv1.MethodsRequest{})
	if err != nil {
		return nil, err
	}
	if answer.GetOidc() == nil {
		return nil, usage("the control plane at %s has no identity provider", c.cfg.Server).
			hint("sign in with an SSH key: curfew login --ssh")
	}
	if answer.GetOidc().GetUnreachable() {
		return nil, fail(exitFailed, "the identity provider does not answer; nothing was changed").
			hint("try again, or sign in with an SSH key: curfew login --ssh")
	}
	return answer.GetOidc(), nil
}

// loginSSO signs in by a browser on this device: authorization code with PKCE, redirected to a
// listener on loopback (RFC 8252), the nonce bound to the session key (PROTOCOL.md section 7).
func (a *app) loginSSO(
	ctx context.Context, c *client, session ed25519.PublicKey, open bool,
) (expires int64, err error) {
	m, err := c.methods(ctx)
	if err != nil {
		return 0, err
	}
	b, err := c.challenge(ctx, session)
	if err != nil {
		return 0, err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(m.GetRedirectPort())))
	if err != nil {
		return 0, fail(exitFailed, "waiting for the browser: %w", err)
	}
	flow := &browserFlow{
		issuer: m.GetIssuer(), state: randomText(), verifier: randomText(),
		redirect: "http://" + listener.Addr().String() + callbackPath, got: make(chan callback, 1),
	}
	server := &http.Server{Handler: flow, ReadHeaderTimeout: connectTimeout}
	go server.Serve(listener) // ends with Shutdown below
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err = errors.Join(err, server.Shutdown(ctx))
	}()
	address, err := flow.address(m, b.Nonce())
	if err != nil {
		return 0, err
	}
	a.Talk("Sign in in your browser: %s", address)
	if open && !openBrowser(a.env.Getenv("BROWSER"), address) {
		a.Hint("no browser could be opened; open the address yourself, or use --device")
	}
	code, err := flow.wait(ctx)
	if err != nil {
		return 0, err
	}
	answer, err := call(ctx, c, c.identity.LoginOIDC, &apiv1.LoginOIDCRequest{
		Challenge: b.Challenge, SessionPublicKey: session, Code: code, CodeVerifier: flow.verifier,
		RedirectUri: flow.redirect, Device: deviceName(),
	})
	if err != nil {
		return 0, err
	}
	return answer.GetExpiresMs(), c.cfg.welcome(answer.GetUser(), methodSSO)
}

// welcome notes whom the provider said the person is. The key of somebody else is forgotten.
func (c *config) welcome(user, method string) error {
	if err := grant.CheckUserName(user); err != nil {
		return fail(exitFailed, "the control plane calls you %q", grant.VisibleText(user))
	}
	if user != c.User {
		c.SSHKey, c.KeyFile = "", ""
	}
	c.User, c.Method = user, method
	return nil
}

// randomText is 256 random bits in the form of RFC 7636, section 4.1.
func randomText() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails: it ends the program
	return base64.RawURLEncoding.EncodeToString(b)
}

// browserFlow is one sign-in in a browser, and the page that it comes back to.
type browserFlow struct {
	issuer, state, verifier, redirect string
	got                               chan callback
}

type callback struct {
	code string
	err  error
}

// address is where the browser begins.
func (f *browserFlow) address(m *apiv1.OIDCMethod, nonce string) (string, error) {
	u, err := url.Parse(m.GetAuthorizationEndpoint())
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fail(exitFailed, "the identity provider's address %q is none",
			grant.VisibleText(m.GetAuthorizationEndpoint()))
	}
	challenge := sha256.Sum256([]byte(f.verifier))
	q := u.Query()
	for name, value := range map[string]string{
		"response_type": "code", "client_id": m.GetClientId(), "redirect_uri": f.redirect,
		"scope": strings.Join(m.GetScopes(), " "), "state": f.state, "nonce": nonce,
		"code_challenge":        base64.RawURLEncoding.EncodeToString(challenge[:]),
		"code_challenge_method": "S256",
	} {
		q.Set(name, value)
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// ServeHTTP takes the browser's return. Whatever does not carry our state, other programs on this
// device say it, changes nothing.
func (f *browserFlow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.URL.Path != callbackPath || r.Method != http.MethodGet ||
		subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(f.state)) != 1 {
		http.Error(w, "This is not the sign-in that curfew waits for.", http.StatusBadRequest)
		return
	}
	back := callback{code: q.Get("code")}
	switch issuer := q.Get("iss"); {
	case issuer != "" && issuer != f.issuer: // RFC 9207
		back = callback{err: fail(exitSignIn, "the answer came from another identity provider")}
	case q.Get("error") != "":
		back = callback{err: fail(exitSignIn, "the identity provider refused: %s %s",
			grant.VisibleText(q.Get("error")), grant.VisibleText(q.Get("error_description")))}
	case back.code == "":
		back = callback{err: fail(exitSignIn, "the identity provider sent no code")}
	}
	if back.err != nil {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintln(w, "Not signed in. The terminal says why.")
	} else {
		fmt.Fprintln(w, "You may close this window: the rest happens in the terminal.")
	}
	select {
	case f.got <- back:
	default: // the browser came twice
	}
}

func (f *browserFlow) wait(ctx context.Context) (string, error) {
	timer := time.NewTimer(browserTime)
	defer timer.Stop()
	select {
	case back := <-f.got:
		return back.code, back.err
	case <-timer.C:
		return "", fail(exitTimeout, "nobody signed in within %s", showDuration(browserTime))
	case <-ctx.Done():
		return "", fail(exitUsage, "cancelled")
	}
}

// openBrowser starts what opens addresses here, and does not wait for it.
func openBrowser(named, address string) bool {
	command := strings.Fields(named)
	if len(command) == 0 {
		command = []string{"xdg-open"}
		if runtime.GOOS == "darwin" {
			command = []string{"open"}
		}
	}
	cmd := exec.Command(command[0], append(command[1:], address)...)
	if cmd.Start() != nil {
		return false
	}
	go cmd.Wait() // its end is nobody's concern
	return true
}

// loginDevice signs in with a browser on another device (RFC 8628). The control plane speaks with the
// provider; this side proves the session key and waits.
func (a *app) loginDevice(ctx context.Context, c *client, session ed25519.PublicKey) (
	expires int64, err error,
) {
	b, err := c.challenge(ctx, session)
	if err != nil {
		return 0, err
	}
	begun, err := call(ctx, c, c.identity.StartDevice, &apiv1.StartDeviceRequest{
		Challenge: b.Challenge, SessionPublicKey: session, Device: deviceName(),
	})
	if err != nil {
		return 0, err
	}
	a.Talk("On any device, open %s", grant.VisibleText(begun.GetVerificationUri()))
	a.Talk("and enter the code: %s", grant.VisibleText(begun.GetUserCode()))
	if begun.GetVerificationUriComplete() != "" {
		a.Talk("or open %s", grant.VisibleText(begun.GetVerificationUriComplete()))
	}
	a.Hint("nobody else will ever ask you to enter a code that they send you")
	for {
		answer, err := call(ctx, c, c.identity.FinishDevice,
			&apiv1.FinishDeviceRequest{Flow: begun.GetFlow()})
		switch {
		case err != nil:
			return 0, err
		case answer.GetDone():
			return answer.GetExpiresMs(), c.cfg.welcome(answer.GetUser(), methodDevice)
		}
		select {
		case <-ctx.Done():
			return 0, fail(exitUsage, "cancelled")
		case <-time.After(pollPause):
		}
	}
}
