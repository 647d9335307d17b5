package policy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // zones mean the same on every machine

	"github.com/curfew-access/curfew/internal/grant"
)

// Limits on a policy file. What is evaluated for one request is bounded by them.
const (
	MaxFile     = 1 << 20 // bytes
	maxRoles    = 500
	maxHostSets = 500
	maxRules    = 2000
	maxWho      = 64   // groups or users of one rule
	maxWhen     = 2048 // bytes
	maxPattern  = 256  // bytes
	maxZones    = 32
	maxValues   = 64  // values of one label
	maxDenial   = 300 // bytes
	maxOnCall   = 64
)

// UTC is the zone of a file that names none.
const utc = "UTC"

// Policy is one policy file, checked whole and ready to decide. It is read-only once parsed.
type Policy struct {
	// Hash is the SHA-256 of the file's text; grants carry it.
	Hash [sha256.Size]byte
	// File is the name that messages use.
	File string

	roles     map[string]*Role
	roleLines map[string]int
	hostSets  []hostSet
	setNames  map[string]int
	rules     []*rule
	zones     []*time.Location
	onCall    []string
	groups    map[string]int // every group that a rule's who names, numbered
	byRole    map[string][]*rule
	// countsRow says that some condition counts earlier requests.
	countsRow bool
	// anyHost says that the trust file lets quorums and standing rules hold on every host.
	anyHost  bool
	warnings []string
}

// hostSet is a named set of hosts: those that carry all of some labels, each with one of some values.
type hostSet struct {
	name   string
	labels []wanted
}

type wanted struct {
	key    string
	values []string
}

func (h *hostSet) holds(labels map[string]string) bool {
	for _, w := range h.labels {
		if v, ok := labels[w.key]; !ok || !slices.Contains(w.values, v) {
			return false
		}
	}
	return true
}

// text says a set of hosts as its author did.
func (h *hostSet) text() string {
	if h.name != "" {
		return h.name
	}
	parts := make([]string, 0, len(h.labels))
	for _, w := range h.labels {
		parts = append(parts, w.key+"="+strings.Join(w.values, "|"))
	}
	return strings.Join(parts, ",")
}

// Parse reads a policy file. Any fault refuses it whole; the error has one line per fault, each with
// file, line and field.
func Parse(file string, text []byte) (*Policy, error) {
	r := &reader{file: grant.VisibleText(file)}
	if r.file == "" {
		r.file = "policy.yaml"
	}
	if len(text) > MaxFile {
		r.fail(1, "", "%d bytes; at most %d", len(text), MaxFile)
		return nil, r.err()
	}
	p := &Policy{
		Hash: sha256.Sum256(text), File: r.file, roles: make(map[string]*Role),
		roleLines: make(map[string]int), setNames: make(map[string]int),
		groups: make(map[string]int), byRole: make(map[string][]*rule),
	}
	p.read(r, r.document(text))
	if err := r.err(); err != nil {
		return nil, err
	}
	p.index()
	return p, nil
}

func (p *Policy) read(r *reader, doc value) {
	if !doc.present() {
		return
	}
	top := doc.fields("policy", "zone", "on_call", "trust_hosts", "roles", "hosts", "rules")
	for _, need := range []string{"policy", "roles", "rules"} {
		if !top[need].present() {
			r.fail(1, need, "it is missing")
		}
	}
	if v := top["policy"]; v.present() {
		v.number(1, 1)
	}
	zone := p.zone(top["zone"], -1)
	p.onCall = top["on_call"].names(maxOnCall, grant.CheckGroupName)
	if v := top["trust_hosts"]; v.present() {
		switch s := v.text(16); s {
		case "listed":
		case "any":
			p.anyHost = true
		case "":
		default:
			v.fail("%q is neither listed nor any", grant.VisibleText(s))
		}
	}
	for _, e := range top["roles"].entries(maxRoles) {
		p.readRole(e)
	}
	for _, e := range top["hosts"].entries(maxHostSets) {
		if err := grant.CheckRoleName(e.key); err != nil {
			e.fail("the name of a set of hosts: %v", err)
			continue
		}
		p.setNames[e.key] = len(p.hostSets)
		p.hostSets = append(p.hostSets, hostSet{name: e.key, labels: readLabels(e.value)})
	}
	c := newCompiler()
	for _, v := range top["rules"].items(maxRules) {
		p.readRule(v, zone, c)
	}
	p.checkNames(r)
}

