package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type filterOptions struct {
	all, mine, pending bool
	host, user         string
}

func (o *filterOptions) flags(a *app, cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.mine, "mine", false, "only your own")
	cmd.Flags().BoolVar(&o.pending, "pending", false, "only what you could approve now")
	cmd.Flags().StringVar(&o.host, "host", "", "only on this host")
	cmd.Flags().StringVar(&o.user, "user", "", "only of this person")
	a.completeFlag(cmd, "host", manyHosts)
}

func (o *filterOptions) filter() *apiv1.RequestFilter {
	return &apiv1.RequestFilter{
		Mine: o.mine, PendingForMe: o.pending, Open: !o.all && !o.pending,
		Host: o.host, User: o.user, Limit: maxList,
	}
}

func (a *app) lsCmd() *cobra.Command {
	var o filterOptions
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List requests: pending and live ones, or all",
		Long: "List requests, newest first: those that are pending or live, or with --all the " +
			"newest 1,000.\n\nColumns in a pipe: id, state, requester, role, hosts, end (RFC 3339) " +
			"or duration, reason.\nPrints a JSON array with --json. " + jsonHelp(requestView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			requests, err := c.list(ctx, o.filter())
			if err != nil {
				return err
			}
			if a.json {
				return jsonList(a.printer, each(requests, viewRequest))
			}
			return a.listRequests(requests, o)
		}),
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "ended, denied and lapsed ones too")
	o.flags(a, cmd)
	return cmd
}

func (a *app) listRequests(requests []*apiv1.Request, o filterOptions) error {
	if len(requests) == 0 {
		a.Talk("Nothing here.")
		if !o.all && !o.pending {
			a.Hint("what has ended: curfew ls --all")
		}
		return nil
	}
	rows := make([][]cell, len(requests))
	for i, r := range requests {
		rows[i] = a.requestRow(r)
	}
	a.Table([]string{"ID", "STATE", "WHO", "ROLE", "HOSTS", "TIME", "REASON"}, rows)
	return nil
}

func (a *app) requestRow(r *apiv1.Request) []cell {
	state := styled(stateStyle(r.GetState()), stateWord(r.GetState()))
	if r.GetExtensionPending() {
		state = cell{text: state.text + "+extension", style: yellow}
	}
	role := text(r.GetRole())
	if r.GetRootEquivalent() {
		role = cell{text: r.GetRole() + " (root)", raw: r.GetRole(), style: alarm}
	}
	return []cell{
		text(r.GetId()), state, text(r.GetRequester()), role,
		text(strings.Join(r.GetHosts(), ",")), a.timeOf(r), text(r.GetReason()),
	}
}

// timeOf is what matters of a request's times: the end of live access, else how long is asked.
func (a *app) timeOf(r *apiv1.Request) cell {
	var end int64
	for _, g := range r.GetGrants() {
		if g.GetEndedMs() == 0 {
			end = max(end, g.GetEndMs())
		}
	}
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_GRANTED && end != 0 {
		c := a.when(end)
		c.text = "ends " + c.text
		return c
	}
	d := exactDuration(dur(r.GetDurationMs()))
	return cell{text: "for " + d + ", asked " + a.ago(ms(r.GetCreatedMs())), raw: d}
}

func (a *app) showCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show all about one request",
		Long: "Show one request: its terms, who decided, what each host confirmed and when, and the " +
			"sessions that run under it; after the end, whether everything was taken back and, of a " +
			"root-equivalent request, what root left behind.\n\n" + jsonHelp(requestView{}),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(anyIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			id, err := c.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			r, err := c.request(ctx, id)
			if err != nil {
				return err
			}
			after, err := c.aftermath(ctx, r)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(viewRequestAfter(r, after))
			}
			a.Fields(a.describeRequest(r, after))
			return nil
		}),
	}
}

func (a *app) watchCmd() *cobra.Command {
	var o filterOptions
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Follow requests as they change",
		Long: "Print every request that matches and then each change, until Ctrl-C (exit 0). It " +
			"reconnects by itself.\n\nPrints one JSON object per line with --json. " +
			jsonHelp(requestView{}),
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			return a.watch(ctx, c, o)
		}),
	}
	o.flags(a, cmd)
	return cmd
}

func (a *app) watch(ctx context.Context, c *client, o filterOptions) error {
	lost := false
	for u := range untilDone(ctx, feed(ctx, c, &apiv1.WatchRequestsRequest{Filter: o.filter()})) {
		switch {
		case u.fatal:
			return u.err
		case u.err != nil:
			if !lost {
				a.Warn("%v; trying again", u.err)
			}
			lost = true
		case a.json:
			lost = false
			if err := a.JSON(viewRequest(u.request)); err != nil {
				return err
			}
		default:
			lost = false
			a.event(u.request)
		}
	}
	return nil
}

// untilDone yields updates until ctx ends.
func untilDone(ctx context.Context, updates <-chan update) func(func(update) bool) {
	return func(yield func(update) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case u := <-updates:
				if !yield(u) {
					return
				}
			}
		}
	}
}

// event is one line of watch: what to know and, where one may decide, what to type.
func (a *app) event(r *apiv1.Request) {
	row := a.requestRow(r)
	if !a.outTTY {
		a.Table(nil, [][]cell{row})
		return
	}
	line := a.clock(a.now()) + "  " + r.GetId() + " " + row[1].text + " · " + r.GetRequester() +
		" " + row[3].text + " on " + row[4].text + " · " + row[5].text
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_PENDING || r.GetExtensionPending() {
		line += " · " + needs(r)
	}
	a.Line("%s · %s", line, r.GetReason())
}
