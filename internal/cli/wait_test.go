package cli

import (
	"errors"
	"testing"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const (
	pending   = apiv1.RequestState_REQUEST_STATE_PENDING
	approved  = apiv1.RequestState_REQUEST_STATE_APPROVED
	denied    = apiv1.RequestState_REQUEST_STATE_DENIED
	withdrawn = apiv1.RequestState_REQUEST_STATE_WITHDRAWN
	lapsed    = apiv1.RequestState_REQUEST_STATE_LAPSED
	granted   = apiv1.RequestState_REQUEST_STATE_GRANTED
	ended     = apiv1.RequestState_REQUEST_STATE_ENDED

	unanswered = curfewv1.GrantStatus_GRANT_STATUS_UNSPECIFIED
	applied    = curfewv1.GrantStatus_GRANT_STATUS_APPLIED
	failed     = curfewv1.GrantStatus_GRANT_STATUS_FAILED
	missing    = curfewv1.GrantStatus_GRANT_STATUS_MISSING
)

func onHost(name string, revision uint32, status curfewv1.GrantStatus) *apiv1.HostGrant {
	return &apiv1.HostGrant{HostName: name, Revision: revision, Status: status, Detail: "why"}
}

func TestJudge(t *testing.T) {
	no := &apiv1.Decision{Approver: "bob", Reason: "no", Revision: 2}
	yes := &apiv1.Decision{Approver: "bob", Approved: true, Revision: 2}
	over := onHost("web1", 2, unanswered)
	over.EndedMs = 1
	for _, c := range []struct {
		name     string
		state    apiv1.RequestState
		more     func(*apiv1.Request)
		revision uint32
		text     string
		done     bool
		code     int
	}{
		{name: "pending", state: pending, text: "id pending · needs more"},
		{name: "denied", state: denied, done: true, code: exitDenied},
		{name: "withdrawn", state: withdrawn, done: true, code: exitFailed},
		{name: "lapsed", state: lapsed, done: true, code: exitTimeout},
		{name: "no grant yet", state: approved, text: "id approved · waiting for web1, web2"},
		{
			name: "one host to come", state: granted,
			more: func(r *apiv1.Request) {
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, applied), onHost("web2", 1, missing)}
			},
			text: "id approved · waiting for web2 to confirm",
		},
		{
			name: "all there", state: granted, done: true,
			more: func(r *apiv1.Request) {
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, applied), onHost("web2", 1, applied)}
			},
		},
		{
			name: "one failed", state: granted, done: true, code: exitFailed,
			more: func(r *apiv1.Request) {
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, applied), onHost("web2", 1, failed)}
			},
		},
		{
			name: "over before it was confirmed", state: ended, done: true, code: exitFailed,
			more: func(r *apiv1.Request) {
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, unanswered)}
			},
		},
		{name: "ended without grants", state: ended, done: true, code: exitFailed},
		{
			name: "extension pending", state: granted, revision: 2,
			more: func(r *apiv1.Request) {
				r.ExtensionPending = true
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, applied)}
			},
			text: "id extension pending · needs more",
		},
		{
			name: "extension denied", state: granted, revision: 2, done: true, code: exitDenied,
			more: func(r *apiv1.Request) { r.Decisions = []*apiv1.Decision{no} },
		},
		{
			name: "extension approved, not issued", state: granted, revision: 2,
			more: func(r *apiv1.Request) {
				r.Decisions = []*apiv1.Decision{yes}
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, applied)}
			},
			text: "id approved · waiting for web1, web2",
		},
		{
			name: "extension lapsed with a void approval", state: granted, revision: 2, done: true,
			code: exitTimeout,
			more: func(r *apiv1.Request) {
				r.Decisions = []*apiv1.Decision{{Approver: "bob", Revision: 2}}
			},
		},
		{name: "extension lapsed", state: granted, revision: 2, done: true, code: exitTimeout},
		{
			name: "extension there", state: granted, revision: 2, done: true,
			more: func(r *apiv1.Request) {
				r.Grants = []*apiv1.HostGrant{onHost("web1", 1, applied), onHost("web1", 2, applied)}
			},
		},
		{
			name: "ended by the host at once", state: granted, revision: 2, done: true,
			more: func(r *apiv1.Request) { r.Grants = []*apiv1.HostGrant{over} },
		},
	} {
		r := &apiv1.Request{
			Id: "id", State: c.state, Hosts: []string{"web1", "web2"}, Verdict: "needs more",
		}
		if c.more != nil {
			c.more(r)
		}
		w := &wait{id: "id", revision: max(c.revision, 1), extension: c.revision > 1}
		got := w.judge(r)
		code := exitOK
		var f *failure
		if errors.As(got.err, &f) {
			code = f.code
		}
		if got.text != c.text || got.done != c.done || code != c.code {
			t.Errorf("%s: %q, done %v, exit %d (%v); want %q, %v, %d", c.name, got.text, got.done,
				code, got.err, c.text, c.done, c.code)
		}
	}
}
