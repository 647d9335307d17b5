package controlplane_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/issue"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/keyfile"
	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var errDisk = errors.New("the disk failed")

// flaky is a store whose writes fail from the nth on.
type flaky struct {
	store.Access
	left int // writes that still work; negative: all
}

func (f *flaky) Update(ctx context.Context, do func(access.Tx) error) error {
	return f.Access.Update(ctx, func(tx access.Tx) error { return do(&flakyTx{Tx: tx, f: f}) })
}

type flakyTx struct {
	access.Tx
	f *flaky
}

func (t *flakyTx) spend() error {
	if t.f.left == 0 {
		return errDisk
	}
	t.f.left--
	return nil
}

func (t *flakyTx) PutRequest(r *request.Request) error {
	return errors.Join(t.spend(), t.Tx.PutRequest(r))
}

func (t *flakyTx) Append(r trail.Record) error { return errors.Join(t.spend(), t.Tx.Append(r)) }

func (t *flakyTx) Notify(m access.Message) error { return errors.Join(t.spend(), t.Tx.Notify(m)) }

func (t *flakyTx) EndGrant(id grant.ID, c curfewv1.EndCause, by string, at time.Time) error {
	return errors.Join(t.spend(), t.Tx.EndGrant(id, c, by, at))
}

// gate is an issuer that can be told to fail.
type gate struct {
	access.Issuer
	shut bool
}

func (g *gate) Issue(ctx context.Context, id string) ([]grant.HostID, error) {
	if g.shut {
		return nil, errDisk
	}
	return g.Issuer.Issue(ctx, id)
}

func (g *gate) IssueOf(ctx context.Context, r *request.Request) error {
	if g.shut {
		return errDisk
	}
	return g.Issuer.IssueOf(ctx, r)
}

// bench is the parts of a stopped house, without network.
type bench struct {
	store  *flaky
	gate   *gate
	access *access.Service
	people map[string]identity.Person
}

func (h *house) bench() *bench {
	h.t.Helper()
	h.stop()
	db, err := store.Open(h.t.Context(), store.Config{
		Path: filepath.Join(h.dir, "curfew.db"), Now: h.now, Webhooks: []string{"http://x/"},
	})
	must(h.t, err)
	h.t.Cleanup(func() { db.Close() })
	key, err := keyfile.Load(filepath.Join(h.dir, "issuer.key"), "grant key")
	must(h.t, err)
	issuer, err := issue.New(issue.Config{Store: db, Key: key, Now: h.now, Log: quietLog()})
	must(h.t, err)
	authority, err := enrol.LoadAuthority(h.dir)
	must(h.t, err)
	o, err := identity.New(identity.Config{
		Store: store.Identity{Store: db}, Organisation: "acme", CA: authority.Pin(),
		SessionTTL: time.Hour, RootKeys: func() ([]ed25519.PrivateKey, error) { return nil, nil },
		Now: h.now, Rand: rand.Reader, Log: quietLog(),
	})
	must(h.t, err)
	b := &bench{
		store: &flaky{Access: store.Access{Store: db}, left: -1}, gate: &gate{Issuer: issuer},
		people: map[string]identity.Person{},
	}
	b.access, err = access.New(access.Config{
		Store: b.store, Directory: o, Issuer: b.gate, PendingTTL: time.Hour, Now: h.now,
		Rand: rand.Reader, Log: quietLog(),
	})
	must(h.t, err)
	users, err := o.Users(h.t.Context())
	must(h.t, err)
	for _, u := range users {
		b.people[u.Name] = identity.Person{User: u, Approver: u.Name != "alice"}
	}
	return b
}

func opsAsk() request.Ask {
	return request.Ask{Role: "ops", Hosts: []string{"web1"}, Duration: time.Minute, Reason: "it hangs"}
}

// Every write of an approval fails once: either nothing of it is there, or all.
func TestApproveFailsAtEveryWrite(t *testing.T) {
	h := build(t, nil)
	_, bob, _, web1 := h.cast(1)
	web1.disconnect()
	b := h.bench()
	done := false
	for n := 0; !done; n++ {
		if n > 20 {
			t.Fatal("an approval never gets through")
		}
		r, err := b.access.Create(t.Context(), b.people["alice"], opsAsk(), false)
		must(t, err)
		b.store.left = n
		_, err = b.access.Approve(t.Context(), b.people["bob"], r.ID, 1, bob.sign(r.Newest().Terms))
		b.store.left = -1
		got, getErr := b.access.Get(t.Context(), b.people["alice"], r.ID)
		must(t, getErr)
		records, _, _, recErr := b.access.Records(t.Context(), b.people["dana"], 0, r.ID, false, 100)
		must(t, recErr)
		grants, grantErr := b.access.Grants(t.Context(), r.ID)
		must(t, grantErr)
		switch {
		case err != nil:
			if got.State != request.Pending || len(got.Newest().Decisions) != 0 || len(records) != 1 ||
				len(grants) != 0 {
				t.Errorf("failing at write %d left %s, %d decisions, %d records, %d grants", n, got.State,
					len(got.Newest().Decisions), len(records), len(grants))
			}
			_, err = b.access.Withdraw(t.Context(), b.people["alice"], r.ID)
			must(t, err)
		default:
			done = true
			if got.State != request.Granted || len(grants) != 1 || len(records) != 4 {
				t.Errorf("an approval made %s, %d grants, %d records", got.State, len(grants), len(records))
			}
		}
	}
}

// An approval whose grants cannot be sealed stands, is sealed by a later sweep, once, and lapses
// when no host would take it any more.
func TestApprovedWithoutGrants(t *testing.T) {
	h := build(t, nil)
	_, bob, _, web1 := h.cast(1)
	web1.disconnect()
	b := h.bench()
	ask := func() *request.Request {
		t.Helper()
		r, err := b.access.Create(t.Context(), b.people["alice"], opsAsk(), false)
		must(t, err)
		b.gate.shut = true
		r, err = b.access.Approve(t.Context(), b.people["bob"], r.ID, 1, bob.sign(r.Newest().Terms))
		must(t, err)
		if r.State != request.Approved {
			t.Fatalf("without grants it is %s", r.State)
		}
		return r
	}
	state := func(id string) request.State {
		t.Helper()
		r, err := b.access.Get(t.Context(), b.people["alice"], id)
		must(t, err)
		return r.State
	}
	r := ask()
	must(t, b.access.Sweep(t.Context()))
	if got := state(r.ID); got != request.Approved {
		t.Errorf("a failing sweep made it %s", got)
	}
	b.gate.shut = false
	must(t, b.access.Sweep(t.Context()))
	must(t, b.access.Sweep(t.Context()))
	grants, err := b.access.Grants(t.Context(), r.ID)
	must(t, err)
	if got := state(r.ID); got != request.Granted || len(grants) != 1 {
		t.Errorf("the sweep made it %s with %d grants", got, len(grants))
	}
	late := ask()
	h.ahead.Store(int64(2*time.Hour + time.Minute))
	must(t, b.access.Sweep(t.Context()))
	if got := state(late.ID); got != request.Lapsed {
		t.Errorf("what no host would take is %s", got)
	}
}
