package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/curfew-access/curfew/agent/enforce"
	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/residue"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// residueUnit looks over whole disks, with the rights for that and at low priority. PID 1 starts it.
const residueUnit = "curfew-residue.service"

const (
	// lookAgain is how soon the unit is started again when it brought nothing: it may have been killed.
	lookAgain = 10 * time.Second
	// lookLater bounds how long what could not be taken back waits for another look.
	lookLater  = time.Hour
	maxReports = 8
)

// leftovers is the owner's side of agent/enforce/residue. But for what mu guards it belongs to the
// owner's goroutine.
type leftovers struct {
	store *residue.Store
	look  func(context.Context) error // has the worker run
	// records are what has to be looked after, by request.
	records map[string]residue.Record
	reports []ResidueStatus
	asked   time.Duration // when the worker was last started, on the boot-time clock

	mu sync.Mutex // guards what follows
	// used are logins that had a session since their files were last hunted: who never came has left
	// nothing. Logins of an earlier run of this program count as used.
	used map[string]bool
	// unwritten is what the folder does not say yet; nil drops a record. due: the worker is to run then.
	unwritten    map[string]*residue.Record
	due, writing bool
}

// ResidueStatus is what an admin of the host sees of one report.
type ResidueStatus struct {
	Request        string   `json:"request"`
	Login          string   `json:"login"`
	Role           string   `json:"role"`
	RootEquivalent bool     `json:"root_equivalent"`
	Cleared        []string `json:"cleared,omitempty"`
	Left           []string `json:"left"`
	More           int      `json:"more,omitempty"`
	NotLookedAt    []string `json:"not_looked_at,omitempty"`
}

// openLeftovers reads back what an earlier run kept.
func (e *Enforce) openLeftovers(o *owner) error {
	store, err := residue.OpenStore(e.path(enforce.StateDir), nil)
	if err != nil {
		return err
	}
	e.closed = append(e.closed, store.Close)
	look := e.cfg.Look
	if look == nil {
		look = func(ctx context.Context) error { return session.StartUnit(ctx, residueUnit) }
	}
	o.left = &leftovers{
		store: store, look: look, records: make(map[string]residue.Record), used: make(map[string]bool),
		unwritten: make(map[string]*residue.Record),
	}
	records, problems := store.Records()
	o.problem("residue records", errors.Join(problems...))
	for _, r := range records {
		o.left.records[r.Request] = r
		o.left.used[r.Login] = true
	}
	return nil
}

// use notes that a login has a session; what it does may leave something.
func (l *leftovers) use(login string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used[login] = true
}

func (l *leftovers) wasUsed(login string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used[login]
}

func (l *leftovers) unuse(login string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.used, login)
}

// watchFor begins to look after a grant that was applied. An extension goes on with the record of the
// request: its start is the first one's.
func (o *owner) watchFor(ctx context.Context, r enforce.Result) {
	terms := r.Live.Terms
	own := r.Subject.Class == account.ClassAccount
	if !own && !terms.GetRootEquivalent() {
		return // a local user keeps his files, and no rule of this grant leaves anything
	}
	rec, known := o.left.records[terms.GetRequestId()]
	if !known {
		rec = residue.Record{
			Request: terms.GetRequestId(), Login: r.Subject.Login, UID: r.Subject.UID, Account: own,
			SinceMS: min(r.Live.Start.UnixMilli(), o.cfg.Clock().Wall.UnixMilli()),
		}
	}
	if mode, _ := o.mode(); mode == account.ModeObserve {
		o.left.use(rec.Login) // nobody is asked about, so nobody is known to come
	}
	rec.Grant, rec.Role, rec.Ended = hex.EncodeToString(r.Live.ID[:]), terms.GetRole(), false
	rec.RootEquivalent = rec.RootEquivalent || terms.GetRootEquivalent()
	rec.GIDs = union(rec.GIDs, o.gidsOf(r.Live))
	o.left.records[rec.Request] = rec
	o.keepRecord(ctx, rec.Request, &rec, rec.RootEquivalent && !known)
}

// keepRecord makes a record durable beside the owner, or drops it (nil); with look the worker runs then.
// One goroutine writes, always the newest word about each request.
func (o *owner) keepRecord(ctx context.Context, request string, rec *residue.Record, look bool) {
	l := o.left
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unwritten[request] = rec
	l.due = l.due || look
	if l.writing {
		return
	}
	l.writing = true
	o.spawn(func() {
		err := l.write(ctx)
		if ctx.Err() == nil {
			o.post(ctx, func(context.Context) { o.problem("residue", err) })
		}
	})
}

