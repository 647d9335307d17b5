package residue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/grant"
)

// Limits of one run of the worker. PID 1 starts it again for what is left.
const (
	workLimit   = 15 * time.Minute
	cursorEvery = 5 * time.Second
	maxPasses   = 4
	maxRounds   = 64
	maxMarks    = 2_000
)

// Job is what the worker needs.
type Job struct {
	// Root is the folder that all paths start from, "/" on a host.
	Root  string
	Store *Store
	Clock func() grant.Clock
	Log   hclog.Logger
}

// cursor is where a walk stands.
type cursor struct {
	// For whom; another set of requests begins anew.
	For string `json:"for"`
	// Clean: the pass that the walk is in has cleared nothing so far.
	Clean bool   `json:"clean"`
	Mount string `json:"mount"`
	Below string `json:"below"`
	// What was found so far.
	Cleared map[string]*clearing `json:"cleared"`
	Marks   map[string]Mark      `json:"marks"`
}

// maxCursor bounds the cursor's file.
const maxCursor = 8 << 20

// Work does everything that is due in the store: first the states at the start of grants, which are
// quick, then the looks over whole disks for those that ended, all at once. It returns nil when
// nothing is due any more.
func (j Job) Work(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, workLimit,
		fmt.Errorf("not through after %v; it goes on where it stands", workLimit))
	defer cancel()
	for range maxRounds {
		records, problems := j.Store.Records()
		for _, p := range problems {
			j.Log.Error("a record is left alone", "error", p)
		}
		if err := j.bases(ctx, records); err != nil {
			return err
		}
		due := slices.DeleteFunc(slices.Clone(records), func(r Record) bool {
			if !r.Ended {
				return true
			}
			_, err := j.Store.Outcome(r.Request)
			return err == nil
		})
		if len(due) == 0 {
			return nil
		}
		if err := j.look(ctx, due, records); err != nil {
			return err
		}
	}
	return errors.New("more comes in than can be looked at; PID 1 starts this again")
}

// bases takes the state at the start for each grant that has none. Several that began meanwhile share
// one look: what changed since each one's own start is told by the times of change.
func (j Job) bases(ctx context.Context, records []Record) error {
	var lack []string
	for _, r := range records {
		if r.RootEquivalent && !r.Ended && !j.Store.HasBase(r.Request) {
			lack = append(lack, r.Request)
		}
	}
	if len(lack) == 0 {
		return nil
	}
	inv, err := j.inventory(ctx, 0)
	if err != nil {
		return fmt.Errorf("taking the state at the start: %w", err)
	}
	for _, request := range lack {
		if err := j.Store.write(request+baseSuffix, inv); err != nil {
			return err
		}
		j.Log.Info("the state at the start is kept", "request", request, "entries", len(inv.Entries))
	}
	return nil
}

func (j Job) inventory(ctx context.Context, sinceTicks uint64) (*Inventory, error) {
	m, err := readMounts()
	if err != nil {
		return nil, err
	}
	t := &taker{root: j.Root, mounts: m}
	inv, err := t.take(ctx, j.Clock().Wall.UnixMilli())
	if err == nil {
		t.running(sinceTicks)
	}
	return inv, err
}

// look hunts and compares for all that ended, by one walk over the local disks.
func (j Job) look(ctx context.Context, due, all []Record) error {
	began := j.Clock()
	now, err := j.inventory(ctx, j.startTicks(due))
	if err != nil {
		return err
	}
	s, err := j.newSweep(due, all)
	if err != nil {
		return err
	}
	for pass := 1; ; pass++ {
		if err := s.pass(ctx); err != nil {
			return err
		}
		// Somebody may have run a copy before it was cleared, and made another: only a pass that met
		// none says that there are none.
		if s.clean || pass == maxPasses {
			break
		}
	}
	for _, r := range due {
		if stands, err := j.Store.stands(r); err != nil || !stands {
			if err != nil {
				return err
			}
			j.Log.Info("the request has gone on; its next end is looked after", "request", r.Request)
			continue
		}
		o := s.outcome(r)
		o.TookMS = (j.Clock().Boot - began.Boot).Milliseconds()
		if r.RootEquivalent {
			base, err := j.Store.base(r.Request)
			if err != nil {
				o.Problems = append(o.Problems, "the state at the start cannot be read: "+err.Error())
			}
			marks := slices.SortedFunc(maps.Values(s.marks), func(a, b Mark) int {
				return strings.Compare(a.Text, b.Text)
			})
			o.Report = compare(base, j.since(now, r), r.SinceMS, marks)
			o.Report.More += s.marksLost
			o.Report.Cut = append(o.Report.Cut, s.problems...)
		}
		j.Log.Info("looked for residue", "request", r.Request, "files", o.Files, "through", o.Through,
			"cleared", len(o.Cleared)+o.ClearedMore)
		if err := j.Store.write(r.Request+outcomeSuffix, o); err != nil {
			return err
		}
	}
	return nil
}

// since leaves out what a job or a login started before a request began: the inventory was taken for
// the earliest of several.
func (j Job) since(now *Inventory, r Record) *Inventory {
	ticks := j.startTicks([]Record{r})
	out := *now
	out.Entries = maps.Clone(now.Entries)
	maps.DeleteFunc(out.Entries, func(p string, e Entry) bool {
		var started uint64
		_, err := fmt.Sscan(e.Sum, &started)
		return strings.HasPrefix(p, startedBy) && (err != nil || started < ticks)
	})
	return &out
}

