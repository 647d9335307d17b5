package store_test

import (
	"crypto/ed25519"
	"slices"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/rollout"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var rolloutHost = grant.HostID{1}

// rolling has a rollout that runs, and a host.
func rolling(t *testing.T, s *store.Store) rollout.Rollout {
	t.Helper()
	err := s.EnrolInstance(t.Context(), [32]byte{1}, enrol.Host{
		ID: rolloutHost, Name: "web1", RootKey: make(ed25519.PublicKey, ed25519.PublicKeySize),
		EnrolledAt: time.Now(), CertificateEnds: time.Now(),
	}, trail.Record{Kind: "host.enrolled", Actor: "test"})
	if err != nil {
		t.Fatal(err)
	}
	r := rollout.Rollout{
		Plan: rollout.Plan{
			ID: "rollout00001", Name: "winter", Stages: []map[string]string{{"env": "prod"}}, Soak: time.Hour,
			MaxRefusals: 3, PauseOnRefusals: true, StartedBy: "dana", Started: time.UnixMilli(7),
		},
		Progress: rollout.Progress{State: rollout.Running, StageSince: time.UnixMilli(7)},
	}
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.AddRollout(r) }); err != nil {
		t.Fatal(err)
	}
	return r
}

// A host is told at once when what is wanted of it changes, and only then.
func TestChangedWishesReachTheHost(t *testing.T) {
	var told []watch.Change
	s := open(t, t.TempDir()+"/curfew.db", func(c watch.Change) { told = append(told, c) })
	r := rolling(t, s)
	put := func(h rollout.Host) bool {
		t.Helper()
		told = nil
		err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.PutRolloutHost(r.ID, h) })
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(told, func(c watch.Change) bool { return slices.Contains(c.Hosts, rolloutHost) })
	}
	h := rollout.Host{ID: rolloutHost, State: rollout.Waiting, Since: time.UnixMilli(8), Detail: "x"}
	if put(h) {
		t.Error("somebody was told of nothing")
	}
	h.State, h.Attempt, h.Wish = rollout.Checking, 1, curfewv1.RolloutWish_ROLLOUT_WISH_TRY
	if !put(h) {
		t.Error("nobody was told")
	}
	h.State = rollout.Trial
	if put(h) {
		t.Error("the host was told again")
	}
	var hosts []rollout.Host
	var again rollout.Rollout
	err := s.View(t.Context(), func(tx *store.Tx) (err error) {
		if hosts, err = tx.RolloutHosts(r.ID); err != nil {
			return err
		}
		again, err = tx.RolloutNamed("winter")
		return err
	})
	if err != nil || len(hosts) != 1 || hosts[0] != h {
		t.Errorf("stored are %+v, %v", hosts, err)
	}
	if again.Progress != r.Progress || again.ID != r.ID || again.Soak != r.Soak || !again.Started.Equal(r.Started) ||
		again.Stages[0]["env"] != "prod" {
		t.Errorf("stored is %+v", again)
	}
}

// A restored store switches nobody until an admin has looked.
func TestRestorePausesRollouts(t *testing.T) {
	_, s := fresh(t)
	rolling(t, s)
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.Forget() }); err != nil {
		t.Fatal(err)
	}
	err := s.View(t.Context(), func(tx *store.Tx) error {
		due, err := tx.RolloutsDue()
		if err == nil && (len(due) != 1 || due[0].State != rollout.Paused || due[0].Reason == "") {
			t.Errorf("it is %s: %s", due[0].State, due[0].Reason)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