// write brings the folder up to date, and has the worker run.
func (l *leftovers) write(ctx context.Context) error {
	var errs []error
	for {
		l.mu.Lock()
		todo, look := l.unwritten, l.due
		l.unwritten, l.due = make(map[string]*residue.Record), false
		if len(todo) == 0 && !look {
			l.writing = false
			l.mu.Unlock()
			return errors.Join(errs[:min(len(errs), 4)]...)
		}
		l.mu.Unlock()
		for request, rec := range todo {
			if rec == nil {
				errs = append(errs, l.store.Drop(request))
			} else {
				errs = append(errs, l.store.Put(*rec))
			}
		}
		if look {
			errs = append(errs, l.look(ctx))
		}
		errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	}
}

// gidsOf are the gids of the groups that a grant gives.
func (o *owner) gidsOf(l grant.Live) (gids []uint32) {
	local := o.recon.Local()
	for _, name := range l.Terms.GetGroups() {
		if g, ok := local.Group(name); ok {
			gids = append(gids, g.GID)
		}
	}
	return gids
}

func union(a, b []uint32) []uint32 {
	for _, x := range b {
		if !slices.Contains(a, x) {
			a = append(slices.Clip(a), x)
		}
	}
	return a
}

// mayHold tells whether somebody may hold a gid without a grant: members by the host's own files, and
// break-glass people, in whose way Curfew never stands.
func mayHold(local account.Local, breakGlass string, uid, gid uint32) bool {
	for _, u := range local.Users {
		if u.UID != uid {
			continue
		}
		names, gids := local.GroupsOf(u)
		if slices.Contains(gids, gid) || slices.Contains(names, breakGlass) {
			return true
		}
	}
	return false
}

// lookAfter has the disk looked at for a request whose processes are dead. It returns false when there
// is nothing to look for.
func (o *owner) lookAfter(ctx context.Context, e *ending) bool {
	rec, known := o.left.records[e.target.RequestID]
	if !known {
		// The agent died before it kept a record. What the target says is enough for the account's own.
		rec = residue.Record{
			Request: e.target.RequestID, Login: e.target.Login, UID: e.target.UID,
			Account: e.target.Class == account.ClassAccount, Grant: e.grant.String(),
		}
	}
	if !known && !rec.Account {
		return false
	}
	if mode, _ := o.mode(); !o.left.wasUsed(rec.Login) && mode == account.ModeEnforce {
		o.forgetResidue(ctx, rec.Request)
		return false
	}
	rec.Ended, rec.Whole = true, e.target.Whole
	rec.GIDs = o.over(rec)
	o.left.records[rec.Request] = rec
	if !rec.Hunts() && !rec.RootEquivalent {
		o.forgetResidue(ctx, rec.Request)
		return false
	}
	return o.startLook(ctx, rec, e)
}

func (o *owner) startLook(ctx context.Context, rec residue.Record, e *ending) bool {
	e.looking = true
	o.left.asked = o.cfg.Clock().Boot
	o.keepRecord(ctx, rec.Request, &rec, true)
	return true
}

// over are the gids of an ended request that no live grant gives the same account.
func (o *owner) over(rec residue.Record) []uint32 {
	var still []uint32
	for _, r := range o.results {
		if r.Applied() && r.Subject.UID == rec.UID && r.Live.Terms.GetRequestId() != rec.Request {
			still = union(still, o.gidsOf(r.Live))
		}
	}
	return slices.DeleteFunc(slices.Clone(rec.GIDs), func(gid uint32) bool {
		return slices.Contains(still, gid)
	})
}

func (o *owner) forgetResidue(ctx context.Context, request string) {
	if _, known := o.left.records[request]; !known {
		return
	}
	delete(o.left.records, request)
	o.problem("residue of request "+request, nil)
	o.keepRecord(ctx, request, nil, false)
}

// looked takes what the worker has brought, and has it run again when it brought nothing.
func (o *owner) looked(ctx context.Context) {
	waiting, over := false, len(o.ending)
	for id, e := range o.ending {
		if !e.looking {
			continue
		}
		outcome, err := o.left.store.Outcome(id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			waiting = true
		case err != nil:
			o.problem("residue of request "+id, err)
			waiting = true
		default:
			o.found(ctx, e, outcome)
		}
	}
	if len(o.ending) < over {
		o.reconcile(ctx) // the account's entry goes
	}
	now := o.cfg.Clock().Boot
	if !waiting || now-o.left.asked < lookAgain {
		return
	}
	o.left.asked = now
	o.spawnSmall(ctx, func() {
		err := o.left.look(ctx) // nothing happens while it runs
		o.post(ctx, func(context.Context) { o.problem("residue", err) })
	})
}

