package grant

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"time"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// NonceSize is the length in bytes of a heartbeat's nonce.
const NonceSize = 16

// MaxLease bounds the lease that a host state may give.
const MaxLease = 24 * time.Hour

// SealState checks a host state and seals it with the issuer's key.
func SealState(s *curfewv1.HostState, key ed25519.PrivateKey) ([]byte, error) {
	if err := checkState(s); err != nil {
		return nil, err
	}
	payload, err := canonical.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding a host state: %w", err)
	}
	env, err := Seal(TypeHostState, payload, key)
	if err == nil && len(env) > MaxHostState {
		err = fmt.Errorf("sealed host state of %d bytes is over the limit of %d",
			len(env), MaxHostState)
	}
	return env, err
}

// OpenState verifies a sealed host state under one of the issuers' keys and parses it. Whether it
// is for this host and newer than the last is the Ledger's to check.
func OpenState(env []byte, issuers []ed25519.PublicKey) (*curfewv1.HostState, error) {
	payload, err := Open(env, TypeHostState, MaxHostState, 1, issuers)
	if err != nil {
		return nil, fmt.Errorf("host state: %w", err)
	}
	s := new(curfewv1.HostState)
	if err := unmarshalCanonical(payload, s); err != nil {
		return nil, fmt.Errorf("host state: %w", err)
	}
	return s, checkState(s)
}

func checkState(s *curfewv1.HostState) error {
	if err := checkStateFields(s); err != nil {
		return fmt.Errorf("%w: host state: %w", ErrMalformed, err)
	}
	return nil
}

func checkStateFields(s *curfewv1.HostState) error {
	if s.GetVersion() != Version {
		return fmt.Errorf("version %d, want %d", s.GetVersion(), Version)
	}
	if _, err := HostIDFromBytes(s.GetHostId()); err != nil {
		return err
	}
	if s.GetEpoch() == 0 || s.GetSequence() == 0 || s.GetIssuedAtMs() <= 0 {
		return errors.New("epoch, sequence or time of issue is missing")
	}
	if v := s.GetValidForMs(); v <= 0 || v > MaxLease.Milliseconds() {
		return fmt.Errorf("lease of %d ms: want more than 0 and at most %s", v, MaxLease)
	}
	if n := len(s.GetNonce()); n != 0 && n != NonceSize {
		return fmt.Errorf("nonce has %d bytes, want %d or none", n, NonceSize)
	}
	if n := len(s.GetTrailHead()); n != sha256.Size && s.GetTrailCount() != 0 ||
		n != 0 && s.GetTrailCount() == 0 || s.GetTrailCount() > math.MaxInt64 {
		return fmt.Errorf("trail head has %d bytes for %d records", n, s.GetTrailCount())
	}
	if len(s.GetLive()) > MaxLive || len(s.GetEnded()) > MaxLive {
		return fmt.Errorf("more than %d grants", MaxLive)
	}
	if err := checkSortedIDs(s.GetLive()); err != nil {
		return fmt.Errorf("live grants: %w", err)
	}
	ended := make([][]byte, 0, len(s.GetEnded()))
	for _, e := range s.GetEnded() {
		ended = append(ended, e.GetGrantId())
		if len(e.GetBy()) > 255 {
			return errors.New("name of who ended a grant is too long")
		}
	}
	if err := checkSortedIDs(ended); err != nil {
		return fmt.Errorf("ended grants: %w", err)
	}
	return checkRollout(s.GetRollout())
}

func checkRollout(r *curfewv1.Rollout) error {
	if r == nil {
		return nil
	}
	if err := CheckRequestID(r.GetId()); err != nil { // the same form
		return fmt.Errorf("rollout: %w", err)
	}
	switch r.GetWish() {
	case curfewv1.RolloutWish_ROLLOUT_WISH_TRY, curfewv1.RolloutWish_ROLLOUT_WISH_KEEP,
		curfewv1.RolloutWish_ROLLOUT_WISH_RETURN:
	default:
		return fmt.Errorf("rollout: unknown wish %d", r.GetWish())
	}
	if r.GetAttempt() == 0 {
		return errors.New("rollout: attempts are numbered from 1")
	}
	return nil
}

func checkSortedIDs(ids [][]byte) error {
	for i, id := range ids {
		if _, err := IDFromBytes(id); err != nil {
			return err
		}
		if i > 0 && bytes.Compare(ids[i-1], id) >= 0 {
			return errors.New("not sorted, or one stands twice")
		}
	}
	return nil
}
