package store_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

const (
	keyA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPVnSfmJ1CKPYBIQ8C8oIVz2Bw8MFnKJcSPz3aMmG0mf"
	keyB = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1k6Fp3bXUXyD4fs9Vd5jvYbX0wGZz3b1h0zZ3rXx2s"
)

func open(t *testing.T, path string, told func(watch.Change)) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{
		Path: path, Create: true, Now: time.Now, OnCommit: told,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fresh(t *testing.T) (string, *store.Store) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "curfew.db")
	return path, open(t, path, nil)
}

func user(name string, keys ...string) identity.User { return identity.User{Name: name, SSHKeys: keys} }

// exec changes the file behind the store's back, as only a bug or an attacker would.
func exec(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

func TestNewerAndHalfStoresAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		query string
		want  error
	}{
		"newer schema":     {"INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)", store.ErrNewer},
		"missing table":    {"DROP TABLE outbox", store.ErrDamaged},
		"another program":  {"DROP TABLE goose_db_version", store.ErrDamaged},
		"lost trail table": {"ALTER TABLE trail RENAME TO trial", store.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			path, s := fresh(t)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			exec(t, path, c.query)
			_, err := store.Open(t.Context(), store.Config{Path: path, Now: time.Now})
			if !errors.Is(err, c.want) {
				t.Fatalf("opening it says %v", err)
			}
			if !strings.Contains(err.Error(), "restore") {
				t.Errorf("it does not say what to do: %v", err)
			}
		})
	}
	_, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "no"), Now: time.Now})
	if err == nil || !strings.Contains(err.Error(), "init") {
		t.Errorf("opening nothing says %v", err)
	}
}

// A change that fails leaves nothing behind, its record neither, and nobody is told.
func TestFailedChangeLeavesNothing(t *testing.T) {
	told := 0
	s := open(t, filepath.Join(t.TempDir(), "curfew.db"), func(watch.Change) { told++ })
	broken := errors.New("broken")
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.PutUser(user("alice", keyA), time.Now())
		return errors.Join(err, tx.Append(trail.Record{Kind: "x", Actor: "dana"}), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.User("alice"); !errors.Is(err, identity.ErrNone) {
			t.Errorf("the user is there: %v", err)
		}
		if n, _, err := tx.TrailHead(); n != 0 || err != nil {
			t.Errorf("%d records are there, %v", n, err)
		}
		return nil
	})
	if err != nil || told != 0 {
		t.Errorf("%v, told %d times", err, told)
	}
	if err := s.View(t.Context(), func(tx *store.Tx) error {
		return tx.PutMeta("a", "b")
	}); err == nil {
		t.Error("a view wrote")
	}
	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		return tx.Append(trail.Record{Kind: "x"})
	}); err == nil {
		t.Error("a record without actor was accepted")
	}
}

