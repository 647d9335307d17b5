package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// roleFile is a role as admins write it in YAML.
type roleFile struct {
	Name            string            `yaml:"name"`
	Description     string            `yaml:"description"`
	Login           bool              `yaml:"login"`
	Sudo            []sudoFile        `yaml:"sudo"`
	Groups          []string          `yaml:"groups"`
	Max             string            `yaml:"max"`
	ApproverGroup   string            `yaml:"approver_group"`
	Approvals       uint32            `yaml:"approvals"`
	RequesterGroups []string          `yaml:"requester_groups"`
	HostLabels      map[string]string `yaml:"host_labels"`
}

type sudoFile struct {
	RunAs     string   `yaml:"run_as"`
	All       bool     `yaml:"all"`
	Command   string   `yaml:"command"`
	Args      []string `yaml:"args"`
	AnyArgs   bool     `yaml:"any_args"`
	Contained bool     `yaml:"contained"`
}

type roleOptions struct {
	file       string
	sudo       []string
	labels     []string
	role       roleFile
	contained  bool
	sudoAll    bool
	runAs      string
	otherFlags func() []string // role flags that were given
}

const roleExample = `  curfew admin role set ops --login --max 4h --approvers sre --approvals 1 \
    --contained --sudo '/usr/bin/systemctl restart nginx.service'
  curfew admin role set root --login --sudo-all --max 1h --approvers sre --approvals 2
  curfew admin role set -f role.yaml

  role.yaml:
    name: ops
    description: Restart the web server
    login: true
    sudo:
      - command: /usr/bin/systemctl
        args: [restart, nginx.service]
        contained: true
    groups: []
    max: 4h
    approver_group: sre
    approvals: 1
    requester_groups: [dev]
    host_labels: {env: prod}`

func (a *app) adminRoleCmd() *cobra.Command {
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Delete a role", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(oneOf(roleNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			_, err := call(ctx, c, c.directory.DeleteRole, &apiv1.DeleteRoleRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.did(map[string]string{"name": args[0]}, "role %s deleted", args[0])
		}),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List roles", Args: cobra.NoArgs,
		Long: "List the roles.\n\n" + rolesHelp, RunE: a.verb(a.roles),
	}
	return parent("role", "Manage roles", a.roleSetCmd(), rm, ls)
}

func (a *app) roleSetCmd() *cobra.Command {
	var o roleOptions
	cmd := &cobra.Command{
		Use:   "set [NAME] (--login | --sudo RULE | --sudo-all | -f FILE) …",
		Short: "Make a role, or replace it",
		Long: "Make a role, or replace it, by flags or from a file (-f, - is stdin).\n\nA sudo rule " +
			"is an absolute path and its exact arguments, split at single spaces; without arguments " +
			"the command may be run only without arguments. A role counts as root-equivalent unless " +
			"its rules are --contained: its author states that they give no more than themselves.\n\n" +
			jsonHelp(roleView{}),
		Example:           roleExample,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.complete(oneOf(roleNames)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.setRole(ctx, c, args, o)
		}),
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "read the role from a YAML file")
	f.StringVar(&o.role.Description, "description", "", "what it is for")
	f.BoolVar(&o.role.Login, "login", false, "opens ssh and console logins")
	f.StringArrayVar(&o.sudo, "sudo", nil, "sudo rule: '/path/to/command arg arg'")
	f.BoolVar(&o.sudoAll, "sudo-all", false, "any command: root-equivalent")
	f.BoolVar(&o.contained, "contained", false, "the --sudo rules give no more than themselves")
	f.StringVar(&o.runAs, "run-as", "root", "run the --sudo rules as this user")
	f.StringSliceVar(&o.role.Groups, "group", nil, "unix group that it gives")
	f.StringVar(&o.role.Max, "max", "", "longest duration")
	f.StringVar(&o.role.ApproverGroup, "approvers", "", "group that approves")
	f.Uint32Var(&o.role.Approvals, "approvals", 1, "approvals that are needed")
	f.StringSliceVar(&o.role.RequesterGroups, "requesters", nil, "groups that may ask (default: all)")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "only on hosts with the label KEY=VALUE")
	a.completeFlag(cmd, "approvers", groupNames)
	a.completeFlag(cmd, "requesters", groupNames)
	o.otherFlags = func() []string {
		var given []string
		for _, name := range []string{
			"description", "login", "sudo", "sudo-all", "contained", "run-as", "group", "max",
			"approvers", "approvals", "requesters", "label",
		} {
			if f.Changed(name) {
				given = append(given, "--"+name)
			}
		}
		return given
	}
	return cmd
}

func (a *app) setRole(ctx context.Context, c *client, args []string, o roleOptions) error {
	role, err := a.roleFrom(args, o)
	if err != nil {
		return err
	}
	answer, err := call(ctx, c, c.directory.PutRole, &apiv1.PutRoleRequest{Role: role})
	if err != nil {
		return err
	}
	put := answer.GetRole()
	if err := a.did(viewRole(put), "role %s: %s, at most %s", put.GetName(), roleOpens(put),
		exactDuration(dur(put.GetMaxDurationMs()))); err != nil {
		return err
	}
	if put.GetRootEquivalent() {
		a.Warn("%s is root-equivalent: whoever holds it can become root and stay it", put.GetName())
	}
	return nil
}

