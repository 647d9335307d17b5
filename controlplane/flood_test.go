package controlplane_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// A20: with 10,000 requests waiting an approval still takes less than a second, and a person's flood
// ends at their quota and at the longest reason.
func TestTenThousandRequestsWait(t *testing.T) {
	if dir := "/dev/shm"; isDir(dir) {
		t.Setenv("TMPDIR", dir) // what is measured is not the disk's syncing
	}
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	web1.disconnect()
	for _, size := range []int{4097, 1<<20 - 1000} {
		_, err := alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
			Hosts: []string{"web1"}, Role: "ops", DurationMs: 60000, Reason: strings.Repeat("x", size),
		})
		refused(t, err, apiv1.Code_CODE_INVALID)
	}
	_, err := alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{Reason: strings.Repeat("x", 1<<20)})
	if err == nil {
		t.Error("a message of more than 1 MiB was read")
	}
	first := alice.ask("web1")
	_, err = bob.Deny(t.Context(), &apiv1.DenyRequest{
		Id: first.GetId(), Revision: 1, Reason: strings.Repeat("x", 1<<20-1000),
	})
	refused(t, err, apiv1.Code_CODE_INVALID)
	for range access.MaxWaiting - 1 {
		alice.ask("web1")
	}
	_, err = alice.CreateRequest(t.Context(), &apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: 60000, Reason: "one more",
	})
	refused(t, err, apiv1.Code_CODE_LIMIT)
	b := h.bench()
	b.flood(t, first.GetId(), 10000)
	b.store.left = -1
	var took []time.Duration
	for range 100 {
		r, err := b.access.Create(t.Context(), b.people["erin"], opsAsk(), false)
		must(t, err)
		began := time.Now()
		got, err := b.access.Approve(t.Context(), b.people["bob"], r.ID, 1, bob.sign(r.Newest().Terms))
		must(t, err)
		took = append(took, time.Since(began))
		if got.State != request.Granted {
			t.Fatalf("it is %s", got.State)
		}
	}
	slices.Sort(took)
	if p99 := took[98]; p99 > time.Second {
		t.Errorf("an approval takes %s at the 99th percentile", p99)
	}
	waits, err := b.access.List(t.Context(), b.people["bob"], access.Query{PendingForMe: true, Limit: 1000})
	if err != nil || len(waits) != 1000 {
		t.Errorf("bob sees %d requests, %v", len(waits), err)
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func (p *person) pub() string { return grant.SSHKeyText(p.key.PublicKey()) }

// flood puts copies of a waiting request into the store, of as many people as their quotas want.
func (b *bench) flood(t *testing.T, id string, n int) {
	t.Helper()
	must(t, b.store.Update(t.Context(), func(tx access.Tx) error {
		r, err := tx.Request(id)
		if err != nil {
			return err
		}
		for i := range n {
			name := fmt.Sprintf("flood%d", i/access.MaxWaiting)
			if i%access.MaxWaiting == 0 {
				if _, err := tx.PutUser(identity.User{Name: name}, time.Now()); err != nil {
					return err
				}
			}
			copied := *r
			copied.ID, copied.Requester = fmt.Sprintf("flood%07d", i), name
			copied.Revisions = slices.Clone(r.Revisions)
			if err := tx.PutRequest(&copied); err != nil {
				return err
			}
		}
		return nil
	}))
}

// A13: what only looks like a name is none: other case, letters of other scripts, compatibility forms,
// characters that are not seen.
func TestLookalikesAreNoNames(t *testing.T) {
	a := buildAcme(t, nil)
	for _, fake := range []func(string) string{
		strings.ToUpper,
		func(s string) string { return strings.NewReplacer("o", "о", "e", "е").Replace(s) }, // Cyrillic
		func(s string) string { return s + "\u200b" },
		func(s string) string { return "\u202e" + s },
		func(s string) string { return strings.NewReplacer("s", "ｓ", "t", "ｔ").Replace(s) },
		func(s string) string { return s + " " },
		func(s string) string { return s + "\x00" },
	} {
		role, host, dev := fake("ops"), fake("test1"), fake("owners")
		if _, err := a.alice.want(role, "look at the logs", "test1"); err == nil {
			t.Errorf("role %q was taken", role)
		}
		if _, err := a.alice.want("ops", "look at the logs", host); err == nil {
			t.Errorf("host %q was taken", host)
		}
		_, errUser := a.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{Name: fake("erose")}})
		_, errGroup := a.admin.PutGroup(t.Context(), &apiv1.PutGroupRequest{
			Group: &apiv1.Group{Name: dev, Members: []string{"alice"}},
		})
		_, errPolicy := a.admin.ApplyPolicy(t.Context(), &apiv1.ApplyPolicyRequest{
			Text: []byte(strings.Replace(acmePolicy, "owners", `"`+dev+`"`, 1)), File: "acme.yaml",
		})
		for what, err := range map[string]error{"user": errUser, "group": errGroup, "policy": errPolicy} {
			if err == nil {
				t.Errorf("a %s of %q was taken", what, dev)
			}
		}
	}
}

// A11: nobody agrees with themselves, however the policy and the directory may be written: as their
// own manager, as a member of every group, as a workload's keeper.
func TestNobodyApprovesThemselves(t *testing.T) {
	a := buildAcme(t, nil)
	self := "alice"
	_, err := a.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "alice", Manager: &self, SshKeys: []string{a.alice.pub()},
	}})
	must(t, err)
	for _, g := range []string{"sre", "owners"} {
		a.group(g, "alice", "bob", "erin")
	}
	_, err = a.alice.want("ops", "restart the web server", "prod1")
	if got := refused(t, err, apiv1.Code_CODE_DENIED); !strings.Contains(got.GetText(), "manager lacking") {
		t.Errorf("her own manager: %s", got.GetText())
	}
	a.apply(strings.Replace(acmePolicy, "[sre, owners, manager]", "[sre, owners]", 1))
	r, err := a.alice.want("ops", "restart the web server", "prod1")
	must(t, err)
	_, err = a.alice.approve(r)
	refused(t, err, apiv1.Code_CODE_DENIED)
	got, err := a.bob.approve(r)
	must(t, err)
	if granted(got) {
		t.Error("one person filled two needs")
	}
	_, err = a.bob.approve(r)
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	got, err = a.erin.approve(r)
	must(t, err)
	if !granted(got) {
		t.Errorf("after two people it is %v: %s", got.GetState(), got.GetVerdict())
	}
}
