package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func (a *app) adminCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "Manage users, groups, roles, hosts, rollouts, trust, sessions and workloads",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.adminUserCmd(), a.adminGroupCmd(), a.adminRoleCmd(), a.adminHostCmd(),
		a.adminTrustCmd(), a.adminPolicyCmd(), a.adminSessionsCmd(), a.adminWorkloadCmd(), a.adminSCIMCmd(),
		a.adminBreakGlassCmd(), a.adminRolloutCmd())
	return cmd
}

// parent is a command that only holds others.
func parent(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(children...)
	return cmd
}

type userOptions struct {
	keys           []string
	admin, replace bool
	auditor        bool
	email, manager string
	subject        string
}

func (a *app) adminUserCmd() *cobra.Command {
	var o userOptions
	add := &cobra.Command{
		Use:   "add NAME --key KEY…",
		Short: "Add a person with SSH public keys",
		Long: "Add a person. --key is a public key as it stands in a .pub file, or the path of such " +
			"a file; it may be given several times.\n\n" + jsonHelp(userView{}),
		Example: "  curfew admin user add alice --key ~/alice.pub\n" +
			"  curfew admin user add alice --key 'ssh-ed25519 AAAA…'",
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.addUser(ctx, c, args[0], o)
		}),
	}
	add.Flags().StringArrayVarP(&o.keys, "key", "k", nil, "SSH public key, or a file of them")
	add.Flags().BoolVar(&o.admin, "admin", false, "may manage the directory")
	add.Flags().BoolVar(&o.auditor, "auditor", false, "sees everything and changes nothing")
	add.Flags().StringVar(&o.email, "email", "", "where mail for approvers goes")
	add.Flags().StringVar(&o.manager, "manager", "", "user name of the manager")
	add.Flags().StringVar(&o.subject, "subject", "",
		"who they are at the identity provider; then no key is needed")
	add.Flags().BoolVar(&o.replace, "replace", false,
		"replace the keys and flags of a person who exists; enables a disabled one")
	disable := &cobra.Command{
		Use:               "disable NAME",
		Short:             "End a person's sign-in, sessions and live access; the uid stays theirs",
		Long:              "Disable a person.\n\n" + jsonHelp(userView{}),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(oneOf(userNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			answer, err := call(ctx, c, c.directory.DisableUser,
				&apiv1.DisableUserRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.did(viewUser(answer.GetUser()), "user %s disabled", args[0])
		}),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List people", Args: cobra.NoArgs,
		Long: "List people.\n\nColumns in a pipe: name, uid, what they are, groups, number of keys." +
			"\nPrints a JSON array with --json. " + jsonHelp(userView{}),
		RunE: a.verb(a.listUsers),
	}
	return parent("user", "Manage people", add, a.adminUserSetCmd(), disable, a.adminLinkCmd(),
		a.adminUnlinkCmd(), ls)
}

func (a *app) addUser(ctx context.Context, c *client, name string, o userOptions) error {
	if err := grant.CheckUserName(name); err != nil {
		return usage("%w", err)
	}
	if len(o.keys) == 0 && o.subject == "" {
		return usage("%s needs an SSH public key to sign in with: --key", name)
	}
	var keys []string
	for _, given := range o.keys {
		found, err := publicKeys(given)
		if err != nil {
			return err
		}
		keys = append(keys, found...)
	}
	answer, err := call(ctx, c, c.directory.PutUser, &apiv1.PutUserRequest{
		User: &apiv1.User{
			Name: name, Admin: o.admin, Auditor: o.auditor, SshKeys: keys, Email: given(o.email),
			Manager: given(o.manager),
		},
		CreateOnly: !o.replace,
	})
	if err != nil {
		return err
	}
	if o.subject != "" {
		_, err := call(ctx, c, c.identity.LinkUser,
			&apiv1.LinkUserRequest{User: name, Subject: o.subject})
		if err != nil {
			return err
		}
	}
	if err := a.did(viewUser(answer.GetUser()), "user %s has uid %d", name,
		answer.GetUser().GetUid()); err != nil {
		return err
	}
	if len(o.keys) == 0 {
		a.Hint("they sign in by: curfew login --sso --server %s --ca-pin %s", c.cfg.Server,
			pinOf(c.cfg.ca))
		return nil
	}
	a.Hint("they sign in by: curfew login --server %s --user %s --ca-pin %s", c.cfg.Server, name,
		pinOf(c.cfg.ca))
	return nil
}

