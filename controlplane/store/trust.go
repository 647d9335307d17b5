package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/stream"
	"github.com/curfew-access/curfew/internal/grant"
)

// NewestTrust reads the newest signed trust file; its envelope is not to be changed.
func (t *Tx) NewestTrust() (identity.TrustRow, error) {
	return remembered(t, "trust", t.newestTrust)
}

func (t *Tx) newestTrust() (identity.TrustRow, error) {
	var row identity.TrustRow
	err := t.row("SELECT version, envelope FROM trust ORDER BY version DESC LIMIT 1").
		Scan(&row.Version, &row.Envelope)
	if noRows(err) {
		return row, fmt.Errorf("trust file: %w", identity.ErrNone)
	}
	if err != nil {
		return row, fmt.Errorf("reading the trust file: %w", err)
	}
	return row, nil
}

// PutTrust keeps a new version.
func (t *Tx) PutTrust(row identity.TrustRow) error {
	t.change.Trust = true
	return t.exec("INSERT INTO trust (version, envelope) VALUES (?, ?)", row.Version, row.Envelope)
}

// metaClaim is what hosts have seen of trust files that this store does not know.
const metaClaim = "trust_claim"

// Claim reads what hosts have seen; see identity.Tx.
func (t *Tx) Claim() (c identity.Claim, err error) {
	text, err := t.Meta(metaClaim)
	if err != nil || text == "" {
		return c, err
	}
	return c, json.Unmarshal([]byte(text), &c)
}

// PutClaim keeps it.
func (t *Tx) PutClaim(c identity.Claim) error {
	text, err := jsonText(c)
	if err != nil {
		return err
	}
	return t.PutMeta(metaClaim, text)
}

// UnsignedTrust reads the content that waits for the root key.
func (t *Tx) UnsignedTrust() ([]byte, error) {
	var content []byte
	err := t.row("SELECT content FROM trust_unsigned").Scan(&content)
	if err != nil && !noRows(err) {
		return nil, fmt.Errorf("reading the unsigned trust file: %w", err)
	}
	return content, nil
}

// PutUnsignedTrust replaces the content that waits.
func (t *Tx) PutUnsignedTrust(content []byte) error {
	if err := t.exec("DELETE FROM trust_unsigned"); err != nil || content == nil {
		return err
	}
	return t.exec("INSERT INTO trust_unsigned (only, content) VALUES (1, ?)", content)
}

// TrustSignatures reads the root keys' signatures over the content that waits.
func (t *Tx) TrustSignatures() (list []grant.RootSignature, err error) {
	var text string
	err = t.row("SELECT signatures FROM trust_unsigned").Scan(&text)
	if noRows(err) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &list)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the signatures of the unsigned trust file: %w", err)
	}
	return list, nil
}

// PutTrustSignatures replaces them.
func (t *Tx) PutTrustSignatures(list []grant.RootSignature) error {
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encoding the signatures of a trust file: %w", err)
	}
	return t.exec("UPDATE trust_unsigned SET signatures = ?", string(text))
}

// NewestTrust returns the newest signed envelope; see enrol.Store.
func (s *Store) NewestTrust(ctx context.Context) (env []byte, err error) {
	err = s.View(ctx, func(t *Tx) error {
		row, err := t.NewestTrust()
		env = row.Envelope
		return err
	})
	return env, err
}

// TrustAfter returns all newer versions in order; see stream.Store.
func (s *Store) TrustAfter(ctx context.Context, version uint64) (out []stream.Trust, err error) {
	err = s.View(ctx, func(t *Tx) error {
		out, err = list(t, func(scan func(...any) error) (v stream.Trust, err error) {
			err = scan(&v.Version, &v.Envelope)
			return v, err
		}, "SELECT version, envelope FROM trust WHERE version > ? ORDER BY version", version)
		return err
	})
	return out, err
}