// roleFrom makes the role from the flags or from the file, never from both.
func (a *app) roleFrom(args []string, o roleOptions) (*apiv1.Role, error) {
	if o.file == "" {
		if len(args) == 0 {
			return nil, usage("the role needs a name").hint("curfew admin role set NAME …")
		}
		return roleFromFlags(args[0], o)
	}
	if given := o.otherFlags(); len(given) > 0 {
		return nil, usage("-f and %s exclude each other", strings.Join(given, ", "))
	}
	data, err := readFileOrStdin(a, o.file)
	if err != nil {
		return nil, usage("reading the role: %w", err)
	}
	var file roleFile
	if err := loadYAML(data, &file); err != nil {
		return nil, usage("%s: %w", o.file, err)
	}
	if len(args) == 1 && file.Name != args[0] {
		return nil, usage("%s is about role %q, not %q", o.file, file.Name, args[0])
	}
	role, err := file.role()
	if err != nil {
		return nil, usage("%s: %w", o.file, err)
	}
	return role, nil
}

func roleFromFlags(name string, o roleOptions) (*apiv1.Role, error) {
	file := o.role
	file.Name = name
	for _, rule := range o.sudo {
		one, err := parseSudo(rule)
		if err != nil {
			return nil, err
		}
		one.RunAs, one.Contained = o.runAs, o.contained
		file.Sudo = append(file.Sudo, one)
	}
	if o.sudoAll {
		file.Sudo = append(file.Sudo, sudoFile{RunAs: "root", All: true})
	}
	var err error
	if file.HostLabels, err = parseLabels(o.labels); err != nil {
		return nil, err
	}
	role, err := file.role()
	if err != nil {
		return nil, usage("%w", err)
	}
	return role, nil
}

// parseSudo splits a rule at single spaces into path and exact arguments. There is no quoting:
// sudo joins arguments with spaces before it compares, so an argument with a space means nothing
// exact.
func parseSudo(rule string) (sudoFile, error) {
	switch {
	case rule == "":
		return sudoFile{}, usage("the sudo rule is empty")
	case strings.ContainsAny(rule, "\"'`\\"):
		return sudoFile{}, usage("the sudo rule %q has quotes or backslashes", rule).
			hint("words are split at single spaces and taken as they are; there is no quoting, since " +
				"sudo itself cannot tell one argument with a space from two")
	case strings.ContainsAny(rule, "*?[]"):
		return sudoFile{}, usage("the sudo rule %q has a wildcard; arguments are exact", rule).
			hint("a command that may take any arguments is root-equivalent; write any_args: true in " +
				"a role file (-f)")
	}
	words := strings.Split(rule, " ")
	if slices.Contains(words, "") {
		return sudoFile{}, usage("the sudo rule %q has a space too many", rule).
			hint("write the path and each argument with exactly one space between")
	}
	return sudoFile{Command: words[0], Args: words[1:]}, nil
}

// role checks what can be checked without the directory; the control plane checks it all again.
func (f *roleFile) role() (*apiv1.Role, error) {
	if err := grant.CheckRoleName(f.Name); err != nil {
		return nil, err
	}
	if !f.Login && len(f.Sudo) == 0 {
		return nil, fmt.Errorf("role %s gives nothing: neither login nor a sudo rule", f.Name)
	}
	if f.Max == "" {
		return nil, fmt.Errorf("role %s needs a longest duration", f.Name)
	}
	longest, err := parseDuration(f.Max)
	if err != nil {
		return nil, fmt.Errorf("longest duration: %w", err)
	}
	if err := grant.CheckGroupName(f.ApproverGroup); err != nil {
		return nil, fmt.Errorf("approvers: %w", err)
	}
	if f.Approvals == 0 {
		return nil, fmt.Errorf("role %s needs at least one approval", f.Name)
	}
	role := &apiv1.Role{
		Name: f.Name, Description: f.Description, AllowLogin: f.Login,
		Groups: slices.Sorted(slices.Values(f.Groups)), MaxDurationMs: int64(longest / time.Millisecond),
		ApproverGroup: f.ApproverGroup, Approvals: f.Approvals,
		RequesterGroups: slices.Sorted(slices.Values(f.RequesterGroups)), HostLabels: f.HostLabels,
	}
	for i, s := range f.Sudo {
		rule := &curfewv1.SudoRule{
			RunAs: s.RunAs, All: s.All, Command: s.Command, Args: s.Args,
			AnyArgs: s.AnyArgs, Contained: s.Contained,
		}
		if rule.RunAs == "" {
			rule.RunAs = "root"
		}
		if err := grant.CheckSudoRule(rule); err != nil {
			return nil, fmt.Errorf("sudo rule %d: %w", i+1, err)
		}
		role.SudoRules = append(role.SudoRules, rule)
	}
	role.RootEquivalent = grant.RootEquivalent(role.SudoRules, role.Groups)
	return role, nil
}
