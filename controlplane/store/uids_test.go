package store_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/store"
)

// `make uids` plays 100,000 cycles.
var (
	uidCycles = flag.Int("uid-cycles", 1000, "how often users come and go")
	uidSeed   = flag.Uint64("uid-seed", 0, "plays a failed game again; 0 draws one")
)

// TestNoUIDIsGivenTwice lets users come, be disabled and come back, in transactions of which some
// fail, through restarts and through restores of backups, of which one is restored again and again.
// No uid ever stands for two people, in no life of the store, and nobody's uid changes.
func TestNoUIDIsGivenTwice(t *testing.T) {
	seed := *uidSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	path := filepath.Join(dir, "0.db")
	s := open(t, path, nil)
	owner := make(map[uint32]string)   // for ever
	current := make(map[string]uint32) // in this life of the store
	type backup struct {
		path  string
		users map[string]uint32
	}
	var backups []backup
	names, lives := 0, 1
	clock := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC) // a new user takes ten seconds
	for cycle := 0; cycle < *uidCycles; {
		switch n := draw.IntN(1000); {
		case n < 10:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, path, nil)
		case n < 20 && len(backups) < 5:
			b := backup{
				path:  filepath.Join(dir, fmt.Sprintf("backup%d.db", cycle)),
				users: map[string]uint32{},
			}
			if err := s.Snapshot(t.Context(), b.path); err != nil {
				t.Fatal(err)
			}
			for name, uid := range current {
				b.users[name] = uid
			}
			backups = append(backups, b)
		case n < 25 && len(backups) > 0:
			b := backups[draw.IntN(len(backups))]
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			lives++
			path = filepath.Join(dir, fmt.Sprintf("%d.db", lives))
			s = open(t, b.path, nil)
			if err := errors.Join(s.Snapshot(t.Context(), path), s.Close()); err != nil {
				t.Fatal(err)
			}
			s = open(t, path, nil)
			if err := s.Update(t.Context(), func(tx *store.Tx) error {
				return tx.SkipUIDs(clock)
			}); err != nil {
				t.Fatal(err)
			}
			current = map[string]uint32{}
			for name, uid := range b.users {
				current[name] = uid
			}
		}
		batch := 1 + draw.IntN(50)
		cycle += batch
		clock = clock.Add(time.Duration(batch) * 10 * time.Second)
		fails := draw.IntN(10) == 0
		var made []identity.User
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			made = nil
			for range batch {
				u := user(fmt.Sprintf("user%d", draw.IntN(names+1)))
				if draw.IntN(3) > 0 {
					names++
					u = user(fmt.Sprintf("user%d", names))
				}
				if was, err := tx.User(u.Name); err == nil {
					u = was
					u.Disabled = !was.Disabled
				} else if !errors.Is(err, identity.ErrNone) {
					return err
				}
				is, err := tx.PutUser(u, time.Now())
				if err != nil {
					return err
				}
				made = append(made, is)
			}
			if fails {
				return errFails
			}
			return nil
		})
		if fails != errors.Is(err, errFails) || !fails && err != nil {
			t.Fatal(err)
		}
		if fails {
			continue
		}
		for _, u := range made {
			if other, taken := owner[u.UID]; taken && other != u.Name {
				t.Fatalf("cycle %d: uid %d is %s's and %s's", cycle, u.UID, other, u.Name)
			}
			if have, known := current[u.Name]; known && have != u.UID {
				t.Fatalf("cycle %d: %s has uid %d and %d", cycle, u.Name, have, u.UID)
			}
			owner[u.UID], current[u.Name] = u.Name, u.UID
		}
	}
	if len(owner) < *uidCycles/4 {
		t.Errorf("%d uids in %d cycles: the test tried nothing", len(owner), *uidCycles)
	}
	t.Logf("%d uids were given in %d lives of the store", len(owner), lives)
}

var errFails = errors.New("this change fails")
