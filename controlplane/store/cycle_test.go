package store_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

const openPolicy = "policy: 1\nroles: {ops: {login: true, max: 1h}}\nhosts: {all: {env: x}}\n" +
	"rules:\n  - {name: open, who: [dev], hosts: [all], roles: [ops], then: auto}\n"

// cycle is what a request passes that a standing rule opens.
type cycle struct {
	store  *store.Store
	access *access.Service
	people []identity.Person
}

func newCycle(t *testing.T, people int) *cycle {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, s := fresh(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	pub := key.Public().(ed25519.PublicKey)
	envelope, err := grant.SealTrust(identity.FirstTrust("acme", pub, pub), key)
	must(err)
	must(s.Update(t.Context(), func(tx *store.Tx) error {
		return tx.PutTrust(identity.TrustRow{Version: 1, Envelope: envelope})
	}))
	log := hclog.NewNullLogger()
	issuer, err := issue.New(issue.Config{Store: s, Key: key, Now: time.Now, Log: log})
	must(err)
	directory, err := identity.New(identity.Config{
		Store: store.Identity{Store: s}, Organisation: "acme", SessionTTL: time.Hour,
		RootKeys: func() ([]ed25519.PrivateKey, error) { return []ed25519.PrivateKey{key}, nil },
		Now:      time.Now, Rand: rand.Reader, Log: log,
	})
	must(err)
	c := &cycle{store: s}
	c.access, err = access.New(access.Config{
		Store: store.Access{Store: s}, Directory: directory, Issuer: issuer, PendingTTL: time.Hour,
		Now: time.Now, Rand: rand.Reader, Log: log,
	})
	must(err)
	names := []string{"alice", "bob"}[:people]
	for i, name := range names {
		u := user(name, []string{keyA, keyB}[i])
		must(s.Update(t.Context(), func(tx *store.Tx) error {
			u, err = tx.PutUser(u, time.Now())
			return err
		}))
		c.people = append(c.people, identity.Person{User: u})
	}
	_, err = directory.PutGroup(t.Context(), "dana", identity.Group{Name: "dev", Members: names})
	must(err)
	now, hash := time.Now(), sha256.Sum256([]byte("web1"))
	record := trail.Record{TimeMS: now.UnixMilli(), Kind: enrol.KindHostEnrolled, Actor: "dana"}
	must(s.PutJoinToken(t.Context(), enrol.JoinToken{
		Hash: hash, Name: "web1", CreatedBy: "dana", ExpiresAt: now.Add(time.Hour),
	}, record))
	must(s.EnrolHost(t.Context(), hash, func(enrol.JoinToken) (enrol.Host, trail.Record, error) {
		return enrol.Host{
			ID: grant.HostIDOf(pub), Name: "web1", RootKey: pub, LinkKey: hash,
			Labels: map[string]string{"env": "x"}, EnrolledAt: now, CertificateEnds: now.Add(time.Hour),
		}, record, nil
	}))
	_, err = directory.ApplyPolicy(t.Context(), "dana",
		identity.Apply{File: "x.yaml", Text: []byte(openPolicy)})
	must(err)
	return c
}

func (c *cycle) once(ctx context.Context, who int) (*request.Request, error) {
	return c.access.Create(ctx, c.people[who], request.Ask{
		Role: "ops", Hosts: []string{"web1"}, Duration: time.Minute, Reason: "it hangs",
	}, false)
}

// headOf works out the head over leaves by itself.
func headOf(t *testing.T, leaves [][]byte) []byte {
	t.Helper()
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(positions []int64) (out []tlog.Hash, err error) {
		for _, p := range positions {
			out = append(out, hashes[p])
		}
		return out, nil
	})
	for i, leaf := range leaves {
		more, err := trail.NewHashes(uint64(i), leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
	}
	head, err := trail.Head(uint64(len(leaves)), reader)
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// checkTrail demands that the records are numbered, and that the head is theirs; it returns them.
func checkTrail(t *testing.T, s *store.Store) (records []*trail.Record) {
	t.Helper()
	err := s.View(t.Context(), func(tx *store.Tx) error {
		stored, err := tx.Records(0, "", "", 1000)
		if err != nil {
			return err
		}
		var leaves [][]byte
		for i, r := range stored {
			is, err := trail.ParseRecord(r.Leaf)
			if err != nil {
				return err
			}
			if is.Number != uint64(i) {
				t.Errorf("record %d is numbered %d", i, is.Number)
			}
			records, leaves = append(records, is), append(leaves, r.Leaf)
		}
		count, head, err := tx.TrailHead()
		if want := headOf(t, leaves); count != uint64(len(leaves)) || !cmp.Equal(head, want) {
			t.Errorf("the head over %d of %d records is %x, want %x", count, len(leaves), head, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// A request that a standing rule opens, until its grant is durable, is two transactions, and costs their
// statements: to begin and commit both and see that nobody else committed (6), to read the host, what
// waits and whether the id is free (3), to write the request, its host and terms (3), to move both on and
// count and put the grant (4), and the trail with its hashes twice (4). Who adds one says what for.
func TestStatementsOfACycle(t *testing.T) {
	const most = 20
	c := newCycle(t, 1)
	if _, err := c.once(t.Context(), 0); err != nil { // the policy and the trust file are read once
		t.Fatal(err)
	}
	for range 20 {
		before := c.store.Statements()
		if _, err := c.once(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if n := c.store.Statements() - before; n > most {
			t.Errorf("a cycle took %d statements, more than %d", n, most)
		}
	}
}

// What Create returns without reading it again is what is stored, and the trail has it in order.
func TestCreatedIsWhatIsStored(t *testing.T) {
	c := newCycle(t, 2)
	var wg sync.WaitGroup
	for who := range c.people {
		for range 16 {
			wg.Go(func() {
				r, err := c.once(t.Context(), who)
				if err != nil {
					t.Error(err)
					return
				}
				is, err := c.access.Get(t.Context(), c.people[who], r.ID)
				if diff := cmp.Diff(is, r, cmpopts.EquateEmpty()); err != nil || diff != "" {
					t.Errorf("it is stored as (-) and was returned as (+), %v:\n%s", err, diff)
				}
				if r.State != request.Granted || r.InForce != 1 || r.Newest().Outcome != request.OutGranted {
					t.Errorf("it is %s, %d in force, %d", r.State, r.InForce, r.Newest().Outcome)
				}
			})
		}
	}
	wg.Wait()
	granted := 0
	for _, r := range checkTrail(t, c.store) {
		if r.Kind == issue.KindRequestGranted {
			granted++
		}
	}
	if want := len(c.people) * 16; granted != want {
		t.Errorf("%d grants are on the trail, want %d", granted, want)
	}
}

// Grants are stored for the revision that was approved, once, and for no other request.
func TestOnlyWhatIsApprovedIsGranted(t *testing.T) {
	c := newCycle(t, 1)
	granted, err := c.once(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	put := func(id string, approve bool) {
		t.Helper()
		r := request.New(id, "alice", "ops", granted.Hosts, false, *granted.Newest())
		if approve {
			if err := r.Approve(time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.store.Update(t.Context(), func(tx *store.Tx) error { return tx.PutRequest(r) }); err != nil {
			t.Fatal(err)
		}
	}
	put("pending", false)
	put("approved", true)
	for _, try := range []struct {
		id       string
		revision uint32
		want     error
	}{
		{granted.ID, 1, issue.ErrIssued},
		{granted.ID, 2, issue.ErrNotApproved},
		{"pending", 1, issue.ErrNotApproved},
		{"approved", 2, issue.ErrNotApproved},
		{"approved", 1, nil},
		{"approved", 1, issue.ErrIssued},
		{"none", 1, identity.ErrNone},
	} {
		g := issue.SealedGrant{
			ID: grant.ID{byte(len(try.id))}, Host: granted.Hosts[0].ID, RequestID: try.id,
			Revision: try.revision, Envelope: []byte("x"),
		}
		err := c.store.PutGrants(t.Context(), try.id, try.revision, []issue.SealedGrant{g},
			trail.Record{TimeMS: 1, Kind: "test", Actor: "x", RequestID: try.id})
		if !errors.Is(err, try.want) {
			t.Errorf("revision %d of %s got its grants by %v, want %v", try.revision, try.id, err, try.want)
		}
	}
	checkTrail(t, c.store)
}
