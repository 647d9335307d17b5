package request_test

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/controlplane/request"
	"github.com/curfew-access/curfew/internal/grant"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

var (
	allStates = []request.State{
		request.Pending, request.Approved, request.Denied, request.Withdrawn, request.Lapsed,
		request.Granted, request.Ended,
	}
	allEvents = []request.Event{
		request.EventApprove, request.EventDeny, request.EventWithdraw, request.EventLapse,
		request.EventGrant, request.EventEnd, request.EventExtend,
	}
	start = time.UnixMilli(1_800_000_000_000)
)

type move struct {
	state     request.State
	extending bool
	event     request.Event
}

// permitted is the whole state machine, written a second time.
var permitted = map[move]request.State{
	{request.Pending, false, request.EventApprove}:  request.Approved,
	{request.Pending, false, request.EventDeny}:     request.Denied,
	{request.Pending, false, request.EventWithdraw}: request.Withdrawn,
	{request.Pending, false, request.EventLapse}:    request.Lapsed,
	{request.Approved, false, request.EventGrant}:   request.Granted,
	{request.Approved, false, request.EventLapse}:   request.Lapsed,
	{request.Granted, false, request.EventEnd}:      request.Ended,
	{request.Granted, false, request.EventExtend}:   request.Granted,
	{request.Granted, true, request.EventApprove}:   request.Granted,
	{request.Granted, true, request.EventDeny}:      request.Granted,
	{request.Granted, true, request.EventWithdraw}:  request.Granted,
	{request.Granted, true, request.EventLapse}:     request.Granted,
	{request.Granted, true, request.EventEnd}:       request.Ended,
}

func TestEveryStateAndEvent(t *testing.T) {
	for _, s := range allStates {
		for _, e := range allEvents {
			for _, extending := range []bool{false, true} {
				if extending && s != request.Granted {
					continue // only a granted request has an extension
				}
				got, err := request.Next(s, extending, e)
				want, ok := permitted[move{s, extending, e}]
				switch {
				case ok && (err != nil || got != want):
					t.Errorf("%s, extending %v, %s: %s, %v; want %s", s, extending, e, got, err, want)
				case !ok && !errors.Is(err, request.ErrState):
					t.Errorf("%s, extending %v, %s went to %s", s, extending, e, got)
				case !ok && got != s:
					t.Errorf("a refused event moved %s to %s", s, got)
				}
			}
		}
	}
	for _, s := range allStates {
		final := s != request.Pending && s != request.Approved && s != request.Granted
		if s.Final() != final {
			t.Errorf("%s.Final() = %v", s, !final)
		}
	}
}

func fresh() *request.Request {
	return request.New("000000000000", "alice", "ops", nil, false, request.Revision{
		Terms: []byte("terms"), Duration: time.Minute, Created: start, Lapses: start.Add(time.Hour),
		Needs: []grant.Need{{Group: "sre", Approvals: 1}},
	})
}