// zone reads a time zone and numbers it; fallback is the number of an absent one, -1 for UTC's.
func (p *Policy) zone(v value, fallback int) int {
	name := utc
	if v.present() {
		if name = v.text(64); name == "" {
			return 0
		}
	} else if fallback >= 0 {
		return fallback
	}
	for i, z := range p.zones {
		if z.String() == name {
			return i
		}
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "Local" {
		v.fail("there is no time zone %q; write one such as Europe/Berlin", grant.VisibleText(name))
		return 0
	}
	if len(p.zones) >= maxZones {
		v.fail("more than %d time zones", maxZones)
		return 0
	}
	p.zones = append(p.zones, loc)
	return len(p.zones) - 1
}

func (p *Policy) readRole(e pair) {
	before := e.r.count
	f := e.fields("description", "login", "sudo", "groups", "max")
	role := &Role{
		Name: e.key, Description: f["description"].words(maxDescription),
		AllowLogin: f["login"].truth(), Groups: f["groups"].names(grant.MaxGroups, grant.CheckUnixGroup),
		MaxDuration: f["max"].duration(grant.MinDuration, grant.MaxDuration),
	}
	if !f["max"].present() {
		e.r.fail(e.line(), f["max"].path, "it is missing: the longest duration")
	}
	for _, v := range f["sudo"].items(grant.MaxSudoRules) {
		role.SudoRules = append(role.SudoRules, readSudo(v))
	}
	p.roles[e.key], p.roleLines[e.key] = role, e.line()
	if e.r.count > before {
		return // a half-read role would only repeat what was said
	}
	if err := role.checkRights(); err != nil {
		e.fail("%v", err)
	}
}

func readSudo(v value) SudoRule {
	f := v.fields("run_as", "all", "command", "args", "any_args", "contained")
	s := SudoRule{
		RunAs: "root", All: f["all"].truth(), AnyArgs: f["any_args"].truth(),
		Contained: f["contained"].truth(),
	}
	if f["run_as"].present() {
		s.RunAs = f["run_as"].text(64)
	}
	if f["command"].present() {
		s.Command = f["command"].text(1024)
	}
	for _, a := range f["args"].items(64) {
		s.Args = append(s.Args, a.text(1024))
	}
	return s
}

// readLabels reads label: value, or label: [value, …].
func readLabels(v value) []wanted {
	var out []wanted
	before := v.r.count
	for _, e := range v.entries(maxLabels) {
		if !isLabel(e.key) {
			e.fail("%q is not a label: 1 to %d of %s", grant.VisibleText(e.key), maxLabel, labelLetters)
			continue
		}
		w := wanted{key: e.key}
		if e.node.Kind == sequence {
			w.values = e.names(maxValues, checkLabelValue)
		} else if s := e.name(checkLabelValue); s != "" {
			w.values = []string{s}
		}
		if len(w.values) == 0 && e.r.count == before {
			e.fail("no value is given")
		}
		out = append(out, w)
	}
	if v.present() && len(out) == 0 && v.r.count == before {
		v.fail("it names no label; leave it out for every host")
	}
	return out
}

func checkLabelValue(s string) error {
	if !isLabel(s) {
		return fmt.Errorf("%q is not a label's value: 1 to %d of %s", grant.VisibleText(s), maxLabel,
			labelLetters)
	}
	return nil
}

// checkNames refuses rules that share a name, and warns of what no rule gives.
func (p *Policy) checkNames(r *reader) {
	lines, given := make(map[string]int), make(map[string]bool)
	standing := make(map[string]int)
	for _, rule := range p.rules {
		if first, twice := lines[rule.Name]; twice && rule.Name != "" {
			r.fail(rule.Line, "rules.name", "rule %s stands twice, first in line %d", rule.Name, first)
		}
		lines[rule.Name] = rule.Line
		for _, role := range p.rolesOf(rule) {
			given[role] = given[role] || rule.then.kind != deny
			if !rule.then.standing() {
				continue
			}
			name := rule.standingName(role)
			if err := grant.CheckRoleName(name); err != nil {
				r.fail(rule.Line, "rules.name", "hosts know this rule for role %s as %q: %v", role, name, err)
			} else if first, twice := standing[name]; twice {
				r.fail(rule.Line, "rules.name", "hosts would know this rule and that of line %d as %s",
					first, name)
			}
			standing[name] = rule.Line
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.roles)) {
		if !given[name] {
			p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: no rule gives role %s",
				p.File, p.roleLines[name], name))
		}
	}
}

// index puts the rules of each role in order, so that a decision looks only at those.
func (p *Policy) index() {
	for _, rule := range p.rules {
		for _, role := range p.rolesOf(rule) {
			p.byRole[role] = append(p.byRole[role], rule)
		}
	}
}

// rolesOf are the roles that a rule is about.
func (p *Policy) rolesOf(r *rule) []string {
	if len(r.roles) > 0 {
		return r.roles
	}
	return slices.Sorted(maps.Keys(p.roles))
}

// Role returns a role of the file, or nil.
func (p *Policy) Role(name string) *Role { return p.roles[name] }

// Roles are the roles of the file by name, with what the first rule that gives them to somebody
// asks for, as a table shows it.
func (p *Policy) Roles() []Role {
	out := make([]Role, 0, len(p.roles))
	for _, name := range slices.Sorted(maps.Keys(p.roles)) {
		out = append(out, *p.roles[name])
	}
	return out
}

// Rules is how many rules there are.
func (p *Policy) Rules() int { return len(p.rules) }

// CountsRow says whether decisions depend on the requester's earlier requests.
func (p *Policy) CountsRow() bool { return p.countsRow }

// Warnings are what the file says that is probably not meant.
func (p *Policy) Warnings() []string { return p.warnings }

// LineOf finds the line of a rule; 0 for a rule that is not in the file.
func (p *Policy) LineOf(name string) int {
	for _, r := range p.rules {
		if r.Name == name {
			return r.Line
		}
	}
	return 0
}

// SameText says whether this policy is of exactly this hash.
func (p *Policy) SameText(hash []byte) bool { return bytes.Equal(p.Hash[:], hash) }

var countOf = regexp.MustCompile(`\A(?:([0-9]{1,2}) of )?([a-z][a-z0-9-]*)\z`)
