package agentcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/doctor"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/agent/modeswitch"
	"github.com/curfew-access/curfew/agent/selftest"
)

func newEnforceOn(stdout, stderr io.Writer) *cobra.Command {
	var confirm bool
	var lasts time.Duration
	c := &cobra.Command{
		Use: "enforce-on", Short: "Deny from now on what no grant allows; ends by itself unless confirmed",
		Long: "Looks over the host as doctor does, tries its PAM module, and enforces on trial: by itself it observes again\n" +
			"after ten minutes, also without its agent. Keep the session open in which you type this. That a\n" +
			"new login works is what --confirm confirms, so it is refused in an older one.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			if confirm {
				return confirmEnforcing(c.Context(), stdout)
			}
			return enforceOn(c.Context(), stdout, stderr, lasts)
		},
	}
	c.Flags().BoolVar(&confirm, "confirm", false, "keep enforcing: from a login that was opened after it began")
	c.Flags().DurationVar(&lasts, "for", 10*time.Minute, "how long the trial lasts, 10s to 1h")
	return c
}

func enforceOn(ctx context.Context, stdout, stderr io.Writer, lasts time.Duration) error {
	var status *agent.Status
	list, begun, err := lookOver(ctx, func() (err error) {
		status, err = agent.EnforceOn(ctx, adminSocket, lasts)
		return err
	})
	printFindings(stderr, list, false)
	switch {
	case err == nil:
	case begun:
		return errors.Join(fmt.Errorf("enforcing is taken back: %w", err),
			enforceOff(ctx, "/", adminSocket, false, io.Discard, stderr))
	default:
		return fmt.Errorf("this host goes on observing: %w", err)
	}
	fmt.Fprintf(stdout, "This host enforces, on trial until %s (in %v).\n"+
		"Keep this session open. Log in anew, as you will have to from now on, and say there:\n\n"+
		"  sudo curfew-agent enforce-on --confirm\n\n"+
		"Without that the host observes again by itself. Back at once: sudo curfew-agent enforce-off\n",
		status.TrialEnd.Format(time.RFC3339), time.Until(status.TrialEnd).Round(time.Second))
	return nil
}

// lookOver demands what must be well before a host enforces, calls begin, which has it do so, and demands
// what must be well from then on. The list is all that was found.
func lookOver(ctx context.Context, begin func() error) (list []doctor.Finding, begun bool, err error) {
	demand := func(more []doctor.Finding) error {
		list = append(list, more...)
		return problems(more)
	}
	test := selftest.Config{}
	if err := demand(examine(ctx)); err != nil {
		return list, false, err
	}
	if err := demand(test.Private(ctx)); err != nil {
		return list, false, err
	}
	people, has := spared()
	before, err := test.Look(ctx, people, has)
	if err != nil {
		return list, false, fmt.Errorf("asking its PAM services: %w", err)
	}
	if err := begin(); err != nil {
		return list, false, err
	}
	return list, true, demand(test.Enforced(ctx, before, people, has))
}

// newFollowRollout is what curfew-rollout.service runs.
func newFollowRollout(stdout, stderr io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "follow-rollout", Short: "Look this host over for a rollout that wants it to enforce (systemd does)",
		Hidden: true, Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			return followRollout(c.Context(), stdout, stderr)
		},
	}
}

func followRollout(ctx context.Context, stdout, stderr io.Writer) error {
	status, err := agent.AskStatus(ctx, adminSocket)
	if err != nil {
		return err
	}
	if status.Rollout == nil || status.Rollout.ID == "" {
		return errors.New("no rollout wants anything of this host")
	}
	tell := func(did, words string) error {
		_, err := agent.TellRollout(ctx, adminSocket, agent.RolloutStep{
			ID: status.Rollout.ID, Attempt: status.Rollout.Attempt, Did: did, Words: words,
		})
		return err
	}
	list, _, err := lookOver(ctx, func() error { return tell("begin", "") })
	printFindings(stderr, list, false)
	if err == nil {
		err = tell("passed", "")
	}
	if err != nil {
		return errors.Join(err, tell("failed", whatFailed(list, err)))
	}
	_, err = fmt.Fprintln(stdout, "this host enforces, on trial for as long as the rollout goes on")
	return err
}

// whatFailed is for people who are not on the host: what is wrong, and how to mend it.
func whatFailed(list []doctor.Finding, err error) string {
	var bad []string
	for _, f := range list {
		if f.Bad() {
			bad = append(bad, fmt.Sprintf("%s: %v; mend it: %s", f.What, f.Err, f.Mend))
		}
	}
	if len(bad) == 0 {
		return err.Error()
	}
	return strings.Join(bad, "; ")
}

// spared are people whom enforcing must not touch, and which PAM services the host has.
func spared() (people []selftest.Person, has func(service string) bool) {
	people = []selftest.Person{{Name: "root"}}
	settings, err := agent.LoadSettings(agent.ConfigPath)
	local, errLocal := account.ReadLocal("/")
	if err == nil && errLocal == nil {
		for _, m := range local.MembersOf(settings.BreakGlassGroup) {
			people = append(people, selftest.Person{Name: m.Name, UID: m.UID})
		}
	}
	return people, func(service string) bool {
		for _, dir := range []string{"/etc/pam.d/", "/usr/lib/pam.d/"} {
			if _, err := os.Stat(dir + service); err == nil {
				return true
			}
		}
		return false
	}
}

func confirmEnforcing(ctx context.Context, stdout io.Writer) error {
	if _, err := agent.ConfirmEnforcing(ctx, adminSocket); err != nil {
		return err
	}
	_, err := fmt.Fprintln(stdout, "Confirmed: this host enforces. Back at any time: sudo curfew-agent enforce-off")
	return err
}

func newEnforceOff(stdout, stderr io.Writer) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use: "enforce-off", Short: "Deny nobody from now on, and record what would be denied",
		Long: "Works at once, with the agent dead and the disk full too: the PAM module itself heeds a mark of\n" +
			"root's in /run/curfew. A mode: enforce in " + agent.ConfigPath + " is overruled until that line changes.\n" +
			"A rollout does not switch the host from then on, unless this is said with --follow.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			return enforceOff(c.Context(), "/", adminSocket, follow, stdout, stderr)
		},
	}
	c.Flags().BoolVar(&follow, "follow", false, "leave it to rollouts when this host enforces again")
	return c
}

// enforceOff needs nobody: what goes wrong behind the mark is told, and the host observes all the same.
func enforceOff(
	ctx context.Context, root, socket string, follow bool, stdout, stderr io.Writer,
) error {
	said := modeswitch.Observe
	if settings, err := agent.LoadSettings(root + agent.ConfigPath); err == nil {
		said = settings.Mode
	} else {
		fmt.Fprintln(stderr, "warning:", err)
	}
	by := "root"
	if p, err := process.Read(os.Getpid()); err == nil {
		by = agent.Who(p)
	}
	err := agent.SwitchDir(root).Off(said, by, follow, time.Now())
	switch {
	case errors.Is(err, modeswitch.ErrNotKept):
		fmt.Fprintf(stderr, "warning: %v; mend the disk, then say enforce-off again\n", err)
	case err != nil:
		return err
	}
	if _, err := agent.EnforceOff(ctx, socket); err != nil {
		fmt.Fprintf(stderr, "warning: the PAM module denies nobody, but the root half has not taken it in: %v\n", err)
	}
	_, err = fmt.Fprintln(stdout, "This host observes: nobody is denied, and what would be is recorded.")
	return err
}
