// Package cpcli is the command line of curfew-controlplane: init, serve, backup, restore, trust, ca.
//
// It parses flags, calls package controlplane and says in words what came of it; data goes to
// stdout, talk to stderr. It holds no rule.
package cpcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/curfew-access/curfew/controlplane"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/logsink"
	"github.com/curfew-access/curfew/internal/version"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a wrong command line.
type usageError struct{ error }

// Unwrap is the error itself.
func (e usageError) Unwrap() error { return e.error }

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	config   string
	dataDir  string
	logLevel string
}

// Main runs the command line and returns the exit code.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: in, out: out, err: errOut}
	cmd := a.root()
	cmd.SetArgs(args)
	cmd.SetIn(in)
	cmd.SetOut(out)
	cmd.SetErr(errOut)
	ran, err := cmd.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(errOut, "curfew-controlplane: error: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(errOut, "curfew-controlplane: hint: %s --help\n", ran.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// Root is the whole command tree, for man pages and completion.
func Root() *cobra.Command { return (&app{in: os.Stdin, out: os.Stdout, err: os.Stderr}).root() }

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "curfew-controlplane",
		Short:         "Decide requests, seal grants, stream them to hosts, keep the trail",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&a.config, "config", controlplane.ConfigPath, "configuration file")
	cmd.PersistentFlags().StringVar(&a.dataDir, "data-dir", "",
		"data folder (default: data_dir of the configuration, "+controlplane.DefaultDataDir+")")
	cmd.PersistentFlags().StringVar(&a.logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.AddCommand(a.initCmd(), a.serveCmd(), a.backupCmd(), a.restoreCmd(), a.trustCmd(), a.caCmd(),
		a.versionCmd())
	return cmd
}

func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// load reads the configuration, with --data-dir over it.
func (a *app) load() (controlplane.Config, error) {
	c, err := controlplane.LoadConfig(a.config)
	if a.dataDir != "" {
		c.DataDir = a.dataDir
	}
	return c, err
}

func (a *app) logger(name string) (hclog.Logger, *logsink.Sink, error) {
	level := hclog.LevelFromString(a.logLevel)
	if level == hclog.NoLevel {
		return nil, nil, usageError{fmt.Errorf("--log-level %q is none of debug, info, warn, error", a.logLevel)}
	}
	// The journal has its own time and level; a line there needs neither twice.
	_, told := os.LookupEnv("JOURNAL_STREAM")
	log, sink := journal.New(hclog.LoggerOptions{Name: name, Level: level, DisableTime: told}, name, a.err)
	return log, sink, nil
}

// quiet logs only what a person at a terminal must see.
func (a *app) quiet() hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: a.err, DisableTime: true})
}

func (a *app) say(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

func (a *app) serveCmd() *cobra.Command {
	return &cobra.Command{
		Use: "serve", Short: "Serve people and hosts until stopped", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, sink, err := a.logger("curfew-controlplane")
			if err != nil {
				return err
			}
			defer sink.Close(time.Second)
			c, err := a.load()
			if err != nil {
				return err
			}
			s, err := controlplane.New(cmd.Context(), c, time.Now, version.Version, log)
			if err != nil {
				return err
			}
			return s.Run(cmd.Context())
		},
	}
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(0),
		Run: func(*cobra.Command, []string) { fmt.Fprintln(a.out, version.Version) },
	}
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
