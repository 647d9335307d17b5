package cloud

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	oidclib "github.com/coreos/go-oidc/v3/oidc"

	"github.com/curfew-access/curfew/internal/join"
)

// googleClaims is the part of an instance's identity token that counts here, in the full format
// (cloud.google.com/compute/docs/instances/verifying-instance-identity).
type googleClaims struct {
	Google struct {
		Engine struct {
			Project string `json:"project_id"`
			Zone    string `json:"zone"`
			ID      string `json:"instance_id"`
			Name    string `json:"instance_name"`
		} `json:"compute_engine"`
	} `json:"google"`
}

func (v *Verifier) google(
	ctx context.Context, document []byte, binding join.Binding, now time.Time,
) (i Instance, err error) {
	g := v.c.GCP
	verifier := oidclib.NewVerifier(g.Issuer, v.keys, &oidclib.Config{
		ClientID: binding.Audience(), SupportedSigningAlgs: []string{oidclib.RS256},
		Now: func() time.Time { return now },
	})
	token, err := verifier.Verify(ctx, strings.TrimSpace(string(document)))
	switch {
	case err != nil && strings.Contains(err.Error(), "fetching keys"):
		return i, outage(err)
	case err != nil:
		return i, err
	case len(token.Audience) != 1:
		return i, fmt.Errorf("it is for %d audiences and not for us alone", len(token.Audience))
	}
	if err := fresh(token.IssuedAt, now, g.MaxAge); err != nil {
		return i, err
	}
	var c googleClaims
	if err := token.Claims(&c); err != nil {
		return i, errors.New("its claims are not those of an instance's identity token")
	}
	e := c.Google.Engine
	if e.ID == "" || e.Project == "" {
		return i, errors.New("it names no instance: it was not asked for with format=full")
	}
	if err := listed("project", e.Project, g.Projects); err != nil {
		return i, err
	}
	i = Instance{Provider: join.GCP, Account: e.Project, ID: e.ID, Name: e.Name}
	if e.Zone != "" {
		i.Zone = path.Base(e.Zone) // some forms name the project before it
		i.Region = i.Zone[:max(0, strings.LastIndexByte(i.Zone, '-'))]
	}
	return i, nil
}
