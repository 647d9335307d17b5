package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
)

// Kinds of trail records about the trust file.
const (
	KindTrustSigned  = "trust.signed"
	KindTrustWaiting = "trust.waiting"
)

// Trust opens a stored trust file. What is stored was verified when it was put there.
func Trust(row TrustRow) (*grant.Trust, error) {
	t, err := grant.OpenTrust(row.Envelope, nil)
	if err != nil {
		return nil, fmt.Errorf("stored trust version %d: %w", row.Version, err)
	}
	return t, nil
}

// FirstTrust is version 1 of a new organisation: no approvers, no quorums, nothing is granted yet.
func FirstTrust(organisation string, root, issuer ed25519.PublicKey) *grant.Trust {
	return &grant.Trust{
		Version: 1, Organisation: organisation, Epoch: 1, RootThreshold: 1,
		RootKeys: []grant.Key{grant.Key(root)}, IssuerKeys: []grant.Key{grant.Key(issuer)},
		Approvers: []grant.Approver{}, Quorums: []grant.Quorum{},
	}
}

// refreshTrust makes the trust file say what the directory says. Without enough root keys here the
// new content waits for `curfew admin trust sign`.
func (s *Service) refreshTrust(tx Tx, by string) error {
	current, next, err := s.draft(tx)
	if err != nil {
		return err
	}
	same := *next
	same.Version = current.Version
	if equal, err := equalTrust(current, &same); err != nil || equal {
		return errors.Join(err, tx.PutUnsignedTrust(nil))
	}
	_, err = s.propose(tx, current, next, by)
	return err
}

// equalTrust compares content; both still have the same version.
func equalTrust(a, b *grant.Trust) (bool, error) {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return bytes.Equal(x, y), errors.Join(errX, errY)
}

// TrustNow returns the trust file in force and the content that waits for root signatures.
func (s *Service) TrustNow(ctx context.Context) (row TrustRow, w Waiting, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		if row, err = tx.NewestTrust(); err != nil {
			return err
		}
		if w.Content, err = tx.UnsignedTrust(); err != nil || w.Content == nil {
			return err
		}
		signatures, err := tx.TrustSignatures()
		if err != nil {
			return err
		}
		current, err := Trust(row)
		if err != nil {
			return err
		}
		next, err := grant.ParseTrust(w.Content)
		if err == nil {
			w.Text = missingText(current, next, current.Signed(signatures), next.Signed(signatures))
		}
		return err
	})
	return row, w, err
}

// SignTrust signs what waits with root keys and puts it into force when they suffice.
func (s *Service) SignTrust(ctx context.Context, by string, keys []ed25519.PrivateKey) (
	version uint64, w Waiting, err error,
) {
	_, waiting, err := s.TrustNow(ctx)
	if err != nil {
		return 0, w, err
	}
	if waiting.Content == nil {
		return 0, w, reason.NotFound("no trust file waits for a signature")
	}
	for _, key := range keys {
		version, w, err = s.AddSignature(ctx, by, waiting.Content, grant.SignTrust(waiting.Content, key))
		if err != nil || w.Text == "" {
			break
		}
	}
	return version, w, err
}

// BumpEpoch makes hosts accept states numbered anew: the way back after a restore. Without root keys
// the new file waits for them.
func (s *Service) BumpEpoch(ctx context.Context, by string) (signed bool, err error) {
	w, err := s.ProposeTrust(ctx, by, Change{BumpEpoch: true})
	return w.Text == "", err
}