// given is nil for a flag that was left out: what is there stays.
func given(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// publicKeys reads a key from the command line, or all of a file.
func publicKeys(given string) ([]string, error) {
	content := given
	if !strings.Contains(strings.TrimSpace(given), " ") {
		data, err := readCapped(given, maxKeyFile)
		if err != nil {
			return nil, usage("--key: %w", err)
		}
		content = string(data)
	}
	var keys []string
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, err := grant.CanonicalSSHKey(line)
		if err != nil {
			return nil, usage("--key: %w", err).
				hint("give a public key: the content or the path of a .pub file")
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, usage("--key: there is no key in %q", given)
	}
	return keys, nil
}

// did tells what was done: as JSON, or in words on stderr.
func (a *app) did(view any, format string, args ...any) error {
	if a.json {
		return a.JSON(view)
	}
	a.Talk(format, args...)
	return nil
}

func (a *app) listUsers(ctx context.Context, c *client, _ []string) error {
	answer, err := call(ctx, c, c.directory.ListUsers, &apiv1.ListUsersRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetUsers(), viewUser))
	}
	rows := make([][]cell, len(answer.GetUsers()))
	for i, u := range answer.GetUsers() {
		what := text("user")
		switch {
		case u.GetDisabled():
			what = styled(dim, "disabled")
		case u.GetAdmin():
			what = styled(bold, "admin")
		case u.GetAuditor():
			what = text("auditor")
		case u.GetKind() == "workload":
			what = text("workload")
		}
		rows[i] = []cell{
			text(u.GetName()), text(fmt.Sprint(u.GetUid())), what,
			text(strings.Join(u.GetGroups(), ",")), text(fmt.Sprint(len(u.GetSshKeys()))),
		}
	}
	a.Table([]string{"USER", "UID", "IS", "GROUPS", "KEYS"}, rows)
	return nil
}

func (a *app) adminGroupCmd() *cobra.Command {
	var source string
	set := &cobra.Command{
		Use:   "set NAME [MEMBER…]",
		Short: "Make a group, or replace its members",
		Long: "Make a group, or replace its members by those given. The members of a group that the " +
			"identity provider keeps (oidc, scim) are not edited by hand; --source hands a group over." +
			"\n\n" + jsonHelp(groupView{}),
		Args: cobra.MinimumNArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			if err := grant.CheckGroupName(args[0]); err != nil {
				return usage("%w", err)
			}
			answer, err := call(ctx, c, c.directory.PutGroup, &apiv1.PutGroupRequest{
				Group: &apiv1.Group{Name: args[0], Members: args[1:], Source: source},
			})
			if err != nil {
				return err
			}
			return a.did(viewGroup(answer.GetGroup()), "group %s has %s", args[0],
				count(len(answer.GetGroup().GetMembers()), "member"))
		}),
		ValidArgsFunction: a.complete(groupThenUsers),
	}
	set.Flags().StringVar(&source, "source", "", "hand it over to local, oidc or scim")
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Delete a group", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(oneOf(groupNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			_, err := call(ctx, c, c.directory.DeleteGroup,
				&apiv1.DeleteGroupRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.did(groupView{Name: args[0], Members: []string{}}, "group %s deleted", args[0])
		}),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List groups", Args: cobra.NoArgs,
		Long: "List groups.\n\nColumns in a pipe: name, members.\nPrints a JSON array with --json. " +
			jsonHelp(groupView{}),
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.directory.ListGroups, &apiv1.ListGroupsRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return jsonList(a.printer, each(answer.GetGroups(), viewGroup))
			}
			rows := make([][]cell, len(answer.GetGroups()))
			for i, g := range answer.GetGroups() {
				rows[i] = []cell{text(g.GetName()), text(strings.Join(g.GetMembers(), ","))}
			}
			a.Table([]string{"GROUP", "MEMBERS"}, rows)
			return nil
		}),
	}
	return parent("group", "Manage groups", set, rm, ls)
}

func userNames(ctx context.Context, c *client, _ []string) ([]cobra.Completion, error) {
	answer, err := call(ctx, c, c.directory.ListUsers, &apiv1.ListUsersRequest{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, u := range answer.GetUsers() {
		if grant.CheckUserName(u.GetName()) == nil {
			out = append(out, u.GetName())
		}
	}
	return out, nil
}

func groupNames(ctx context.Context, c *client, _ []string) ([]cobra.Completion, error) {
	answer, err := call(ctx, c, c.directory.ListGroups, &apiv1.ListGroupsRequest{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, g := range answer.GetGroups() {
		if grant.CheckGroupName(g.GetName()) == nil {
			out = append(out, described(g.GetName(), strings.Join(g.GetMembers(), ", ")))
		}
	}
	return out, nil
}

func groupThenUsers(ctx context.Context, c *client, given []string) ([]cobra.Completion, error) {
	if len(given) == 0 {
		return groupNames(ctx, c, given)
	}
	return userNames(ctx, c, given)
}

func readFileOrStdin(a *app, path string) ([]byte, error) {
	if path != "-" {
		return readCapped(path, maxConfigSize)
	}
	return readCappedFrom(a.env.Stdin, "standard input", maxConfigSize)
}
