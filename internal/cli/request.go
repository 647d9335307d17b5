package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// streamEnd makes a clean end of a stream that should not end one that is tried again.
func streamEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return status.Error(codes.Unavailable, "the control plane ended the stream")
	}
	return err
}

// waiting are the flags of the commands that may wait.
type waiting struct {
	noWait  bool
	timeout string
}

func (o *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.noWait, "no-wait", false, "print the id and do not wait")
	cmd.Flags().StringVar(&o.timeout, "timeout", "",
		"stop waiting after this long (default: until it is decided)")
}

func (o *waiting) wait(w *wait) (*wait, error) {
	if o.timeout == "" {
		return w, nil
	}
	d, err := parseDuration(o.timeout)
	if err != nil {
		return nil, usage("--timeout: %w", err)
	}
	w.timeout = d
	return w, nil
}

type requestOptions struct {
	waiting
	forms
	role, duration, reason string
}

func (a *app) requestCmd() *cobra.Command {
	var o requestOptions
	cmd := &cobra.Command{
		Use:   "request HOST… --role ROLE --for TIME --reason TEXT",
		Short: "Ask for access to a host and wait for it",
		Long: "Ask for access to hosts, for a reason and for a limited time, and wait until it is " +
			"approved and each host has confirmed it. The time begins when the host confirms, not " +
			"while approvers sleep.\n\nCtrl-C ends the waiting, not the request.\n\n" + formsHelp +
			jsonHelp(requestView{}) + "\n\n" + exitHelp,
		Example: "  curfew request web1 --role ops --for 10m --reason \"nginx hangs, INC-7\"\n" +
			"  id=$(curfew request web1 --role ops --for 1h --reason \"…\" --no-wait)",
		Args:              cobra.MaximumNArgs(grant.MaxHosts),
		ValidArgsFunction: a.complete(manyHosts),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.request(ctx, c, args, o)
		}),
	}
	o.formFlags(cmd)
	cmd.Flags().StringVarP(&o.role, "role", "r", "", "role to ask for (see: curfew roles)")
	cmd.Flags().StringVarP(&o.duration, "for", "f", "", "how long: 30m, 1h, 2h30m, 1d")
	cmd.Flags().StringVarP(&o.reason, "reason", "m", "", "why; approvers and the trail see it")
	o.waiting.flags(cmd)
	o.exclusive(cmd)
	a.completeFlag(cmd, "role", roleNames)
	return cmd
}

func (a *app) request(ctx context.Context, c *client, hosts []string, o requestOptions) error {
	ask, err := a.ask(ctx, c, hosts, o)
	if err != nil {
		return err
	}
	w, err := o.wait(&wait{a: a, c: c})
	if err != nil {
		return err
	}
	answer, err := call(ctx, c, c.access.CreateRequest, ask)
	if err != nil {
		return err
	}
	r := answer.GetRequest()
	if ask.GetDryRun() {
		return a.dry(r)
	}
	w.id, w.revision = r.GetId(), r.GetRevision()
	if r.GetRootEquivalent() {
		a.Warn("role %s is %s", r.GetRole(), rootLoud)
	}
	return a.finish(ctx, w, r, o.noWait)
}

// finish waits unless told not to, and prints what came of it.
func (a *app) finish(ctx context.Context, w *wait, r *apiv1.Request, noWait bool) error {
	if noWait {
		if a.json {
			return a.JSON(viewRequest(r))
		}
		a.Line("%s", r.GetId())
		return nil
	}
	r, err := w.run(ctx, r)
	if a.json {
		return errors.Join(a.JSON(viewRequest(r)), err)
	}
	for _, g := range grantsOf(r, w.revision) {
		if g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			a.Line("%s", a.applied(r, g))
		}
	}
	return err
}

// applied is the host's confirmation in one line, and what to type next.
func (a *app) applied(r *apiv1.Request, g *apiv1.HostGrant) string {
	at := g.GetConfirmedMs()
	if at == 0 {
		at = g.GetStartMs()
	}
	if g.GetEndedMs() != 0 {
		return fmt.Sprintf("%s applied %s; ended %s", g.GetHostName(), a.clock(ms(at)),
			a.clock(ms(g.GetEndedMs())))
	}
	line := fmt.Sprintf("%s applied %s; ends %s", g.GetHostName(), a.clock(ms(at)),
		a.when(g.GetEndMs()).text)
	if r.GetRootEquivalent() {
		line += "; ROOT-EQUIVALENT"
	}
	terms, err := grant.ParseTerms(r.GetTerms())
	if err == nil && terms.GetAllowLogin() {
		line += ". Connect: curfew ssh " + g.GetHostName()
	}
	return line
}

