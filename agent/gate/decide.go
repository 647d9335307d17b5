package gate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/agent/enforce/session"
	"github.com/curfew-access/curfew/internal/gatewire"
	"github.com/curfew-access/curfew/internal/grant"
)

// firstPerson is the lowest uid that is ever asked about; root and system users pass.
const firstPerson = 1000

// question is a request with what the kernel says of who sent it.
type question struct {
	gatewire.Request
	pid int
	uid uint32 // the real one
	// owner is the request that the caller runs under already, or "". Known where asksOwner says so.
	owner string
	now   grant.Clock
}

// decision is the answer and what it takes. The zero decision is none and must not be sent.
type decision struct {
	verdict gatewire.Verdict
	text    string
	// why says the same for the trail.
	why       string
	person    Person
	treatment treatment
	// grant is what an allowed session belongs to.
	grant grant.Live
}

// decide answers from the table alone. It is pure: the same table, question and time give the same
// answer.
func decide(t *Table, host string, q question) decision {
	if q.UID != q.uid {
		return decision{
			verdict: gatewire.Deny, why: "the message names another uid than the kernel",
			text:   "Curfew cannot tell who asks",
			person: Person{UID: q.uid},
		}
	}
	answer := decision{verdict: gatewire.Ignore}
	for _, p := range t.subjects(q) {
		switch one := t.judge(host, q, p); one.verdict {
		case gatewire.Ignore:
		case gatewire.Allow:
			if answer.verdict == gatewire.Ignore {
				answer = one
			}
		default:
			return one // everybody who is asked about must pass
		}
	}
	return answer
}

// subjects are whom a question is about: the caller for what elevates, PAM_USER for what logs in,
// and both for su.
func (t *Table) subjects(q question) []Person {
	var people []Person
	if byRealUID[q.Service] {
		if q.uid < firstPerson {
			return nil // root passes, also inside a grant's session, where it stays
		}
		if p, ok := t.byUID[q.uid]; ok {
			people = append(people, p)
			if p.Class == account.ClassExempt {
				return people // break-glass becomes whom it wants
			}
		}
		if !targetToo[q.Service] {
			return people
		}
	}
	if p, ok := t.byName[q.User]; ok && p.UID >= firstPerson && q.User != "root" {
		people = append(people, p)
	}
	return people
}

// judge answers for one person.
func (t *Table) judge(host string, q question, p Person) decision {
	d := decision{person: p, treatment: treat(q.Service, p.Class)}
	switch d.treatment {
	case ignore:
		d.verdict = gatewire.Ignore
		return d
	case never:
		d.verdict = gatewire.Deny
		d.why = q.Service + " never runs anything for Curfew accounts"
		d.text = fmt.Sprintf("Curfew: %s never runs anything for %s on %s", q.Service, p.Login, host)
		return d
	case login, inside, elevate:
	}
	open := t.of(p.Login, q.now)
	useful := slices.DeleteFunc(slices.Clone(open), func(g grant.Live) bool {
		if d.treatment == elevate {
			return len(g.Terms.GetSudoRules()) == 0
		}
		return !g.Terms.GetAllowLogin() || d.treatment == login && g.Used
	})
	if len(useful) == 0 {
		return t.deny(d, host, q.Service, t.lacks(p, d.treatment, open))
	}
	if t.MayOpen != nil && !q.running(useful) {
		if useful = t.stillOpens(useful); len(useful) == 0 {
			d.verdict = gatewire.Deny
			d.why = t.MayOpen.Error()
			d.text = fmt.Sprintf("Curfew: %s cannot get in on %s now: %v", p.Login, host, t.MayOpen)
			return d
		}
	}
	return t.choose(d, host, q, useful)
}

// running tells a step that belongs to an access which is open already: the user's manager, su and
// jobs inside a session that runs.
func (q question) running(useful []grant.Live) bool {
	return treat(q.Service, account.ClassGated) == inside && slices.ContainsFunc(useful,
		func(g grant.Live) bool { return g.Terms.GetRequestId() == q.owner })
}

