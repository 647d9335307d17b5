package store_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/trail"
)

// What the writer remembers of the directory is never older than what is committed, nor newer: not
// after a change of ours, not within it, not after one that failed, and not after somebody else's.
func TestRememberedIsWhatIsCommitted(t *testing.T) {
	path, s := fresh(t)
	asSeen := func(tx *store.Tx) (u identity.User, disabled []string, row identity.TrustRow) {
		t.Helper()
		u, err := tx.User("alice")
		disabled, errDisabled := tx.DisabledUsers()
		row, errTrust := tx.NewestTrust()
		if err := errors.Join(err, errDisabled, errTrust); err != nil {
			t.Error(err)
		}
		return u, disabled, row
	}
	update := func(do func(tx *store.Tx) error) {
		t.Helper()
		if err := s.Update(t.Context(), do); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, email string, disabled bool, groups []string, trust uint64) {
		t.Helper()
		for range 2 { // read, and remembered
			update(func(tx *store.Tx) error {
				u, off, row := asSeen(tx)
				if u.Email != email || u.Disabled != disabled || !slices.Equal(u.Groups, groups) ||
					(len(off) == 1) != disabled || row.Version != trust {
					t.Errorf("%s: %q, disabled %t, %q, trust %d, off %q", when, u.Email, u.Disabled, u.Groups,
						row.Version, off)
				}
				for i := range u.Groups {
					u.Groups[i] = "spoilt" // by one reader, for itself
				}
				return nil
			})
		}
	}
	alice := user("alice", keyA)
	alice.Email = "a@x"
	update(func(tx *store.Tx) (err error) {
		alice, err = tx.PutUser(alice, time.Now())
		return errors.Join(err, tx.PutTrust(identity.TrustRow{Version: 1, Envelope: []byte("x")}),
			tx.PutGroup(identity.Group{Name: "ops", Members: []string{"alice"}}))
	})
	check("at first", "a@x", false, []string{"ops"}, 1)
	no := errors.New("no")
	change := func(tx *store.Tx) error {
		u := alice
		u.Email, u.Disabled = "b@x", true
		asSeen(tx) // remembered before it is changed
		_, err := tx.PutUser(u, time.Now())
		err = errors.Join(err, tx.PutTrust(identity.TrustRow{Version: 2, Envelope: []byte("y")}),
			tx.DeleteGroup("ops"))
		if is, off, row := asSeen(tx); is.Email != "b@x" || len(off) != 1 || row.Version != 2 ||
			len(is.Groups) != 0 {
			t.Errorf("a change reads %q, %q, %d, %q after itself", is.Email, off, row.Version, is.Groups)
		}
		return err
	}
	err := s.Update(t.Context(), func(tx *store.Tx) error { return errors.Join(change(tx), no) })
	if !errors.Is(err, no) {
		t.Fatal(err)
	}
	check("after a change that failed", "a@x", false, []string{"ops"}, 1)
	update(change)
	check("after a change", "b@x", true, nil, 2)
	exec(t, path, "UPDATE users SET email = 'c@x', disabled = 0; INSERT INTO trust VALUES (3, x'00')")
	check("after another's change", "c@x", false, nil, 3)
}

// The trail goes on where it ends, also when another process put something there in between.
func TestTheTrailGoesOnWhereItEnds(t *testing.T) {
	path, s := fresh(t)
	put := func(s *store.Store, n int) {
		t.Helper()
		for range n {
			err := s.AppendRecord(t.Context(), trail.Record{Kind: "test", Actor: "w"})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	other := open(t, path, nil)
	for n := range 12 {
		put(s, n%4)
		put(other, n%3)
	}
	if n := len(checkTrail(t, s)); n != 18+12 {
		t.Errorf("the trail has %d records", n)
	}
}
