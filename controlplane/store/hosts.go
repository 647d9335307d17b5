package store

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

const hostColumns = `SELECT id, name, address, labels, ssh_host_keys, agent_version, mode, refused,
	last_seen_ms, certificate_ms, acked_epoch, acked_sequence,
	(SELECT count(*) FROM grants WHERE host = hosts.id AND live = 1),
	(SELECT count(*) FROM break_glass_codes WHERE host = hosts.id AND used_ms <> 0),
	coalesce((SELECT max(used_ms) FROM break_glass_codes WHERE host = hosts.id), 0) FROM hosts `

func scanHost(scan func(...any) error) (h access.Host, err error) {
	var id []byte
	var labels, keys string
	var seen, cert, used int64
	err = scan(&id, &h.Name, &h.Address, &labels, &keys, &h.AgentVersion, &h.Mode, &h.Refused, &seen,
		&cert, &h.Epoch, &h.Sequence, &h.LiveGrants, &h.CodesUsed, &used)
	if err != nil {
		return h, err
	}
	h.LastSeen, h.CertificateEnds, h.CodeUsed = fromMS(seen), fromMS(cert), fromMS(used)
	h.ID, err = grant.HostIDFromBytes(id)
	return h, errors.Join(err, json.Unmarshal([]byte(labels), &h.Labels),
		json.Unmarshal([]byte(keys), &h.SSHHostKeys))
}

// HostNamed finds a host that is not removed.
func (t *Tx) HostNamed(name string) (access.Host, error) {
	h, err := scanHost(t.row(hostColumns+"WHERE name = ? AND removed = 0", name).Scan)
	if noRows(err) {
		return h, fmt.Errorf("host %s: %w", grant.VisibleText(name), identity.ErrNone)
	}
	return h, err
}

// Hosts lists all hosts that are not removed, by name.
func (t *Tx) Hosts() ([]access.Host, error) {
	return list(t, scanHost, hostColumns+"WHERE removed = 0 ORDER BY name")
}

// PutHostLabels replaces a host's labels.
func (t *Tx) PutHostLabels(id grant.HostID, labels map[string]string) error {
	text, err := jsonText(labels)
	if err != nil {
		return err
	}
	return t.exec("UPDATE hosts SET labels = ? WHERE id = ?", text, id[:])
}

// RemoveHost frees the name; the row and its root key stay, so that the key never enrols again. A host
// that is served is owed its last state; see Part.
func (t *Tx) RemoveHost(id grant.HostID, at time.Time) error {
	t.touchHost(id)
	err := t.exec(`DELETE FROM break_glass_sets WHERE host IN
		(SELECT id FROM hosts WHERE id = ? AND refused <> '')`, id[:])
	if err != nil {
		return err
	}
	return t.exec(`UPDATE hosts SET removed = 1,
		parting_ms = CASE WHEN refused = '' THEN ? ELSE 0 END WHERE id = ?`, ms(at), id[:])
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encoding for the store: %w", err)
	}
	return string(b), nil
}

// PutJoinToken keeps a fresh token; see enrol.Store.
func (s *Store) PutJoinToken(ctx context.Context, j enrol.JoinToken, r trail.Record) error {
	return s.Update(ctx, func(t *Tx) error {
		labels, err := jsonText(j.Labels)
		if err != nil {
			return err
		}
		err = t.exec(`INSERT INTO join_tokens (hash, name, labels, created_by, expires_ms)
			VALUES (?, ?, ?, ?, ?)`, j.Hash[:], j.Name, labels, j.CreatedBy, ms(j.ExpiresAt))
		if err != nil {
			return err
		}
		return t.Append(r)
	})
}

// EnrolHost spends a token and inserts its host; see enrol.Store.
func (s *Store) EnrolHost(ctx context.Context, hash [32]byte,
	decide func(enrol.JoinToken) (enrol.Host, trail.Record, error),
) error {
	return s.Update(ctx, func(t *Tx) error {
		j, err := t.joinToken(hash)
		if err != nil {
			return err
		}
		h, record, err := decide(j)
		if err != nil {
			return err
		}
		spent, err := t.one("UPDATE join_tokens SET used_ms = ? WHERE hash = ? AND used_ms = 0",
			ms(h.EnrolledAt), hash[:])
		if err != nil {
			return err
		}
		if !spent {
			return enrol.ErrTokenUsed
		}
		if err := t.insertHost(h); err != nil {
			return err
		}
		return t.Append(record)
	})
}

// EnrolInstance inserts a host that its cloud vouches for, once for each instance; see enrol.Store.
func (s *Store) EnrolInstance(
	ctx context.Context, instance [32]byte, h enrol.Host, r trail.Record,
) error {
	return s.Update(ctx, func(t *Tx) error {
		fresh, err := t.one(`INSERT INTO cloud_instances (hash, host, joined_ms) VALUES (?, ?, ?)
			ON CONFLICT (hash) DO NOTHING`, instance[:], h.ID[:], ms(h.EnrolledAt))
		if err != nil {
			return err
		}
		if !fresh {
			return enrol.ErrInstanceKnown
		}
		if err := t.insertHost(h); err != nil {
			return err
		}
		return t.Append(r)
	})
}

