package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
)

// Person is what policy knows of a user.
type Person struct {
	Name     string
	UID      uint32
	Disabled bool
	Groups   []string
	SSHKeys  []string // canonical
}

// Host is what policy knows of a host.
type Host struct {
	ID      grant.HostID
	Name    string
	Labels  map[string]string
	Refused string // why the host is not served; empty when it is
}

// Facts are everything that a decision rests on.
type Facts struct {
	Requester Person
	// Role is nil when the directory has none of that name.
	Role *Role
	// Hosts by name; a name that is missing is unknown.
	Hosts map[string]Host
	// Trust is the trust file in force.
	Trust *grant.Trust
	// Disabled are approvers of the trust file whom the directory has disabled since.
	Disabled map[string]bool
}

// Fault says what kind of refusal a verdict is.
type Fault uint8

// The faults, by who can mend them: None is no refusal, BadAsk the requester, Forbidden an admin,
// Unknown a typing error, NotYet time.
const (
	None Fault = iota
	BadAsk
	Forbidden
	Unknown
	NotYet
)

// Verdict is what policy says of a request, in words.
type Verdict struct {
	Fault Fault
	// Text is why, for people; of an accepted request, what it needs.
	Text string
	// Hint is what to type next.
	Hint string
	// Approvals of Group are needed; set only when the request is accepted.
	Approvals uint32
	Group     string
}

// Accepted says whether the request may be put to approvers.
func (v Verdict) Accepted() bool { return v.Fault == None }

// Decide is the fixed policy.
func Decide(a request.Ask, f Facts) Verdict {
	for _, check := range []func(request.Ask, Facts) Verdict{
		checkText, checkRequester, checkRole, checkDuration, checkHosts, checkQuorum,
	} {
		if v := check(a, f); !v.Accepted() {
			return v
		}
	}
	return Verdict{
		Text:      needs(f.Role.Approvals, f.Role.ApproverGroup),
		Approvals: f.Role.Approvals, Group: f.Role.ApproverGroup,
	}
}

func needs(k uint32, group string) string {
	if k == 1 {
		return fmt.Sprintf("needs 1 approval from group %s", group)
	}
	return fmt.Sprintf("needs %d approvals from group %s", k, group)
}

func refuse(fault Fault, format string, args ...any) Verdict {
	return Verdict{Fault: fault, Text: fmt.Sprintf(format, args...)}
}

func checkText(a request.Ask, _ Facts) Verdict {
	if err := grant.CheckReason(a.Reason); err != nil {
		v := refuse(BadAsk, "%v", err)
		v.Hint = `add --reason "…"`
		return v
	}
	if err := grant.CheckRoleName(a.Role); err != nil {
		return refuse(BadAsk, "%v", err)
	}
	if n := len(a.Hosts); n == 0 || n > grant.MaxHosts {
		return refuse(BadAsk, "the request names %d hosts; it may name 1 to %d", n, grant.MaxHosts)
	}
	seen := make(map[string]bool)
	for _, h := range a.Hosts {
		if err := grant.CheckHostName(h); err != nil {
			return refuse(BadAsk, "%v", err)
		}
		if seen[h] {
			return refuse(BadAsk, "host %s stands twice in the request", h)
		}
		seen[h] = true
	}
	return Verdict{}
}

func checkRequester(a request.Ask, f Facts) Verdict {
	if f.Requester.Name != a.Requester {
		return refuse(Unknown, "there is no user %s", grant.VisibleText(a.Requester))
	}
	if f.Requester.Disabled {
		return refuse(Forbidden, "user %s is disabled", a.Requester)
	}
	return Verdict{}
}

func checkRole(a request.Ask, f Facts) Verdict {
	if f.Role == nil {
		v := refuse(Unknown, "there is no role %s", a.Role)
		v.Hint = "curfew roles shows the roles"
		return v
	}
	if len(f.Role.RequesterGroups) > 0 && !slices.ContainsFunc(f.Role.RequesterGroups,
		func(g string) bool { return slices.Contains(f.Requester.Groups, g) }) {
		return refuse(Forbidden, "role %s is only for members of %s", a.Role,
			strings.Join(f.Role.RequesterGroups, ", "))
	}
	if f.Role.AllowLogin && len(f.Requester.SSHKeys) == 0 {
		return refuse(Forbidden, "role %s opens logins and user %s has no SSH key",
			a.Role, a.Requester)
	}
	return Verdict{}
}

func checkDuration(a request.Ask, f Facts) Verdict {
	switch {
	case a.Duration < grant.MinDuration:
		return refuse(BadAsk, "the duration is %s; it must be at least %s", a.Duration,
			grant.MinDuration)
	case a.Duration%time.Millisecond != 0:
		return refuse(BadAsk, "the duration %s is not in whole milliseconds", a.Duration)
	case a.Duration > f.Role.MaxDuration:
		v := refuse(BadAsk, "the duration is %s; role %s gives at most %s",
			a.Duration, a.Role, f.Role.MaxDuration)
		v.Hint = fmt.Sprintf("use --for %s or less", f.Role.MaxDuration)
		return v
	}
	return Verdict{}
}

func checkHosts(a request.Ask, f Facts) Verdict {
	for _, name := range a.Hosts {
		host, ok := f.Hosts[name]
		if !ok {
			v := refuse(Unknown, "there is no host %s", name)
			v.Hint = "curfew hosts shows the hosts"
			return v
		}
		if host.Refused != "" {
			return refuse(NotYet, "host %s is not served: %s", name, host.Refused)
		}
		for _, k := range slices.Sorted(maps.Keys(f.Role.HostLabels)) {
			if want := f.Role.HostLabels[k]; host.Labels[k] != want {
				return refuse(Forbidden, "role %s is only for hosts with label %s=%s, and %s has %s",
					a.Role, k, want, name, labelText(k, host.Labels))
			}
		}
	}
	return Verdict{}
}

func labelText(key string, labels map[string]string) string {
	if v, ok := labels[key]; ok {
		return key + "=" + v
	}
	return "none of that name"
}

// checkQuorum refuses what nobody could approve, and what hosts would refuse because their trust file
// says otherwise.
func checkQuorum(a request.Ask, f Facts) Verdict {
	quorum, ok := f.Trust.Quorum(a.Role)
	if !ok || quorum.Group != f.Role.ApproverGroup || quorum.Approvals > f.Role.Approvals {
		v := refuse(NotYet, "role %s is not in force yet: the trust file that hosts obey does not "+
			"carry it as it stands", a.Role)
		v.Hint = "an admin completes it with: curfew-controlplane trust sign --root-key FILE"
		return v
	}
	others := 0
	for _, p := range f.Trust.Approvers {
		if slices.Contains(p.Groups, f.Role.ApproverGroup) && len(p.SSHKeys) > 0 &&
			p.Name != a.Requester && !f.Disabled[p.Name] {
			others++
		}
	}
	if others < int(f.Role.Approvals) {
		return refuse(Forbidden, "nobody can approve this: role %s %s, and besides the requester "+
			"that group has %d with an SSH key", a.Role,
			needs(f.Role.Approvals, f.Role.ApproverGroup), others)
	}
	return Verdict{}
}
