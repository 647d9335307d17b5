package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// readTimeout bounds one reading of the trail that does not follow it.
const readTimeout = 10 * time.Minute

type logOptions struct {
	request        string
	from           uint64
	limit          uint32
	follow, verify bool
}

func (a *app) logCmd() *cobra.Command {
	var o logOptions
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Read and verify the trail",
		Long: "Print the trail: each request, decision, grant, session and end, as the control plane " +
			"and the hosts recorded it. Users see what is about themselves, approvers and admins " +
			"see all.\n\n--verify fetches every record, computes the trail's head again and " +
			"compares it with the control plane's; demands that it extends what this command " +
			"verified last (verified.json in the configuration directory); and checks the " +
			"signature and the chain of each event that a host reported.\n\n" +
			"Columns in a pipe: number, time, kind, actor, host, request, details.\n" +
			"Prints one JSON object per line with --json. " + jsonHelp(recordView{}) +
			" With --verify: " + jsonHelp(verdictView{}) + "\n\n" + exitHelp,
		Args: cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			if o.verify {
				if o.follow || o.request != "" || o.from != 0 || o.limit != 0 {
					return usage("--verify reads the whole trail; it stands alone")
				}
				return a.verify(ctx, c)
			}
			return a.log(ctx, c, o)
		}),
	}
	cmd.Flags().StringVar(&o.request, "request", "", "only records of this request")
	cmd.Flags().Uint64Var(&o.from, "from", 0, "begin with this record")
	cmd.Flags().Uint32Var(&o.limit, "limit", 0, "at most so many records (0: all)")
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "keep printing new records until Ctrl-C")
	cmd.Flags().BoolVar(&o.verify, "verify", false, "check the whole trail")
	a.completeFlag(cmd, "request", anyIDs)
	return cmd
}

func (a *app) log(ctx context.Context, c *client, o logOptions) error {
	question := &apiv1.ListRecordsRequest{From: o.from, Limit: o.limit, Follow: o.follow}
	if o.request != "" {
		id, err := c.resolve(ctx, o.request)
		if err != nil {
			return err
		}
		question.RequestId = id
	}
	me, err := call(ctx, c, c.signIn.WhoAmI, &apiv1.WhoAmIRequest{})
	if err != nil {
		return err
	}
	question.All = slices.Contains(me.GetApiRoles(), "approver") ||
		slices.Contains(me.GetApiRoles(), "admin")
	if !o.follow {
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		return c.records(ctx, question, a.printRecords)
	}
	return a.followLog(ctx, c, question)
}

// followLog reads on until Ctrl-C and takes up where a broken stream ended.
func (a *app) followLog(ctx context.Context, c *client, q *apiv1.ListRecordsRequest) error {
	pause, heard := retryFirst, a.now()
	for {
		err := c.records(ctx, q, func(answer *apiv1.ListRecordsResponse) error {
			pause, heard = retryFirst, a.now()
			for _, r := range answer.GetRecords() {
				q.From = max(q.GetFrom(), r.GetNumber()+1)
			}
			return a.printRecords(answer)
		})
		if ctx.Err() != nil {
			return nil
		}
		if !retryable(err) || a.now().Sub(heard) > giveUpAfter {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(pause*2, retryMost)
	}
}

// records streams the trail to each until it ends.
func (c *client) records(
	ctx context.Context, q *apiv1.ListRecordsRequest,
	each func(*apiv1.ListRecordsResponse) error,
) error {
	stream, err := c.access.ListRecords(ctx, q)
	if err != nil {
		return c.explain(err)
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.explain(err)
		}
		if err := each(answer); err != nil {
			return err
		}
	}
}

func (a *app) printRecords(answer *apiv1.ListRecordsResponse) error {
	for _, r := range answer.GetRecords() {
		record, err := trail.ParseRecord(r.GetLeaf())
		if err != nil {
			return fail(exitFailed, "record %d: %w", r.GetNumber(), err)
		}
		if a.json {
			if err := a.JSON(viewRecord(record)); err != nil {
				return err
			}
			continue
		}
		a.printRecord(record)
	}
	return nil
}

func viewRecord(r *trail.Record) recordView {
	return recordView{
		Number: r.Number, At: moment(r.TimeMS), Kind: r.Kind, Actor: r.Actor,
		RequestID: r.RequestID, GrantID: r.GrantID, Host: r.Host, HostID: r.HostID,
		Details: labels(r.Details),
	}
}

// printRecord writes one line. Columns are of fixed width: a trail is read while it streams.
func (a *app) printRecord(r *trail.Record) {
	var details []string
	for _, k := range r.DetailKeys() {
		details = append(details, k+"="+r.Details[k])
	}
	rest := strings.Join(details, " ")
	if !a.outTTY {
		a.Table(nil, [][]cell{{
			text(fmt.Sprint(r.Number)), a.when(r.TimeMS), text(r.Kind), text(r.Actor),
			text(r.Host), text(r.RequestID), text(rest),
		}})
		return
	}
	a.Line("%6d  %s  %-18s %-12s %-12s %-12s %s", r.Number,
		ms(r.TimeMS).In(a.now().Location()).Format("2006-01-02 15:04:05 MST"), r.Kind, r.Actor, r.Host,
		r.RequestID, rest)
}