func (t *Tx) joinToken(hash [32]byte) (enrol.JoinToken, error) {
	j := enrol.JoinToken{Hash: hash}
	var labels string
	var expires, used int64
	err := t.row("SELECT name, labels, created_by, expires_ms, used_ms FROM join_tokens WHERE hash = ?",
		hash[:]).Scan(&j.Name, &labels, &j.CreatedBy, &expires, &used)
	if noRows(err) {
		return j, enrol.ErrNoToken
	}
	if err != nil {
		return j, fmt.Errorf("reading a join token: %w", err)
	}
	j.ExpiresAt, j.UsedAt = fromMS(expires), fromMS(used)
	return j, json.Unmarshal([]byte(labels), &j.Labels)
}

func (t *Tx) insertHost(h enrol.Host) error {
	var known, named int
	err := t.row(`SELECT (SELECT count(*) FROM hosts WHERE id = ?1 OR root_key = ?2),
		(SELECT count(*) FROM hosts WHERE name = ?3 AND removed = 0)`,
		h.ID[:], []byte(h.RootKey), h.Name).Scan(&known, &named)
	switch {
	case err != nil:
		return fmt.Errorf("looking for host %s: %w", h.Name, err)
	case known > 0:
		return enrol.ErrKeyKnown
	case named > 0:
		return enrol.ErrNameTaken
	}
	labels, err := jsonText(h.Labels)
	if err != nil {
		return err
	}
	keys, err := jsonText(h.SSHHostKeys)
	if err != nil {
		return err
	}
	return t.exec(`INSERT INTO hosts (id, name, address, labels, ssh_host_keys, root_key, link_key,
		agent_version, enrolled_ms, certificate_ms, refused, certified_by, trusts_cas)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?12, ?12)`,
		h.ID[:], h.Name, h.Address, labels, keys, []byte(h.RootKey), h.LinkKey[:], h.AgentVersion,
		ms(h.EnrolledAt), ms(h.CertificateEnds), h.Refused, h.CertifiedBy)
}

// EnrolledHost returns a host, removed ones included; see enrol.Store.
func (s *Store) EnrolledHost(ctx context.Context, id grant.HostID) (h enrol.Host, err error) {
	err = s.View(ctx, func(t *Tx) error {
		h, err = t.enrolledHost(id)
		return err
	})
	return h, err
}

func (t *Tx) enrolledHost(id grant.HostID) (enrol.Host, error) {
	h := enrol.Host{ID: id}
	var labels, keys string
	var root, link []byte
	var enrolled, cert int64
	err := t.row(`SELECT name, address, labels, ssh_host_keys, root_key, link_key, agent_version,
		enrolled_ms, certificate_ms, refused, removed FROM hosts WHERE id = ?`, id[:]).
		Scan(&h.Name, &h.Address, &labels, &keys, &root, &link, &h.AgentVersion, &enrolled, &cert,
			&h.Refused, &h.Removed)
	if noRows(err) {
		return h, fmt.Errorf("host %s: %w", id, enrol.ErrNoHost)
	}
	if err != nil {
		return h, fmt.Errorf("reading host %s: %w", id, err)
	}
	if len(root) != ed25519.PublicKeySize || len(link) != len(h.LinkKey) {
		return h, fmt.Errorf("host %s: %w: a key has the wrong length", id, ErrDamaged)
	}
	h.RootKey, h.LinkKey = root, [32]byte(link)
	h.EnrolledAt, h.CertificateEnds = fromMS(enrolled), fromMS(cert)
	return h, errors.Join(json.Unmarshal([]byte(labels), &h.Labels),
		json.Unmarshal([]byte(keys), &h.SSHHostKeys))
}

// PutCertificate remembers a renewal; see enrol.Store.
func (s *Store) PutCertificate(
	ctx context.Context, id grant.HostID, end time.Time, by string,
) error {
	return s.Update(ctx, func(t *Tx) error {
		return t.exec("UPDATE hosts SET certificate_ms = ?, certified_by = ? WHERE id = ?", ms(end), by,
			id[:])
	})
}

// PutAccepted remembers the CAs that a host accepts; see enrol.Store.
func (s *Store) PutAccepted(ctx context.Context, id grant.HostID, names []string) error {
	return s.Update(ctx, func(t *Tx) error {
		return t.exec("UPDATE hosts SET trusts_cas = ?1 WHERE id = ?2 AND trusts_cas <> ?1",
			strings.Join(names, " "), id[:])
	})
}

// HostCAs is what is known of a host and the control plane's CAs, by their names (enrol.Name).
type HostCAs struct {
	Host        string
	CertifiedBy string
	Accepts     []string
}

// HostCAs lists the hosts that are served.
func (t *Tx) HostCAs() ([]HostCAs, error) {
	return list(t, func(scan func(...any) error) (h HostCAs, err error) {
		var accepts string
		err = scan(&h.Host, &h.CertifiedBy, &accepts)
		h.Accepts = strings.Fields(accepts)
		return h, err
	}, `SELECT name, certified_by, trusts_cas FROM hosts WHERE removed = 0 AND refused = '' ORDER BY name`)
}