type extendOptions struct {
	waiting
	duration, reason string
}

func (a *app) extendCmd() *cobra.Command {
	var o extendOptions
	cmd := &cobra.Command{
		Use:   "extend [ID] --for TIME",
		Short: "Ask for more time on running access",
		Long: "Ask for more time. Approvers sign new terms; running sessions live on. Without an id " +
			"it is your only live request.\n\n" + jsonHelp(requestView{}) + "\n\n" + exitHelp,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.complete(liveIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			return a.extend(ctx, c, args, o)
		}),
	}
	cmd.Flags().StringVarP(&o.duration, "for", "f", "", "how much more: 30m, 1h")
	cmd.Flags().StringVarP(&o.reason, "reason", "m", "", "why more (default: the same reason)")
	o.flags(cmd)
	return cmd
}

func (a *app) extend(ctx context.Context, c *client, args []string, o extendOptions) error {
	if o.duration == "" {
		return usage("say how much more").hint("curfew extend %s --for 30m", strings.Join(args, " "))
	}
	more, err := parseDuration(o.duration)
	if err != nil {
		return usage("--for: %w", err)
	}
	if o.reason != "" {
		if err := grant.CheckReason(o.reason); err != nil {
			return usage("--reason: %w", err)
		}
	}
	w, err := o.wait(&wait{a: a, c: c, extension: true})
	if err != nil {
		return err
	}
	id, err := a.liveOrNamed(ctx, c, args)
	if err != nil {
		return err
	}
	if o.reason == "" {
		now, err := c.request(ctx, id)
		if err != nil {
			return err
		}
		o.reason = now.GetReason()
	}
	answer, err := call(ctx, c, c.access.Extend, &apiv1.ExtendRequest{
		Id: id, MoreMs: more.Milliseconds(), Reason: o.reason,
	})
	if err != nil {
		return err
	}
	r := answer.GetRequest()
	w.id, w.revision = r.GetId(), r.GetRevision()
	return a.finish(ctx, w, r, o.noWait)
}

func (a *app) doneCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "done [ID]",
		Short: "Hand access back before its time",
		Long: "Hand access back. It ends your sessions under it. Without an id it is your only live " +
			"request.\n\n" + jsonHelp(requestView{}),
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.complete(liveIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			id, err := a.liveOrNamed(ctx, c, args)
			if err != nil {
				return err
			}
			answer, err := call(ctx, c, c.access.Done, &apiv1.DoneRequest{Id: id})
			if err != nil {
				return err
			}
			return a.outcome(answer.GetRequest(), "handed back")
		}),
	}
}

func (a *app) withdrawCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "withdraw ID",
		Short: "Take a pending request or extension back",
		Long: "Take a pending request back; of an extension, only it goes.\n\n" +
			jsonHelp(requestView{}),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(myOpenIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			id, err := c.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			answer, err := call(ctx, c, c.access.Withdraw, &apiv1.WithdrawRequest{Id: id})
			if err != nil {
				return err
			}
			return a.outcome(answer.GetRequest(), "withdrawn")
		}),
	}
}

// outcome says what a verb did.
func (a *app) outcome(r *apiv1.Request, did string) error {
	if a.json {
		return a.JSON(viewRequest(r))
	}
	a.Line("%s %s", r.GetId(), did)
	return nil
}

// liveOrNamed is the request that is named, or the caller's only live one.
func (a *app) liveOrNamed(ctx context.Context, c *client, args []string) (string, error) {
	if len(args) == 1 {
		return c.resolve(ctx, args[0])
	}
	requests, err := c.list(ctx, &apiv1.RequestFilter{Mine: true, Open: true, Limit: maxList})
	if err != nil {
		return "", err
	}
	var live []string
	for _, r := range requests {
		if r.GetState() == apiv1.RequestState_REQUEST_STATE_GRANTED {
			live = append(live, fmt.Sprintf("%s (%s on %s)", r.GetId(), r.GetRole(),
				strings.Join(r.GetHosts(), ", ")))
		}
	}
	switch len(live) {
	case 0:
		return "", fail(exitFailed, "you have no live access").hint("see: curfew ls --mine --all")
	case 1:
		id, _, _ := strings.Cut(live[0], " ")
		return id, nil
	}
	return "", usage("you have %d live requests; say which: %s", len(live),
		strings.Join(live, "; "))
}
