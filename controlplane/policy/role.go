// Package policy decides whether a request may be asked for at all and what it needs.
//
// It is pure: Decide gets the request and every fact, and returns a verdict that explains itself. What
// decides is a policy file (docs/operate/policy.md): roles, sets of hosts and ordered rules, of which
// the first that matches counts; where none does, the answer is no. Without a file, every role of the
// directory is one rule: k approvals of its approver group.
//
// A decision is bounded: the typed fields of a rule come first, by sets that are worked out once; a
// condition has a cost limit, a pattern is RE2's, and the number of everything is capped. Facts come
// from the directory and the trust file through package access; the verdict goes back there. Nothing
// here grants anything: hosts check approvals and standing rules again.
package policy

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Limits on a role beyond those of the terms.
const (
	maxLabels      = 16
	maxLabel       = 63
	maxDescription = 200
)

// SudoRule is one typed sudo permission of a role; see curfew.v1.SudoRule.
type SudoRule struct {
	RunAs     string   `json:"run_as"`
	All       bool     `json:"all,omitempty"`
	Command   string   `json:"command,omitempty"`
	Args      []string `json:"args,omitempty"`
	AnyArgs   bool     `json:"any_args,omitempty"`
	Contained bool     `json:"contained,omitempty"`
}

// Role is a named bundle of what one gets on a host.
type Role struct {
	Name            string            `json:"name"`
	Description     string            `json:"description,omitempty"`
	AllowLogin      bool              `json:"allow_login"`
	SudoRules       []SudoRule        `json:"sudo_rules,omitempty"`
	Groups          []string          `json:"groups,omitempty"` // Unix groups
	MaxDuration     time.Duration     `json:"max_duration_ns"`
	ApproverGroup   string            `json:"approver_group"`
	Approvals       uint32            `json:"approvals"`
	RequesterGroups []string          `json:"requester_groups,omitempty"`
	HostLabels      map[string]string `json:"host_labels,omitempty"`
}

// Rules are the role's sudo rules as terms carry them.
func (r *Role) Rules() []*curfewv1.SudoRule {
	out := make([]*curfewv1.SudoRule, 0, len(r.SudoRules))
	for _, s := range r.SudoRules {
		out = append(out, &curfewv1.SudoRule{
			RunAs: s.RunAs, All: s.All, Command: s.Command, Args: s.Args, AnyArgs: s.AnyArgs,
			Contained: s.Contained,
		})
	}
	return out
}

// RootEquivalent says whether the role gives all of root.
func (r *Role) RootEquivalent() bool { return grant.RootEquivalent(r.Rules(), r.Groups) }

// Hash names the role's exact content; terms carry it as their policy hash.
func (r *Role) Hash() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding role %s: %w", r.Name, err)
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// Check accepts a role that is complete and gives something, and puts its lists in order.
func (r *Role) Check() error {
	if err := grant.CheckGroupName(r.ApproverGroup); err != nil {
		return err
	}
	if r.Approvals < 1 || r.Approvals > grant.MaxApprovals {
		return fmt.Errorf("role %s: approvals is %d, want 1 to %d",
			r.Name, r.Approvals, grant.MaxApprovals)
	}
	return errors.Join(r.checkRights(), r.checkRequesters(), CheckLabels(r.HostLabels))
}

// checkRights accepts what a role gives, whoever may ask for it.
func (r *Role) checkRights() error {
	if err := grant.CheckRoleName(r.Name); err != nil {
		return err
	}
	switch {
	case r.MaxDuration < grant.MinDuration || r.MaxDuration > grant.MaxDuration:
		return fmt.Errorf("role %s: the longest duration is %s, want %s to %s",
			r.Name, r.MaxDuration, grant.MinDuration, grant.MaxDuration)
	case r.MaxDuration%time.Millisecond != 0:
		return fmt.Errorf("role %s: the longest duration is not in whole milliseconds", r.Name)
	case !r.AllowLogin && len(r.SudoRules) == 0:
		return fmt.Errorf("role %s gives nothing: allow login, or add a sudo rule", r.Name)
	case len(r.Description) > maxDescription || grant.VisibleText(r.Description) != r.Description:
		return fmt.Errorf("role %s: the description has at most %d printable bytes on one line",
			r.Name, maxDescription)
	case len(r.SudoRules) > grant.MaxSudoRules || len(r.Groups) > grant.MaxGroups:
		return fmt.Errorf("role %s: at most %d sudo rules and %d groups",
			r.Name, grant.MaxSudoRules, grant.MaxGroups)
	}
	return errors.Join(r.checkRules(), r.checkGroups())
}

func (r *Role) checkRules() error {
	for _, rule := range r.Rules() {
		if err := grant.CheckSudoRule(rule); err != nil {
			return fmt.Errorf("role %s: %w", r.Name, err)
		}
	}
	return nil
}

func (r *Role) checkGroups() error {
	slices.Sort(r.Groups)
	r.Groups = slices.Compact(r.Groups)
	for _, g := range r.Groups {
		if err := grant.CheckUnixGroup(g); err != nil {
			return fmt.Errorf("role %s: %w", r.Name, err)
		}
	}
	return nil
}

func (r *Role) checkRequesters() error {
	slices.Sort(r.RequesterGroups)
	r.RequesterGroups = slices.Compact(r.RequesterGroups)
	if len(r.RequesterGroups) > grant.MaxGroups {
		return fmt.Errorf("role %s: at most %d requester groups", r.Name, grant.MaxGroups)
	}
	for _, g := range r.RequesterGroups {
		if err := grant.CheckGroupName(g); err != nil {
			return fmt.Errorf("role %s: requester group: %w", r.Name, err)
		}
	}
	return nil
}

// CheckLabels accepts at most 16 labels as hosts may carry them, with a value each.
func CheckLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("%d labels; at most %d", len(labels), maxLabels)
	}
	for k, v := range labels {
		for _, s := range []string{k, v} {
			if !isLabel(s) {
				return fmt.Errorf("label %q=%q: 1 to %d characters of %s", grant.VisibleText(k),
					grant.VisibleText(v), maxLabel, labelLetters)
			}
		}
	}
	return nil
}

// Carries tells whether labels hold all that are wanted.
func Carries(labels, want map[string]string) bool {
	for k, v := range want {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// LabelsText writes labels as the command line takes them.
func LabelsText(labels map[string]string) string {
	pairs := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return strings.Join(pairs, ",")
}

// labelLetters are those of package enrol's labels: what a host carries can be asked for.
const labelLetters = "a-z, A-Z, 0-9, '.', '_', '-' and '/'"

func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') &&
			strings.IndexByte("._-/", c) < 0 {
			return false
		}
	}
	return true
}

// rights are terms that hold what the role gives and nothing else.
func (r *Role) rights() *curfewv1.Terms {
	return &curfewv1.Terms{
		AllowLogin: r.AllowLogin, Groups: r.Groups, SudoRules: r.Rules(),
		RootEquivalent: r.RootEquivalent(),
	}
}
