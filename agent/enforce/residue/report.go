package residue

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

// Report is what is different from the grant's start, and can last.
type Report struct {
	// BaseMS is when the state at the start was taken; 0 when there is none, and then only times of
	// change tell what is new.
	BaseMS int64     `json:"base_ms"`
	Left   []Finding `json:"left"`
	// More is how many findings are not listed.
	More int `json:"more,omitempty"`
	// Cut says what could not be looked at.
	Cut []string `json:"cut,omitempty"`
}

// Finding is one thing that was left.
type Finding struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"`
}

// maxListed bounds a report. The kinds that tell most come first, so that a busy package manager does
// not push a setuid file out.
const maxListed = 200

// Mark is a file that the walk over the whole disk saw changed since the start.
type Mark struct {
	Finding
	ChangedMS int64 `json:"changed_ms"`
}

// compare says what is in now and was not at the start. since is the grant's start, Unix ms: what the
// base saw changed after that was changed by then already, since taking the base takes its time.
func compare(base, now *Inventory, since int64, marks []Mark) *Report {
	r := &Report{Cut: slices.Clone(now.Cut)}
	var all []Finding
	add := func(kind Kind, format string, args ...any) {
		all = append(all, Finding{Kind: kind, Text: fmt.Sprintf(format, args...)})
	}
	if base != nil {
		r.BaseMS = base.AtMS
		r.Cut = append(r.Cut, base.Cut...)
		if base.AccountsMS >= since {
			r.Cut = append(r.Cut, "accounts, in the moment before the state at the start was taken: "+
				"they changed in it")
		}
	}
	for _, p := range slices.Sorted(maps.Keys(now.Entries)) {
		e := now.Entries[p]
		old, known := base.at(p, since)
		switch {
		case known && old.Sum == e.Sum:
		case base == nil && e.ChangedMS == 0:
			// Without a base nothing is known of what has no time of change.
		case base == nil && e.ChangedMS < since:
		case strings.HasPrefix(p, startedBy):
			add(e.Kind, "started by a job or a login: %s", e.Who)
		case e.Who != "" && !known:
			add(e.Kind, "%s: %s", p, e.Who)
		case e.Who != "":
			add(e.Kind, "started anew: %s: %s", p, e.Who)
		case !known && base.touched(p, since):
			add(e.Kind, "new or changed %s%s", p, keysSaid(e.Lines))
		case !known:
			add(e.Kind, "new %s%s", p, keysSaid(e.Lines))
		default:
			add(e.Kind, "changed %s%s", p, keysSaid(added(old.Lines, e.Lines)))
		}
	}
	if base != nil {
		for _, p := range slices.Sorted(maps.Keys(base.Entries)) {
			e := base.Entries[p]
			_, still := now.Entries[p]
			switch {
			case still || !lasting(p, e):
			case e.Who != "":
				add(e.Kind, "no longer %s: %s", p, e.Who)
			default:
				add(e.Kind, "gone %s", p)
			}
		}
	}
	for _, m := range marks {
		if m.ChangedMS >= since {
			all = append(all, m.Finding)
		}
	}
	order := make(map[Kind]int, len(Kinds))
	for i, k := range Kinds {
		order[k] = i
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(order[a.Kind], order[b.Kind]) })
	r.Left = all[:min(len(all), maxListed)]
	r.More = len(all) - len(r.Left)
	slices.Sort(r.Cut)
	r.Cut = slices.Compact(r.Cut)
	return r
}

// at is what the base knows of the start. What had changed between the start and the base is not the
// start's.
func (inv *Inventory) at(p string, since int64) (Entry, bool) {
	if inv == nil {
		return Entry{}, false
	}
	e, ok := inv.Entries[p]
	return e, ok && (e.ChangedMS == 0 || e.ChangedMS < since)
}

// touched tells that the base saw something there that was younger than the start.
func (inv *Inventory) touched(p string, since int64) bool {
	if inv == nil {
		return true
	}
	e, ok := inv.Entries[p]
	return ok && e.ChangedMS >= since
}

