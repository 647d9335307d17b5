package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type workloadView struct {
	Name     string            `json:"name"`
	Issuer   string            `json:"issuer"`
	Subject  string            `json:"subject"`
	Claims   map[string]string `json:"claims"`
	UID      uint32            `json:"uid"`
	Disabled bool              `json:"disabled"`
}

func viewWorkload(w *apiv1.Workload) workloadView {
	return workloadView{
		Name: w.GetName(), Issuer: w.GetIssuer(), Subject: w.GetSubject(), Claims: labels(w.GetClaims()),
		UID: w.GetUid(), Disabled: w.GetDisabled(),
	}
}

// adminUserSetCmd changes single things of a user and leaves the rest, keys above all.
func (a *app) adminUserSetCmd() *cobra.Command {
	var admin, auditor, verify bool
	var email, manager string
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Change single things of a user",
		Long: "Change what the flags name, and leave the rest as it is.\n\n" + jsonHelp(userView{}),
		Example: "  curfew admin user set alice --admin\n" +
			"  curfew admin user set alice --admin=false --email alice@example.org",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(oneOf(userNames)),
	}
	cmd.Flags().BoolVar(&admin, "admin", false, "may manage the directory")
	cmd.Flags().BoolVar(&auditor, "auditor", false, "sees everything and changes nothing")
	cmd.Flags().BoolVar(&verify, "verify-required", false,
		"their approvals count only by a security key that asked for PIN or fingerprint")
	cmd.Flags().StringVar(&email, "email", "", "where mail for approvers goes")
	cmd.Flags().StringVar(&manager, "manager", "", "user name of the manager")
	cmd.RunE = a.verb(func(ctx context.Context, c *client, args []string) error {
		u, err := c.user(ctx, args[0])
		if err != nil {
			return err
		}
		changed := cmd.Flags().Changed
		u.Email, u.Manager = nil, nil
		if changed("admin") {
			u.Admin = admin
		}
		if changed("verify-required") {
			u.VerifyRequired = &verify
		}
		if changed("auditor") {
			u.Auditor = auditor
		}
		if changed("email") {
			u.Email = &email
		}
		if changed("manager") {
			u.Manager = &manager
		}
		answer, err := call(ctx, c, c.directory.PutUser, &apiv1.PutUserRequest{User: u})
		if err != nil {
			return err
		}
		return a.did(viewUser(answer.GetUser()), "user %s changed", args[0])
	})
	return cmd
}

func (c *client) user(ctx context.Context, name string) (*apiv1.User, error) {
	answer, err := call(ctx, c, c.directory.ListUsers, &apiv1.ListUsersRequest{})
	if err != nil {
		return nil, err
	}
	for _, u := range answer.GetUsers() {
		if u.GetName() == name {
			return u, nil
		}
	}
	return nil, fail(exitFailed, "there is no user %s", grant.VisibleText(name)).
		hint("users are listed by: curfew admin user ls")
}

func (a *app) adminLinkCmd() *cobra.Command {
	var subject string
	var scim bool
	cmd := &cobra.Command{
		Use: "link NAME --subject SUBJECT", Short: "Hand a user over to the identity provider",
		Long: "Hand a user over to the identity provider: whoever it calls SUBJECT signs in as them " +
			"from now on, and address, manager and groups are the provider's to say. With --scim, " +
			"SCIM may adopt the user.\n\nThe subject is in the message that a refused sign-in gets.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(oneOf(userNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			if (subject == "") != scim {
				return usage("who is it there? --subject SUBJECT, or --scim")
			}
			_, err := call(ctx, c, c.identity.LinkUser,
				&apiv1.LinkUserRequest{User: args[0], Subject: subject})
			if err != nil {
				return err
			}
			a.Talk("user %s is the identity provider's now", args[0])
			return nil
		}),
	}
	cmd.Flags().StringVar(&subject, "subject", "", "the sub claim of the provider")
	cmd.Flags().BoolVar(&scim, "scim", false, "let SCIM adopt them")
	return cmd
}

func (a *app) adminUnlinkCmd() *cobra.Command {
	return &cobra.Command{
		Use: "unlink NAME", Short: "Take a user back from the identity provider",
		Long: "Take a user back from the identity provider: it has no more say, its sign-ins and groups " +
			"end for them. Whom it disabled stays disabled until an admin enables them.",
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.complete(oneOf(userNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			_, err := call(ctx, c, c.identity.UnlinkUser, &apiv1.UnlinkUserRequest{User: args[0]})
			if err != nil {
				return err
			}
			a.Talk("user %s is kept here now", args[0])
			return nil
		}),
	}
}

type workloadOptions struct {
	issuer, subject string
	claims          []string
}

