package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/schedule"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const formsHelp = "Hosts are named, or selected by label (--select env=prod). --at starts later; --every with " +
	"--until asks for recurring windows at once, each of which opens by itself. --single-use is for one " +
	"session. --again asks as an old request did, --template as you saved one. --emergency opens at once " +
	"where policy lets you; approvers are told and review it.\n\n"

// forms are the flags that say how and when.
type forms struct {
	selector                            []string
	at, every, until, zone              string
	again, template, save, ticket       string
	singleUse, emergency, dryRun, waits bool
}

func (f *forms) formFlags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.selector, "select", "l", nil, "hosts with the label KEY=VALUE; all of them, when given twice")
	cmd.Flags().StringVar(&f.at, "at", "", "start then: 2026-12-24T02:00, 02:00 or +3h")
	cmd.Flags().StringVar(&f.every, "every", "", `recurring windows instead of --for: "Tue 02:00-04:00"`)
	cmd.Flags().StringVar(&f.until, "until", "", "last day of --every: 2026-12-31 or 30d")
	cmd.Flags().StringVar(&f.zone, "zone", "", "time zone of --at and --every (default: this machine's)")
	cmd.Flags().StringVar(&f.again, "again", "", "ask as the request with this id did")
	cmd.Flags().StringVar(&f.template, "template", "", "ask as saved under this name")
	cmd.Flags().StringVar(&f.save, "save-template", "", "save what is asked under this name")
	cmd.Flags().StringVar(&f.ticket, "ticket", "", "ticket that policy asks for, such as OPS-7")
	cmd.Flags().BoolVar(&f.singleUse, "single-use", false, "for one login session only")
	cmd.Flags().BoolVar(&f.emergency, "emergency", false, "open it at once; it is reviewed afterwards")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what it would need, and ask nobody")
	cmd.Flags().BoolVar(&f.waits, "wait", true, "wait until it is decided and confirmed")
}

// exclusive says which flags exclude each other, once all are there.
func (f *forms) exclusive(cmd *cobra.Command) {
	for _, pair := range [][]string{
		{"again", "template"}, {"at", "every"}, {"for", "every"}, {"wait", "no-wait"},
	} {
		cmd.MarkFlagsMutuallyExclusive(pair...)
	}
}

// ask is what the flags and the request or template that they build on ask for.
func (a *app) ask(
	ctx context.Context, c *client, hosts []string, o requestOptions,
) (*apiv1.CreateRequestRequest, error) {
	ask, err := a.base(ctx, c, o)
	if err != nil {
		return nil, err
	}
	if err := a.fill(ask, hosts, o); err != nil {
		return nil, err
	}
	if len(ask.GetHosts())+len(ask.GetSelector()) == 0 || ask.GetRole() == "" || ask.GetReason() == "" ||
		ask.GetDurationMs() == 0 && len(ask.GetWindows()) == 0 {
		return nil, usage("a request needs hosts, a role, a duration and a reason").
			hint("curfew request %s --role ROLE --for 30m --reason \"why\"",
				strings.Join(append(hosts, "HOST")[:max(len(hosts), 1)], " "))
	}
	for _, name := range ask.GetHosts() {
		if err := grant.CheckHostName(name); err != nil {
			return nil, usage("%w", err).hint("hosts are listed by: curfew hosts")
		}
	}
	if err := grant.CheckRoleName(ask.GetRole()); err != nil {
		return nil, usage("%w", err).hint("roles are listed by: curfew roles")
	}
	if err := grant.CheckReason(ask.GetReason()); err != nil {
		return nil, usage("--reason: %w", err)
	}
	return ask, a.keepTemplate(o.save, ask)
}

// base is what the ask begins from.
func (a *app) base(
	ctx context.Context, c *client, o requestOptions,
) (*apiv1.CreateRequestRequest, error) {
	switch {
	case o.template != "":
		return a.readTemplate(o.template)
	case o.again == "":
		return &apiv1.CreateRequestRequest{}, nil
	}
	id, err := c.resolve(ctx, o.again)
	if err != nil {
		return nil, err
	}
	r, err := c.request(ctx, id)
	if err != nil {
		return nil, err
	}
	return &apiv1.CreateRequestRequest{
		Hosts: r.GetHosts(), Role: r.GetRole(), Reason: r.GetReason(), SingleUse: r.GetSingleUse(),
		DurationMs: r.GetDurationMs(),
	}, nil
}

