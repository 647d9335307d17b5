package gate

import (
	"cmp"
	"slices"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/grant"
)

// Person is how Curfew treats one login.
type Person struct {
	Class account.Class
	Login string
	UID   uint32
}

// Table is everything that an answer depends on, but the caller. It is a snapshot: whoever publishes
// one must not change it any more.
type Table struct {
	// Mode: in observe the gate records what it would deny and denies nobody.
	Mode account.Mode
	// Trial bounds enforcing that nobody has confirmed: the gate observes from then on, as the module does.
	Trial *account.Trial
	// People are the principals of the gate table in force: account.Rules.Principals.
	People []account.Principal
	// Live are the grants that are applied: their files are in place.
	Live []grant.Live
	// MayOpen says why nothing new may open at the moment (lease over, clock suspect), or is nil.
	MayOpen error
	// MayOpenLocal is the same for local grants, which no lease bounds.
	MayOpenLocal error
	// Roles are those that can be asked for here, for refusals that say what to type.
	Roles []string

	// Filled by Publish.
	byName map[string]Person
	byUID  map[uint32]Person
}

// observes tells whether nobody is denied now.
func (t *Table) observes(now grant.Clock) bool {
	return t.Mode == account.ModeObserve ||
		t.Trial != nil && (!now.Wall.Before(t.Trial.Wall) || now.Boot >= t.Trial.Boot)
}

// index fills the maps, and sorts the grants by login. A uid or a name that stands in two classes keeps
// none of them: it is answered as what needs a grant everywhere.
func (t *Table) index() {
	t.byName = make(map[string]Person, len(t.People))
	t.byUID = make(map[uint32]Person, len(t.People))
	for _, p := range append([]account.Principal{account.SelfTest}, t.People...) {
		person := Person{Class: p.Class, Login: p.Name, UID: p.UID}
		t.byName[p.Name] = person
		if _, taken := t.byUID[p.UID]; !taken {
			t.byUID[p.UID] = person
		}
	}
	slices.SortStableFunc(t.Live, func(a, b grant.Live) int {
		return cmp.Compare(a.Terms.GetLogin(), b.Terms.GetLogin())
	})
}

// of returns the grants of a login that are open at now: the table may be older than a deadline, and
// the agent may just have woken from SIGSTOP or suspend.
func (t *Table) of(login string, now grant.Clock) []grant.Live {
	var open []grant.Live
	first, _ := slices.BinarySearchFunc(t.Live, login, func(g grant.Live, login string) int {
		return cmp.Compare(g.Terms.GetLogin(), login)
	})
	for _, g := range t.Live[first:] {
		if g.Terms.GetLogin() != login {
			break
		}
		if now.Wall.Before(g.End) && now.Boot < g.BootDeadline {
			open = append(open, g)
		}
	}
	return open
}

// stillOpens leaves the local grants, when what keeps others from opening is not theirs to heed.
func (t *Table) stillOpens(useful []grant.Live) []grant.Live {
	return slices.DeleteFunc(slices.Clone(useful), func(g grant.Live) bool {
		return !g.Local || t.MayOpenLocal != nil
	})
}

// left is how long a grant still lasts, on whichever clock ends it first.
func left(g grant.Live, now grant.Clock) time.Duration {
	return min(g.End.Sub(now.Wall), g.BootDeadline-now.Boot)
}