// startTicks is the earliest start among records, in ticks since boot; at least 1.
func (j Job) startTicks(records []Record) uint64 {
	now := j.Clock()
	first := now.Boot
	for _, r := range records {
		first = min(first, now.Boot-now.Wall.Sub(r.Since()))
	}
	return uint64(max(first.Milliseconds()/10, 1))
}

// sweep is the walk over all local disks, for all requests that are due.
type sweep struct {
	job    Job
	due    []Record
	hunt   *hunter
	mounts []mount
	at     cursor
	resume bool
	clean  bool
	saved  time.Duration

	marks     map[string]Mark
	marksLost int
	lost      int
	problems  []string
	files     uint64
}

func (j Job) newSweep(due, all []Record) (*sweep, error) {
	local, err := account.ReadLocal(j.Root)
	if err != nil {
		return nil, err
	}
	m, err := readMounts()
	if err != nil {
		return nil, err
	}
	s := &sweep{job: j, due: due, marks: make(map[string]Mark)}
	s.hunt = &hunter{local: local, holders: make(map[uint32][]uint32), cleared: make(map[string]*clearing)}
	for _, r := range all {
		if !r.Ended && r.Account {
			s.hunt.holders[r.UID] = append(s.hunt.holders[r.UID], r.GIDs...)
		}
	}
	var names []string
	for _, r := range due {
		names = append(names, r.Request)
		if r.Hunts() {
			s.hunt.quarry = append(s.hunt.quarry, r)
		}
	}
	if j.Root == "/" {
		s.mounts = chosen(m.all, m.local)
	} else {
		s.mounts = []mount{{path: j.Root}} // a tree of a test's own
	}
	s.at = cursor{For: strings.Join(names, " "), Clean: true}
	var at cursor
	if err := j.Store.read(cursorFile, maxCursor, &at); err == nil && at.For == s.at.For {
		s.at, s.resume = at, true
		if at.Marks != nil {
			s.marks = at.Marks
		}
		if at.Cleared != nil {
			s.hunt.cleared = at.Cleared
		}
	}
	return s, nil
}

// needed tells whether files have to be looked at one by one.
func (s *sweep) needed() bool {
	return len(s.hunt.quarry) > 0 || slices.ContainsFunc(s.due, func(r Record) bool {
		return r.RootEquivalent
	})
}

// pass walks over every disk once.
func (s *sweep) pass(ctx context.Context) error {
	if !s.needed() {
		s.clean = true
		return nil
	}
	from := cursor{}
	if s.resume {
		from, s.resume = s.at, false
	}
	before := s.hunt.total
	s.clean = from.Mount == "" || from.Clean
	s.problems, s.files = nil, 0
	s.hunt.failed, s.hunt.failedMore = nil, 0
	for _, m := range s.mounts {
		if m.path < from.Mount {
			continue
		}
		below := ""
		if m.path == from.Mount {
			below = from.Below
		}
		w := &walk{visit: s.visit}
		w.pass = func(at string) error {
			s.clean = s.clean && s.hunt.total == before
			return s.keep(m.path, at)
		}
		err := w.tree(ctx, m.path, m.id, below)
		s.problems = append(s.problems, w.problems...)
		s.lost += w.lost
		s.files += w.files
		if err != nil {
			return errors.Join(err, s.save())
		}
	}
	s.clean = s.clean && s.hunt.total == before
	return s.job.Store.dir.Remove(cursorFile) // the next pass begins anew
}

// keep saves where the walk stands, now and then.
func (s *sweep) keep(mount, below string) error {
	s.at.Mount, s.at.Below, s.at.Clean = mount, below, s.clean
	if now := s.job.Clock().Boot; now-s.saved >= cursorEvery {
		first := s.saved == 0
		s.saved = now
		if !first {
			return s.save()
		}
	}
	return nil
}

func (s *sweep) save() error {
	s.at.Cleared, s.at.Marks = s.hunt.cleared, s.marks
	return s.job.Store.write(cursorFile, s.at)
}

func (s *sweep) visit(f found) {
	s.hunt.visit(f)
	earliest := int64(0)
	for _, r := range s.due {
		if r.RootEquivalent && (earliest == 0 || r.SinceMS < earliest) {
			earliest = r.SinceMS
		}
	}
	if earliest == 0 || f.stat.Ctim.Nano()/1e6 < earliest {
		return
	}
	// What the hunt has cleared is no residue any more.
	if bits, _ := s.hunt.doomed(&f.stat); bits != 0 {
		return
	}
	p := strings.TrimPrefix(f.path(), strings.TrimSuffix(s.job.Root, "/"))
	m, ok := mark(f, p, earliest)
	switch {
	case !ok:
	case len(s.marks) < maxMarks || m.Kind == KindSetid && len(s.marks) < 2*maxMarks:
		s.marks[p] = m
	default:
		s.marksLost++
	}
}

// outcome is what the walk means for one request.
func (s *sweep) outcome(r Record) Outcome {
	o := Outcome{Request: r.Request, Files: s.files}
	if r.Hunts() {
		if c := s.hunt.cleared[r.Request]; c != nil {
			o.Cleared, o.ClearedMore = c.Files, c.More
		}
		o.Problems = append(o.Problems, s.hunt.failed...)
		if s.hunt.failedMore > 0 {
			o.Problems = append(o.Problems, fmt.Sprintf("%d more could not be cleared", s.hunt.failedMore))
		}
		o.Problems = append(o.Problems, s.problems...)
		if s.lost > 0 {
			o.Problems = append(o.Problems, fmt.Sprintf("%d more problems", s.lost))
		}
		if !s.clean {
			o.Problems = append(o.Problems, "copies keep coming back while they are cleared")
		}
	}
	o.Through = len(o.Problems) == 0
	return o
}