// fill puts what the flags say over the base.
func (a *app) fill(ask *apiv1.CreateRequestRequest, hosts []string, o requestOptions) error {
	if len(hosts)+len(o.selector) > 0 {
		selector, err := parseLabels(o.selector)
		if err != nil {
			return err
		}
		ask.Hosts, ask.Selector = hosts, selector
	}
	for _, set := range []struct {
		to   *string
		flag string
	}{{&ask.Role, o.role}, {&ask.Reason, o.reason}, {&ask.Ticket, o.ticket}} {
		if set.flag != "" {
			*set.to = set.flag
		}
	}
	if o.duration != "" {
		d, err := parseDuration(o.duration)
		if err != nil {
			return usage("--for: %w", err)
		}
		ask.DurationMs = d.Milliseconds()
	}
	ask.SingleUse = ask.GetSingleUse() || o.singleUse
	ask.Emergency, ask.DryRun = o.emergency, o.dryRun
	return a.fillTimes(ask, o.forms)
}

func (a *app) fillTimes(ask *apiv1.CreateRequestRequest, f forms) error {
	zone := time.Local
	if f.zone != "" {
		var err error
		if zone, err = time.LoadLocation(f.zone); err != nil {
			return usage("--zone: %w", err).hint("a name such as Europe/Berlin or UTC")
		}
	}
	now := time.Now()
	if f.at != "" {
		at, err := parseMoment(f.at, now, zone)
		if err != nil {
			return usage("--at: %w", err)
		}
		ask.StartEarliestMs = at.UnixMilli()
	}
	if f.every == "" {
		if f.until != "" {
			return usage("--until goes with --every")
		}
		return nil
	}
	if f.until == "" {
		return usage("--every needs --until: the last day, such as 30d")
	}
	rule, err := schedule.Parse(f.every, zone)
	if err != nil {
		return usage("--every: %w", err)
	}
	until, err := parseDay(f.until, now, zone)
	if err != nil {
		return usage("--until: %w", err)
	}
	windows, err := rule.Windows(now, until)
	if err != nil {
		return usage("--every: %w", err)
	}
	ask.DurationMs = 0
	for _, w := range windows {
		ask.Windows = append(ask.Windows, &curfewv1.Span{
			StartMs: w.Start.UnixMilli(), EndMs: w.End.UnixMilli(),
		})
	}
	return nil
}

// parseMoment reads a time of day (the next one), a date and time, RFC 3339, or +DURATION.
func parseMoment(s string, now time.Time, zone *time.Location) (time.Time, error) {
	if rest, ok := strings.CutPrefix(s, "+"); ok {
		d, err := parseDuration(rest)
		return now.Add(d), err
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02 15:04"} {
		if t, err := time.ParseInLocation(layout, s, zone); err == nil {
			return t, nil
		}
	}
	t, err := time.Parse("15:04", s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time: write 2026-12-24T02:00, 02:00 or +3h", s)
	}
	y, m, d := now.In(zone).Date()
	next := time.Date(y, m, d, t.Hour(), t.Minute(), 0, 0, zone)
	if !next.After(now) {
		next = time.Date(y, m, d+1, t.Hour(), t.Minute(), 0, 0, zone)
	}
	return next, nil
}

// parseDay reads a last day, and returns its end; or so many days from now.
func parseDay(s string, now time.Time, zone *time.Location) (time.Time, error) {
	if t, err := time.ParseInLocation(time.DateOnly, s, zone); err == nil {
		return t.AddDate(0, 0, 1), nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no day: write 2026-12-31 or 30d", s)
	}
	return now.Add(d), nil
}

// dry says what a request would need.
func (a *app) dry(r *apiv1.Request) error {
	if a.json {
		return a.JSON(viewRequest(r))
	}
	a.Line("%s on %s: %s", r.GetRole(), joined(r.GetHosts()), r.GetVerdict())
	return nil
}

var templateName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

func (a *app) templateFile(name string) (string, error) {
	if !templateName.MatchString(name) {
		return "", usage("%q is no name of a template: use a-z, 0-9, - and _", grant.VisibleText(name))
	}
	dir, err := configDir(a.env.Getenv)
	return filepath.Join(dir, "templates", name+".json"), err
}

