// Package agentcli is the command line of curfew-agent: the two daemons, and the few commands that an
// admin of a host types.
//
// Data goes to stdout, talk to stderr; an error says what, why and what to type next. The package
// holds no rules: it reads flags, builds the configuration of agent or agent/link and runs it.
package agentcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/internal/version"
)

// Exit codes, the same as of curfew.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// program is where a package installs this program; PID 1's timers run it.
const program = "/usr/bin/curfew-agent"

// Where the halves keep what they have; the root half's places are agent's own.
const (
	linkDir     = "/var/lib/curfew-link"
	adminSocket = "/run/curfew/admin.sock"
)

// errUsage marks errors of the command line itself.
var errUsage = errors.New("usage")

// Main runs a command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "curfew-agent: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "curfew-agent: error: %v\n", err)
	return exitFailed
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "curfew-agent",
		Short: "Just-in-time access on this host",
		Long: "curfew-agent makes a machine a Curfew host. Its root half (enforce) verifies grants, opens\n" +
			"access and takes it back; its link half (link) carries messages and has no privilege.\n" +
			"systemd runs both: systemctl status curfew-enforce curfew-link.",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see %s --help", errUsage, err, c.CommandPath())
	})
	root.AddCommand(newEnforce(stderr), newLink(stderr), newJoin(stdout, stderr), newStatus(stdout),
		newDoctor(stdout), newPurge(stderr), newVersion(stdout))
	return root
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s takes no argument %q", errUsage, c.CommandPath(), args[0])
	}
	return nil
}

// logFlags are the two flags of everything that logs.
type logFlags struct {
	json  bool
	level string
}

func (f *logFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.json, "log-json", false, "log as JSON")
	c.Flags().StringVar(&f.level, "log-level", "info", "trace, debug, info, warn or error")
}

func (f *logFlags) logger(name string, w io.Writer) (hclog.Logger, error) {
	level := hclog.LevelFromString(f.level)
	if level == hclog.NoLevel {
		return nil, fmt.Errorf("%w: unknown log level %q", errUsage, f.level)
	}
	return hclog.New(&hclog.LoggerOptions{
		Name: name, Level: level, Output: w, JSONFormat: f.json,
		// journald knows the time.
		DisableTime: !f.json && os.Getenv("JOURNAL_STREAM") != "",
	}), nil
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root; try: sudo " + program)
	}
	return nil
}

func newEnforce(stderr io.Writer) *cobra.Command {
	var logs logFlags
	c := &cobra.Command{
		Use: "enforce", Short: "Run the root half (systemd does)", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			log, err := logs.logger("enforce", stderr)
			if err != nil {
				return err
			}
			clock, err := expiry.SystemClock()
			if err != nil {
				return err
			}
			e, err := agent.NewEnforce(agent.EnforceConfig{
				Root: "/", Program: program, Version: version.Version, Clock: clock, Log: log,
			})
			if err != nil {
				return err
			}
			return errors.Join(e.Run(c.Context()), e.Close())
		},
	}
	logs.add(c)
	return c
}

func newPurge(stderr io.Writer) *cobra.Command {
	var logs logFlags
	var request string
	c := &cobra.Command{
		Use: "purge --request ID", Hidden: true, Args: noArgs,
		Short: "End what an ended request left running (PID 1's timer does)",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			log, err := logs.logger("purge", stderr)
			if err != nil {
				return err
			}
			clock, err := expiry.SystemClock()
			if err != nil {
				return err
			}
			err = agent.Purge(c.Context(), agent.PurgeConfig{
				Root: "/", Program: program, Clock: clock, Log: log, RequestID: request,
			})
			if errors.Is(err, agent.ErrLives) {
				log.Info("nothing is ended", "request", request, "why", err)
				return nil
			}
			return err
		},
	}
	c.Flags().StringVar(&request, "request", "", "the request that has ended")
	logs.add(c)
	return c
}

func newVersion(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, version.Version)
			return err
		},
	}
}