func (a *app) adminWorkloadCmd() *cobra.Command {
	var o workloadOptions
	set := &cobra.Command{
		Use: "set NAME --issuer URL --subject PATTERN", Short: "Let a pipeline sign in",
		Long: "Let pipelines sign in as NAME by ID tokens of an issuer whose subject and claims match; " +
			"* stands for any text. The token's audience is this control plane's, which " +
			"`curfew admin workload ls` and a refused sign-in name. A workload asks and never decides; " +
			"its groups are given by `curfew admin group set`.\n\n" + jsonHelp(workloadView{}),
		Example: "  curfew admin workload set deploy --issuer https://token.actions.githubusercontent.com " +
			"\\\n      --subject 'repo:acme/shop:ref:refs/heads/main'\n" +
			"  curfew admin workload set deploy --issuer https://gitlab.example.org \\\n" +
			"      --subject 'project_path:acme/shop:*' --claim ref_protected=true",
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.setWorkload(ctx, c, args[0], o)
		}),
	}
	set.Flags().StringVar(&o.issuer, "issuer", "", "whose tokens")
	set.Flags().StringVar(&o.subject, "subject", "", "pattern of the sub claim")
	set.Flags().StringArrayVar(&o.claims, "claim", nil, "NAME=PATTERN that must hold as well")
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Take a pipeline's sign-in and access", Args: cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			_, err := call(ctx, c, c.identity.DeleteWorkload,
				&apiv1.DeleteWorkloadRequest{Name: args[0]})
			if err != nil {
				return err
			}
			a.Talk("workload %s deleted; its user is disabled", args[0])
			return nil
		}),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List workloads", Args: cobra.NoArgs,
		Long: "List workloads.\n\nColumns in a pipe: name, issuer, subject, claims.\n" +
			"Prints a JSON array with --json. " + jsonHelp(workloadView{}),
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			return a.listWorkloads(ctx, c)
		}),
	}
	return parent("workload", "Let pipelines sign in", set, rm, ls)
}

func (a *app) setWorkload(ctx context.Context, c *client, name string, o workloadOptions) error {
	if err := grant.CheckUserName(name); err != nil {
		return usage("%w", err)
	}
	if o.issuer == "" || o.subject == "" {
		return usage("a workload needs --issuer and --subject")
	}
	w := &apiv1.Workload{
		Name: name, Issuer: o.issuer, Subject: o.subject, Claims: make(map[string]string),
	}
	for _, claim := range o.claims {
		key, pattern, ok := strings.Cut(claim, "=")
		if !ok || key == "" || pattern == "" {
			return usage("--claim %q is not NAME=PATTERN", claim)
		}
		w.Claims[key] = pattern
	}
	answer, err := call(ctx, c, c.identity.PutWorkload, &apiv1.PutWorkloadRequest{Workload: w})
	if err != nil {
		return err
	}
	return a.did(viewWorkload(answer.GetWorkload()), "workload %s has uid %d", name,
		answer.GetWorkload().GetUid())
}

func (a *app) listWorkloads(ctx context.Context, c *client) error {
	answer, err := call(ctx, c, c.identity.ListWorkloads, &apiv1.ListWorkloadsRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetWorkloads(), viewWorkload))
	}
	rows := make([][]cell, len(answer.GetWorkloads()))
	for i, w := range answer.GetWorkloads() {
		claims := make([]string, 0, len(w.GetClaims()))
		for _, name := range slices.Sorted(maps.Keys(w.GetClaims())) {
			claims = append(claims, fmt.Sprintf("%s=%s", name, w.GetClaims()[name]))
		}
		rows[i] = []cell{
			text(w.GetName()), text(w.GetIssuer()), text(w.GetSubject()), text(strings.Join(claims, " ")),
		}
	}
	a.Table([]string{"WORKLOAD", "ISSUER", "SUBJECT", "CLAIMS"}, rows)
	methods, err := call(ctx, c, c.identity.Methods, &apiv1.MethodsRequest{})
	if err == nil {
		a.Hint("the audience of their tokens is %s", methods.GetWorkloadAudience())
	}
	return err
}

func (a *app) adminSCIMCmd() *cobra.Command {
	token := &cobra.Command{
		Use: "token", Short: "Draw a token for the SCIM client", Args: cobra.NoArgs,
		Long: "Draw a bearer token for the identity provider's SCIM client and print it, once: only its " +
			"hash is kept. Up to four stand beside each other, so that one can be replaced in use.",
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.identity.CreateSCIMToken, &apiv1.CreateSCIMTokenRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(map[string]string{"token": answer.GetToken()})
			}
			a.Line("%s", answer.GetToken())
			return nil
		}),
	}
	revoke := &cobra.Command{
		Use: "revoke", Short: "Revoke all tokens of SCIM clients", Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.identity.DeleteSCIMTokens, &apiv1.DeleteSCIMTokensRequest{})
			if err != nil {
				return err
			}
			a.Talk("%s revoked", count(int(answer.GetDeleted()), "token"))
			return nil
		}),
	}
	return parent("scim", "Let the identity provider provision", token, revoke)
}
