package controlplane_test

import (
	"strings"
	"testing"
	"time"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func (p *person) create(req *apiv1.CreateRequestRequest) (*apiv1.Request, error) {
	if req.Reason == "" {
		req.Reason = "the night's work"
	}
	r, err := p.CreateRequest(p.t.Context(), req)
	return r.GetRequest(), err
}

// Windows that were approved once open one by one, by themselves, and nothing is open between them.
func TestWindowsOpenByThemselves(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	now := time.Now()
	span := func(from, to time.Duration) *curfewv1.Span {
		return &curfewv1.Span{StartMs: now.Add(from).UnixMilli(), EndMs: now.Add(to).UnixMilli()}
	}
	r, err := alice.create(&apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops",
		Windows: []*curfewv1.Span{span(3*time.Second, 6*time.Second), span(9*time.Second, time.Hour)},
	})
	must(t, err)
	approved, err := bob.approve(r)
	must(t, err)
	if !granted(approved) || len(approved.GetGrants()) != 2 || len(approved.GetWindows()) != 2 {
		t.Fatalf("approved it is %v with %d grants", approved.GetState(), len(approved.GetGrants()))
	}
	if live := web1.grants(); len(live) != 0 && time.Since(now) < 3*time.Second {
		t.Fatalf("%d windows are open ahead of their time", len(live))
	}
	first := web1.eventually(1)[0]
	if early := time.Until(time.UnixMilli(r.GetWindows()[0].GetStartMs())); early > 0 {
		t.Errorf("the first window opened %s early", early)
	}
	web1.eventually(0)
	second := web1.eventually(1)[0]
	if second.ID == first.ID || second.End.UnixMilli() != r.GetWindows()[1].GetEndMs() {
		t.Errorf("the second window ends %s", second.End)
	}
	if got := alice.get(r.GetId()); !granted(got) {
		t.Errorf("with a window open it is %v", got.GetState())
	}
	_, err = alice.Extend(t.Context(), &apiv1.ExtendRequest{Id: r.GetId(), MoreMs: 60_000, Reason: "more"})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	_, err = alice.Done(t.Context(), &apiv1.DoneRequest{Id: r.GetId()})
	must(t, err)
	web1.eventually(0)
}

// A start time is held: approved early, it opens then.
func TestStartsWhenItShould(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, web1 := h.cast(1)
	start := time.Now().Add(4 * time.Second)
	r, err := alice.create(&apiv1.CreateRequestRequest{
		Hosts: []string{"web1"}, Role: "ops", DurationMs: 600_000, StartEarliestMs: start.UnixMilli(),
		SingleUse: true,
	})
	must(t, err)
	_, err = bob.approve(r)
	must(t, err)
	if n := len(web1.grants()); n != 0 && time.Now().Before(start) {
		t.Fatal("it opened before its time")
	}
	live := web1.eventually(1)[0]
	if time.Now().Before(start) || !live.Terms.GetSingleUse() {
		t.Errorf("it opened %s early, single use %v", time.Until(start), live.Terms.GetSingleUse())
	}
	for name, bad := range map[string]*apiv1.CreateRequestRequest{
		"in the past":    {DurationMs: 1000, StartEarliestMs: 1},
		"in a year":      {DurationMs: 1000, StartEarliestMs: time.Now().AddDate(1, 0, 0).UnixMilli()},
		"windows and at": {StartEarliestMs: start.UnixMilli(), Windows: []*curfewv1.Span{{StartMs: 1, EndMs: 2}}},
		"overlapping": {Windows: []*curfewv1.Span{
			{StartMs: start.UnixMilli(), EndMs: start.UnixMilli() + 60_000},
			{StartMs: start.UnixMilli() + 1000, EndMs: start.UnixMilli() + 90_000},
		}},
		"a window gone by": {Windows: []*curfewv1.Span{{StartMs: 1, EndMs: 60_000}}},
	} {
		bad.Hosts, bad.Role = []string{"web1"}, "ops"
		if _, err := alice.create(bad); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			refused(t, err, apiv1.Code_CODE_INVALID)
		}
	}
}

