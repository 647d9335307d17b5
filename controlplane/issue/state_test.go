package issue_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func TestStateListsTheLiveGrants(t *testing.T) {
	m := &memory{facts: issue.StateFacts{
		Epoch: 3, Live: []grant.ID{{9}, {1}, {5}, {1}},
		Ended: []issue.Ended{
			{ID: grant.ID{8}, Cause: curfewv1.EndCause_END_CAUSE_REVOKED, By: "bob"},
			{ID: grant.ID{5}, Cause: curfewv1.EndCause_END_CAUSE_EXPIRED},
			{ID: grant.ID{2}, Cause: curfewv1.EndCause_END_CAUSE_EXTENDED},
			{ID: grant.ID{8}, Cause: curfewv1.EndCause_END_CAUSE_EXPIRED},
		},
	}}
	i := newIssuer(t, m)
	m.grow(t, 100)
	host, nonce := grant.HostID{7}, bytes.Repeat([]byte{1}, grant.NonceSize)
	sealed, err := i.SealState(context.Background(), host, nonce, 37, false)
	if err != nil {
		t.Fatal(err)
	}
	s, err := grant.OpenState(sealed.State.GetEnvelope(), []ed25519.PublicKey{i.PublicKey()})
	if err != nil {
		t.Fatal(err)
	}
	var live, ended []string
	for _, id := range s.GetLive() {
		live = append(live, fmt.Sprint(id[0]))
	}
	for _, e := range s.GetEnded() {
		ended = append(ended, fmt.Sprint(e.GetGrantId()[0]))
	}
	if got := strings.Join(live, " "); got != "1 5 9" {
		t.Errorf("live are %s", got)
	}
	// What is live is not ended, whatever the store says.
	if got := strings.Join(ended, " "); got != "2 8" {
		t.Errorf("ended are %s", got)
	}
	if !bytes.Equal(s.GetHostId(), host[:]) || s.GetEpoch() != 3 || s.GetSequence() != 1 ||
		!bytes.Equal(s.GetNonce(), nonce) || s.GetIssuedAtMs() != noon.UnixMilli() ||
		s.GetValidForMs() != issue.DefaultLease.Milliseconds() {
		t.Errorf("state says %v", s)
	}
	if !slices.Equal(sealed.Live, []grant.ID{{1}, {5}, {9}}) || sealed.TrailCount != 100 {
		t.Errorf("sealed says %+v", sealed)
	}
	head := func(n uint64) []byte {
		h, err := trail.Head(n, m.TrailHashes(context.Background()))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	proof := sealed.State.GetProof()
	err = trail.CheckExtends(37, head(37), s.GetTrailCount(), s.GetTrailHead(), proof)
	if err != nil || sealed.State.GetProofFrom() != 37 {
		t.Errorf("proof from %d: %v", sealed.State.GetProofFrom(), err)
	}
	if err := trail.CheckExtends(37, head(36), 100, s.GetTrailHead(), proof); err == nil {
		t.Error("the proof proves anything")
	}
}

func TestSequencesGrow(t *testing.T) {
	m := &memory{facts: issue.StateFacts{Epoch: 1}}
	i := newIssuer(t, m)
	seen := make(map[uint64]bool)
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	for range 20 {
		wg.Go(func() {
			s, err := i.SealState(context.Background(), grant.HostID{1}, nil, 0, false)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[s.Sequence] || s.Sequence == 0 {
				t.Errorf("sequence %d was sealed twice", s.Sequence)
			}
			seen[s.Sequence] = true
		})
	}
	wg.Wait()
}

// A host that has seen more of the trail than there is gets a state that it can refuse, and the
// caller hears why.
func TestARestoredControlPlaneIsNoticed(t *testing.T) {
	m := &memory{facts: issue.StateFacts{Epoch: 1}}
	i := newIssuer(t, m)
	m.grow(t, 10)
	sealed, err := i.SealState(context.Background(), grant.HostID{1}, nil, 11, false)
	if err != nil || !sealed.Behind {
		t.Errorf("behind %v, %v", sealed, err)
	}
	sealed, err = i.SealState(context.Background(), grant.HostID{1}, nil, 10, false)
	if err != nil || sealed.Behind {
		t.Errorf("at the same count: %v, %v", sealed, err)
	}
}

func TestNoStateWithoutAStore(t *testing.T) {
	m := &memory{err: issue.ErrNoHost}
	_, err := newIssuer(t, m).SealState(context.Background(), grant.HostID{1}, nil, 0, false)
	if !errors.Is(err, issue.ErrNoHost) {
		t.Errorf("unknown host: %v", err)
	}
}

// What a rollout wants stands in states of hosts that follow, and in no last state.
func TestOnlyFollowersAreSentWishes(t *testing.T) {
	want := &curfewv1.Rollout{
		Id: "rollout00001", Attempt: 2, Wish: curfewv1.RolloutWish_ROLLOUT_WISH_KEEP,
	}
	m := &memory{facts: issue.StateFacts{Epoch: 1, Rollout: want}}
	i := newIssuer(t, m)
	rollout := func(follows bool) *curfewv1.Rollout {
		t.Helper()
		sealed, err := i.SealState(context.Background(), grant.HostID{1}, nil, 0, follows)
		if err != nil {
			t.Fatal(err)
		}
		s, err := grant.OpenState(sealed.State.GetEnvelope(), []ed25519.PublicKey{i.PublicKey()})
		if err != nil {
			t.Fatal(err)
		}
		return s.GetRollout()
	}
	if got := rollout(true); !proto.Equal(got, want) {
		t.Errorf("a host that follows is sent %v", got)
	}
	if got := rollout(false); got != nil {
		t.Errorf("a host that does not follow is sent %v", got)
	}
	m.facts.Last = true
	if got := rollout(true); got != nil {
		t.Errorf("a host that was removed is sent %v", got)
	}
}
