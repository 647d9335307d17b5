package issue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// MaxEnded is how many recently ended grants a host state names. Absence from the live set is what
// ends a grant; these are for the words that a person sees.
const MaxEnded = 256

// Sealed is a host state ready to be sent.
type Sealed struct {
	// State is the message: the envelope and the proof beside it.
	State           *curfewv1.State
	Epoch, Sequence uint64
	// TrustVersion is the newest trust file's.
	TrustVersion uint64
	// Live are the grants that the state lists, sorted.
	Live       []grant.ID
	TrailCount uint64
	// Behind is true when the host has seen more of the trail than there is: this control plane was
	// restored from a backup, and the host will refuse the state.
	Behind bool
	// Last: the host was removed, and this ends everything there.
	Last bool
}

// SealState allocates the host's next sequence and seals the state that goes with it. nonce is the
// newest heartbeat's, or empty. trailFrom is how many trail records the host has seen; the proof
// starts there. follows is whether the host follows rollouts: no other must be sent what one wants.
// ErrNoHost when the host is not enrolled.
func (i *Issuer) SealState(
	ctx context.Context, host grant.HostID, nonce []byte, trailFrom uint64, follows bool,
) (*Sealed, error) {
	facts, err := i.store.NextState(ctx, host, i.now(), MaxEnded)
	if err != nil {
		return nil, fmt.Errorf("allocating the next state of host %s: %w", host, err)
	}
	hashes := &remembered{from: i.store.TrailHashes(ctx), seen: make(map[int64]tlog.Hash)}
	head, err := trail.Head(facts.TrailCount, hashes)
	if err != nil {
		return nil, fmt.Errorf("sealing the state of host %s: %w", host, err)
	}
	if !follows || facts.Last {
		facts.Rollout = nil
	}
	live := slices.Clone(facts.Live)
	slices.SortFunc(live, compareIDs)
	live = slices.Compact(live)
	env, err := grant.SealState(&curfewv1.HostState{
		Version: grant.Version, HostId: host[:], Epoch: facts.Epoch, Sequence: facts.Sequence,
		Live: bytesOf(live), Ended: endedOf(facts.Ended, live), IssuedAtMs: i.now().UnixMilli(),
		ValidForMs: i.lease.Milliseconds(), Nonce: nonce,
		TrailCount: facts.TrailCount, TrailHead: head, Rollout: facts.Rollout,
	}, i.key)
	if err != nil {
		return nil, fmt.Errorf("sealing the state of host %s: %w", host, err)
	}
	s := &Sealed{
		State: &curfewv1.State{Envelope: env, ProofFrom: trailFrom},
		Epoch: facts.Epoch, Sequence: facts.Sequence, Live: live, TrailCount: facts.TrailCount,
		TrustVersion: facts.TrustVersion, Last: facts.Last,
	}
	s.State.Proof, err = trail.Prove(trailFrom, facts.TrailCount, hashes)
	if errors.Is(err, trail.ErrRewritten) {
		s.Behind, s.State.ProofFrom = true, 0
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sealing the state of host %s: %w", host, err)
	}
	return s, nil
}

// remembered reads each stored hash once: a head and a proof share most of theirs.
type remembered struct {
	from tlog.HashReader
	seen map[int64]tlog.Hash
}

// ReadHashes implements tlog.HashReader.
func (r *remembered) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var lack []int64
	for _, x := range indexes {
		if _, ok := r.seen[x]; !ok {
			lack = append(lack, x)
		}
	}
	if len(lack) > 0 {
		got, err := r.from.ReadHashes(lack)
		if err != nil {
			return nil, err
		}
		if len(got) != len(lack) {
			return nil, fmt.Errorf("read %d of %d trail hashes", len(got), len(lack))
		}
		for k, x := range lack {
			r.seen[x] = got[k]
		}
	}
	out := make([]tlog.Hash, len(indexes))
	for k, x := range indexes {
		out[k] = r.seen[x]
	}
	return out, nil
}

func compareIDs(a, b grant.ID) int { return bytes.Compare(a[:], b[:]) }

func bytesOf(ids []grant.ID) [][]byte {
	out := make([][]byte, 0, len(ids))
	for _, id := range ids {
		out = append(out, id[:])
	}
	return out
}

// endedOf sorts by id, drops doubles and whatever is live after all.
func endedOf(ended []Ended, live []grant.ID) []*curfewv1.Ended {
	ended = slices.Clone(ended[:min(len(ended), MaxEnded)])
	slices.SortFunc(ended, func(a, b Ended) int { return compareIDs(a.ID, b.ID) })
	ended = slices.CompactFunc(ended, func(a, b Ended) bool { return a.ID == b.ID })
	var out []*curfewv1.Ended
	for _, e := range ended {
		if _, isLive := slices.BinarySearchFunc(live, e.ID, compareIDs); isLive {
			continue
		}
		word := &curfewv1.Ended{GrantId: e.ID[:], Cause: e.Cause, By: e.By}
		if !e.HardEnd.IsZero() {
			word.HardEndMs = e.HardEnd.UnixMilli()
		}
		out = append(out, word)
	}
	return out
}

func approvers(as []*curfewv1.Approval) string {
	names := make([]string, 0, len(as))
	for _, a := range as {
		names = append(names, a.GetApprover())
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), " ")
}
