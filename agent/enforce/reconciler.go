// Package enforce makes the host equal to its live grants: render, then sync.
//
// Desired is a pure function from the live grants to the complete content of every place that Curfew
// writes: sudo drop-ins, authorized keys, the account snapshot, the gate table. Sync makes the disk
// equal to it. There is no second code path for taking access away: a grant that has ended is simply
// not in the tree any more. The Reconciler runs both when the live set changes, when a file in those
// places is touched, and every 30 s; the checks that need the host's own programs happen once, when a
// grant is applied, and never for a purge. The package ends no process (agent/enforce/session does)
// and decides no window (internal/grant does).
package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/keys"
	"github.com/curfew-access/curfew/agent/enforce/sudoers"
	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

// UIDTable is the host's durable table of logins and uids; agent/store keeps it.
type UIDTable interface {
	ReserveUID(login string, uid uint32) error
	UIDs() map[string]uint32
}

// Config is what a Reconciler works with.
type Config struct {
	// Root is the folder that all paths start from, "/" on a host.
	Root    string
	Checker sudoers.Checker
	// Directory is the host's name service.
	Directory account.Directory
	Keys      keys.Style
	UIDs      UIDTable
	Log       hclog.Logger
	// Drift hears of files that somebody else changed and that were put right. It may be called from
	// two goroutines and must not call back.
	Drift func([]Repair)
	// Kernel changes the disk; nil takes the real one.
	Kernel folder.Kernel
}

// State is what the host should be made equal to.
type State struct {
	Live   []grant.Live
	Ending []Ending
	Mode   account.Mode
	Trial  *account.Trial // of ModeEnforce, or nil
	Rules  account.Rules
}

// Reconciler keeps the host equal to the last State. Its methods may be called by any goroutine.
type Reconciler struct {
	cfg  Config
	root *folder.Folder

	mu    sync.Mutex // guards what follows
	local account.Local
	tree  Tree // nil before the first Apply
	last  rendered
	// verdicts are the host's checks of live grants; applied are those that were enforced last.
	verdicts map[grant.ID]verdict
	applied  map[grant.ID]bool
	problems []string
	// unwatched says why nobody watches the files, or is empty.
	unwatched string

	repaired atomic.Uint64
	// stale: the snapshot has changed, so that a name service's cache may answer from before.
	stale atomic.Bool
}

// New opens the file system's root.
func New(cfg Config) (*Reconciler, error) {
	if cfg.UIDs == nil || cfg.Log == nil || cfg.Drift == nil || cfg.Checker.Timeout <= 0 ||
		cfg.Directory.Timeout <= 0 {
		return nil, errors.New("reconciler: uid table, log, drift and the tools' timeouts are needed")
	}
	root, err := folder.Open(cfg.Root, cfg.Kernel)
	if err != nil {
		return nil, fmt.Errorf("reconciler: %w", err)
	}
	r := &Reconciler{
		cfg: cfg, root: root, verdicts: make(map[grant.ID]verdict),
		applied: make(map[grant.ID]bool),
	}
	// Whose processes an ended grant's are is asked before the first Apply, which says what is wrong.
	r.local, _ = account.ReadLocal(cfg.Root)
	return r, nil
}

// Close releases the root folder.
func (r *Reconciler) Close() error { return r.root.Close() }

// DriftRepaired returns how many files were put right since the start.
func (r *Reconciler) DriftRepaired() uint64 { return r.repaired.Load() }

// Problems returns what is wrong on this host, in words, as of the last Apply.
func (r *Reconciler) Problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unwatched != "" {
		return append(slices.Clone(r.problems), r.unwatched)
	}
	return slices.Clone(r.problems)
}

// Apply makes the host equal to the state and says what became of each live grant. It runs no other
// program: a grant that Admit has not let through stays pending, with nothing on disk. A grant that
// fails leaves nothing behind and does not touch the others. The error is for what concerns no single
// grant; the results are valid beside it, and nil only when nothing could be done at all.
func (r *Reconciler) Apply(s State) ([]Result, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := Input{
		Live: s.Live, Ending: s.Ending, Mode: s.Mode, Trial: s.Trial, Rules: s.Rules, Keys: r.cfg.Keys,
		Refused: make(map[grant.ID]string), Pending: make(map[grant.ID]bool),
	}
	local, errLocal := account.ReadLocal(r.cfg.Root)
	if errLocal != nil {
		if len(r.local.Users) == 0 {
			return nil, errLocal
		}
		local = r.local // an unreadable file is no order to delete anybody
	}
	r.local, in.Local = local, local
	r.gather(&in)
	results, failures, err := r.rounds(in)
	r.conclude(in, results, failures, errors.Join(errLocal, err))
	return results, errors.Join(errLocal, err)
}

// gather adds what the checks said of each grant, and ties uids to their logins for ever.
func (r *Reconciler) gather(in *Input) {
	live := make(map[grant.ID]bool, len(in.Live))
	for _, l := range in.Live {
		live[l.ID] = true
		subject, err := in.Rules.Classify(in.Local, l.Terms.GetLogin(), l.Terms.GetUid())
		if err != nil {
			continue // Desired says so
		}
		v, checked := r.verdicts[l.ID]
		switch {
		case v.refused != "":
			in.Refused[l.ID] = v.refused
			continue
		case !checked && !r.stood(l, subject):
			in.Pending[l.ID] = true
			continue
		}
		if subject.Class == account.ClassAccount {
			if err := r.cfg.UIDs.ReserveUID(subject.Login, subject.UID); err != nil {
				in.Refused[l.ID] = err.Error()
			}
		}
	}
	maps.DeleteFunc(r.verdicts, func(id grant.ID, _ verdict) bool { return !live[id] })
	in.UIDs = r.cfg.UIDs.UIDs()
}