func granted(t *testing.T) *request.Request {
	t.Helper()
	r := fresh()
	for _, err := range []error{
		r.Vote(request.Decision{Approver: "bob", Approved: true, At: start, Revision: 1}),
		r.Approve(start), r.Grant(start),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestDecisions(t *testing.T) {
	r := fresh()
	vote := func(who string, revision uint32) error {
		return r.Vote(request.Decision{Approver: who, Approved: true, At: start, Revision: revision})
	}
	if err := vote("bob", 2); !errors.Is(err, request.ErrStale) {
		t.Errorf("a vote over another revision: %v", err)
	}
	if err := vote("bob", 1); err != nil {
		t.Fatal(err)
	}
	if err := vote("bob", 1); !errors.Is(err, request.ErrTwice) {
		t.Errorf("a second vote: %v", err)
	}
	if err := r.Deny(request.Decision{Approver: "bob", At: start, Revision: 1}); !errors.Is(err, request.ErrTwice) {
		t.Errorf("a denial after an approval: %v", err)
	}
	if err := r.Deny(request.Decision{Approver: "erin", At: start, Revision: 1}); err != nil {
		t.Fatal(err)
	}
	if r.State != request.Denied || r.Newest().Outcome != request.OutDenied {
		t.Errorf("after a denial it is %s", r.State)
	}
	if err := vote("carl", 1); !errors.Is(err, request.ErrState) {
		t.Errorf("a vote on a denied request: %v", err)
	}
}

func TestExtensionLeavesTheGrant(t *testing.T) {
	for name, c := range map[string]struct {
		do      func(*request.Request) error
		out     request.Outcome
		inForce uint32
	}{
		"denied": {func(r *request.Request) error {
			return r.Deny(request.Decision{Approver: "bob", At: start, Revision: 2})
		}, request.OutDenied, 1},
		"withdrawn": {func(r *request.Request) error { return r.Withdraw(start) }, request.OutWithdraw, 1},
		"lapsed":    {func(r *request.Request) error { return r.Lapse(start) }, request.OutLapsed, 1},
		"approved": {func(r *request.Request) error {
			return errors.Join(r.Approve(start), r.Grant(start))
		}, request.OutGranted, 2},
		"approved, never sealed": {func(r *request.Request) error {
			return errors.Join(r.Approve(start), r.Lapse(start))
		}, request.OutLapsed, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := granted(t)
			if err := r.Extend(request.Revision{Created: start, Terms: []byte("more")}); err != nil {
				t.Fatal(err)
			}
			if err := r.Extend(request.Revision{Created: start}); !errors.Is(err, request.ErrState) {
				t.Errorf("a second extension beside the first: %v", err)
			}
			if err := c.do(r); err != nil {
				t.Fatal(err)
			}
			if r.State != request.Granted || r.Newest().Outcome != c.out || r.InForce != c.inForce {
				t.Errorf("it is %s, outcome %d, revision %d in force", r.State, r.Newest().Outcome, r.InForce)
			}
		})
	}
	r := granted(t)
	if err := r.Extend(request.Revision{Created: start}); err != nil {
		t.Fatal(err)
	}
	if err := r.End(curfewv1.EndCause_END_CAUSE_EXPIRED, "", start); err != nil {
		t.Fatal(err)
	}
	if r.State != request.Ended || r.Newest().Outcome != request.OutVoid {
		t.Errorf("an end under an extension: %s, %d", r.State, r.Newest().Outcome)
	}
}

func TestGrantNeedsApproval(t *testing.T) {
	r := fresh()
	if err := r.Grant(start); !errors.Is(err, request.ErrState) {
		t.Errorf("a pending request was granted: %v", err)
	}
	r = granted(t)
	if err := r.Extend(request.Revision{Created: start}); err != nil {
		t.Fatal(err)
	}
	if err := r.Grant(start); !errors.Is(err, request.ErrState) {
		t.Errorf("an extension was granted without approval: %v", err)
	}
	if ended, err := r.Settle(1, request.GrantEnd{}, start); ended || err != nil {
		t.Errorf("a request with a live grant settled: %v", err)
	}
	if ended, err := r.Settle(0, request.GrantEnd{}, start); !ended || err != nil {
		t.Errorf("a request without a live grant did not settle: %v", err)
	}
}

// Whatever happens in whatever order: revisions are numbered, one at most waits, and what is in force
// was approved.
func TestAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := fresh()
		approved := map[uint32]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			n := r.Newest().Number
			switch rapid.IntRange(0, 7).Draw(t, "event") {
			case 0:
				_ = r.Vote(request.Decision{Approver: "bob", Approved: true, At: start, Revision: n})
			case 1:
				if r.Approve(start) == nil {
					approved[n] = true
				}
			case 2:
				_ = r.Grant(start)
			case 3:
				_ = r.Deny(request.Decision{Approver: "erin", At: start, Revision: n})
			case 4:
				_ = r.Withdraw(start)
			case 5:
				_ = r.Lapse(start)
			case 6:
				_ = r.Extend(request.Revision{Created: start})
			case 7:
				_ = r.End(curfewv1.EndCause_END_CAUSE_DONE, "alice", start)
			}
			if r.InForce != 0 && !approved[r.InForce] {
				t.Fatalf("revision %d is in force without approval", r.InForce)
			}
			for i, v := range r.Revisions {
				if v.Number != uint32(i+1) {
					t.Fatalf("revision %d stands at place %d", v.Number, i)
				}
				if v.Outcome == request.Open && (i != len(r.Revisions)-1 || r.Waiting() == nil) {
					t.Fatalf("revision %d is open in state %s", v.Number, r.State)
				}
			}
			if (r.State == request.Granted || r.State == request.Ended) != (r.InForce != 0) {
				t.Fatalf("state %s with revision %d in force", r.State, r.InForce)
			}
		}
	})
}
