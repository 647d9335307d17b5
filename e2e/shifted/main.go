// Command shifted is curfew-enforce for hosts of stories whose clocks are wrong. It is built from the
// same packages; only the clock that it hands to the root half, and to the purge of PID 1's timers,
// differs: it adds what stands in /etc/story-clock, so that no clock of the machine is ever set. The
// real program has no way to be given another clock.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent"
	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/residue"
	"github.com/curfew-access/curfew/agent/expiry"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/rootcli"
)

func main() {
	args := os.Args[1:]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(args) == 1 && args[0] == "enforce":
		err = serve(ctx)
	case len(args) == 3 && args[0] == "purge" && args[1] == "--request":
		err = purge(ctx, args[2])
	case len(args) == 1 && args[0] == "residue":
		err = lookForResidue(ctx)
	default:
		err = fmt.Errorf("neither enforce, residue nor purge --request ID: %q", args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "curfew-enforce with a shifted clock:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context) error {
	clock, err := shiftedClock()
	if err != nil {
		return err
	}
	e, err := agent.NewEnforce(agent.EnforceConfig{
		Root: "/", Program: rootcli.Program, Version: "shifted", Clock: clock, Log: hclog.Default(),
	})
	if err != nil {
		return err
	}
	return errors.Join(e.Run(ctx), e.Close())
}

func purge(ctx context.Context, request string) error {
	clock, err := shiftedClock()
	if err != nil {
		return err
	}
	err = agent.Purge(ctx, agent.PurgeConfig{
		Root: "/", Program: rootcli.Program, Clock: clock, Log: hclog.Default(), RequestID: request,
	})
	if errors.Is(err, agent.ErrLives) {
		return nil
	}
	return err
}

func lookForResidue(ctx context.Context) error {
	clock, err := shiftedClock()
	if err != nil {
		return err
	}
	store, err := residue.OpenStore("/"+enforce.StateDir, nil)
	if err != nil {
		return err
	}
	work := residue.Job{Root: "/", Store: store, Clock: clock, Log: hclog.Default()}
	return errors.Join(work.Work(ctx), store.Close())
}

// shiftedClock reads the machine's clocks and the shifts anew each time.
func shiftedClock() (func() grant.Clock, error) {
	system, err := expiry.SystemClock()
	if err != nil {
		return nil, err
	}
	return func() grant.Clock {
		now := system()
		text, err := os.ReadFile("/etc/story-clock")
		if errors.Is(err, os.ErrNotExist) {
			return now
		}
		var wall, boot int64
		if err == nil {
			_, err = fmt.Sscan(string(text), &wall, &boot)
		}
		if err != nil {
			panic(fmt.Sprintf("reading the story's clock: %v", err))
		}
		now.Wall = now.Wall.Add(time.Duration(wall) * time.Second)
		now.Boot += time.Duration(boot) * time.Second
		return now
	}, nil
}
