package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/internal/breakglass"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// BreakGlass is what one-use codes open on this host while its control plane is away.
type BreakGlass struct {
	Enabled bool `yaml:"enabled"`
	// Codes is how many a new set has.
	Codes int `yaml:"codes"`
	// Custodians are groups of the trust file's approvers, whose SSH keys new codes are sealed to;
	// empty: all approvers.
	Custodians []string `yaml:"custodians"`
	// MaxDuration is the longest that one code opens for.
	MaxDuration time.Duration `yaml:"max_duration"`
	// AllowRootEquivalent permits rules below that amount to all of root.
	AllowRootEquivalent bool `yaml:"allow_root_equivalent"`
	// Sudo is what a code lets its user run, beside a login.
	Sudo []SudoRule `yaml:"sudo"`
}

// SudoRule is a typed sudo rule, spelt as in a policy's role.
type SudoRule struct {
	RunAs     string   `yaml:"run_as"`
	All       bool     `yaml:"all"`
	Command   string   `yaml:"command"`
	Args      []string `yaml:"args"`
	AnyArgs   bool     `yaml:"any_args"`
	Contained bool     `yaml:"contained"`
}

// maxBreakGlass bounds break_glass.max_duration: a code is for getting through an outage.
const maxBreakGlass = 24 * time.Hour

func (b BreakGlass) rules() []*curfewv1.SudoRule {
	var out []*curfewv1.SudoRule
	for _, r := range b.Sudo {
		as := r.RunAs
		if as == "" {
			as = "root"
		}
		out = append(out, &curfewv1.SudoRule{
			RunAs: as, All: r.All, Command: r.Command, Args: r.Args, AnyArgs: r.AnyArgs,
			Contained: r.Contained,
		})
	}
	return out
}

func (b BreakGlass) checkCodes() error {
	if b.Codes < 1 || b.Codes > breakglass.MaxCodes {
		return fmt.Errorf("%d is out of range; 1 to %d", b.Codes, breakglass.MaxCodes)
	}
	return nil
}

func (b BreakGlass) checkDuration() error {
	if b.MaxDuration < time.Minute || b.MaxDuration > maxBreakGlass {
		return fmt.Errorf("%v is out of range; 1m to %v", b.MaxDuration, maxBreakGlass)
	}
	return nil
}

func (b BreakGlass) checkSudo() error {
	rules := b.rules()
	if len(rules) > grant.MaxSudoRules {
		return fmt.Errorf("%d rules; at most %d", len(rules), grant.MaxSudoRules)
	}
	for _, r := range rules {
		if err := grant.CheckSudoRule(r); err != nil {
			return err
		}
	}
	if !b.AllowRootEquivalent && grant.RootEquivalent(rules, nil) {
		return errors.New("a rule amounts to all of root: mark what is harmless contained: true, or set " +
			"allow_root_equivalent: true")
	}
	return nil
}

func (b BreakGlass) ceiling() grant.LocalCeiling {
	return grant.LocalCeiling{
		Enabled: b.Enabled, MaxDuration: b.MaxDuration, RootEquivalent: b.AllowRootEquivalent,
		Rules: b.rules(),
	}
}
