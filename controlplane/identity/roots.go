package identity

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// KindTrustSignature is the trail record of one root key's signature that came in.
const KindTrustSignature = "trust.signature"

// Change is what admins propose of the trust file beside what the directory says.
type Change struct {
	RootKeys      []ed25519.PublicKey // empty: they stay
	RootThreshold int                 // 0: it stays
	IssuerKeys    []ed25519.PublicKey // empty: they stay
	BumpEpoch     bool
}

// Waiting is content of a trust file that not enough root keys have signed yet.
type Waiting struct {
	Content []byte
	// Text says in words what is still needed; empty when nothing waits.
	Text string
}

// ProposeTrust draws up the next trust file with a change of its keys or its epoch. It is in force as
// soon as the root thresholds of the present one and of the new one are reached: root keys that lie
// here sign at once.
func (s *Service) ProposeTrust(ctx context.Context, by string, c Change) (w Waiting, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		current, next, err := s.draft(tx)
		if err != nil {
			return err
		}
		if len(c.RootKeys) > 0 {
			next.RootKeys = trustKeys(c.RootKeys)
		}
		if len(c.IssuerKeys) > 0 {
			next.IssuerKeys = trustKeys(c.IssuerKeys)
		}
		if c.RootThreshold != 0 {
			next.RootThreshold = c.RootThreshold
		}
		if c.BumpEpoch {
			claim, err := tx.Claim()
			if err != nil {
				return err
			}
			raise(next, current, claim, s.c.Now())
		}
		w, err = s.propose(tx, current, next, by)
		return err
	})
	return w, err
}

func trustKeys(keys []ed25519.PublicKey) []grant.Key {
	out := make([]grant.Key, 0, len(keys))
	for _, k := range keys {
		out = append(out, grant.Key(k))
	}
	return out
}

// raise gives a trust file a new epoch. Version and epoch are taken from the clock, in microseconds, so
// that they exceed whatever a lost store gave out and whatever an earlier restore of the same backup
// gave out. Where the clock was set back since, hosts say what they have seen: they exceed that, too.
func raise(next, current *grant.Trust, seen Claim, now time.Time) {
	clock := uint64(max(now.UnixMicro(), 0))
	next.Version = max(next.Version, clock, seen.Version+1)
	next.Epoch = max(next.Epoch, current.Epoch+1, clock, seen.Epoch+1)
}

// draft is the trust file in force and the next one as far as it is known: what waits already, else a
// copy, with the people and roles of the directory.
func (s *Service) draft(tx Tx) (current, next *grant.Trust, err error) {
	row, err := tx.NewestTrust()
	if err != nil {
		return nil, nil, err
	}
	if current, err = Trust(row); err != nil {
		return nil, nil, err
	}
	content, err := tx.UnsignedTrust()
	if err != nil {
		return nil, nil, err
	}
	draft := *current
	draft.Version++
	if content != nil {
		waiting, err := grant.ParseTrust(content)
		if err != nil {
			return nil, nil, fmt.Errorf("the trust file that waits: %w", err)
		}
		draft.RootKeys, draft.RootThreshold = waiting.RootKeys, waiting.RootThreshold
		draft.IssuerKeys = waiting.IssuerKeys
		draft.Version, draft.Epoch = max(draft.Version, waiting.Version), waiting.Epoch
	}
	return current, &draft, s.fillTrust(tx, &draft)
}

// propose puts a next trust file into force when enough root keys have signed it, those that lie here
// included, and has it wait otherwise. Signatures over a content that changed since are void.
func (s *Service) propose(tx Tx, current, next *grant.Trust, by string) (Waiting, error) {
	content, err := grant.MarshalTrust(next)
	if err != nil {
		return Waiting{}, reason.Limit("the trust file cannot hold this: %v", err)
	}
	waiting, err := tx.UnsignedTrust()
	if err != nil {
		return Waiting{}, err
	}
	var signatures []grant.RootSignature
	if string(waiting) == string(content) {
		if signatures, err = tx.TrustSignatures(); err != nil {
			return Waiting{}, err
		}
	} else if err := tx.PutUnsignedTrust(content); err != nil {
		return Waiting{}, err
	}
	keys, err := s.c.RootKeys()
	if err != nil {
		return Waiting{}, err
	}
	for _, key := range keys {
		signatures = withSignature(signatures, grant.SignTrust(content, key))
	}
	return s.complete(tx, current, next, content, signatures, by)
}

