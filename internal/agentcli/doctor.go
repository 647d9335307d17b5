package agentcli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/doctor"
	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/grant"
)

func newDoctor(stdout io.Writer) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "doctor", Short: "Say what works on this host, what does not, and how to mend it",
		Long: "Looks at everything that enforcement leans on, changes nothing, and says of each thing that is\n" +
			"not as it should be how to mend it. A problem keeps enforce-on from going on; a warning does not.\n" +
			"Exit status: 0 when there is no problem, else 1.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			list := examine(c.Context())
			if asJSON {
				if err := findingsJSON(stdout, list); err != nil {
					return err
				}
			} else {
				printFindings(stdout, list, true)
			}
			return problems(list)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printFindings prints a line per finding, and how to mend what is wrong. Good ones may be left out.
func printFindings(out io.Writer, list []doctor.Finding, good bool) {
	for _, f := range list {
		word := "problem"
		switch {
		case f.Err == nil && !good:
			continue
		case f.Err == nil:
			fmt.Fprintf(out, "ok       %s\n", f.What)
			continue
		case f.Warning:
			word = "warning"
		}
		fmt.Fprintf(out, "%s  %s: %s\n", word, f.What, grant.VisibleText(f.Err.Error()))
		if f.Mend != "" {
			fmt.Fprintf(out, "         mend it: %s\n", f.Mend)
		}
	}
}

func findingsJSON(out io.Writer, list []doctor.Finding) error {
	type line struct {
		What  string `json:"what"`
		Level string `json:"level"` // ok, warning, problem
		Error string `json:"error,omitempty"`
		Mend  string `json:"mend,omitempty"`
	}
	lines := make([]line, 0, len(list))
	for _, f := range list {
		l := line{What: f.What, Level: "ok"}
		if f.Err != nil {
			l.Level, l.Error, l.Mend = "problem", f.Err.Error(), f.Mend
			if f.Warning {
				l.Level = "warning"
			}
		}
		lines = append(lines, l)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(lines)
}

func problems(list []doctor.Finding) error {
	var bad []string
	for _, f := range list {
		if f.Bad() {
			bad = append(bad, f.What)
		}
	}
	switch len(bad) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("1 problem: %s", bad[0])
	}
	return fmt.Errorf("%d problems: %s", len(bad), strings.Join(bad, ", "))
}

// examine looks at everything: the host, its way to the control plane, and the root half.
func examine(ctx context.Context) []doctor.Finding {
	_, err := os.Stat("/" + enforce.StateDir + "/ledger.json")
	list := []doctor.Finding{{
		What: "this host has joined", Err: err, Mend: "curfew-agent join --server HOST:PORT TOKEN",
	}}
	host, err := doctor.Here()
	if err != nil {
		return append(list, doctor.Finding{What: "this host", Err: err})
	}
	settings, err := agent.LoadSettings(agent.ConfigPath)
	list = append(list, doctor.Finding{
		What: agent.ConfigPath, Err: err, Mend: "edit the line that is named",
	})
	if err == nil {
		host.Gated, host.Elevate = settings.GatedUsers, settings.ElevateUsers
		host.BreakGlass, host.HomeRoot = settings.BreakGlassGroup, settings.HomeRoot
	}
	list = append(list, doctor.Look(ctx, host)...)
	list = append(list, wayUp(ctx, time.Now)...)
	return append(list, running(ctx, adminSocket)...)
}

// soon is how long before a certificate's end it is spoken of. The host's own lasts seven days and is
// renewed after two thirds of them.
const soon = 24 * time.Hour

// wayUp looks at the way to the control plane and at the certificates on it.
func wayUp(ctx context.Context, now func() time.Time) []doctor.Finding {
	e, err := link.Examine(ctx, linkDir, now)
	if err != nil {
		return []doctor.Finding{{
			What: "this host's certificate", Err: err, Mend: "curfew-agent join --server HOST:PORT TOKEN",
		}}
	}
	list := []doctor.Finding{{
		What: "the control plane at " + e.Server + " answers", Err: e.Unreached,
		Mend: "curfew-controlplane's unit, its address, firewalls, and the clocks of both machines",
	}}
	mine := doctor.Finding{
		What: "this host's certificate", Mend: "journalctl -u curfew-link.service says why it is not renewed",
	}
	if err := lasts(e.Until, now(), soon); err != nil {
		mine.Err = err
	} else if e.Overdue {
		mine.Err, mine.Warning = fmt.Errorf("it should have been renewed; it ends %s",
			e.Until.UTC().Format(time.RFC3339)), true
	}
	list = append(list, mine, doctor.Finding{
		What: "the control plane's CA", Err: lasts(e.CAUntil, now(), 90*24*time.Hour), Warning: true,
		Mend: "set a control plane with a new CA up before then; hosts and people join that anew",
	})
	if e.Unreached == nil {
		list = append(list, doctor.Finding{
			What: "the control plane's certificate", Err: lasts(e.ServerUntil, now(), soon), Warning: true,
			Mend: "systemctl restart curfew-controlplane, which renews it, on the control plane",
		})
	}
	return list
}

func lasts(until, now time.Time, enough time.Duration) error {
	switch left := until.Sub(now); {
	case left <= 0:
		return fmt.Errorf("it ended %s", until.UTC().Format(time.RFC3339))
	case left < enough:
		return fmt.Errorf("it ends %s", until.UTC().Format(time.RFC3339))
	}
	return nil
}

// running asks the root half itself.
func running(ctx context.Context, socket string) []doctor.Finding {
	status, err := agent.AskStatus(ctx, socket)
	if err != nil {
		return []doctor.Finding{{
			What: "the root half", Err: err, Mend: "systemctl enable --now curfew-agent.target",
		}}
	}
	list := []doctor.Finding{{What: "the root half runs, mode " + status.Mode}}
	link := doctor.Finding{
		What: "the control plane is connected", Mend: "systemctl status curfew-link",
	}
	if !status.Connected || status.Refused != "" {
		link.Err = errors.New(connection(status))
	}
	list = append(list, link)
	for _, p := range status.Problems {
		list = append(list, doctor.Finding{What: "enforcement", Err: errors.New(p)})
	}
	return list
}
