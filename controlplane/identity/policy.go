package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
)

// The trail's records of a policy file that was put into force, and of none being in force any more.
const (
	KindPolicyApplied = "policy.applied"
	KindPolicyCleared = "policy.cleared"
)

// MaxPolicies is how many versions are listed.
const MaxPolicies = 1000

// PolicyVersion is one policy file that was applied. The newest is in force.
type PolicyVersion struct {
	Number     uint64 // from 1
	Hash       [32]byte
	File       string
	Roles      uint32
	Rules      uint32
	AppliedBy  string
	Applied    time.Time
	TrustWaits bool     // set by Apply: the trust file that carries it waits for root keys
	Warnings   []string // set by Apply
	NotApplied bool     // set by Apply of a dry run, and of what is in force already
}

// cleared is the hash of no policy file at all, under which the directory's roles count again.
var cleared = sha256.Sum256(nil)

// cache keeps what was read from the store and never changes there: policies by their hash, and the
// newest trust file.
type cache struct {
	mu       sync.Mutex // guards the rest
	policies map[[32]byte]*policy.Policy
	envelope []byte
	trust    *grant.Trust
}

// maxCached is how many policies are kept parsed: the one in force, and a few that explain the past.
const maxCached = 8

// Policy is the policy file in force; nil before the first and after a clear, when the directory's
// roles count.
func (s *Service) Policy(tx Tx) (*policy.Policy, error) {
	v, err := tx.NewestPolicy()
	if errors.Is(err, ErrNone) || err == nil && v.Hash == cleared {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.PolicyOf(tx, v.Hash)
}

// PolicyOf is a policy that was applied some time, by its hash; ErrNone for one that never was.
func (s *Service) PolicyOf(tx Tx, hash [32]byte) (*policy.Policy, error) {
	s.read.mu.Lock()
	p := s.read.policies[hash]
	s.read.mu.Unlock()
	if p != nil {
		return p, nil
	}
	v, text, err := tx.PolicyOf(hash)
	if err != nil {
		return nil, err
	}
	if p, err = policy.Parse(v.File, text); err != nil {
		return nil, fmt.Errorf("policy %d, which was good when it was applied: %w", v.Number, err)
	}
	if p.Hash != hash {
		return nil, fmt.Errorf("policy %d is not the text that its hash names", v.Number)
	}
	s.read.mu.Lock()
	defer s.read.mu.Unlock()
	if len(s.read.policies) >= maxCached {
		clear(s.read.policies)
	}
	s.read.policies[hash] = p
	return p, nil
}

// TrustOf is the trust file in force. It is opened once and read-only; what was read is compared, so
// that a version which was rolled back is never taken for the one that came after it.
func (s *Service) TrustOf(tx Tx) (*grant.Trust, error) {
	row, err := tx.NewestTrust()
	if err != nil {
		return nil, err
	}
	s.read.mu.Lock()
	known, t := s.read.envelope, s.read.trust
	s.read.mu.Unlock()
	if t != nil && bytes.Equal(known, row.Envelope) {
		return t, nil
	}
	if t, err = Trust(row); err != nil {
		return nil, err
	}
	s.read.mu.Lock()
	defer s.read.mu.Unlock()
	s.read.envelope, s.read.trust = row.Envelope, t
	return t, nil
}

// rolesAreOurs refuses to change the directory's roles while a policy file holds them.
func (s *Service) rolesAreOurs(tx Tx) error {
	inForce, err := s.Policy(tx)
	if err != nil {
		return err
	}
	if inForce != nil {
		return reason.Conflict("roles are kept in the policy file now").
			WithHint("change %s and apply it: curfew admin policy apply %s; or go back to roles: curfew admin "+
				"policy clear", inForce.File, inForce.File)
	}
	return nil
}

// Apply is what an admin puts into force.
type Apply struct {
	File   string
	Text   []byte
	DryRun bool
	// Replaces is the hash of the policy that this one follows; nil for whatever is in force.
	Replaces []byte
}

// ApplyPolicy checks a policy file and puts it into force. A bad one is refused whole, and the old one
// stays.
func (s *Service) ApplyPolicy(ctx context.Context, by string, a Apply) (v PolicyVersion, err error) {
	p, err := policy.Parse(a.File, a.Text)
	if err != nil {
		return v, reason.Invalid("%s", FirstFault(err))
	}
	for _, c := range p.Checks() {
		if !slices.Contains(s.c.Checks, c) {
			return v, reason.Invalid("%s: the ticket check %s is not in the control plane's configuration",
				p.File, c).WithHint("add it there under ticket_checks")
		}
	}
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		v = PolicyVersion{
			Hash: p.Hash, File: p.File, AppliedBy: by, Applied: s.c.Now().Truncate(time.Millisecond),
			Roles: uint32(len(p.Roles())), Rules: uint32(p.Rules()), Warnings: p.Warnings(),
		}
		if err := s.warn(tx, p, &v); err != nil {
			return err
		}
		was, err := tx.NewestPolicy()
		if err != nil && !errors.Is(err, ErrNone) {
			return err
		}
		if len(a.Replaces) > 0 && !bytes.Equal(a.Replaces, was.Hash[:]) {
			return reason.Conflict("another policy is in force: number %d, applied by %s", was.Number,
				was.AppliedBy).WithHint("curfew admin policy show")
		}
		if was.Number > 0 && was.Hash == p.Hash {
			was.Warnings, was.NotApplied = v.Warnings, true
			v = was
			return nil
		}
		err = s.put(tx, by, KindPolicyApplied, a.Text, &v)
		if err == nil && a.DryRun {
			err = errDryRun
		}
		return err
	})
	if errors.Is(err, errDryRun) {
		v.Number, v.NotApplied, err = 0, true, nil
	}
	return v, err
}