// Attack A12: who edits after an approval has no approval any more, and an approval of the old terms
// counts for nothing.
func TestEditingVoidsApprovals(t *testing.T) {
	h := build(t, nil)
	alice, bob, erin, web1 := h.cast(2)
	h.group("sre", "bob", "erin")
	r := alice.ask("web1")
	_, err := bob.approve(r)
	must(t, err)
	_, err = erin.Edit(t.Context(), &apiv1.EditRequest{
		Id: r.GetId(), Revision: 1, Ask: &apiv1.CreateRequestRequest{DurationMs: 60_000},
	})
	refused(t, err, apiv1.Code_CODE_DENIED)
	edited, err := alice.Edit(t.Context(), &apiv1.EditRequest{
		Id: r.GetId(), Revision: 1, Ask: &apiv1.CreateRequestRequest{DurationMs: (30 * time.Minute).Milliseconds()},
	})
	must(t, err)
	now := edited.GetRequest()
	if now.GetRevision() != 2 || now.GetState() != apiv1.RequestState_REQUEST_STATE_PENDING ||
		now.GetExtensionPending() || strings.Contains(now.GetVerdict(), "approved by") {
		t.Fatalf("edited it is revision %d, %v: %s", now.GetRevision(), now.GetState(), now.GetVerdict())
	}
	_, err = erin.approve(r) // over revision 1
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	stale := erin.sign(r.GetTerms())
	_, err = erin.Approve(t.Context(), &apiv1.ApproveRequest{Id: r.GetId(), Revision: 2, Sshsig: stale})
	refused(t, err, apiv1.Code_CODE_DENIED)
	_, err = alice.Edit(t.Context(), &apiv1.EditRequest{
		Id: r.GetId(), Revision: 1, Ask: &apiv1.CreateRequestRequest{DurationMs: 60_000},
	})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
	one, err := erin.approve(now)
	must(t, err)
	if granted(one) {
		t.Fatal("one approval of the new terms and one of the old are two")
	}
	both, err := bob.approve(now)
	must(t, err)
	if !granted(both) {
		t.Fatalf("approved twice anew it is %v: %s", both.GetState(), both.GetVerdict())
	}
	if live := web1.eventually(1)[0]; live.Terms.GetDurationMs() != (30 * time.Minute).Milliseconds() {
		t.Errorf("it lasts %d ms", live.Terms.GetDurationMs())
	}
	_, err = alice.Edit(t.Context(), &apiv1.EditRequest{
		Id: r.GetId(), Revision: 2, Ask: &apiv1.CreateRequestRequest{DurationMs: 60_000},
	})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}

// Several hosts by label: one grant each, resolved when it is asked.
func TestSelectorNamesHosts(t *testing.T) {
	h := build(t, nil)
	alice, bob, _, _ := h.cast(1)
	front := []*host{
		h.joinWith("front1", map[string]string{"tier": "front"}),
		h.joinWith("front2", map[string]string{"tier": "front", "env": "test"}),
	}
	h.joinWith("back1", map[string]string{"tier": "back"})
	r, err := alice.create(&apiv1.CreateRequestRequest{
		Selector: map[string]string{"tier": "front"}, Role: "ops", DurationMs: 600_000,
	})
	must(t, err)
	if got := strings.Join(r.GetHosts(), " "); got != "front1 front2" {
		t.Fatalf("selected are %q", got)
	}
	later := h.joinWith("front3", map[string]string{"tier": "front"})
	_, err = bob.approve(r)
	must(t, err)
	for _, m := range front {
		m.eventually(1)
	}
	if len(later.grants()) != 0 {
		t.Error("a host that came later has a grant")
	}
	_, err = alice.create(&apiv1.CreateRequestRequest{
		Selector: map[string]string{"tier": "cellar"}, Role: "ops", DurationMs: 600_000,
	})
	refused(t, err, apiv1.Code_CODE_NOT_FOUND)
}

// An emergency opens at once; those who were not asked hear of it, are reminded, and review it.
func TestEmergencyIsReviewed(t *testing.T) {
	a := buildAcme(t, nil)
	r, err := a.alice.create(&apiv1.CreateRequestRequest{
		Hosts: []string{"prod1"}, Role: "root", DurationMs: 600_000, Reason: "it burns", Emergency: true,
	})
	must(t, err)
	if !granted(r) || !r.GetReviewDue() {
		t.Fatalf("it is %v, review due %v", r.GetState(), r.GetReviewDue())
	}
	a.prod1.eventually(1)
	review := func(p *person, justified bool) error {
		_, err := p.ReviewEmergency(t.Context(), &apiv1.ReviewEmergencyRequest{
			Id: r.GetId(), Justified: justified, Comment: "the disk was full",
		})
		return err
	}
	if err := review(a.alice, true); err == nil {
		t.Error("alice reviewed herself")
	}
	must(t, review(a.admin, false))
	got := a.alice.get(r.GetId())
	if v := got.GetReview(); got.GetReviewDue() || v.GetReviewer() != "dana" || v.GetJustified() {
		t.Errorf("reviewed it says %v", v)
	}
	refused(t, review(a.admin, true), apiv1.Code_CODE_CONFLICT)
	plain, err := a.alice.want("ops", "look at the logs", "test1")
	must(t, err)
	_, err = a.admin.ReviewEmergency(t.Context(), &apiv1.ReviewEmergencyRequest{
		Id: plain.GetId(), Justified: true, Comment: "nothing happened",
	})
	refused(t, err, apiv1.Code_CODE_CONFLICT)
}
