package agentcli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/internal/grant"
)

func newStatus(stdout io.Writer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "status", Short: "Show grants, sessions and problems of this host", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			status, err := agent.AskStatus(c.Context(), adminSocket)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(status)
			}
			return printStatus(stdout, status, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printStatus(out io.Writer, s *agent.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, grant.VisibleText(fmt.Sprint(c)))
		}
		fmt.Fprintln(w)
	}
	row("host", s.Name)
	row("id", s.HostID)
	row("mode", s.Mode)
	if !s.TrialEnd.IsZero() {
		row("observes again", s.TrialEnd.Format(time.RFC3339)+", unless "+confirms(s))
	}
	if s.Rollout != nil {
		row("rollouts", followed(s.Rollout))
	}
	row("version", s.Version)
	row("control plane", connection(s))
	row("holds", fmt.Sprintf("trust %d, state (%d, %d), %d events", s.Trust, s.Epoch, s.Sequence,
		s.Events))
	if s.MayOpen != "" {
		row("nothing new opens", s.MayOpen)
	} else if !s.LeaseEnd.IsZero() {
		row("new access opens until", s.LeaseEnd.Format(time.RFC3339)+", if nobody is heard")
	}
	if s.BreakGlass != "" {
		row("break-glass", s.BreakGlass)
	}
	if len(s.Grants) > 0 {
		fmt.Fprintln(w)
		row("REQUEST", "LOGIN", "ROLE", "CLASS", "STATUS", "ENDS", "IN")
	}
	for _, g := range s.Grants {
		role := g.Role
		if g.RootEquivalent {
			role += " (ROOT-EQUIVALENT)"
		}
		if g.Local {
			role += ", by code"
		}
		row(g.Request, g.Login, role, g.Class, g.Status, g.End.Format(time.RFC3339),
			g.End.Sub(now).Round(time.Second))
		if g.Detail != "" {
			row("", "", g.Detail)
		}
	}
	if len(s.Sessions) > 0 {
		fmt.Fprintln(w)
		row("SESSION OF", "LOGIN", "SERVICE", "PID", "FROM", "SINCE", "RUNS")
	}
	for _, x := range s.Sessions {
		row(x.Request, x.Login, x.Service, x.PID, x.Remote, x.Since.Format(time.RFC3339), x.Commands)
	}
	if len(s.Ending) > 0 {
		fmt.Fprintln(w)
		row("being ended", s.Ending)
	}
	for _, r := range s.Residue {
		fmt.Fprintln(w)
		row("left behind", fmt.Sprintf("by request %s of %s as %s (ROOT-EQUIVALENT): %d, not undone",
			r.Request, r.Login, r.Role, len(r.Left)+r.More))
		for _, left := range r.Left {
			row("", left)
		}
		if r.More > 0 {
			row("", fmt.Sprintf("%d more", r.More))
		}
		for _, not := range r.NotLookedAt {
			row("", "not looked at: "+not)
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(w)
	}
	for _, p := range s.Problems {
		row("problem", p)
	}
	return w.Flush()
}

func connection(s *agent.Status) string {
	switch {
	case s.Refused != "":
		return "refuses this host: " + s.Refused
	case s.Connected:
		return "connected"
	}
	return "not connected"
}

// confirms is what makes a trial last.
func confirms(s *agent.Status) string {
	if s.Rollout != nil && (s.Rollout.Phase == "trial" || s.Rollout.Phase == "checking") {
		return "its rollout goes on; curfew-agent enforce-on --confirm in a new login makes it this host's own word"
	}
	return "curfew-agent enforce-on --confirm is said in a new login"
}

// followed is how a host stands with rollouts.
func followed(r *agent.RolloutStatus) string {
	text := "followed"
	if r.ID != "" && r.Phase != "" {
		text += fmt.Sprintf("; %s, attempt %d: %s", r.ID, r.Attempt, r.Phase)
	}
	if r.Detail != "" {
		text += "; " + r.Detail
	}
	return text
}
