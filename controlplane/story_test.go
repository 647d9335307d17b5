package controlplane_test

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func granted(r *apiv1.Request) bool {
	return r.GetState() == apiv1.RequestState_REQUEST_STATE_GRANTED
}

func applied(r *apiv1.Request) bool {
	for _, g := range r.GetGrants() {
		if g.GetRevision() == r.GetRevision() &&
			g.GetStatus() == curfewv1.GrantStatus_GRANT_STATUS_APPLIED {
			return true
		}
	}
	return false
}

// The main job, over real TLS, to a host whose ledger verifies everything.
func TestFromRequestToTheEndOfAccess(t *testing.T) {
	h := build(t, nil)
	alice, bob, erin, web1 := h.cast(2)
	r := alice.ask("web1")
	if r.GetState() != apiv1.RequestState_REQUEST_STATE_PENDING || r.GetRevision() != 1 {
		t.Fatalf("a new request is %v", r)
	}
	if !strings.Contains(r.GetVerdict(), "2 more of 2 approvals of group sre") {
		t.Errorf("the verdict says %q", r.GetVerdict())
	}
	terms, err := grant.ParseTerms(r.GetTerms())
	must(t, err)
	if terms.GetUid() < 1900000000 || terms.GetLogin() != "alice" || terms.GetDurationMs() != 600000 {
		t.Errorf("the terms are %v", terms)
	}
	if got, err := bob.approve(r); err != nil || granted(got) {
		t.Fatalf("after one of two approvals: %v, %v", got.GetState(), err)
	}
	if n := len(web1.grants()); n != 0 {
		t.Fatalf("%d windows are open before the quorum", n)
	}
	got, err := erin.approve(r)
	must(t, err)
	if !granted(got) {
		t.Fatalf("after the quorum it is %v", got.GetState())
	}
	live := web1.eventually(1)
	if live[0].Terms.GetRequestId() != r.GetId() || live[0].End.Sub(live[0].Start) != 10*time.Minute {
		t.Errorf("the host opened %v", live[0])
	}
	got = alice.until(r.GetId(), "applied", applied)
	if g := got.GetGrants()[0]; g.GetHostName() != "web1" || g.GetConfirmedMs() == 0 ||
		g.GetEndMs() != live[0].End.UnixMilli() {
		t.Errorf("the host's word is kept as %v", g)
	}
	_, err = alice.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
	must(t, err)
	web1.eventually(0)
	if got := alice.get(r.GetId()); got.GetState() != apiv1.RequestState_REQUEST_STATE_ENDED ||
		got.GetEndCause() != curfewv1.EndCause_END_CAUSE_DONE || got.GetEndedBy() != "alice" {
		t.Errorf("after done it is %v by %q", got.GetEndCause(), got.GetEndedBy())
	}
	checkTrail(t, erin, r.GetId())
}

// checkTrail demands that every step is one record with an actor, and that the tree's head is theirs.
func checkTrail(t *testing.T, p *person, id string) {
	t.Helper()
	s, err := p.ListRecords(t.Context(), &apiv1.ListRecordsRequest{All: true})
	must(t, err)
	var kinds []string
	var last *apiv1.ListRecordsResponse
	mem := new(memory)
	for {
		resp, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		last = resp
		for _, rec := range resp.GetRecords() {
			parsed, err := trail.ParseRecord(rec.GetLeaf())
			must(t, err)
			if parsed.Actor == "" || parsed.Number != rec.GetNumber() {
				t.Errorf("record %d is of %q", rec.GetNumber(), parsed.Actor)
			}
			if parsed.RequestID == id {
				kinds = append(kinds, parsed.Kind)
			}
			mem.add(t, rec.GetLeaf())
		}
	}
	head, err := trail.Head(uint64(mem.count), mem)
	must(t, err)
	if last.GetTrailCount() != uint64(mem.count) || string(last.GetTrailHead()) != string(head) {
		t.Errorf("the head over %d records is not that of the %d sent", last.GetTrailCount(), mem.count)
	}
	want := "request.created request.approval request.approval request.approved request.granted " +
		"request.ended"
	if got := strings.Join(kinds, " "); got != want {
		t.Errorf("the trail of the request is\n%s, want\n%s", got, want)
	}
}

