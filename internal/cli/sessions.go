package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

type signedInView struct {
	ID          string  `json:"id"`
	User        string  `json:"user"`
	Method      string  `json:"method"`
	SSHKey      string  `json:"ssh_key"`
	Device      string  `json:"device"`
	Address     string  `json:"address"`
	CreatedAt   *string `json:"created_at"`
	ExpiresAt   *string `json:"expires_at"`
	UsedAt      *string `json:"used_at"`
	UsedAddress string  `json:"used_address"`
	Current     bool    `json:"current"`
}

func viewSignedIn(s *apiv1.SignedInSession) signedInView {
	return signedInView{
		ID: s.GetId(), User: s.GetUser(), Method: s.GetMethod(), SSHKey: s.GetSshKey(),
		Device: s.GetDevice(), Address: s.GetAddress(), CreatedAt: moment(s.GetCreatedMs()),
		ExpiresAt: moment(s.GetExpiresMs()), UsedAt: moment(s.GetUsedMs()),
		UsedAddress: s.GetUsedAddress(), Current: s.GetCurrent(),
	}
}

const sessionColumns = "Columns in a pipe: id, user, device, how it was signed in, when, where " +
	"from, when it was last used, where from, when it ends, and * for this one."

func (a *app) printSessions(sessions []*apiv1.SignedInSession) error {
	if a.json {
		return jsonList(a.printer, each(sessions, viewSignedIn))
	}
	rows := make([][]cell, len(sessions))
	for i, s := range sessions {
		how, here := s.GetMethod(), ""
		if s.GetSshKey() != "" {
			how += " " + s.GetSshKey()
		}
		if s.GetCurrent() {
			here = "*"
		}
		rows[i] = []cell{
			text(s.GetId()), text(s.GetUser()), text(s.GetDevice()), text(how),
			a.when(s.GetCreatedMs()), text(s.GetAddress()), a.when(s.GetUsedMs()),
			text(s.GetUsedAddress()), a.when(s.GetExpiresMs()), text(here),
		}
	}
	a.Table([]string{
		"SESSION", "USER", "DEVICE", "BY", "SINCE", "FROM", "USED", "FROM", "ENDS", "",
	}, rows)
	return nil
}

func (a *app) sessionsCmd() *cobra.Command {
	list := a.verb(func(ctx context.Context, c *client, _ []string) error {
		answer, err := call(ctx, c, c.identity.ListSessions, &apiv1.ListSessionsRequest{})
		if err != nil {
			return err
		}
		return a.printSessions(answer.GetSessions())
	})
	long := "List what speaks for you now: one session per sign-in, each bound to a key on its device." +
		"\n\n" + sessionColumns + "\nPrints a JSON array with --json. " + jsonHelp(signedInView{})
	rm := &cobra.Command{
		Use: "rm SESSION", Short: "End a session of yours, at once", Args: cobra.ExactArgs(1),
		Long: "End a session of yours, at once.\n\n" + jsonHelp(signedInView{}),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			answer, err := call(ctx, c, c.identity.EndSession, &apiv1.EndSessionRequest{Id: args[0]})
			if err != nil {
				return err
			}
			s := answer.GetSession()
			return a.did(viewSignedIn(s), "session %s on %q ended", s.GetId(), s.GetDevice())
		}),
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List your sessions", Args: cobra.NoArgs, Long: long, RunE: list,
	}
	cmd := &cobra.Command{
		Use: "sessions", Short: "List your sessions, or end one", Args: cobra.NoArgs, Long: long,
		RunE: list,
	}
	cmd.AddCommand(ls, rm)
	return cmd
}

func (a *app) adminSessionsCmd() *cobra.Command {
	var user string
	ls := &cobra.Command{
		Use: "ls", Short: "List everybody's sessions", Args: cobra.NoArgs,
		Long: "List everybody's sessions, or those of one user.\n\n" + sessionColumns +
			"\nPrints a JSON array with --json. " + jsonHelp(signedInView{}),
		RunE: a.verb(func(ctx context.Context, c *client, _ []string) error {
			answer, err := call(ctx, c, c.identity.ListAllSessions,
				&apiv1.ListAllSessionsRequest{User: user})
			if err != nil {
				return err
			}
			return a.printSessions(answer.GetSessions())
		}),
	}
	ls.Flags().StringVar(&user, "user", "", "only this user's")
	rm := &cobra.Command{
		Use: "rm --user NAME [SESSION]", Short: "End a session of a user, or all of theirs",
		Long: "End a session of a user, or all of theirs, at once.\n\n" + jsonHelp(signedInView{}),
		Args: cobra.MaximumNArgs(1),
		RunE: a.verb(func(ctx context.Context, c *client, args []string) error {
			if user == "" {
				return usage("whose session? --user NAME")
			}
			answer, err := call(ctx, c, c.identity.EndAnySession,
				&apiv1.EndAnySessionRequest{User: user, Id: strings.Join(args, "")})
			if err != nil {
				return err
			}
			if a.json {
				return jsonList(a.printer, each(answer.GetSessions(), viewSignedIn))
			}
			a.Talk("%s of %s ended", count(len(answer.GetSessions()), "session"), user)
			return nil
		}),
	}
	rm.Flags().StringVar(&user, "user", "", "whose")
	for _, cmd := range []*cobra.Command{ls, rm} {
		a.completeFlag(cmd, "user", userNames)
	}
	return parent("sessions", "See and end sessions", ls, rm)
}
