package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type joinView struct {
	Name      string  `json:"name"`
	Token     string  `json:"token"`
	ExpiresAt *string `json:"expires_at"`
	Command   string  `json:"command"`
}

func (a *app) adminHostCmd() *cobra.Command {
	var with []string
	add := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a one-time token and print the line that enrols the host",
		Long: "Make a join token (one use, 30 minutes) and print the one line to run on the host.\n\n" +
			jsonHelp(joinView{}),
		Args: cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.addHost(ctx, c, args[0], with)
		}),
	}
	add.Flags().StringArrayVarP(&with, "label", "l", nil, "label KEY=VALUE")
	label := &cobra.Command{
		Use:               "label NAME [KEY=VALUE…]",
		Short:             "Replace a host's labels",
		Long:              "Replace a host's labels by those given.\n\n" + jsonHelp(hostView{}),
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(oneOf(manyHosts)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			set, err := parseLabels(args[1:])
			if err != nil {
				return err
			}
			answer, err := call(ctx, c, c.directory.LabelHost,
				&apiv1.LabelHostRequest{Name: args[0], Labels: set})
			if err != nil {
				return err
			}
			return a.did(viewHost(answer.GetHost()), "host %s has %s", args[0],
				count(len(set), "label"))
		}),
	}
	return parent("host", "Manage hosts", add, a.removeHostCmd(), label)
}

func (a *app) addHost(ctx context.Context, c *client, name string, with []string) error {
	if err := grant.CheckHostName(name); err != nil {
		return usage("%w", err)
	}
	set, err := parseLabels(with)
	if err != nil {
		return err
	}
	answer, err := call(ctx, c, c.directory.CreateJoinToken,
		&apiv1.CreateJoinTokenRequest{Name: name, Labels: set})
	if err != nil {
		return err
	}
	if a.json {
		return a.JSON(joinView{
			Name: name, Token: answer.GetToken(), ExpiresAt: moment(answer.GetExpiresMs()),
			Command: answer.GetCommand(),
		})
	}
	a.Talk("Run this on %s, once, until %s:", name, a.when(answer.GetExpiresMs()).text)
	a.Line("%s", answer.GetCommand())
	return nil
}

func parseLabels(given []string) (map[string]string, error) {
	set := map[string]string{}
	for _, one := range given {
		k, v, ok := strings.Cut(one, "=")
		if !ok || k == "" {
			return nil, usage("the label %q is not KEY=VALUE", one)
		}
		if _, twice := set[k]; twice {
			return nil, usage("the label %q is given twice", k)
		}
		set[k] = v
	}
	return set, nil
}
