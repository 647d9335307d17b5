package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// killTimeout bounds one attempt to end a batch of requests.
const killTimeout = 10 * time.Second

// ending is a request whose processes are being ended.
type ending struct {
	target session.Target
	grant  grant.ID
	// text is what the people on its terminals read.
	text    string
	running bool
	tries   int
	// next is when another attempt is due, on the boot-time clock.
	next time.Duration
}

func extended(e grant.EndedGrant) bool {
	return e.Cause == curfewv1.EndCause_END_CAUSE_EXTENDED
}

// ended takes in grants that are over: records them, and marks their requests for ending unless the
// request lives on under an extension.
func (o *owner) ended(_ context.Context, list []grant.EndedGrant) {
	if len(list) == 0 {
		return
	}
	alive := make(map[string]bool)
	for _, l := range o.live() {
		alive[l.Terms.GetRequestId()] = true
	}
	for _, e := range list {
		cause := causeText(e.Cause)
		o.log.Info("a grant has ended", "grant", e.ID, "request", e.RequestID, "login", e.Login,
			"cause", cause, "by", e.By)
		o.rec.note(trail.KindGrantEnded, func(ev *curfewv1.Event) {
			ev.GrantId, ev.RequestId, ev.Login = e.ID[:], e.RequestID, e.Login
			ev.Details = detail("cause", cause, "by", e.By, "role", e.Role)
		})
		if alive[e.RequestID] {
			o.carry(e)
			continue
		}
		if o.ending[e.RequestID] != nil {
			continue
		}
		text := fmt.Sprintf("Curfew: your access by request %s has ended (%s).", e.RequestID, cause)
		if e.By != "" {
			text = fmt.Sprintf("Curfew: your access by request %s was ended by %s (%s).",
				e.RequestID, e.By, cause)
		}
		o.ending[e.RequestID] = &ending{
			target: o.lookUp(e.RequestID, e.Login), grant: e.ID, text: text,
		}
	}
}

// carry keeps an applied grant's files until the extension that replaced it stands.
func (o *owner) carry(e grant.EndedGrant) {
	for _, r := range o.results {
		if extended(e) && r.Live.ID == e.ID && r.Applied() {
			o.carried[e.ID] = r.Live
		}
	}
}

func causeText(c curfewv1.EndCause) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "END_CAUSE_"))
}

// lookUp finds out whose processes a request's are: from the last results, else from the host.
func (o *owner) lookUp(request, login string) session.Target {
	t := session.Target{RequestID: request, Login: login}
	for _, r := range o.results {
		if r.Live.Terms.GetRequestId() == request && r.Subject.Login != "" {
			t.UID, t.Class = r.Subject.UID, r.Subject.Class
			return t
		}
	}
	uid := o.store.UIDs()[login]
	if s, err := o.settings.rules().Classify(o.recon.Local(), login, uid); err == nil {
		t.UID, t.Class = s.UID, s.Class
	} else if uid != 0 {
		t.UID, t.Class = uid, account.ClassAccount
	}
	return t
}

// orphans marks sessions for ending whose request is live no more: the agent was dead when it ended.
func (o *owner) orphans() {
	alive := make(map[string]bool)
	for _, l := range o.live() {
		alive[l.Terms.GetRequestId()] = true
	}
	for _, s := range o.sessions.Sessions() {
		id := s.GetRequestId()
		if id == "" || alive[id] || o.ending[id] != nil {
			continue
		}
		o.ending[id] = &ending{
			target: o.lookUp(id, s.GetLogin()), grant: grant.ID(padded(s.GetGrantId())),
			text: fmt.Sprintf("Curfew: your access by request %s has ended.", id),
		}
	}
}

func padded(id []byte) (out [32]byte) {
	copy(out[:], id)
	return out
}

// kill starts an attempt for every request whose turn it is.
func (o *owner) kill(ctx context.Context) {
	now := o.cfg.Clock().Boot
	var targets []session.Target
	for id, e := range o.ending {
		if e.running || e.next > now {
			continue
		}
		if e.target.Class == 0 {
			delete(o.ending, id) // it was never anybody's here
			continue
		}
		e.target.Whole = !o.loginLives(e.target)
		if e.tries == 0 {
			o.sessions.Tell(id, e.text)
		}
		e.running = true
		e.tries++
		targets = append(targets, e.target)
	}
	if len(targets) == 0 {
		return
	}
	o.spawn(func() {
		killing, cancel := context.WithTimeout(ctx, killTimeout)
		residues := o.sessions.Kill(killing, targets)
		cancel()
		for _, t := range targets {
			if err := o.sessions.Disarm(ctx, t.RequestID); err != nil {
				o.log.Warn("PID 1's timer of an ended request stays", "request", t.RequestID, "error", err)
			}
		}
		o.post(ctx, func(ctx context.Context) { o.killed(ctx, targets, residues) })
	})
}

func (o *owner) loginLives(t session.Target) bool {
	for _, l := range o.live() {
		if l.Terms.GetLogin() == t.Login && l.Terms.GetRequestId() != t.RequestID {
			return true
		}
	}
	return false
}

// killed takes the outcome of an attempt: what is clean is over, what is not is tried again.
func (o *owner) killed(ctx context.Context, targets []session.Target, residues []session.Residue) {
	left := make(map[string]session.Residue)
	for _, r := range residues {
		left[r.RequestID] = r
	}
	for _, t := range targets {
		e := o.ending[t.RequestID]
		if e == nil {
			continue
		}
		e.running = false
		r, answered := left[t.RequestID]
		kind, text := trail.KindGrantPurged, ""
		if answered && !r.Clean() {
			kind = trail.KindGrantResidue
			text = strings.Join(append(r.Processes, r.Problems...), "; ")
			// Soon at first, then with the rescan: a process in uninterruptible sleep takes its time.
			e.next = o.cfg.Clock().Boot + min(time.Duration(e.tries)*time.Second, heartbeatEvery)
			o.log.Error("something of an ended grant is left", "grant", e.grant,
				"request", t.RequestID, "left", text)
		} else {
			delete(o.ending, t.RequestID)
			o.log.Info("everything of a grant is gone", "grant", e.grant, "request", t.RequestID)
		}
		if kind == trail.KindGrantPurged || e.tries == 1 {
			o.rec.note(kind, func(ev *curfewv1.Event) {
				ev.GrantId, ev.RequestId, ev.Login = e.grant[:], t.RequestID, t.Login
				ev.Details = detail("left", text)
			})
		}
	}
	o.reconcile(ctx)
}

// retryEndings looks whether another attempt is due.
func (o *owner) retryEndings(ctx context.Context) {
	if len(o.ending) > 0 {
		o.kill(ctx)
	}
}

// terminate ends the sessions of live grants: the lease is over and the host's file says so.
func (o *owner) terminate(ctx context.Context, live []session.Live) {
	running := make(map[string]bool)
	for _, s := range o.sessions.Sessions() {
		running[s.GetRequestId()] = true
	}
	var targets []session.Target
	for _, l := range live {
		if running[l.RequestID] {
			targets = append(targets, o.targetOf(l))
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
