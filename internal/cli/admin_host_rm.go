package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// removedView is what the removal of a host came to.
type removedView struct {
	Name string `json:"name"`
	// Told: the host has accepted its last state.
	Told bool `json:"told"`
	// Ended are the requests whose access there was ended; Left those of which something may be there.
	Ended      []string `json:"ended"`
	Left       []string `json:"left"`
	OpensUntil *string  `json:"opens_until"`
	RunsUntil  *string  `json:"runs_until"`
	CodesOut   uint32   `json:"codes_out"`
}

const removeHostLong = `Take a host out of service for good. It is sent a last signed state, which ends all access there and has
it void its break-glass codes, and is refused once it has ended everything; this waits for that, 15 seconds
at most. Its name is free at once, its keys never join again.

A host that is not connected cannot be told. It keeps what it has: nothing new opens after its lease, and
what runs goes on to its end. With --force it is removed all the same, and told should it ever connect.

`

func (a *app) removeHostCmd() *cobra.Command {
	var force bool
	rm := &cobra.Command{
		Use: "rm NAME", Short: "Remove a host: end everything there, then serve it no more",
		Long: removeHostLong + jsonHelp(removedView{}), Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(oneOf(manyHosts)),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			answer, err := call(ctx, c, c.directory.RemoveHost,
				&apiv1.RemoveHostRequest{Name: args[0], Force: force})
			if err != nil {
				return err
			}
			return a.removedHost(args[0], answer)
		}),
	}
	rm.Flags().BoolVar(&force, "force", false, "although the host is not connected, so that it is not told")
	return rm
}

func (a *app) removedHost(name string, r *apiv1.RemoveHostResponse) error {
	if a.json {
		return a.JSON(removedView{
			Name: name, Told: r.GetTold(), Ended: list(r.GetEnded()), Left: list(r.GetLeft()),
			OpensUntil: moment(r.GetOpensUntilMs()), RunsUntil: moment(r.GetRunsUntilMs()),
			CodesOut: r.GetCodesOut(),
		})
	}
	switch left := strings.Join(r.GetLeft(), " "); {
	case !r.GetTold():
		a.Talk("host %s removed; it has not been told", name)
		if left == "" {
			a.Warn("nothing was granted there")
			break
		}
		a.Warn("on %s something may open until %s and run until %s: %s", name,
			a.when(r.GetOpensUntilMs()).text, a.when(r.GetRunsUntilMs()).text, left)
	case left != "":
		a.Talk("host %s removed; it has taken its last state: nothing opens there any more", name)
		a.Warn("it has not said yet that nothing is left of %s; curfew log shows when", left)
	default:
		a.Talk("host %s removed; it has ended %s, and nothing of it is left", name,
			count(len(r.GetEnded()), "request"))
	}
	if n := int(r.GetCodesOut()); n > 0 {
		a.Warn("%s for it are with people: they count there until it has made new ones, "+
			"or until Curfew is removed from it", count(n, "unused break-glass code"))
	}
	a.Hint("on %s, as root: remove the package curfew-agent (or run packaging/install.sh --remove agent); to join "+
		"it anew: docs/operate/fleet.md", name)
	return nil
}