func (a *app) readTemplate(name string) (*apiv1.CreateRequestRequest, error) {
	file, err := a.templateFile(name)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fail(exitFailed, "there is no template %s", name).
			hint("curfew request … --save-template %s makes it", name)
	}
	ask := new(apiv1.CreateRequestRequest)
	if err == nil {
		err = protojson.Unmarshal(data, ask)
	}
	if err != nil {
		return nil, fail(exitFailed, "reading %s: %w", file, err)
	}
	return ask, nil
}

// keepTemplate saves an ask without what belongs to this one time.
func (a *app) keepTemplate(name string, ask *apiv1.CreateRequestRequest) error {
	if name == "" {
		return nil
	}
	file, err := a.templateFile(name)
	if err != nil {
		return err
	}
	kept := proto.CloneOf(ask)
	kept.StartEarliestMs, kept.Windows, kept.Emergency, kept.DryRun = 0, nil, false, false
	data, err := protojson.MarshalOptions{Multiline: true}.Marshal(kept)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = os.WriteFile(file, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fail(exitFailed, "saving the template: %w", err)
	}
	a.Talk("Saved as template %s.", name)
	return nil
}

func (a *app) editCmd() *cobra.Command {
	var o requestOptions
	cmd := &cobra.Command{
		Use:   "edit ID",
		Short: "Change a request that waits; approvals that it has are void",
		Long: "Change a request that waits: what is given replaces what was asked. It goes through policy " +
			"anew, and approvals of the old terms are void.\n\n" + jsonHelp(requestView{}),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(myOpenIDs),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			id, err := c.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			now, err := c.request(ctx, id)
			if err != nil {
				return err
			}
			change := &apiv1.CreateRequestRequest{}
			if err := a.fill(change, nil, o); err != nil {
				return err
			}
			answer, err := call(ctx, c, c.access.Edit, &apiv1.EditRequest{
				Id: id, Revision: now.GetRevision(), Ask: change,
			})
			if err != nil {
				return err
			}
			return a.outcome(answer.GetRequest(), "changed; "+answer.GetRequest().GetVerdict())
		}),
	}
	cmd.Flags().StringVarP(&o.role, "role", "r", "", "another role")
	cmd.Flags().StringVarP(&o.duration, "for", "f", "", "another duration")
	cmd.Flags().StringVarP(&o.reason, "reason", "m", "", "another reason")
	cmd.Flags().StringVar(&o.at, "at", "", "another start")
	cmd.Flags().StringVar(&o.every, "every", "", "windows instead")
	cmd.Flags().StringVar(&o.until, "until", "", "last day of --every")
	cmd.Flags().StringVar(&o.zone, "zone", "", "time zone of --at and --every")
	cmd.Flags().StringVar(&o.ticket, "ticket", "", "another ticket")
	cmd.Flags().StringArrayVarP(&o.selector, "select", "l", nil, "other hosts, by label KEY=VALUE")
	a.completeFlag(cmd, "role", roleNames)
	return cmd
}

func (a *app) reviewCmd() *cobra.Command {
	var justified, not bool
	var comment string
	cmd := &cobra.Command{
		Use:   "review ID --justified|--not-justified --comment TEXT",
		Short: "Say of an emergency request what you found afterwards",
		Long:  "Say of an emergency request what you found afterwards.\n\n" + jsonHelp(requestView{}),
		Args:  cobra.ExactArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			if justified == not || comment == "" {
				return usage("say --justified or --not-justified, and why with --comment")
			}
			id, err := c.resolve(ctx, args[0])
			if err != nil {
				return err
			}
			answer, err := call(ctx, c, c.access.ReviewEmergency, &apiv1.ReviewEmergencyRequest{
				Id: id, Justified: justified, Comment: comment,
			})
			if err != nil {
				return err
			}
			return a.outcome(answer.GetRequest(), "reviewed")
		}),
	}
	cmd.Flags().BoolVar(&justified, "justified", false, "it was an emergency")
	cmd.Flags().BoolVar(&not, "not-justified", false, "it was none")
	cmd.Flags().StringVarP(&comment, "comment", "m", "", "what you found")
	return cmd
}
