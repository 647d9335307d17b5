package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Roles that the story speaks of, with sre as approvers.
func (s *Stage) Roles(ctx context.Context) error {
	for _, args := range [][]string{
		{
			"admin", "role", "set", "ops", "--login", "--contained",
			"--sudo", "/usr/bin/systemctl restart nginx.service",
			"--max", "4h", "--approvers", "sre", "--approvals", "1",
		},
		{
			"admin", "role", "set", "root", "--login", "--sudo-all",
			"--max", "1h", "--approvers", "sre", "--approvals", "1",
		},
		{
			"admin", "role", "set", "docs", "--login", "--max", "8h", "--approvers", "sre",
			"--approvals", "1",
		},
	} {
		if err := s.Admin.Must(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// Cast adds alice, who asks, and bob, who approves as the only member of sre, and the roles.
func (s *Stage) Cast(ctx context.Context) (alice, bob *Person, err error) {
	if alice, err = s.Person(ctx, "alice"); err != nil {
		return nil, nil, err
	}
	if bob, err = s.Person(ctx, "bob"); err != nil {
		return nil, nil, err
	}
	err = errors.Join(s.Admin.Must(ctx, "admin", "group", "set", "sre", "bob"), s.Roles(ctx))
	return alice, bob, err
}

// Ask makes a request and returns its id without waiting.
func (p *Person) Ask(ctx context.Context, host, role string, d time.Duration) (string, error) {
	r, err := p.Curfew(ctx, "request", host, "--role", role, "--for", d.String(),
		"--reason", "ticket OPS-7: the web server hangs", "--no-wait")
	if err != nil || r.Exit != 0 {
		return "", fmt.Errorf("%s asks for %s on %s: %w\n%s", p.Name(), role, host, err, r)
	}
	return strings.TrimSpace(r.Out), nil
}

// Grant asks, has bob approve and waits until the host has confirmed. It returns the request's id.
func (s *Stage) Grant(
	ctx context.Context, who, approver *Person, host, role string, d time.Duration,
) (string, error) {
	id, err := who.Ask(ctx, host, role, d)
	if err != nil {
		return "", err
	}
	if err := approver.Must(ctx, "approve", id, "--yes"); err != nil {
		return id, err
	}
	return id, s.Applied(ctx, who, id)
}

// Applied waits until every host of a request has confirmed that it enforces the grant.
func (s *Stage) Applied(ctx context.Context, who *Person, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return Eventually(ctx, "request "+id+" to be applied", func() (bool, string) {
		r, err := who.Curfew(ctx, "show", id, "--json")
		return err == nil && strings.Contains(r.Out, `"applied"`), r.String()
	})
}

// Query runs a command with --json and reads its output.
func (p *Person) Query(ctx context.Context, into any, args ...string) error {
	r, err := p.Curfew(ctx, append(args, "--json")...)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("curfew %s by %s: %s", strings.Join(args, " "), p.Name(), r)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(r.Out), into)
}