// An extension waits while the grant runs, and takes its place when it is approved.
func TestExtension(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	r := alice.holds(bob, web1)
	first := web1.eventually(1)[0]
	ext, err := alice.Extend(t.Context(), &apiv1.ExtendRequest{
		Id: r.GetId(), MoreMs: (20 * time.Minute).Milliseconds(), Reason: "not yet done",
	})
	must(t, err)
	e := ext.GetRequest()
	if !granted(e) || !e.GetExtensionPending() || e.GetRevision() != 2 {
		t.Fatalf("while an extension waits: %v", e)
	}
	terms, err := grant.ParseTerms(e.GetTerms())
	must(t, err)
	if want := grant.TermsDigest(r.GetTerms()); string(terms.GetFollows()) != string(want[:]) ||
		terms.GetDurationMs() != (30*time.Minute).Milliseconds() {
		t.Errorf("the extension's terms are %v", terms)
	}
	// The first revision's signature is good for nothing now.
	_, err = bob.Approve(t.Context(), &apiv1.ApproveRequest{
		Id: r.GetId(), Revision: 1, Sshsig: bob.sign(r.GetTerms()),
	})
	if got := refused(t, err, apiv1.Code_CODE_CONFLICT); !strings.Contains(got.GetText(), "look at it again") {
		t.Errorf("a stale revision is refused with %q", got.GetText())
	}
	if web1.grants()[0].ID != first.ID {
		t.Error("the grant in force was touched before the approval")
	}
	_, err = bob.approve(e)
	must(t, err)
	for range 300 {
		if live := web1.grants(); len(live) == 1 && live[0].ID != first.ID {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	live := web1.eventually(1)[0]
	if live.ID == first.ID || !live.Start.Equal(first.Start) || live.End.Sub(live.Start) != 30*time.Minute {
		t.Errorf("the extended window is %v to %v", live.Start, live.End)
	}
	got := alice.until(r.GetId(), "extended and applied", applied)
	if got.GetExtensionPending() || got.GetGrants()[0].GetEndCause() != curfewv1.EndCause_END_CAUSE_EXTENDED {
		t.Errorf("after the extension: %v", got)
	}
	// Over the role's hour.
	_, err = alice.Extend(t.Context(), &apiv1.ExtendRequest{
		Id: r.GetId(), MoreMs: (31 * time.Minute).Milliseconds(), Reason: "more",
	})
	refused(t, err, apiv1.Code_CODE_INVALID)
}

// A1 to A12 as far as they meet approvals: every one is refused and grants nothing.
func TestApprovalAttacks(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	h.group("sre", "bob", "erin", "alice") // alice may approve, but never her own
	r := alice.ask("web1")
	other := alice.ask("web1")
	approve := func(p *person, sig []byte, revision uint32) error {
		_, err := p.Approve(t.Context(),
			&apiv1.ApproveRequest{Id: r.GetId(), Revision: revision, Sshsig: sig})
		return err
	}
	login, err := sshsig.Sign(bob.key, sshsig.NamespaceLogin, r.GetTerms())
	must(t, err)
	changed := append([]byte(nil), r.GetTerms()...)
	changed[len(changed)-1] ^= 1
	for name, err := range map[string]error{
		"own request":                  approve(alice, alice.sign(r.GetTerms()), 1),
		"bob with alice's signature":   approve(bob, alice.sign(r.GetTerms()), 1),
		"signature of a stranger":      approve(bob, h.person("x", newKey(t), nil).withT(t).sign(r.GetTerms()), 1),
		"signature over other terms":   approve(bob, bob.sign(other.GetTerms()), 1),
		"signature over changed terms": approve(bob, bob.sign(changed), 1),
		"signature for signing in":     approve(bob, login, 1),
		"no signature":                 approve(bob, nil, 1),
		"garbage":                      approve(bob, []byte("SSHSIG garbage"), 1),
	} {
		if got := refused(t, err, apiv1.Code_CODE_DENIED); got.GetText() == "" {
			t.Errorf("%s is refused without a word", name)
		}
	}
	refused(t, approve(bob, bob.sign(r.GetTerms()), 2), apiv1.Code_CODE_CONFLICT)
	refused(t, approve(bob, bob.sign(r.GetTerms()), 0), apiv1.Code_CODE_CONFLICT)
	if got := alice.get(r.GetId()); len(got.GetDecisions()) != 0 || len(web1.grants()) != 0 {
		t.Fatalf("after attacks alone there is %v", got.GetDecisions())
	}
	must(t, approve(bob, bob.sign(r.GetTerms()), 1))
	web1.eventually(1)
	refused(t, approve(bob, bob.sign(r.GetTerms()), 1), apiv1.Code_CODE_CONFLICT)
	// The same key under a second account would make one person two.
	_, err = h.admin.PutUser(t.Context(), &apiv1.PutUserRequest{User: &apiv1.User{
		Name: "alias", SshKeys: []string{grant.SSHKeyText(alice.key.PublicKey())},
	}})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}

func (p *person) withT(t *testing.T) *person {
	p.t = t
	return p
}

// Two approvers at the same moment where one suffices: exactly one set of grants.
func TestTwoApproversAtOnce(t *testing.T) {
	h := build(t, nil)
	alice, bob, erin, web1 := h.cast(1)
	for range 5 {
		r := alice.ask("web1")
		var wg sync.WaitGroup
		errs := make(chan error, 2)
		for _, p := range []*person{bob, erin} {
			wg.Go(func() {
				_, err := p.approve(r)
				errs <- err
			})
		}
		wg.Wait()
		close(errs)
		good := 0
		for err := range errs {
			if err == nil {
				good++
				continue
			}
			refused(t, err, apiv1.Code_CODE_CONFLICT)
		}
		got := alice.get(r.GetId())
		if good != 1 || len(got.GetGrants()) != 1 || len(got.GetDecisions()) != 1 {
			t.Fatalf("%d approvals were accepted and made %d grants", good, len(got.GetGrants()))
		}
		_, err := alice.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
		must(t, err)
	}
	web1.eventually(0)
}

// What the directory no longer gives is not approved any more.
func TestChangesBehindARequest(t *testing.T) {
	h := build(t, nil)
	alice, bob, erin, _ := h.cast(2)
	r := alice.ask("web1")
	_, err := bob.approve(r)
	must(t, err)
	// Bob leaves the group: his approval counts no longer.
	carol := h.add("carol")
	h.group("sre", "carol", "erin")
	got, err := erin.approve(r)
	must(t, err)
	if granted(got) {
		t.Fatal("an approval of somebody who left the group counted")
	}
	got, err = carol.approve(r)
	must(t, err)
	if !granted(got) {
		t.Fatalf("two approvals of members make %v: %s", got.GetState(), got.GetVerdict())
	}
	// The role changes while a request waits: the approvers would sign what is no longer policy.
	waiting := alice.ask("web1")
	role := opsRole(2)
	role.SudoRules[0].Args = []string{"stop", "nginx.service"}
	h.role(role)
	_, err = erin.approve(waiting)
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}

// DisableUser and a removed key end what rests on them at once.
func TestDisabledUserLosesEverything(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	r := alice.ask("web1")
	_, err := bob.approve(r)
	must(t, err)
	waiting := alice.ask("web1")
	web1.eventually(1)
	_, err = h.admin.DisableUser(t.Context(), &apiv1.DisableUserRequest{Name: "alice"})
	must(t, err)
	web1.eventually(0)
	_, err = alice.WhoAmI(t.Context(), &apiv1.WhoAmIRequest{})
	refused(t, err, apiv1.Code_CODE_SIGN_IN)
	if got := bob.get(r.GetId()); got.GetEndCause() != curfewv1.EndCause_END_CAUSE_REVOKED ||
		got.GetEndedBy() != "dana" {
		t.Errorf("the grant ended by %q: %v", got.GetEndedBy(), got.GetEndCause())
	}
	if got := bob.get(waiting.GetId()); got.GetState() != apiv1.RequestState_REQUEST_STATE_WITHDRAWN {
		t.Errorf("the waiting request is %v", got.GetState())
	}
	_, err = h.admin.DisableUser(t.Context(), &apiv1.DisableUserRequest{Name: "dana"})
	refused(t, err, apiv1.Code_CODE_CONFLICT) // the last admin
}

// Revoke is for admins and the group; others and strangers get nothing.
func TestRevokeAndVisibility(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	mallory := h.add("mallory")
	r := alice.ask("web1")
	_, err := bob.approve(r)
	must(t, err)
	web1.eventually(1)
	_, err = mallory.GetRequest(t.Context(), &apiv1.GetRequestRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
	_, err = mallory.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
	_, err = mallory.Revoke(t.Context(), &apiv1.RevokeRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_DENIED)
	_, err = bob.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_DENIED)
	_, err = bob.Withdraw(t.Context(), &apiv1.WithdrawRequest{Id: r.GetId()})
	refused(t, err, apiv1.Code_CODE_DENIED)
	if n := len(web1.grants()); n != 1 {
		t.Fatalf("%d windows are open after refused ends", n)
	}
	_, err = bob.Revoke(t.Context(), &apiv1.RevokeRequest{Id: r.GetId(), Reason: "that is enough"})
	must(t, err)
	web1.eventually(0)
	_, err = bob.Revoke(t.Context(), &apiv1.RevokeRequest{Id: r.GetId(), Reason: "again"})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}
