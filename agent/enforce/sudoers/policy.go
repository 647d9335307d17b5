package sudoers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Policy is what cvtsudoers -e -f json prints of a sudoers file with everything it includes.
type Policy struct {
	Defaults []Setting  `json:"Defaults"`
	Specs    []UserSpec `json:"User_Specs"`
}

// Setting is one Defaults line.
type Setting struct {
	Binding []Member         `json:"Binding"`
	Options []map[string]any `json:"Options"`
}

// UserSpec is one rule.
type UserSpec struct {
	Users    []Member      `json:"User_List"`
	Hosts    []Member      `json:"Host_List"`
	Commands []CommandSpec `json:"Cmnd_Specs"`
}

// CommandSpec is a rule's right side.
type CommandSpec struct {
	RunAsUsers  []Member         `json:"runasusers,omitempty"`
	RunAsGroups []Member         `json:"runasgroups,omitempty"`
	Options     []map[string]any `json:"Options,omitempty"`
	Commands    []map[string]any `json:"Commands"`
}

// Member is one element of a list: one key that says the kind, and perhaps "negated".
type Member map[string]any

// Person is whom standing rules are looked up for.
type Person struct {
	Login  string
	UID    uint32
	Groups []string
	GIDs   []uint32
	// Targets are the users that a grant lets them run commands as.
	Targets []string
}

// ParsePolicy reads cvtsudoers' JSON.
func ParsePolicy(data []byte) (Policy, error) {
	var p Policy
	if len(bytes.TrimSpace(data)) == 0 {
		return p, nil // an empty sudoers prints nothing
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return Policy{}, fmt.Errorf("reading cvtsudoers' JSON: %w", err)
	}
	return p, nil
}

// Meaning is what cvtsudoers must say of a drop-in: the yardstick of the differential test, and how
// Curfew's own rules are told from standing ones.
func Meaning(d Dropin) Policy {
	p := Policy{Defaults: []Setting{{
		Binding: []Member{{"username": d.Login}},
		Options: []map[string]any{
			{"pam_session": true},
			{"pam_acct_mgmt": true},
			{"use_pty": true},
			{"timestamp_timeout": "0"},
		},
	}}}
	for _, r := range d.Rules {
		p.Specs = append(p.Specs, UserSpec{
			Users:    []Member{{"username": d.Login}},
			Hosts:    []Member{{"hostname": "ALL"}},
			Commands: []CommandSpec{meaningOf(r, d.End)},
		})
	}
	return p
}

func meaningOf(r *curfewv1.SudoRule, end time.Time) CommandSpec {
	c := CommandSpec{
		RunAsUsers: []Member{{"username": r.GetRunAs()}},
		Options: []map[string]any{
			{"notafter": end.UTC().Format(notAfter)},
			{"authenticate": false},
		},
	}
	text := r.GetCommand()
	switch {
	case r.GetAll():
		text = everyRule
		c.RunAsUsers = []Member{{"username": "ALL"}}
		c.RunAsGroups = []Member{{"usergroup": "ALL"}}
		c.Options = append(c.Options, map[string]any{"setenv": true}) // implied by ALL
	case r.GetAnyArgs():
	case len(r.GetArgs()) == 0:
		text += ` ""`
	default:
		text += " " + strings.Join(r.GetArgs(), " ")
	}
	c.Commands = []map[string]any{{"command": text}}
	return c
}

// Standing returns, in words, each rule of p that gives the person sudo and is not one of ours, and
// each setting that would switch our PAM stack off for them. An element that cannot be resolved here
// (a netgroup, a plug-in's group) counts as matching: the cost of a false alarm is a refused grant.
func Standing(p Policy, who Person, ours []Dropin) []string {
	known := make(map[string]int)
	for _, d := range ours {
		if d.Login != who.Login {
			continue // a rule of ours matches nobody else: see Meaning
		}
		for _, spec := range Meaning(d).Specs {
			known[canonical(spec)]++
		}
	}
	var found []string
	for _, spec := range p.Specs {
		if !matches(spec.Users, who) {
			continue
		}
		if key := canonical(spec); known[key] > 0 {
			known[key]--
			continue
		}
		found = append(found, fmt.Sprintf("a standing sudo rule gives %s %s", who.Login, say(spec)))
	}
	for _, s := range p.Defaults {
		if len(s.Binding) > 0 && !mayBind(s.Binding, who) {
			continue
		}
		for _, option := range s.Options {
			if text := defeats(option); text != "" {
				found = append(found, fmt.Sprintf("the sudo setting %s would take %s past Curfew",
					text, who.Login))
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// defeats names the setting when it lets sudo run without our PAM service.
func defeats(option map[string]any) string {
	for name, value := range option {
		switch name {
		case "pam_session", "pam_acct_mgmt":
			if value == false {
				return "!" + name
			}
		case "pam_service":
			if value != "sudo" {
				return fmt.Sprintf("pam_service=%v", value)
			}
		case "pam_login_service":
			if value != "sudo" && value != "sudo-i" {
				return fmt.Sprintf("pam_login_service=%v", value)
			}
		}
	}
	return ""
}

// matches follows sudoers: the last element of the list that fits decides.
func matches(list []Member, who Person) bool {
	matched := false
	for _, m := range list {
		if fits(m, who) {
			matched = m["negated"] != true
		}
	}
	return matched
}

// mayBind: settings bound to hosts, commands and targets may apply to anybody.
func mayBind(list []Member, who Person) bool {
	users := slices.ContainsFunc(list, func(m Member) bool {
		for kind := range m {
			if strings.HasPrefix(kind, "user") {
				return true
			}
		}
		return false
	})
	// cvtsudoers writes targets (Defaults>www-data) like users (Defaults:www-data), so both count.
	return !users || matches(list, who) || slices.ContainsFunc(who.Targets, func(t string) bool {
		return matches(list, Person{Login: t, Groups: []string{t}})
	})
}

func fits(m Member, who Person) bool {
	for kind, value := range m {
		switch kind {
		case "negated":
			continue
		case "username":
			return value == who.Login || value == "ALL"
		case "userid":
			return value == float64(who.UID)
		case "usergroup":
			name, _ := value.(string)
			return slices.Contains(who.Groups, name)
		case "usergid":
			return slices.ContainsFunc(who.GIDs, func(g uint32) bool { return value == float64(g) })
		}
	}
	return m["negated"] != true // unknown kinds count as matching, and as not excluding
}

func canonical(spec UserSpec) string {
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Sprintf("unprintable %v", err) // matches nothing of ours
	}
	return string(b)
}

func say(spec UserSpec) string {
	var commands []string
	for _, c := range spec.Commands {
		for _, m := range c.Commands {
			commands = append(commands, fmt.Sprint(m["command"]))
		}
	}
	users := make([]string, 0, len(spec.Users))
	for _, m := range spec.Users {
		for kind, value := range m {
			if kind != "negated" {
				users = append(users, fmt.Sprintf("%s %v", kind, value))
			}
		}
	}
	text := fmt.Sprintf("%s (rule of %s)", strings.Join(commands, ", "), strings.Join(users, ", "))
	return text[:min(len(text), 300)]
}

// Holds tells whether the policy has every rule of a drop-in.
func (p Policy) Holds(d Dropin) bool {
	have := make(map[string]bool)
	for _, spec := range p.Specs {
		if matches(spec.Users, Person{Login: d.Login}) { // a thousand others have theirs
			have[canonical(spec)] = true
		}
	}
	for _, spec := range Meaning(d).Specs {
		if !have[canonical(spec)] {
			return false
		}
	}
	return true
}
