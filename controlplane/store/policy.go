package store

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/policy"
	"github.com/curfew-access/curfew/internal/grant"
)

const policyColumns = `SELECT number, hash, file, roles, rules, applied_by, applied_ms FROM policies `

func scanPolicy(scan func(...any) error) (v identity.PolicyVersion, err error) {
	var hash []byte
	var at int64
	err = scan(&v.Number, &hash, &v.File, &v.Roles, &v.Rules, &v.AppliedBy, &at)
	if err == nil && len(hash) != len(v.Hash) {
		err = fmt.Errorf("%w: policy %d has a hash of %d bytes", ErrDamaged, v.Number, len(hash))
	}
	if err != nil {
		return v, err
	}
	v.Hash, v.Applied = [32]byte(hash), fromMS(at)
	return v, nil
}

// NewestPolicy reads which policy is in force.
func (t *Tx) NewestPolicy() (identity.PolicyVersion, error) {
	return remembered(t, "policy", t.newestPolicy)
}

func (t *Tx) newestPolicy() (identity.PolicyVersion, error) {
	v, err := scanPolicy(t.row(policyColumns + "ORDER BY number DESC LIMIT 1").Scan)
	if noRows(err) {
		return v, fmt.Errorf("policy: %w", identity.ErrNone)
	}
	if err != nil {
		return v, fmt.Errorf("reading which policy is in force: %w", err)
	}
	return v, nil
}

// PolicyOf reads the version, the newest with this hash, and its text.
func (t *Tx) PolicyOf(hash [32]byte) (v identity.PolicyVersion, text []byte, err error) {
	v, err = scanPolicy(t.row(policyColumns+"WHERE hash = ? ORDER BY number DESC LIMIT 1", hash[:]).Scan)
	if noRows(err) {
		return v, nil, fmt.Errorf("policy %x: %w", hash[:8], identity.ErrNone)
	}
	if err != nil {
		return v, nil, fmt.Errorf("reading policy %x: %w", hash[:8], err)
	}
	err = t.row("SELECT text FROM policies WHERE number = ?", v.Number).Scan(&text)
	if err != nil {
		return v, nil, fmt.Errorf("reading policy %x: %w", hash[:8], err)
	}
	return v, text, nil
}

// Policies lists every version, newest first.
func (t *Tx) Policies(limit int) ([]identity.PolicyVersion, error) {
	return list(t, scanPolicy, policyColumns+"ORDER BY number DESC LIMIT ?", limit)
}

// PutPolicy keeps a new version, which is in force from then on; it returns it with its number.
func (t *Tx) PutPolicy(v identity.PolicyVersion, text []byte) (identity.PolicyVersion, error) {
	err := t.row(`INSERT INTO policies (number, hash, text, file, roles, rules, applied_by, applied_ms)
		VALUES ((SELECT coalesce(max(number), 0) + 1 FROM policies), ?, ?, ?, ?, ?, ?, ?)
		RETURNING number`, v.Hash[:], text, v.File, v.Roles, v.Rules, v.AppliedBy, ms(v.Applied)).
		Scan(&v.Number)
	if err != nil {
		return v, fmt.Errorf("keeping a policy: %w", err)
	}
	return v, nil
}

const labelledColumns = "SELECT id, name, labels, refused FROM hosts WHERE removed = 0 "

func scanLabelled(scan func(...any) error) (h policy.Host, err error) {
	var id []byte
	var labels string
	if err := scan(&id, &h.Name, &labels, &h.Refused); err != nil {
		return h, err
	}
	if h.ID, err = grant.HostIDFromBytes(id); err != nil {
		return h, err
	}
	return h, json.Unmarshal([]byte(labels), &h.Labels)
}

// LabelledHosts lists the hosts that are not removed, with what policy knows of them.
func (t *Tx) LabelledHosts() ([]policy.Host, error) {
	return list(t, scanLabelled, labelledColumns+"ORDER BY name")
}

// LabelledHost reads one of LabelledHosts.
func (t *Tx) LabelledHost(name string) (policy.Host, error) {
	h, err := scanLabelled(t.row(labelledColumns+"AND name = ?", name).Scan)
	if noRows(err) {
		err = fmt.Errorf("host %s: %w", grant.VisibleText(name), identity.ErrNone)
	}
	return h, err
}

// Reports lists the users whose manager somebody is.
func (t *Tx) Reports(manager string) ([]string, error) {
	return list(t, scanOne[string], "SELECT name FROM users WHERE manager = ? AND manager <> ''", manager)
}

// DisabledUsers lists the names of all who are disabled.
func (t *Tx) DisabledUsers() ([]string, error) {
	names, err := remembered(t, "disabled", func() ([]string, error) {
		return list(t, scanOne[string], "SELECT name FROM users WHERE disabled = 1")
	})
	return slices.Clone(names), err
}
