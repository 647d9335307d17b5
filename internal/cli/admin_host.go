package cli

import (
	"context"
	"encoding/json"
	"fmt"
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
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Remove a host: it is served no more", Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(oneOf(manyHosts)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			_, err := call(ctx, c, c.directory.RemoveHost, &apiv1.RemoveHostRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return a.did(map[string]string{"name": args[0]}, "host %s removed", args[0])
		}),
	}
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
	return parent("host", "Manage hosts", add, rm, label)
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

type trustView struct {
	Server   string          `json:"server"`
	CAPin    string          `json:"ca_pin"`
	Trust    json.RawMessage `json:"trust"`
	Unsigned bool            `json:"unsigned"`
}

func (a *app) adminTrustCmd() *cobra.Command {
	show := &cobra.Command{
		Use:   "show",
		Short: "Show the trust file that hosts obey, and the CA's pin",
		Long: "Show the trust file that hosts obey, and the CA's pin that people sign in with.\n\n" +
			jsonHelp(trustView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(a.showTrust),
	}
	return parent("trust", "See what hosts obey", show)
}

func (a *app) showTrust(ctx context.Context, c *client, _ []string) error {
	answer, err := call(ctx, c, c.directory.GetTrust, &apiv1.GetTrustRequest{})
	if err != nil {
		return err
	}
	trust, err := grant.OpenTrust(answer.GetEnvelope(), nil)
	if err != nil {
		return fail(exitFailed, "the trust file of the control plane is not in order: %w", err)
	}
	if a.json {
		data, err := json.Marshal(trust)
		if err != nil {
			return fmt.Errorf("encoding the trust file: %w", err)
		}
		return a.JSON(trustView{
			Server: c.cfg.Server, CAPin: pinOf(c.cfg.ca), Trust: data,
			Unsigned: len(answer.GetUnsigned()) > 0,
		})
	}
	a.Fields(trustFields(c.cfg, trust))
	if len(answer.GetUnsigned()) > 0 {
		a.Warn("a newer trust file waits for root signatures; until then hosts obey this one")
		a.Hint("where the root key is: curfew-controlplane trust sign --root-key FILE")
	}
	return nil
}

func trustFields(cfg *config, trust *grant.Trust) []field {
	fields := []field{
		{"Organisation", text(trust.Organisation)},
		{"Server", text(cfg.Server)},
		{"CA pin", text(pinOf(cfg.ca))},
		{"Version", text(fmt.Sprintf("%d, epoch %d", trust.Version, trust.Epoch))},
		{"Root keys", text(fmt.Sprintf("%d, of which %d sign a change", len(trust.RootKeys),
			trust.RootThreshold))},
	}
	for _, k := range trust.IssuerKeys {
		id, err := k.MarshalText()
		if err == nil {
			fields = append(fields, field{"Issuer", text(string(id))})
		}
	}
	for _, p := range trust.Approvers {
		keys := make([]string, len(p.SSHKeys))
		for i, k := range p.SSHKeys {
			keys[i] = keyText(k)
		}
		fields = append(fields, field{"Approver", text(fmt.Sprintf("%s of %s: %s", p.Name,
			joined(p.Groups), joined(keys)))})
	}
	for _, q := range trust.Quorums {
		fields = append(fields, field{"Quorum", text(fmt.Sprintf("role %s needs %d from %s", q.Role,
			q.Approvals, q.Group))})
	}
	return fields
}
