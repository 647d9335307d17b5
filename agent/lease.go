package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// leaseRenewed takes in that the control plane answered one of this host's nonces.
func (o *owner) leaseRenewed() {
	now := o.cfg.Clock()
	o.leaseFor = o.ledger.LeaseEnd(now) - now.Boot
	o.problem("lease", nil)
	if o.leaseOver || o.leaseWarned {
		o.rec.note(trail.KindLeaseRenewed, nil)
	}
	o.leaseOver, o.leaseWarned = false, false
}

// warnLease says, once half of the lease is over without a word from the control plane, when nothing
// new will open; and tells the people in sessions, where those end then too.
func (o *owner) warnLease(live []session.Live) {
	now := o.cfg.Clock()
	left := o.ledger.LeaseEnd(now) - now.Boot
	if o.leaseFor == 0 {
		o.leaseFor = left // an earlier run of this program knew; what is left is what can be halved
	}
	if o.leaseWarned || o.leaseOver || left <= 0 || left > o.leaseFor/2 {
		return
	}
	o.leaseWarned = true
	at := session.Until(now.Wall.Add(left), left)
	what := "nothing new opens"
	if o.settings.LeaseAction == LeaseTerminate {
		what = "sessions end"
		for _, l := range live {
			if l.Local {
				continue
			}
			o.sessions.Tell(l.RequestID, fmt.Sprintf("Curfew: this host hears nothing from the control "+
				"plane; if that lasts, your session ends at %s", at))
		}
	}
	o.problem("lease", fmt.Errorf("no word from the control plane for %v: %s from %s on",
		(o.leaseFor-left).Round(time.Second), what, at))
	o.rec.note(trail.KindLeaseWarning, func(e *curfewv1.Event) {
		e.Details = detail("left", left.Round(time.Second).String(), "then", what)
	})
}

// terminate ends the sessions of live grants: the lease is over and the host's file says so. Those of
// local grants stay, which are for just this time.
func (o *owner) terminate(ctx context.Context, live []session.Live) {
	running := make(map[string]bool)
	for _, s := range o.sessions.Sessions() {
		running[s.GetRequestId()] = true
	}
	var targets []session.Target
	for _, l := range live {
		if running[l.RequestID] && !l.Local {
			t := o.targetOf(l)
			t.Why = "the control plane is silent for too long"
			targets = append(targets, t)
		}
	}
	if len(targets) == 0 {
		return
	}
	o.spawn(func() {
		killing, cancel := context.WithTimeout(ctx, killTimeout)
		defer cancel()
		for _, t := range targets {
			o.sessions.Tell(t.RequestID, "Curfew: this host has not heard from the control plane for "+
				"too long; the session ends.")
		}
		for _, r := range o.sessions.Kill(killing, targets) {
			if !r.Clean() {
				o.log.Error("something of a terminated session is left", "request", r.RequestID,
					"left", r.Processes)
			}
		}
	})
}