// lasting tells whether it is worth saying that something is gone: a daemon that was stopped or a PAM
// line that is missing, but not a transient unit or a job that has run.
func lasting(p string, e Entry) bool {
	switch e.Kind {
	case KindProcess:
		return strings.HasPrefix(p, "runs in ") && strings.HasSuffix(p, ".service")
	case KindJob:
		return !strings.HasPrefix(p, "/var/spool/")
	case KindUnit:
		return !strings.HasPrefix(p, "/run/")
	}
	return true
}

// added are the lines that the first list lacks.
func added(old, now []string) []string {
	return slices.DeleteFunc(slices.Clone(now), func(l string) bool { return slices.Contains(old, l) })
}

func keysSaid(lines []string) string {
	switch len(lines) {
	case 0:
		return ""
	case 1:
		return " (1 key more)"
	}
	return fmt.Sprintf(" (%d keys more)", len(lines))
}

// systemTrees are where the programs of the host are.
var systemTrees = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/boot", "/opt"}

// mark judges a file that the walk came by: one that gives rights, or is part of the system, and has
// changed since the start. p is its path.
func mark(f found, p string, since int64) (Mark, bool) {
	m := Mark{ChangedMS: f.stat.Ctim.Nano() / 1e6}
	if m.ChangedMS < since {
		return m, false
	}
	regular := f.stat.Mode&unix.S_IFMT == unix.S_IFREG
	what := ""
	switch {
	case regular && f.stat.Mode&unix.S_ISUID != 0:
		what = fmt.Sprintf("setuid %s (uid %d)", p, f.stat.Uid)
	case regular && f.stat.Mode&unix.S_ISGID != 0 && f.stat.Mode&0o111 != 0:
		what = fmt.Sprintf("setgid %s (gid %d, of uid %d)", p, f.stat.Gid, f.stat.Uid)
	case regular && capability(f):
		what = "capabilities on " + p
	case f.stat.Mode&unix.S_IFMT == unix.S_IFBLK && f.stat.Rdev != 0 && !inside(p, "/dev"):
		what = "block device " + p
	}
	if what != "" {
		m.Kind, m.Text = KindSetid, "new or changed "+what
		return m, true
	}
	system := slices.ContainsFunc(systemTrees, func(tree string) bool { return inside(p, tree) })
	if !regular || !system {
		return m, false
	}
	kind, base := KindSystem, path.Base(p)
	switch {
	case path.Base(path.Dir(p)) == "security" && strings.HasPrefix(base, "pam_"),
		strings.HasPrefix(base, "libnss_"):
		kind = KindAuth
	case strings.Contains(p, "/systemd/"):
		kind = KindUnit
	}
	m.Kind, m.Text = kind, "new or changed "+p
	return m, true
}

// Details puts a report into the details of an event, at most 14 of at most size bytes: one for each
// kind, and what did not fit is counted.
func (r *Report) Details(size int) map[string]string {
	d := make(map[string]string)
	counts := make(map[Kind]int)
	for _, f := range r.Left {
		counts[f.Kind]++
	}
	total := len(r.Left) + r.More
	shown := 0
	for _, kind := range Kinds {
		var text string
		for _, f := range r.Left {
			if f.Kind != kind {
				continue
			}
			next := text + "; " + f.Text
			if text == "" {
				next = f.Text
			}
			if len(next) > size {
				break
			}
			text = next
			shown++
		}
		if text != "" {
			d[string(kind)] = text
		}
	}
	d["count"] = fmt.Sprint(total)
	if total > shown {
		d["not_listed"] = fmt.Sprint(total - shown)
	}
	cut := r.Cut
	if r.BaseMS == 0 {
		cut = append([]string{"the state at the start, which was not taken: only times of change tell " +
			"what is new"}, cut...)
	}
	if len(cut) > 0 {
		d["not_looked_at"] = grant.Clip(strings.Join(cut, "; "), size)
	}
	return d
}
