package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/session/process"
	"github.com/curfew-access/curfew/agent/store"
)

const (
	// leaveLimit is how long what runs under grants may take to end before the host is not left.
	leaveLimit = time.Minute
	// leaveLooks is how long the looks over the disks may take after that; they are given up then.
	leaveLooks = 2 * time.Minute
	// leaver ends the grants, in what people and the trail read.
	leaver = "the removal of Curfew from this host"
)

// ErrInside means that whoever removes Curfew does so under a grant, and would be killed half-way.
var ErrInside = errors.New("this session is itself under a grant, which ends with Curfew: remove Curfew from a " +
	"session that needs no grant, such as root's on the console")

// Leave ends every grant of this host for good, before Curfew is removed from it. It is a root half for
// a moment, so the one that serves must be stopped. When it returns without error nothing runs under a
// grant and nothing opens; unlooked are the requests whose leftovers nobody has looked for to the end.
// On a host that never joined there is nothing to do.
func Leave(ctx context.Context, cfg EnforceConfig) (unlooked []string, err error) {
	if _, err := AskStatus(ctx, cfg.Root+"/"+enforce.RunDir+"/admin.sock"); err == nil {
		return nil, errors.New("the root half serves; stop it first: systemctl stop " +
			"curfew-gate.socket curfew-enforce.service")
	}
	// An installation that was given up, too, has to be removed.
	if _, err := os.Stat(cfg.Root + "/" + enforce.StateDir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	e, err := NewEnforce(cfg)
	if errors.Is(err, store.ErrNotJoined) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	o := e.owner
	self, err := process.Read(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("finding out under what this runs: %w", err)
	}
	if request, inside := o.sessions.Owner(self); inside {
		return nil, fmt.Errorf("%w (request %s)", ErrInside, request)
	}
	// What is killed is found by uids too, whether a session is registered or its record is lost.
	if o.sessions.OfAccount(self) {
		return nil, fmt.Errorf("%w (it is a Curfew account's)", ErrInside)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	unlooked, err = o.leave(ctx, ran)
	cancel()
	return unlooked, errors.Join(err, <-ran)
}

// leave has the owner end everything and waits for it.
func (o *owner) leave(ctx context.Context, ran chan error) (unlooked []string, err error) {
	err = o.do(ctx, func(ctx context.Context) {
		next := o.ledger.Clone()
		change := next.EndAll(leaver)
		_ = o.save(next) // says so itself; what cannot be kept is over all the same
		o.ledger = next
		o.ended(ctx, change.Ended)
		o.reconcile(ctx)
	})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	for {
		var processes, files []string
		var broken string
		err := o.do(ctx, func(context.Context) {
			for _, id := range slices.Sorted(maps.Keys(o.ending)) {
				if o.ending[id].stage == stageFiles {
					files = append(files, id)
				} else {
					processes = append(processes, id)
				}
			}
			broken = o.problems["enforce"]
		})
		took := time.Since(began)
		switch {
		case err != nil:
			return nil, err
		case len(processes) == 0 && broken == "" && (len(files) == 0 || took > leaveLooks):
			return files, nil
		case took > leaveLimit && (len(processes) > 0 || broken != ""):
			return nil, fmt.Errorf("not everything of the grants has ended: requests %v; %s", processes, broken)
		}
		select {
		case err := <-ran:
			ran <- err
			return nil, errors.New("the root half ended before the grants")
		case <-time.After(50 * time.Millisecond):
		}
	}
}
