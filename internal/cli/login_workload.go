package cli

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/signin"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

const (
	maxTokenSize = 16 << 10
	tokenTimeout = 20 * time.Second
)

// loginWorkload signs a pipeline in with the ID token of its CI.
func (a *app) loginWorkload(ctx context.Context, c *client, session ed25519.PublicKey) (
	expires int64, err error,
) {
	methods, err := call(ctx, c, c.identity.Methods, &apiv1.MethodsRequest{})
	if err != nil {
		return 0, err
	}
	b, err := c.challenge(ctx, session)
	if err != nil {
		return 0, err
	}
	token, err := a.pipelineToken(ctx, b, methods.GetWorkloadAudience())
	if err != nil {
		return 0, err
	}
	answer, err := call(ctx, c, c.identity.LoginWorkload, &apiv1.LoginWorkloadRequest{
		Challenge: b.Challenge, SessionPublicKey: session, Token: token, User: c.cfg.User,
		Device: deviceName(),
	})
	if err != nil {
		return 0, err
	}
	return answer.GetExpiresMs(), c.cfg.welcome(answer.GetUser(), "")
}

// pipelineToken finds the token: in the environment, in a file, or at GitHub Actions, which mints one
// for an audience of our choice, and so for this very session key.
func (a *app) pipelineToken(ctx context.Context, b signin.Binding, audience string) (string, error) {
	if token := strings.TrimSpace(a.env.Getenv("CURFEW_ID_TOKEN")); token != "" {
		return token, nil
	}
	if path := a.env.Getenv("CURFEW_ID_TOKEN_FILE"); path != "" {
		data, err := readCapped(path, maxTokenSize)
		if err != nil {
			return "", usage("CURFEW_ID_TOKEN_FILE: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	from, bearer := a.env.Getenv("ACTIONS_ID_TOKEN_REQUEST_URL"),
		a.env.Getenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	if from == "" || bearer == "" {
		return "", usage("there is no ID token of a pipeline here").
			hint("GitLab: id_tokens: {CURFEW_ID_TOKEN: {aud: %q}}", audience).
			hint("GitHub: permissions: {id-token: write}")
	}
	return mint(ctx, from, bearer, b.Audience(audience))
}

// mint asks GitHub Actions for a token with an audience.
func mint(ctx context.Context, from, bearer, audience string) (string, error) {
	u, err := url.Parse(from)
	if err != nil {
		return "", usage("ACTIONS_ID_TOKEN_REQUEST_URL: %w", err)
	}
	q := u.Query()
	q.Set("audience", audience)
	u.RawQuery = q.Encode()
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", usage("ACTIONS_ID_TOKEN_REQUEST_URL: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Accept", "application/json; api-version=2.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fail(exitUnreachable, "asking the CI for an ID token: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fail(exitFailed, "asking the CI for an ID token: it answered %s", resp.Status)
	}
	var answer struct {
		Value string `json:"value"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, maxTokenSize)).Decode(&answer)
	if err != nil || answer.Value == "" {
		return "", fail(exitFailed, "asking the CI for an ID token: the answer holds none")
	}
	return answer.Value, nil
}