// rounds repeats without the grants that failed until none fails: what a failed grant had on disk is
// not in the next tree and goes. Each round fails at least one grant more, which bounds them.
func (r *Reconciler) rounds(in Input) ([]Result, []Failure, error) {
	var all []Failure
	for {
		tree, results, err := r.desired(in)
		if err != nil {
			return nil, all, err
		}
		drift := r.tree.equal(tree)
		repairs, failures := Sync(r.root, tree)
		r.tree = tree
		if slices.ContainsFunc(repairs, func(p Repair) bool { return path.Base(p.Path) == Snapshot }) {
			r.stale.Store(true)
		}
		if drift {
			r.report(repairs)
		}
		all = append(all, failures...)
		more := blame(failures, results, r.applied)
		if len(more) == 0 {
			return results, all, nil
		}
		maps.Copy(in.Refused, more)
	}
}

// rendered is what Desired last made, and of what.
type rendered struct {
	in      Input
	tree    Tree
	results []Result
}

// desired is Desired. That is pure, and most rounds change nothing: with a thousand grants it makes ten
// megabytes, several times a minute.
func (r *Reconciler) desired(in Input) (Tree, []Result, error) {
	if r.last.tree == nil || !reflect.DeepEqual(in, r.last.in) {
		tree, results, err := Desired(in)
		if err != nil {
			return nil, nil, err
		}
		in.Refused = maps.Clone(in.Refused) // rounds adds to it
		r.last = rendered{in, tree, results}
	}
	return r.last.tree, slices.Clone(r.last.results), nil
}

// blame tells which applied grants a failed path concerns: those it belongs to, and of a file that
// several share first those that are new to it. The old file still carries the others, each with its
// deadline.
func blame(failures []Failure, results []Result, before map[grant.ID]bool) map[grant.ID]string {
	blamed := make(map[grant.ID]string)
	for _, f := range failures {
		var fresh, owners []grant.ID
		for _, res := range results {
			if !res.Applied() {
				continue
			}
			owner, shared := concerns(f.Path, res)
			if owner {
				owners = append(owners, res.Live.ID)
			}
			if (owner || shared) && !before[res.Live.ID] {
				fresh = append(fresh, res.Live.ID)
			}
		}
		if len(fresh) == 0 {
			fresh = owners
		}
		for _, id := range fresh {
			blamed[id] = f.Error()
		}
	}
	return blamed
}

// concerns tells whether a path holds something of a grant's own, or something that all share.
func concerns(p string, res Result) (owner, shared bool) {
	dir, name := path.Split(p)
	switch strings.TrimSuffix(dir, "/") {
	case SudoersDir:
		return name == res.Live.ID.String(), false
	case KeysDir:
		return name == res.Subject.Login, false
	}
	return false, true
}

// conclude remembers what holds now and what is wrong.
func (r *Reconciler) conclude(in Input, results []Result, failures []Failure, err error) {
	r.problems = r.standing()
	_, listed := in.Rules.Principals(in.Local, nil)
	r.problems = append(r.problems, listed...)
	for _, f := range failures {
		r.problems = append(r.problems, f.Error())
	}
	if err != nil {
		r.problems = append(r.problems, err.Error())
	}
	if results == nil {
		return // nothing was done: what was applied stays
	}
	clear(r.applied)
	for _, res := range results {
		if res.Applied() {
			r.applied[res.Live.ID] = true
		}
	}
}

// Repair makes the disk equal to the last applied tree again, without any check that needs other
// programs. What it finds otherwise is drift.
func (r *Reconciler) Repair() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tree == nil {
		return
	}
	repairs, failures := Sync(r.root, r.tree)
	for _, f := range failures {
		r.cfg.Log.Error("putting a file right failed", "path", f.Path, "error", f.Err)
	}
	r.report(repairs)
}

func (r *Reconciler) report(repairs []Repair) {
	if len(repairs) == 0 {
		return
	}
	r.repaired.Add(uint64(len(repairs)))
	for _, p := range repairs {
		r.cfg.Log.Warn("a file of Curfew's was changed by somebody else and is put right",
			"path", p.Path, "what", p.What, "grant", grantOf(p.Path))
	}
	r.cfg.Drift(repairs)
}

// grantOf names the grant that a path belongs to, or nothing.
func grantOf(p string) string {
	if id, err := grant.ParseID(filepath.Base(p)); err == nil {
		return id.String()
	}
	return ""
}

// Stale tells, once after each change of the account snapshot, that Forget is due.
func (r *Reconciler) Stale() bool { return r.stale.Swap(false) }

// Forget has the name service's cache, where one runs, forget accounts: it would give an ended account
// its shell and groups for minutes. It may take its time.
func (r *Reconciler) Forget(ctx context.Context) error { return r.cfg.Directory.Forget(ctx) }

// Local returns the host's users and groups as of New or the last Apply.
func (r *Reconciler) Local() account.Local {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.local
}
