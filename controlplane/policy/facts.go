package policy

import (
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// Caps of what a decision looks at. Who has more of it is refused: what was left out might deny.
const (
	MaxGroupsOfUser = 256
	MaxClaims       = 64
	// MaxInARow is how far back the requester's earlier requests are counted.
	MaxInARow = 20
)

// Person is what policy knows of a user.
type Person struct {
	Name     string   `json:"name"`
	UID      uint32   `json:"-"`
	Disabled bool     `json:"-"`
	Groups   []string `json:"groups,omitempty"`
	SSHKeys  []string `json:"-"` // canonical
	// Workload says that this is a pipeline; Claims are its token's.
	Workload bool              `json:"workload,omitempty"`
	Claims   map[string]string `json:"claims,omitempty"`
	// Manager is a user name; empty for none.
	Manager string `json:"manager,omitempty"`
	// SignedIn is when the session that asks was signed in.
	SignedIn time.Time `json:"signed_in,omitzero"`
}

// Host is what policy knows of a host.
type Host struct {
	ID      grant.HostID      `json:"-"`
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels,omitempty"`
	Refused string            `json:"-"` // why the host is not served; empty when it is
}

// TicketCheck is what a ticket system said of the ask's ticket.
type TicketCheck struct {
	OK   bool   `json:"ok"`
	Text string `json:"text,omitempty"`
}

// Facts are everything that a decision rests on beside the ask. What its JSON holds is kept with each
// request, so that an old decision can be explained and replayed.
type Facts struct {
	// Now is the moment of the ask: of an ask that waits, when it was made.
	Now       time.Time `json:"now"`
	Requester Person    `json:"requester"`
	// Policy decides; nil is the policy of the directory's roles.
	Policy *Policy `json:"-"`
	// Role is nil when there is none of that name.
	Role *Role `json:"-"`
	// Hosts by name; a name that is missing is unknown.
	Hosts map[string]Host `json:"hosts"`
	// InARow is how many of the requester's last requests for this role were approved, counted back
	// from the newest that was decided before Now until one that was not; at most MaxInARow.
	InARow int `json:"in_a_row,omitempty"`
	// Tickets are the answers of ticket checks by the check's name, for the ask's ticket.
	Tickets map[string]TicketCheck `json:"tickets,omitempty"`
	// Asked says that the ask was accepted before and waits: what was fresh then stays so.
	Asked bool `json:"-"`
	// Trust is the trust file in force.
	Trust *grant.Trust `json:"-"`
	// Disabled are approvers of the trust file whom the directory has disabled since.
	Disabled map[string]bool `json:"-"`
}

// local is a moment as people in a zone read it.
type local struct {
	ready                bool
	clock, weekday, date string
}

// matter is one ask with its facts, looked at for one host and one start at a time. It is what
// conditions see. Not safe for concurrent use.
type matter struct {
	ask    *request.Ask
	facts  *Facts
	policy *Policy
	groups []uint64 // the requester's, as the policy's numbers
	onCall bool
	host   *Host
	sets   []int8 // per host set: 0 not looked at, 1 holds, -1 does not
	start  time.Time
	local  []local // per zone, of start
	zone   int     // of the rule that is looked at
	spent  int     // evaluations
	// Values that CEL takes as they are, made when first asked for.
	groupList, claims, labels ref.Val
}

func newMatter(a *request.Ask, f *Facts) *matter {
	p := f.Policy
	m := &matter{
		ask: a, facts: f, policy: p, sets: make([]int8, len(p.hostSets)),
		local: make([]local, len(p.zones)), groups: make([]uint64, (len(p.groups)+63)/64),
	}
	for _, g := range f.Requester.Groups {
		if n, ok := p.groups[g]; ok {
			m.groups[n/64] |= 1 << (n % 64)
		}
		for _, o := range p.onCall {
			m.onCall = m.onCall || o == g
		}
	}
	return m
}

// lookAt turns to one host and one start.
func (m *matter) lookAt(h *Host, start time.Time) {
	if m.host != h {
		m.host, m.labels = h, nil
		clear(m.sets)
	}
	if !m.start.Equal(start) {
		m.start = start
		clear(m.local)
	}
}

func (m *matter) inSet(n int) bool {
	if m.sets[n] == 0 {
		m.sets[n] = -1
		if m.policy.hostSets[n].holds(m.host.Labels) {
			m.sets[n] = 1
		}
	}
	return m.sets[n] > 0
}

var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// at is the start as people in the rule's zone read it, worked out once.
func (m *matter) at() *local {
	l := &m.local[m.zone]
	if !l.ready {
		t := m.start.In(m.policy.zones[m.zone])
		*l = local{
			ready: true, clock: t.Format("15:04"), weekday: weekdays[t.Weekday()],
			date: t.Format(time.DateOnly),
		}
	}
	return l
}

// Parent is of cel's Activation: there is none.
func (m *matter) Parent() interpreter.Activation { return nil }

// ResolveName is of cel's Activation: what conditions see under a name.
func (m *matter) ResolveName(name string) (any, bool) {
	switch name {
	case "user":
		return types.String(m.ask.Requester), true
	case "groups":
		if m.groupList == nil {
			m.groupList = types.NewStringList(types.DefaultTypeAdapter, m.facts.Requester.Groups)
		}
		return m.groupList, true
	case "manager":
		return types.String(m.facts.Requester.Manager), true
	case "on_call":
		return types.Bool(m.onCall), true
	case "workload":
		return types.Bool(m.facts.Requester.Workload), true
	case "claims":
		if m.claims == nil {
			m.claims = types.NewStringStringMap(types.DefaultTypeAdapter, m.facts.Requester.Claims)
		}
		return m.claims, true
	case "role":
		return types.String(m.ask.Role), true
	case "root":
		return types.Bool(m.facts.Role.RootEquivalent()), true
	}
	return m.resolveAsk(name)
}

func (m *matter) resolveAsk(name string) (any, bool) {
	switch name {
	case "host":
		return types.String(m.host.Name), true
	case "hosts":
		return types.Int(len(m.ask.Hosts)), true
	case "labels":
		if m.labels == nil {
			m.labels = types.NewStringStringMap(types.DefaultTypeAdapter, m.host.Labels)
		}
		return m.labels, true
	case "lasts":
		return types.Duration{Duration: m.ask.Longest()}, true
	case "reason":
		return types.String(m.ask.Reason), true
	case "ticket":
		return types.String(m.ask.Ticket), true
	case "clock":
		return types.String(m.at().clock), true
	case "weekday":
		return types.String(m.at().weekday), true
	case "date":
		return types.String(m.at().date), true
	case "approved_in_a_row":
		return types.Int(m.facts.InARow), true
	case "emergency":
		return types.Bool(m.ask.Emergency), true
	case "single_use":
		return types.Bool(m.ask.SingleUse), true
	case "extension":
		return types.Bool(m.ask.Extends), true
	case "windows":
		return types.Int(max(len(m.ask.Windows), 1)), true
	}
	return nil, false
}
