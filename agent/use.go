package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/seen"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// seenSince is how far back a host that begins to observe looks into its journal.
const seenSince = 7 * 24 * time.Hour

// useWatch is what an observing host knows of who uses it. It belongs to the owner's goroutine.
type useWatch struct {
	journal seen.Journal
	tally   *seen.Tally
	looking bool
	quiet   bool // it was said that the journal cannot be read
}

// lookAtUse has the journal read beside the owner, on a host that observes.
func (o *owner) lookAtUse(ctx context.Context) {
	if mode, _ := o.mode(); mode != account.ModeObserve || o.seen.looking {
		return
	}
	if _, err := os.Stat(o.seen.journal.Program); err != nil {
		o.journalFails(err)
		return
	}
	o.seen.looking = true
	journal, since := o.seen.journal, o.cfg.Clock().Wall.Add(-seenSince)
	o.spawnSmall(ctx, func() {
		list, more, err := journal.Look(ctx, since)
		o.post(ctx, func(ctx context.Context) {
			o.seen.looking = false
			if err != nil {
				o.journalFails(err)
				return
			}
			o.seen.tally.Add(list)
			o.tellUse(false)
			if journal.Cursor != o.seen.journal.Cursor {
				o.seen.journal = journal
				if err := o.store.SaveCursor(journal.Cursor); err != nil {
					o.log.Warn("what was read of the journal will be read again", "error", err)
				}
			}
			if more {
				o.lookAtUse(ctx)
			}
		})
	})
}

func (o *owner) journalFails(err error) {
	if !o.seen.quiet {
		o.seen.quiet = true
		o.log.Warn("curfew report will not know who uses this host: its journal cannot be read", "error", err)
	}
}

// tellUse puts what was counted on the trail.
func (o *owner) tellUse(all bool) {
	counts := o.seen.tally.Take(o.cfg.Clock().Wall, all)
	if len(counts) == 0 {
		return
	}
	class := o.classes()
	notes := make([]*curfewv1.Event, 0, len(counts)+1)
	for _, c := range counts {
		notes = append(notes, own(trail.KindAccessSeen, func(e *curfewv1.Event) {
			e.Login = clipLogin(c.Login)
			e.Details = detail("service", c.Service, "as", c.As, "command", c.Command, "class", class(c.Login),
				"count", fmt.Sprint(c.Times), "first", c.First.UTC().Format(time.RFC3339),
				"last", c.Last.UTC().Format(time.RFC3339))
		}))
	}
	if lost := o.seen.tally.Lost; lost > 0 {
		notes = append(notes, own(trail.KindAccessSeen, func(e *curfewv1.Event) {
			e.Details = detail("not_counted", fmt.Sprint(lost))
		}))
		o.seen.tally.Lost = 0
	}
	o.rec.noteAll(notes)
}

// classes tells what Curfew has to do with a login here: a class, "unmanaged", or "system" for those that
// it never manages.
func (o *owner) classes() func(login string) string {
	local := o.recon.Local()
	of := make(map[string]string)
	principals, _ := o.settings.rules().Principals(local, o.store.UIDs())
	for _, p := range principals {
		of[p.Name] = p.Class.String()
	}
	return func(login string) string {
		if class := of[login]; class != "" {
			return class
		}
		if u, ok := local.User(login); ok && u.UID < 1000 {
			return "system"
		}
		return "unmanaged"
	}
}

// clipLogin keeps what a directory calls a person within what an event holds.
func clipLogin(login string) string { return grant.Clip(login, 64) }
