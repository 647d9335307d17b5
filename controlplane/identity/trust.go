package identity

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
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
// new content waits for `curfew-controlplane trust sign`.
func (s *Service) refreshTrust(tx Tx, by string) error {
	row, err := tx.NewestTrust()
	if err != nil {
		return err
	}
	current, err := Trust(row)
	if err != nil {
		return err
	}
	next := *current
	if next.Approvers, next.Quorums, err = trustees(tx); err != nil {
		return err
	}
	same, err := equalTrust(current, &next)
	if err != nil {
		return err
	}
	if same {
		return tx.PutUnsignedTrust(nil)
	}
	next.Version++
	keys, err := s.c.RootKeys()
	if err != nil {
		return err
	}
	if len(keys) < current.RootThreshold {
		return s.putWaiting(tx, &next, by)
	}
	return s.putSigned(tx, current, &next, by, keys)
}

func (s *Service) putWaiting(tx Tx, next *grant.Trust, by string) error {
	content, err := grant.MarshalTrust(next)
	if err != nil {
		return reason.Limit("the trust file cannot hold this: %v", err)
	}
	s.c.Log.Warn("the trust file waits for the root key: curfew-controlplane trust sign")
	return errors.Join(tx.PutUnsignedTrust(content), tx.Append(trail.Record{
		TimeMS: s.c.Now().UnixMilli(), Kind: KindTrustWaiting, Actor: by,
		Details: map[string]string{"version": fmt.Sprint(next.Version)},
	}))
}

func (s *Service) putSigned(
	tx Tx, current, next *grant.Trust, by string, keys []ed25519.PrivateKey,
) error {
	env, err := grant.SealTrust(next, keys...)
	if err != nil {
		return reason.Limit("the trust file cannot hold this: %v", err)
	}
	if _, err := grant.OpenTrust(env, current); err != nil {
		return fmt.Errorf("the root keys do not sign for this trust file: %w", err)
	}
	return errors.Join(
		tx.PutTrust(TrustRow{Version: next.Version, Envelope: env}), tx.PutUnsignedTrust(nil),
		tx.Append(trail.Record{
			TimeMS: s.c.Now().UnixMilli(), Kind: KindTrustSigned, Actor: by,
			Details: map[string]string{
				"version": fmt.Sprint(next.Version), "epoch": fmt.Sprint(next.Epoch),
				"approvers": fmt.Sprint(len(next.Approvers)),
			},
		}))
}

// equalTrust compares content; both still have the same version.
func equalTrust(a, b *grant.Trust) (bool, error) {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return bytes.Equal(x, y), errors.Join(errX, errY)
}

// trustees are the approvers and quorums that the directory gives: enabled people with keys, in the
// groups that some role names as approver group.
func trustees(tx Tx) ([]grant.Approver, []grant.Quorum, error) {
	roles, err := tx.Roles()
	if err != nil {
		return nil, nil, err
	}
	users, err := tx.Users()
	if err != nil {
		return nil, nil, err
	}
	quorums, groups := []grant.Quorum{}, make(map[string]bool)
	for _, r := range roles {
		groups[r.ApproverGroup] = true
		quorums = append(quorums,
			grant.Quorum{Role: r.Name, Group: r.ApproverGroup, Approvals: r.Approvals})
	}
	approvers := []grant.Approver{}
	for _, u := range users {
		in := slices.DeleteFunc(slices.Clone(u.Groups), func(g string) bool { return !groups[g] })
		if len(in) > 0 && len(u.SSHKeys) > 0 && !u.Disabled {
			approvers = append(approvers, grant.Approver{Name: u.Name, Groups: in, SSHKeys: u.SSHKeys})
		}
	}
	slices.SortFunc(approvers, func(a, b grant.Approver) int { return strings.Compare(a.Name, b.Name) })
	return approvers, quorums, nil
}

// TrustNow returns the trust file in force and the content that waits for root signatures.
func (s *Service) TrustNow(ctx context.Context) (row TrustRow, unsigned []byte, err error) {
	err = s.c.Store.View(ctx, func(tx Tx) error {
		var errRow, errContent error
		row, errRow = tx.NewestTrust()
		unsigned, errContent = tx.UnsignedTrust()
		return errors.Join(errRow, errContent)
	})
	return row, unsigned, err
}

// SignTrust signs what waits with root keys and puts it into force.
func (s *Service) SignTrust(
	ctx context.Context, by string, keys []ed25519.PrivateKey,
) (next *grant.Trust, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		content, err := tx.UnsignedTrust()
		if err != nil {
			return err
		}
		if content == nil {
			return reason.NotFound("no trust file waits for a signature")
		}
		next = new(grant.Trust)
		if err := json.Unmarshal(content, next); err != nil {
			return fmt.Errorf("the trust file that waits: %w", err)
		}
		row, err := tx.NewestTrust()
		if err != nil {
			return err
		}
		current, err := Trust(row)
		if err != nil {
			return err
		}
		return s.putSigned(tx, current, next, by, keys)
	})
	return next, err
}

// BumpEpoch makes hosts accept states numbered anew: the way back after a restore. Version and epoch
// are taken from the clock, so that they exceed whatever the lost store gave out and whatever an
// earlier restore of the same backup gave out. Without root keys the new file waits for them.
func (s *Service) BumpEpoch(ctx context.Context, by string) (signed bool, err error) {
	err = s.c.Store.Update(ctx, func(tx Tx) error {
		row, err := tx.NewestTrust()
		if err != nil {
			return err
		}
		current, err := Trust(row)
		if err != nil {
			return err
		}
		next, clock := *current, uint64(max(s.c.Now().Unix(), 0))
		if next.Approvers, next.Quorums, err = trustees(tx); err != nil {
			return err
		}
		next.Version, next.Epoch = max(next.Version+1, clock), max(next.Epoch+1, clock)
		keys, err := s.c.RootKeys()
		if err != nil {
			return err
		}
		if signed = len(keys) >= current.RootThreshold; !signed {
			return s.putWaiting(tx, &next, by)
		}
		return s.putSigned(tx, current, &next, by, keys)
	})
	return signed, err
}