// errDryRun rolls back what was tried.
var errDryRun = errors.New("dry run")

// ClearPolicy puts no policy file into force. What follows for hosts is signed like what follows from one.
func (s *Service) ClearPolicy(ctx context.Context, by string, replaces []byte) (v PolicyVersion, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		was, err := tx.NewestPolicy()
		if errors.Is(err, ErrNone) || err == nil && was.Hash == cleared {
			return reason.Conflict("no policy file is in force: the directory's roles are").
				WithHint("curfew admin role ls")
		}
		if err != nil {
			return err
		}
		if len(replaces) > 0 && !bytes.Equal(replaces, was.Hash[:]) {
			return reason.Conflict("another policy is in force: number %d, applied by %s", was.Number,
				was.AppliedBy).WithHint("curfew admin policy show")
		}
		v = PolicyVersion{Hash: cleared, AppliedBy: by, Applied: s.c.Now().Truncate(time.Millisecond)}
		roles, err := tx.Roles()
		if err != nil {
			return err
		}
		if len(roles) == 0 {
			v.Warnings = append(v.Warnings, "the directory has no role: nothing can be asked for")
		}
		return s.put(tx, by, KindPolicyCleared, []byte{}, &v)
	})
	return v, err
}

func (s *Service) put(tx Tx, by, kind string, text []byte, v *PolicyVersion) error {
	kept := *v
	kept, err := tx.PutPolicy(kept, text)
	if err != nil {
		return err
	}
	v.Number = kept.Number
	if err := s.refreshTrust(tx, by); err != nil {
		return err
	}
	waiting, err := tx.UnsignedTrust()
	if err != nil {
		return err
	}
	v.TrustWaits = waiting != nil
	return s.note(tx, by, kind, map[string]string{
		"number": fmt.Sprint(v.Number), "policy_hash": hex.EncodeToString(v.Hash[:]), "file": v.File,
		"roles": fmt.Sprint(v.Roles), "rules": fmt.Sprint(v.Rules),
	})
}

// warn adds what only the directory knows: groups that nobody is in.
func (s *Service) warn(tx Tx, p *policy.Policy, v *PolicyVersion) error {
	groups, err := tx.Groups()
	if err != nil {
		return err
	}
	for _, name := range p.Groups() {
		i := slices.IndexFunc(groups, func(g Group) bool { return g.Name == name })
		switch {
		case i < 0:
			v.Warnings = append(v.Warnings, fmt.Sprintf("there is no group %s yet", name))
		case len(groups[i].Members) == 0:
			v.Warnings = append(v.Warnings, fmt.Sprintf("group %s has no member", name))
		}
	}
	return nil
}

// FirstFault is the first line of what is wrong, and how much more there is.
func FirstFault(err error) string {
	var all interface{ Unwrap() []error }
	if errors.As(err, &all) {
		if list := all.Unwrap(); len(list) > 1 {
			return fmt.Sprintf("%v (and %d more)", list[0], len(list)-1)
		}
	}
	return err.Error()
}

// PolicyText returns a version with its text; an empty hash is that of the one in force.
func (s *Service) PolicyText(ctx context.Context, hash []byte) (v PolicyVersion, text []byte, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		var want [32]byte
		switch len(hash) {
		case 0:
			newest, err := tx.NewestPolicy()
			if errors.Is(err, ErrNone) || err == nil && newest.Hash == cleared {
				return nil
			}
			if err != nil {
				return err
			}
			want = newest.Hash
		case len(want):
			want = [32]byte(hash)
		default:
			return reason.Invalid("a policy's hash has 32 bytes")
		}
		v, text, err = tx.PolicyOf(want)
		if errors.Is(err, ErrNone) {
			return reason.NotFound("no policy with hash %x was ever applied", want).
				WithHint("curfew admin policy ls")
		}
		return err
	})
	return v, text, err
}

// Policies lists every version, newest first.
func (s *Service) Policies(ctx context.Context) (out []PolicyVersion, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) (err error) {
		out, err = tx.Policies(MaxPolicies)
		return err
	})
	return out, err
}

// RefreshTrust makes the trust file say what directory, policy and hosts say now; by is whose deed it
// follows. Only policies that list hosts need it when hosts come, go or change labels.
func (s *Service) RefreshTrust(tx Tx, by string) error {
	inForce, err := s.Policy(tx)
	if err != nil || inForce == nil {
		return err
	}
	return s.refreshTrust(tx, by)
}

// HostsChanged makes the trust file name the hosts that there are now, when a policy is in force.
func (s *Service) HostsChanged(ctx context.Context) error {
	return s.c.Store.Update(ctx, func(tx Tx) error {
		inForce, err := s.Policy(tx)
		if err != nil || inForce == nil {
			return err
		}
		return s.refreshTrust(tx, Actor)
	})
}
