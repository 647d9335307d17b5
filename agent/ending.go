package agent

import (
	"context"
	"fmt"
	"slices"
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
	// stage is what is done next; looking while the worker looks over the disk, looks how often it did.
	stage    stage
	looking  bool
	looks    int
	reported bool // what root left
	// later are grants of the same request, of other windows, that ended while this went on; again: what
	// ran under them has to be ended as well.
	later []grant.ID
	again bool
	// next is when another attempt is due, on the boot-time clock.
	next time.Duration
	// over is what is to be told about how late it ends.
	over over
}

// stage orders an ending: what runs, then what was left on the disk.
type stage int

const (
	stageProcesses stage = iota
	stageFiles
)

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
	told := o.tell(list)
	for _, e := range list {
		cause := causeText(e.Cause)
		if alive[e.RequestID] {
			o.carry(e)
			if told {
				o.ledger.Finish(e.RequestID)
			}
			continue
		}
		if running := o.ending[e.RequestID]; running != nil {
			running.join(e.ID)
			continue
		}
		text := fmt.Sprintf("Curfew: your access by request %s has ended (%s).", e.RequestID, cause)
		if e.By != "" {
			text = fmt.Sprintf("Curfew: your access by request %s was ended by %s (%s).",
				e.RequestID, e.By, cause)
		}
		o.ending[e.RequestID] = &ending{
			target: o.lookUp(e.RequestID, e.Login), grant: e.ID, text: text, over: o.overSince(e),
		}
	}
}

// join adds a grant that ended while an earlier one of its request, of a window before, is not finished
// with: looking over the disks takes a while, and what a person left there may take for ever.
func (e *ending) join(id grant.ID) {
	if e.grant == id || slices.Contains(e.later, id) {
		return
	}
	e.later, e.again = append(e.later, id), true
}

// begin starts over with the processes, for what joined.
func (e *ending) begin() {
	*e = ending{target: e.target, grant: e.grant, text: e.text, later: e.later, over: e.over}
}

// tell records the ends of grants, each once. That is noted with the next save only: a crash in between
// says it twice, which is better than never.
func (o *owner) tell(list []grant.EndedGrant) bool {
	var notes []*curfewv1.Event
	for _, e := range list {
		if e.Told {
			continue
		}
		notes = append(notes, own(trail.KindGrantEnded, func(ev *curfewv1.Event) {
			ev.GrantId, ev.RequestId, ev.Login = e.ID[:], e.RequestID, e.Login
			ev.Details = detail("cause", causeText(e.Cause), "by", e.By, "role", e.Role)
		}))
	}
	if !o.rec.noteAll(notes) {
		return false
	}
	for _, e := range list {
		o.ledger.Told(e.ID)
	}
	return true
}

// tellAgain records the ends that could not be recorded when they came: the disk was full.
func (o *owner) tellAgain() {
	untold := slices.DeleteFunc(o.ledger.Ending(), func(e grant.EndedGrant) bool { return e.Told })
	if len(untold) == 0 || !o.tell(untold) {
		return
	}
	alive := make(map[string]bool)
	for _, l := range o.live() {
		alive[l.Terms.GetRequestId()] = true
	}
	for _, e := range untold {
		if alive[e.RequestID] {
			o.ledger.Finish(e.RequestID)
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

// kill starts an attempt for every request whose turn it is. One batch dies at a time; who ends
// meanwhile is in the next one together, since a batch costs about the same for one and for fifty.
func (o *owner) kill(ctx context.Context) {
	if o.killing {
		return
	}
	now := o.cfg.Clock().Boot
	var targets []session.Target
	live := o.live()
	for id, e := range o.ending {
		if e.again && !e.running {
			e.begin()
		}
		if e.running || e.looking || e.next > now {
			continue
		}
		if e.target.Class == 0 {
			delete(o.ending, id) // it was never anybody's here
			o.ledger.Finish(id)
			continue
		}
		e.target.Whole = !loginLives(live, e.target)
		if e.stage == stageFiles {
			if !o.lookAfter(ctx, e) {
				o.purged(ctx, e, nil)
			}
			continue
		}
		e.target.Goodbye = ""
		if e.tries == 0 {
			e.target.Goodbye = e.text
		}
		e.running = true
		e.tries++
		targets = append(targets, e.target)
	}
	if len(targets) == 0 {
		return
	}
	o.killing = true
	o.spawn(func() {
		killing, cancel := context.WithTimeout(ctx, killTimeout)
		residues := o.sessions.KillThen(killing, targets, func() {
			o.post(ctx, func(ctx context.Context) {
				o.killing = false
				o.kill(ctx)
			})
		})
		cancel()
		o.sessions.EndOldGIDs(ctx)
		o.post(ctx, func(ctx context.Context) { o.killed(ctx, targets, residues) })
		// PID 1 may take its time, with a thousand scopes to bury; the trail does not wait for it.
		ids := make([]string, 0, len(targets))
		for _, t := range targets {
			ids = append(ids, t.RequestID)
		}
		if err := o.sessions.Disarm(ctx, ids...); err != nil {
			o.log.Warn("PID 1's timers of ended requests stay", "requests", ids, "error", err)
		}
	})
}

func loginLives(live []grant.Live, t session.Target) bool {
	for _, l := range live {
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
		if e.again {
			continue // this attempt may have looked before the newest end
		}
		if r, answered := left[t.RequestID]; answered && !r.Clean() {
			o.stillThere(e, strings.Join(append(r.Processes, r.Problems...), "; "))
			continue
		}
		e.stage = stageFiles
		o.counts.ended(&e.over, o.cfg.Clock().Boot)
		if !o.lookAfter(ctx, e) {
			o.purged(ctx, e, nil)
			continue
		}
		o.noteEnding(trail.KindGrantResidue, e, detail("left",
			"no process; setuid and setgid copies and what root left are being looked for"))
	}
	o.keepFinished()
	o.reconcile(ctx)
}

// keepFinished makes durable what nobody has to do again.
func (o *owner) keepFinished() {
	if o.finished {
		o.finished = false
		_ = o.save(o.ledger) // says so itself; a successor would do it all once more
	}
}

// stillThere notes what an attempt could not end; the next one comes.
func (o *owner) stillThere(e *ending, what string) {
	// Soon at first, then with the rescan: a process in uninterruptible sleep takes its time.
	e.next = o.cfg.Clock().Boot + min(time.Duration(e.tries)*time.Second, heartbeatEvery)
	o.log.Error("something of an ended grant is left", "grant", e.grant,
		"request", e.target.RequestID, "left", what)
	if e.tries == 1 {
		o.noteEnding(trail.KindGrantResidue, e, detail("left", what))
	}
}

// retryEndings looks whether another attempt is due.
func (o *owner) retryEndings(ctx context.Context) {
	o.keepFinished()
	if len(o.ending) > 0 {
		o.looked(ctx)
		o.kill(ctx)
	}
}
