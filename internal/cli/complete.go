package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// Completion asks the control plane and must not make a shell wait: what does not come in time is
// not offered.
const completeTimeout = 2 * time.Second

// source lists what may be completed, each with a description.
type source func(ctx context.Context, c *client, given []string) ([]cobra.Completion, error)

func (a *app) complete(from source) cobra.CompletionFunc {
	return func(cmd *cobra.Command, given []string, typed string) (
		[]cobra.Completion, cobra.ShellCompDirective,
	) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), completeTimeout)
		defer cancel()
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.close()
		all, err := from(ctx, c, given)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var found []cobra.Completion
		for _, one := range all {
			if strings.HasPrefix(one, typed) {
				found = append(found, one)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

func (a *app) completeFlag(cmd *cobra.Command, flag string, from source) {
	// It fails only for a flag that does not exist, which a test of the command would show.
	if err := cmd.RegisterFlagCompletionFunc(flag, a.complete(from)); err != nil {
		panic(err)
	}
}

// oneOf offers a source for the first argument only.
func oneOf(from source) source {
	return func(ctx context.Context, c *client, given []string) ([]cobra.Completion, error) {
		if len(given) > 0 {
			return nil, nil
		}
		return from(ctx, c, given)
	}
}

func described(name, description string) cobra.Completion {
	return cobra.CompletionWithDesc(name, grant.VisibleText(description))
}

func manyHosts(ctx context.Context, c *client, given []string) ([]cobra.Completion, error) {
	answer, err := call(ctx, c, c.access.ListHosts, &apiv1.ListHostsRequest{})
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, name := range given {
		taken[name] = true
	}
	var out []cobra.Completion
	for _, h := range answer.GetHosts() {
		if grant.CheckHostName(h.GetName()) == nil && !taken[h.GetName()] {
			out = append(out, described(h.GetName(), hostState(h)))
		}
	}
	return out, nil
}

func roleNames(ctx context.Context, c *client, _ []string) ([]cobra.Completion, error) {
	answer, err := call(ctx, c, c.access.ListRoles, &apiv1.ListRolesRequest{})
	if err != nil {
		return nil, err
	}
	var out []cobra.Completion
	for _, r := range answer.GetRoles() {
		if grant.CheckRoleName(r.GetName()) == nil {
			out = append(out, described(r.GetName(), r.GetDescription()))
		}
	}
	return out, nil
}

func requestIDs(filter *apiv1.RequestFilter, states ...apiv1.RequestState) source {
	return func(ctx context.Context, c *client, given []string) ([]cobra.Completion, error) {
		if len(given) > 0 {
			return nil, nil
		}
		requests, err := c.list(ctx, filter)
		if err != nil {
			return nil, err
		}
		var out []cobra.Completion
		for _, r := range requests {
			wanted := len(states) == 0
			for _, s := range states {
				wanted = wanted || r.GetState() == s
			}
			if wanted && grant.CheckRequestID(r.GetId()) == nil {
				out = append(out, described(r.GetId(), r.GetRequester()+" "+r.GetRole()+" on "+
					strings.Join(r.GetHosts(), ", ")))
			}
		}
		return out, nil
	}
}

var (
	anyIDs    = requestIDs(&apiv1.RequestFilter{})
	myOpenIDs = requestIDs(&apiv1.RequestFilter{Mine: true, Open: true})
	liveIDs   = requestIDs(&apiv1.RequestFilter{Mine: true, Open: true},
		apiv1.RequestState_REQUEST_STATE_GRANTED)
	decidableIDs = requestIDs(&apiv1.RequestFilter{PendingForMe: true})
	grantedIDs   = requestIDs(&apiv1.RequestFilter{Open: true},
		apiv1.RequestState_REQUEST_STATE_GRANTED)
)