func withSignature(list []grant.RootSignature, s grant.RootSignature) []grant.RootSignature {
	for _, have := range list {
		if string(have.Key) == string(s.Key) {
			return list
		}
	}
	return append(list, s)
}

// complete puts what waits into force, or says what is still missing.
func (s *Service) complete(tx Tx, current, next *grant.Trust, content []byte,
	signatures []grant.RootSignature, by string,
) (Waiting, error) {
	old, fresh := current.Signed(signatures), next.Signed(signatures)
	if old >= current.RootThreshold && fresh >= next.RootThreshold {
		env, err := grant.AssembleTrust(content, signatures)
		if err != nil {
			return Waiting{}, err
		}
		if _, err := grant.OpenTrust(env, current); err != nil {
			return Waiting{}, fmt.Errorf("the root keys do not sign for this trust file: %w", err)
		}
		return Waiting{}, errors.Join(
			tx.PutTrust(TrustRow{Version: next.Version, Envelope: env}), tx.PutUnsignedTrust(nil),
			tx.Append(trail.Record{
				TimeMS: s.c.Now().UnixMilli(), Kind: KindTrustSigned, Actor: by,
				Details: map[string]string{
					"version": fmt.Sprint(next.Version), "epoch": fmt.Sprint(next.Epoch),
					"approvers": fmt.Sprint(len(next.Approvers)),
				},
			}))
	}
	s.c.Log.Warn("the trust file waits for root keys: curfew admin trust sign",
		"signatures", len(signatures))
	return Waiting{Content: content, Text: missingText(current, next, old, fresh)}, errors.Join(
		tx.PutTrustSignatures(signatures), tx.Append(trail.Record{
			TimeMS: s.c.Now().UnixMilli(), Kind: KindTrustWaiting, Actor: by,
			Details: map[string]string{
				"version": fmt.Sprint(next.Version), "signatures": fmt.Sprint(len(signatures)),
			},
		}))
}

func missingText(current, next *grant.Trust, old, fresh int) string {
	text := fmt.Sprintf("%d of %d root keys in force have signed", old, current.RootThreshold)
	x, errX := json.Marshal(current.RootKeys)
	y, errY := json.Marshal(next.RootKeys)
	if errX == nil && errY == nil && string(x) == string(y) &&
		current.RootThreshold == next.RootThreshold {
		return text
	}
	return fmt.Sprintf("%s, and %d of %d of the new ones", text, fresh, next.RootThreshold)
}

// AddSignature takes one root key's signature over the content that waits. The key may be of the trust
// file in force or of the one that waits.
func (s *Service) AddSignature(
	ctx context.Context, by string, content []byte, sig grant.RootSignature,
) (version uint64, w Waiting, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		waiting, err := tx.UnsignedTrust()
		if err != nil {
			return err
		}
		if waiting == nil {
			return reason.NotFound("no trust file waits for a signature")
		}
		if string(waiting) != string(content) {
			return reason.Conflict("the trust file that waits has changed since it was signed").
				WithHint("curfew admin trust sign")
		}
		if !sig.Valid(content) {
			return reason.Denied("the signature is not the key's over this trust file")
		}
		row, err := tx.NewestTrust()
		if err != nil {
			return err
		}
		current, err := Trust(row)
		if err != nil {
			return err
		}
		next, err := grant.ParseTrust(content)
		if err != nil {
			return err
		}
		one := []grant.RootSignature{sig}
		if current.Signed(one)+next.Signed(one) == 0 {
			return reason.Denied("key %s is a root key neither of the trust file in force nor of the "+
				"one that waits", grant.KeyID(ed25519.PublicKey(sig.Key))[:16])
		}
		signatures, err := tx.TrustSignatures()
		if err != nil {
			return err
		}
		err = tx.Append(trail.Record{
			TimeMS: s.c.Now().UnixMilli(), Kind: KindTrustSignature, Actor: by,
			Details: map[string]string{
				"version": fmt.Sprint(next.Version), "key": grant.KeyID(ed25519.PublicKey(sig.Key)),
			},
		})
		if err != nil {
			return err
		}
		version = current.Version
		w, err = s.complete(tx, current, next, content, withSignature(signatures, sig), by)
		if err == nil && w.Text == "" {
			version = next.Version
		}
		return err
	})
	return version, w, err
}