// choose picks the grant that the session is to belong to.
//
// A login belongs to the grant whose terms hold the key that was used; of several, to the one that
// ends last. An elevation belongs to the grant that its caller's session belongs to, when that has a
// sudo rule at all; else to the one with a rule that ends first, so that no command outlives the
// grant whose rule let it through.
func (t *Table) choose(d decision, host string, q question, useful []grant.Live) decision {
	byEnd := func(a, b grant.Live) int {
		return cmp.Or(cmp.Compare(left(a, q.now), left(b, q.now)),
			strings.Compare(a.Terms.GetRequestId(), b.Terms.GetRequestId()))
	}
	slices.SortFunc(useful, byEnd)
	d.verdict = gatewire.Allow
	if d.treatment == elevate {
		d.grant = useful[0]
		for _, g := range useful {
			if g.Terms.GetRequestId() == q.owner {
				d.grant = g
			}
		}
		return d
	}
	d.grant = useful[len(useful)-1]
	if q.Service != "sshd" || q.Op != gatewire.OpOpenSession {
		return d
	}
	used := keysIn(q.AuthInfo)
	for _, g := range slices.Backward(useful) {
		for _, key := range g.Terms.GetAuthorizedKeys() {
			if slices.Contains(used, key) {
				d.grant, d.text = g, greeting(g, host, q.now)
				return d
			}
		}
	}
	if d.person.Class == account.ClassGated {
		// A local user's means to sign in are his own; the grant only says when.
		d.text = greeting(d.grant, host, q.now)
		return d
	}
	d.grant = grant.Live{}
	return t.deny(d, host, q.Service, "the key that was used is in no live grant")
}

// keysIn returns the keys of SSH_AUTH_INFO_0, in canonical form: one line per method that succeeded,
// "publickey TYPE BASE64". The last line may be cut; a certificate is no key of a grant's.
func keysIn(authInfo string) []string {
	var keys []string
	for line := range strings.Lines(authInfo) {
		rest, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "publickey ")
		if !ok {
			continue
		}
		if key, err := grant.CanonicalSSHKey(rest); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func greeting(g grant.Live, host string, now grant.Clock) string {
	end, rest := g.End, left(g, now)
	if g.Unused { // this login starts the clock
		rest = min(grant.Duration(g.Terms), grant.HardEnd(g.Terms).Sub(now.Wall))
		end = now.Wall.Add(rest)
	}
	access := "access"
	if g.Terms.GetRootEquivalent() {
		access = "root-equivalent access"
	}
	return fmt.Sprintf("Curfew: %s as %s on %s until %s.", access, g.Terms.GetRole(), host,
		session.Until(end, rest))
}

// lacks says why nothing useful is open.
func (t *Table) lacks(p Person, wanted treatment, open []grant.Live) string {
	switch {
	case len(open) == 0:
		return "no live grant"
	case wanted == elevate:
		return "no live grant allows sudo"
	case slices.ContainsFunc(open, func(g grant.Live) bool { return g.Used }):
		return grant.ErrUsed.Error()
	}
	return "no live grant allows a login"
}

// deny says who, why, and what to type next.
func (t *Table) deny(d decision, host, service, why string) decision {
	d.verdict, d.why = gatewire.Deny, why
	who := d.person.Login + " has no access to " + host + " now"
	if d.treatment == elevate {
		who = d.person.Login + " may not use " + service + " on " + host + " now"
	}
	d.text = fmt.Sprintf(`Curfew: %s: %s. Ask for it: curfew request %s --role %s --for 1h `+
		`--reason "…"`, who, why, host, t.roles())
	return d
}

// maxShownRoles keeps a refusal on one line.
const maxShownRoles = 5

// roles names what can be asked for, as one shows a choice; ROLE when that would be long.
func (t *Table) roles() string {
	if len(t.Roles) == 0 || len(t.Roles) > maxShownRoles {
		return "ROLE"
	}
	return strings.Join(t.Roles, "|")
}

// tryAgain is the answer to whatever is the host's own fault.
func tryAgain(p Person, why string) decision {
	return decision{
		verdict: gatewire.TryAgain, person: p, why: why,
		text: "Curfew cannot check this right now; try again",
	}
}

// budget is how long a decision may take, events and scopes included. The module gives up at 2 s for
// a whole login.
const budget = 1500 * time.Millisecond
