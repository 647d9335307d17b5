package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/controlplane/watch"
	"github.com/curfew-access/curfew/internal/trail"
)

// Changes that share a commit stay each for itself: one that fails, panics or hangs up leaves nothing
// of its own and takes nothing of the others'.
func TestChangesThatShareACommit(t *testing.T) {
	var told, recorded atomic.Int64
	s, err := store.Open(t.Context(), store.Config{
		Path: filepath.Join(t.TempDir(), "x.db"), Create: true, Now: time.Now,
		OnCommit: func(watch.Change) { told.Add(1) }, OnRecord: func(trail.Record) { recorded.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	errNo := errors.New("no")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // the others pile up behind this one
		_ = s.Update(t.Context(), func(*store.Tx) error {
			close(held)
			<-hold
			return nil
		})
	})
	<-held
	put := func(tx *store.Tx, i int) error {
		return errors.Join(tx.PutMeta(fmt.Sprintf("k%d", i), "v"),
			tx.Append(trail.Record{TimeMS: 1, Kind: "test.kind", Actor: "x", Details: map[string]string{"i": fmt.Sprint(i)}}))
	}
	const n = 100
	for i := range n {
		wg.Go(func() {
			ctx := t.Context()
			if i%4 == 3 {
				ctx = gone
			}
			defer func() {
				if p := recover(); (p != nil) != (i%4 == 2) {
					t.Errorf("change %d panicked with %v", i, p)
				}
			}()
			err := s.Update(ctx, func(tx *store.Tx) error {
				if err := put(tx, i); err != nil {
					return err
				}
				switch i % 4 {
				case 1:
					return errNo
				case 2:
					panic("oh")
				}
				return nil
			})
			want := []error{nil, errNo, nil, context.Canceled}[i%4]
			if !errors.Is(err, want) {
				t.Errorf("change %d: %v, want %v", i, err, want)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // for most of them to queue; the test holds without, too
	close(hold)
	wg.Wait()
	err = s.View(t.Context(), func(tx *store.Tx) error {
		for i := range n {
			v, err := tx.Meta(fmt.Sprintf("k%d", i))
			if err != nil {
				return err
			}
			if (v != "") != (i%4 == 0) {
				t.Errorf("change %d left %q", i, v)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count := len(checkTrail(t, s)); count != n/4 {
		t.Errorf("the trail has %d records, want %d", count, n/4)
	}
	if told.Load() != n/4 {
		t.Errorf("%d changes were announced, want %d", told.Load(), n/4)
	}
	if recorded.Load() != n/4 {
		t.Errorf("%d records were told, want %d", recorded.Load(), n/4)
	}
}

// What the store itself fails is told from what a change runs into, and both from what goes well.
func TestFailuresOfTheStoreAreTold(t *testing.T) {
	var log []string
	s, err := store.Open(t.Context(), store.Config{
		Path: filepath.Join(t.TempDir(), "x.db"), Create: true, Now: time.Now,
		Took: func(write bool, took time.Duration, failed bool) {
			log = append(log, fmt.Sprintf("write %t failed %t", write, failed))
			if took <= 0 {
				t.Errorf("it took %v", took)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	log = nil
	for i, c := range []struct {
		run  func(context.Context, func(*store.Tx) error) error
		do   func(*store.Tx) error
		want string
		fine bool
	}{
		{s.Update, func(tx *store.Tx) error { return tx.PutMeta("a", "b") }, "write true failed false", true},
		{s.Update, func(*store.Tx) error { return errors.New("no") }, "write true failed false", false},
		{s.Update, func(tx *store.Tx) error {
			row := identity.TrustRow{Version: 1, Envelope: []byte("x")}
			return errors.Join(tx.PutTrust(row), tx.PutTrust(row))
		}, "write true failed false", false},
		{s.View, func(tx *store.Tx) error { _, err := tx.Meta("a"); return err }, "write false failed false", true},
		{s.View, func(tx *store.Tx) error { return tx.PutMeta("a", "b") }, "write false failed true", false},
	} {
		err := c.run(t.Context(), c.do)
		if len(log) != i+1 || log[i] != c.want || (err == nil) != c.fine {
			t.Errorf("case %d: %v, told %q, want %q", i, err, log, c.want)
		}
	}
}

// A closed store says so, and does not keep anybody waiting.
func TestClosedStore(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{
		Path: filepath.Join(t.TempDir(), "x.db"), Create: true, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if s.View(t.Context(), func(*store.Tx) error { return nil }) == nil {
			t.Error("a closed store is read")
		}
		if s.Update(t.Context(), func(*store.Tx) error { return nil }) == nil {
			t.Error("a closed store is written")
		}
	}
}

// A group that is run again, since a change of it failed half way, is told apart from its others: what
// they read of it is gone.
func TestNobodySeesWhatFailedHalfWay(t *testing.T) {
	_, s := fresh(t)
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Update(t.Context(), func(*store.Tx) error {
			close(held)
			<-hold
			return nil
		})
	})
	<-held
	errNo := errors.New("no")
	for i := range 20 {
		wg.Go(func() {
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				v, err := tx.Meta("half")
				if v != "" {
					t.Errorf("change %d sees %q", i, v)
				}
				if i%2 == 0 {
					return errors.Join(err, tx.PutMeta("half", "v"), errNo)
				}
				return errors.Join(err, tx.PutMeta(fmt.Sprintf("k%d", i), v+"x"))
			})
			if i%2 == 0 != errors.Is(err, errNo) {
				t.Errorf("change %d: %v", i, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // for most of them to queue; the test holds without, too
	close(hold)
	wg.Wait()
}
