// Demo performs Curfew's story on throw-away hosts, with real ssh and sudo, and tells it step by step.
// It fails when a step does not go as told, and leaves nothing behind.
//
//	demo        perform the story
//	demo up     leave its world running, and say what to try
//	demo as NAME COMMAND…    run a command on a person's laptop in that world
//	demo down   remove that world
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/curfew-access/curfew/e2e/stage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		return perform(ctx)
	case args[0] == "up" && len(args) == 1:
		return up(ctx)
	case args[0] == "keep" && len(args) == 1:
		return keep(ctx)
	case args[0] == "as" && len(args) > 2:
		return as(args[1], args[2:])
	case args[0] == "down" && len(args) == 1:
		return down(ctx)
	}
	return fmt.Errorf("usage: demo [up | as NAME COMMAND… | down]")
}

// perform plays the whole story and closes the world.
func perform(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	n := &narrator{began: time.Now(), color: isTerminal(os.Stdout)}
	n.chapter("A control plane and two hosts boot: Debian with its own systemd, sshd, sudo and logind")
	s, err := stage.New(ctx, stage.Options{Name: "demo", Hosts: []string{"web1", "web2"}, Out: os.Stdout})
	if err != nil {
		return err
	}
	defer func() {
		if closing := s.Close(); closing != nil && err == nil {
			err = closing
		}
		if err == nil {
			n.chapter("Everything is removed. The story went as told")
		}
	}()
	n.say("the control plane made its CA, its keys and its trust file, and serves from SQLite")
	n.say("each host joined by one line with a one-use token; its keys were made there and stay there")
	p := &play{narrator: n, Stage: s}
	for _, act := range p.acts() {
		n.chapter(act.title)
		if err := act.perform(ctx); err != nil {
			return fmt.Errorf("%s: %w", act.title, err)
		}
	}
	return nil
}