// found is one outcome: what root left goes on the trail once, and the request is over when nothing of
// the account's is left.
func (o *owner) found(ctx context.Context, e *ending, outcome residue.Outcome) {
	e.looking = false
	rec := o.left.records[e.target.RequestID]
	if outcome.Report != nil && !e.reported {
		e.reported = true
		o.reportLeft(e, rec, outcome)
	}
	if outcome.Through {
		o.left.unuseIfWhole(rec)
		o.purged(ctx, e, detail("cleared", clearedText(outcome)))
		return
	}
	text := strings.Join(outcome.Problems, "; ")
	o.problem("residue of request "+rec.Request, errors.New(text))
	e.looks++
	e.stage, e.next = stageFiles, o.cfg.Clock().Boot+min(time.Duration(e.looks)*30*time.Second, lookLater)
	if e.looks == 1 {
		o.noteEnding(trail.KindGrantResidue, e,
			detail("left", clip(text), "cleared", clearedText(outcome)))
	}
}

// purged closes an ending: nothing of the request is left that is Curfew's to take.
func (o *owner) purged(ctx context.Context, e *ending, details map[string]string) {
	if !o.notePurged(e, details) {
		// The disk is full, or broken. It is looked through once more, and recorded then.
		e.stage, e.next = stageProcesses, o.cfg.Clock().Boot+heartbeatEvery
		return
	}
	o.forgetResidue(ctx, e.target.RequestID)
	delete(o.ending, e.target.RequestID)
	o.ledger.Finish(e.target.RequestID)
	o.finished = true
}

// notePurged says it of each grant that ended here.
func (o *owner) notePurged(e *ending, details map[string]string) bool {
	notes := []*curfewv1.Event{}
	for _, id := range append([]grant.ID{e.grant}, e.later...) {
		notes = append(notes, own(trail.KindGrantPurged, func(ev *curfewv1.Event) {
			ev.GrantId, ev.RequestId, ev.Login = id[:], e.target.RequestID, e.target.Login
			ev.Details = details
		}))
	}
	return o.rec.noteAll(notes)
}

// unuseIfWhole forgets that a login was used, once nothing of it can be left.
func (l *leftovers) unuseIfWhole(rec residue.Record) {
	if !rec.Account || rec.Whole {
		l.unuse(rec.Login)
	}
}

func clearedText(o residue.Outcome) string {
	if len(o.Cleared) == 0 {
		return ""
	}
	n := len(o.Cleared) + o.ClearedMore
	return clip(fmt.Sprintf("setuid and setgid bits of %d files: %s", n, strings.Join(o.Cleared, "; ")))
}

func (o *owner) noteEnding(kind string, e *ending, details map[string]string) bool {
	return o.rec.note(kind, func(ev *curfewv1.Event) {
		ev.GrantId, ev.RequestId, ev.Login = e.grant[:], e.target.RequestID, e.target.Login
		ev.Details = details
	})
}

// reportLeft puts on the trail what root left behind, and keeps it for curfew-agent status.
func (o *owner) reportLeft(e *ending, rec residue.Record, outcome residue.Outcome) {
	details := outcome.Report.Details(trail.MaxDetail)
	details["root_equivalent"], details["role"] = "true", rec.Role
	o.noteEnding(trail.KindGrantLeft, e, details)
	status := ResidueStatus{
		Request: rec.Request, Login: rec.Login, Role: rec.Role, RootEquivalent: true,
		Cleared: outcome.Cleared, More: outcome.Report.More, NotLookedAt: outcome.Report.Cut,
		Left: []string{},
	}
	for _, f := range outcome.Report.Left {
		status.Left = append(status.Left, string(f.Kind)+": "+f.Text)
	}
	if len(status.Left)+status.More > 0 {
		o.counts.residue++
	}
	o.left.reports = append([]ResidueStatus{status}, o.left.reports...)
	o.left.reports = o.left.reports[:min(len(o.left.reports), maxReports)]
}

// unfinished marks requests for ending that an earlier run of this program did not see through.
func (o *owner) unfinished() {
	alive := make(map[string]bool)
	for _, l := range o.live() {
		alive[l.Terms.GetRequestId()] = true
	}
	for id, rec := range o.left.records {
		if alive[id] || o.ending[id] != nil {
			continue
		}
		g, err := grant.ParseID(rec.Grant)
		if err != nil {
			o.log.Warn("a residue record names no grant", "request", id, "error", err)
		}
		target := o.lookUp(id, rec.Login)
		if target.Class == 0 && !rec.Account {
			target.Class = account.ClassElevate // the user is gone meanwhile
		}
		o.ending[id] = &ending{target: target, grant: g}
	}
}