// Many writers at once: records are numbered without gap, and the tree is that of the leaves.
func TestTrailUnderManyWriters(t *testing.T) {
	_, s := fresh(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				err := s.AppendRecord(context.WithoutCancel(t.Context()), trail.Record{
					Kind: "test", Actor: "w", Details: map[string]string{"n": fmt.Sprint(w*10 + i)},
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var first, last []byte
	err := s.View(t.Context(), func(tx *store.Tx) error {
		records, err := tx.Records(0, "", "", 1000)
		if err != nil {
			return err
		}
		for i, r := range records {
			if parsed, err := trail.ParseRecord(r.Leaf); err != nil || parsed.Number != uint64(i) {
				t.Errorf("record %d is numbered %v, %v", i, parsed, err)
			}
		}
		if len(records) != 80 {
			t.Errorf("%d records", len(records))
		}
		_, last, err = tx.TrailHead()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	hashes := s.TrailHashes(t.Context())
	if first, err = trail.Head(33, hashes); err != nil {
		t.Fatal(err)
	}
	proof, err := trail.Prove(33, 80, hashes)
	if err != nil {
		t.Fatal(err)
	}
	if err := trail.CheckExtends(33, first, 80, last, proof); err != nil {
		t.Error(err)
	}
}

// A uid is one person's for ever, across disabling, restarts and restores; a key is one person's.
func TestUidsAndKeys(t *testing.T) {
	path, s := fresh(t)
	put := func(s *store.Store, u identity.User) (is identity.User, err error) {
		err = s.Update(t.Context(), func(tx *store.Tx) error {
			is, err = tx.PutUser(u, time.Now())
			return err
		})
		return is, err
	}
	alice, err := put(s, user("alice", keyA))
	if err != nil || alice.UID != 1900000000 {
		t.Fatalf("alice is %+v, %v", alice, err)
	}
	if _, err := put(s, user("mallory", keyA)); err == nil {
		t.Error("a key stands under two people")
	}
	bob, err := put(s, user("bob", keyB))
	if err != nil || bob.UID != 1900000001 {
		t.Fatalf("bob is %+v, %v", bob, err)
	}
	alice.SSHKeys, alice.Disabled = nil, true
	if again, err := put(s, alice); err != nil || again.UID != alice.UID || !again.Disabled {
		t.Errorf("alice became %+v, %v", again, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, nil)
	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		return errors.Join(tx.SkipUIDs(time.Now()), tx.PutMeta("x", "y"))
	}); err != nil {
		t.Fatal(err)
	}
	carl, err := put(s, user("carl"))
	if err != nil || carl.UID < bob.UID+1000 {
		t.Errorf("after a restore carl is %+v, %v", carl, err)
	}
	if err := s.Update(t.Context(), func(tx *store.Tx) error {
		return tx.PutMeta("next_uid", "2000000000")
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := put(s, user("late")); err == nil {
		t.Error("a uid outside of the range was given out")
	}
}

// A challenge is good once and for its time.
func TestChallenges(t *testing.T) {
	_, s := fresh(t)
	now := time.Now()
	take := func(hash [32]byte, at time.Time) (ok bool) {
		t.Helper()
		err := s.Update(t.Context(), func(tx *store.Tx) (err error) {
			ok, err = tx.TakeChallenge(hash, at)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for i, c := range []struct {
		at   time.Time
		want bool
	}{{now, true}, {now.Add(59 * time.Second), true}, {now.Add(time.Minute), false}} {
		hash := [32]byte{byte(i)}
		if err := s.Update(t.Context(), func(tx *store.Tx) error {
			return tx.PutChallenge(hash, now.Add(time.Minute))
		}); err != nil {
			t.Fatal(err)
		}
		if got := take(hash, c.at); got != c.want {
			t.Errorf("challenge %d: %v", i, got)
		}
		if take(hash, now) {
			t.Errorf("challenge %d was good twice", i)
		}
	}
	if take([32]byte{99}, now) {
		t.Error("an unknown challenge was good")
	}
}

// An instance of a cloud joins once, for good; an enrolment that fails spends nothing.
func TestInstanceJoinsOnce(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "curfew.db"), nil)
	enrol1 := func(instance byte, name string) error {
		pub, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return s.EnrolInstance(t.Context(), [32]byte{instance}, enrol.Host{
			ID: grant.HostIDOf(pub), Name: name, Address: name, RootKey: pub, EnrolledAt: time.Now(),
		}, trail.Record{Kind: enrol.KindHostEnrolled, Actor: "host " + name})
	}
	for _, step := range []struct {
		instance byte
		name     string
		want     error
	}{
		{1, "web1", nil}, {1, "web2", enrol.ErrInstanceKnown}, {2, "web1", enrol.ErrNameTaken}, {2, "web2", nil},
	} {
		if err := enrol1(step.instance, step.name); !errors.Is(err, step.want) {
			t.Errorf("instance %d as %s: %v, want %v", step.instance, step.name, err, step.want)
		}
	}
}
