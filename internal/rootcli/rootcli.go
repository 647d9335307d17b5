// Package rootcli is the command line of curfew-enforce, the program of a host's root half: what
// systemd and PID 1's timers run as root. People type curfew-agent.
//
// It is small on purpose: what is linked into a process that runs as root on every host, and stays in
// its memory, is what that process needs. So there is no gRPC, no cobra and no network in it.
package rootcli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/residue"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/agent/gate"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/journal"
	"github.com/curfew-access/curfew/internal/version"
)

// Program is where a package installs curfew-enforce; PID 1's timers run it.
const Program = "/usr/lib/curfew/curfew-enforce"

// Exit codes, the same as of curfew.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// errUsage marks errors of the command line itself.
var errUsage = errors.New("usage")

// A verb is one thing that the program does.
type verb struct {
	name, text string
	run        func(context.Context, job) error
}

// job is what every verb gets.
type job struct {
	log     hclog.Logger
	clock   func() grant.Clock
	request string
}

var verbs = []verb{
	{"enforce", "run the root half", serve},
	{"residue", "look for what ended grants left on the disks", lookForResidue},
	{"purge", "end what an ended request left running: --request ID", purge},
	{"leave", "end every grant of this host for good, before Curfew is removed from it", leave},
}

// Main runs a command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, args, stdout, stderr)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "curfew-enforce: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "curfew-enforce: error: %v\n", err)
	return exitFailed
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && args[0] == "version" {
		_, err := fmt.Fprintln(stdout, version.Version)
		return err
	}
	v, err := find(args)
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet(v.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	request := flags.String("request", "", "the request that it is about")
	asJSON := flags.Bool("log-json", false, "log as JSON")
	level := flags.String("log-level", "info", "trace, debug, info, warn or error")
	switch err := flags.Parse(args[1:]); {
	case err != nil:
		return fmt.Errorf("%w: %w", errUsage, err)
	case flags.NArg() > 0:
		return fmt.Errorf("%w: %s takes no argument %q", errUsage, v.name, flags.Arg(0))
	case hclog.LevelFromString(*level) == hclog.NoLevel:
		return fmt.Errorf("%w: unknown log level %q", errUsage, *level)
	}
	if os.Geteuid() != 0 {
		return errors.New("this needs root")
	}
	clock, err := expiry.SystemClock()
	if err != nil {
		return err
	}
	log, sink := journal.New(hclog.LoggerOptions{
		Name: v.name, Level: hclog.LevelFromString(*level), JSONFormat: *asJSON,
		// journald knows the time.
		DisableTime: !*asJSON && os.Getenv("JOURNAL_STREAM") != "",
	}, filepath.Base(Program), stderr)
	defer sink.Close(time.Second)
	return v.run(ctx, job{log: log, clock: clock, request: *request})
}

func find(args []string) (verb, error) {
	if len(args) > 0 {
		for _, v := range verbs {
			if v.name == args[0] {
				return v, nil
			}
		}
	}
	text := "want one of: version"
	for _, v := range verbs {
		text += fmt.Sprintf("; %s (%s)", v.name, v.text)
	}
	return verb{}, fmt.Errorf("%w: %s", errUsage, text)
}

// gcPercent keeps the garbage of bursts, such as a thousand grants that are checked at once, from
// doubling what the process holds: it lives on every host and mostly waits.
const gcPercent = 50

func serve(ctx context.Context, j job) error {
	debug.SetGCPercent(gcPercent)
	socket, err := gate.Inherited()
	if err != nil {
		return err
	}
	e, err := agent.NewEnforce(agent.EnforceConfig{
		Root: "/", Program: Program, Version: version.Version, Clock: j.clock, Log: j.log, Gate: socket,
	})
	if err != nil {
		return err
	}
	return errors.Join(e.Run(ctx), e.Close())
}

// lookForResidue is curfew-residue.service.
func lookForResidue(ctx context.Context, j job) error {
	store, err := residue.OpenStore("/"+enforce.StateDir, nil)
	if err != nil {
		return err
	}
	work := residue.Job{Root: "/", Store: store, Clock: j.clock, Log: j.log}
	return errors.Join(work.Work(ctx), store.Close())
}

func leave(ctx context.Context, j job) error {
	left, err := agent.Leave(ctx, agent.EnforceConfig{
		Root: "/", Program: Program, Version: version.Version, Clock: j.clock, Log: j.log,
	})
	if len(left) > 0 {
		j.log.Warn("the disks were not looked over to the end for setuid and setgid copies", "requests", left)
	}
	if err == nil {
		journal.Note(filepath.Base(Program), "host.left")
	}
	return err
}

func purge(ctx context.Context, j job) error {
	err := agent.Purge(ctx, agent.PurgeConfig{
		Root: "/", Program: Program, Clock: j.clock, Log: j.log, RequestID: j.request,
	})
	if errors.Is(err, agent.ErrLives) {
		j.log.Info("nothing is ended", "request", j.request, "why", err)
		return nil
	}
	return err
}
