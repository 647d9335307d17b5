package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func (a *app) hostsCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "hosts",
		Short: "List the enrolled hosts",
		Long: "List the enrolled hosts and how they are.\n\nColumns in a pipe: name, state, mode, " +
			"last seen, live grants, labels, problems.\nPrints a JSON array with --json. " +
			jsonHelp(hostView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.access.ListHosts, &apiv1.ListHostsRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return jsonList(a.printer, each(answer.GetHosts(), viewHost))
			}
			if len(answer.GetHosts()) == 0 {
				a.Talk("No host is enrolled.")
				a.Hint("an admin adds one: curfew admin host add NAME")
				return nil
			}
			a.listHosts(answer.GetHosts())
			return nil
		}),
	}
}

func (a *app) listHosts(hosts []*apiv1.Host) {
	rows := make([][]cell, len(hosts))
	for i, h := range hosts {
		state := styled(green, hostState(h))
		switch {
		case h.GetRefused() != "":
			state.style = red
		case !h.GetConnected():
			state.style = yellow
		}
		problems := strings.Join(h.GetProblems(), "; ")
		if h.GetRefused() != "" {
			problems = h.GetRefused()
		}
		rows[i] = []cell{
			text(h.GetName()), state, text(h.GetMode()), a.when(h.GetLastSeenMs()),
			text(fmt.Sprint(h.GetLiveGrants())), text(labelText(h.GetLabels())), text(problems),
		}
	}
	a.Table([]string{"HOST", "STATE", "MODE", "LAST SEEN", "LIVE", "LABELS", "PROBLEMS"}, rows)
}

func hostState(h *apiv1.Host) string {
	switch {
	case h.GetRefused() != "":
		return "refused"
	case h.GetConnected():
		return "connected"
	}
	return "offline"
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

func (a *app) rolesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "roles",
		Short: "List what may be asked for",
		Long:  "List the roles.\n\n" + rolesHelp,
		Args:  cobra.NoArgs,
		RunE:  a.verb(a.roles),
	}
}

const rolesColumns = "Columns in a pipe: role, what it opens, longest duration, approvals, host " +
	"labels, description.\nPrints a JSON array with --json. "

var rolesHelp = rolesColumns + jsonHelp(roleView{})

func (a *app) roles(ctx context.Context, c *client, _ []string) error {
	answer, err := call(ctx, c, c.access.ListRoles, &apiv1.ListRolesRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return jsonList(a.printer, each(answer.GetRoles(), viewRole))
	}
	if len(answer.GetRoles()) == 0 {
		a.Talk("There is no role.")
		a.Hint("an admin makes one: curfew admin role set NAME …")
		return nil
	}
	rows := make([][]cell, len(answer.GetRoles()))
	for i, r := range answer.GetRoles() {
		name := text(r.GetName())
		if r.GetRootEquivalent() {
			name.style = alarm
		}
		rows[i] = []cell{
			name, text(roleOpens(r)), text(exactDuration(dur(r.GetMaxDurationMs()))),
			text(approvalsOf(r)),
			text(labelText(r.GetHostLabels())), text(r.GetDescription()),
		}
	}
	a.Table([]string{"ROLE", "OPENS", "AT MOST", "APPROVALS", "HOSTS", "DESCRIPTION"}, rows)
	return nil
}

// approvalsOf is who approves a role; where a policy file decides, that depends on more than the role.
func approvalsOf(r *apiv1.Role) string {
	if r.GetApproverGroup() == "" {
		return "by policy"
	}
	return fmt.Sprintf("%d from %s", r.GetApprovals(), r.GetApproverGroup())
}

// roleOpens is a role in a few words.
func roleOpens(r *apiv1.Role) string {
	var parts []string
	if r.GetAllowLogin() {
		parts = append(parts, "login")
	}
	for _, rule := range r.GetSudoRules() {
		switch {
		case rule.GetAll():
			parts = append(parts, "all of root")
		case len(r.GetSudoRules()) <= 2:
			parts = append(parts, "sudo "+strings.Join(append([]string{rule.GetCommand()},
				rule.GetArgs()...), " "))
		}
	}
	if len(r.GetSudoRules()) > 2 {
		parts = append(parts, fmt.Sprintf("%d sudo rules", len(r.GetSudoRules())))
	}
	if r.GetRootEquivalent() {
		parts = append(parts, "ROOT-EQUIVALENT")
	}
	return strings.Join(parts, ", ")
}
