package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/sshsig"
	"github.com/curfew-access/curfew/internal/trail"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func (f *fake) CreateRequest(
	ctx context.Context, in *apiv1.CreateRequestRequest,
) (*apiv1.CreateRequestResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	role := f.roles[in.GetRole()]
	if role == nil {
		return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "there is no role %q", in.GetRole())
	}
	if in.GetDurationMs() > role.GetMaxDurationMs() {
		return nil, refuse(apiv1.Code_CODE_INVALID, "role %s gives at most %s", role.GetName(),
			dur(role.GetMaxDurationMs()))
	}
	id, err := grant.NewRequestID(rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	r := &apiv1.Request{
		Id: id, Requester: me(ctx), Role: in.GetRole(), Hosts: in.GetHosts(),
		DurationMs: in.GetDurationMs(), Reason: in.GetReason(), SingleUse: in.GetSingleUse(), Revision: 1,
		State: apiv1.RequestState_REQUEST_STATE_PENDING, CreatedMs: now.UnixMilli(),
		LapsesMs: now.Add(time.Hour).UnixMilli(), RootEquivalent: role.GetRootEquivalent(),
	}
	if err := f.draw(r, nil); err != nil {
		return nil, err
	}
	f.requests = append([]*apiv1.Request{r}, f.requests...)
	err = f.record(&trail.Record{
		Kind: "request.created", Actor: r.GetRequester(), RequestID: id,
		Details: map[string]string{"reason": r.GetReason()},
	})
	return &apiv1.CreateRequestResponse{Request: f.shown(r)}, err
}

// draw draws up the terms of a request's newest revision; the caller holds mu.
func (f *fake) draw(r *apiv1.Request, follows []byte) error {
	role, user := f.roles[r.GetRole()], f.users[r.GetRequester()]
	now := time.Now()
	hash := sha256.Sum256([]byte("policy"))
	terms := &curfewv1.Terms{
		Version: 1, Organisation: "acme", RequestId: r.GetId(), Revision: r.GetRevision(),
		Requester: r.GetRequester(), Role: r.GetRole(), Login: r.GetRequester(), Uid: user.GetUid(),
		AllowLogin: role.GetAllowLogin(), SudoRules: role.GetSudoRules(), Groups: role.GetGroups(),
		StartMode:       curfewv1.StartMode_START_MODE_CONFIRMATION,
		StartEarliestMs: now.UnixMilli(), StartLatestMs: now.Add(2 * time.Hour).UnixMilli(),
		DurationMs: r.GetDurationMs(), HardEndMs: now.Add(2*time.Hour + dur(r.GetDurationMs())).UnixMilli(),
		ApprovalsNeeded: role.GetApprovals(), ApproverGroup: role.GetApproverGroup(),
		PolicyHash: hash[:], ReasonHash: grant.ReasonHash(r.GetReason()),
		RootEquivalent: grant.RootEquivalent(role.GetSudoRules(), role.GetGroups()),
	}
	if role.GetAllowLogin() {
		terms.AuthorizedKeys = user.GetSshKeys()
	}
	if follows != nil {
		digest := grant.TermsDigest(follows)
		terms.Follows = digest[:]
	}
	for _, name := range r.GetHosts() {
		host := f.hosts[name]
		if host == nil {
			return refuse(apiv1.Code_CODE_NOT_FOUND, "there is no host %q", name)
		}
		terms.Hosts = append(terms.Hosts, &curfewv1.HostRef{Id: host.GetId(), Name: name})
	}
	slices.SortFunc(terms.Hosts, func(a, b *curfewv1.HostRef) int {
		return bytes.Compare(a.GetId(), b.GetId())
	})
	raw, err := grant.MarshalTerms(terms)
	r.Terms = raw
	return err
}

// shown is a copy for the caller, with the lies that the test ordered.
func (f *fake) shown(r *apiv1.Request) *apiv1.Request {
	c := proto.CloneOf(r)
	if first := f.reasons[r.GetId()]; !r.GetExtensionPending() && first != "" {
		c.Reason = first // an extension's own reason is shown while it waits
	}
	switch {
	case f.tamper["reason"]:
		c.Reason = "something harmless"
	case f.tamper["requester"]:
		c.Requester = "carol"
	case f.tamper["revision"]:
		c.Revision++
	case f.tamper["hosts"]:
		c.Hosts = []string{"other"}
	case f.tamper["terms"]:
		c.Terms = append(c.GetTerms(), 0x08, 0x01)
	case f.tamper["id"] && len(f.requests) > 1:
		c.Terms = f.requests[len(f.requests)-1].GetTerms()
	}
	return c
}

func (f *fake) find(id string) (*apiv1.Request, error) {
	for _, r := range f.requests {
		if r.GetId() == id {
			return r, nil
		}
	}
	return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "there is no request %q", id)
}

func (f *fake) GetRequest(
	_ context.Context, in *apiv1.GetRequestRequest,
) (*apiv1.GetRequestResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.find(in.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetRequestResponse{Request: f.shown(r)}, nil
}

func (f *fake) matches(who string, filter *apiv1.RequestFilter, r *apiv1.Request) bool {
	pending := r.GetState() == apiv1.RequestState_REQUEST_STATE_PENDING
	granted := r.GetState() == apiv1.RequestState_REQUEST_STATE_GRANTED
	mayApprove := r.GetRequester() != who &&
		slices.Contains(f.groups[f.roles[r.GetRole()].GetApproverGroup()], who)
	switch {
	case filter.GetMine() && r.GetRequester() != who,
		filter.GetPendingForMe() && !(mayApprove && (pending || r.GetExtensionPending())),
		filter.GetOpen() && !pending && !granted,
		filter.GetHost() != "" && !slices.Contains(r.GetHosts(), filter.GetHost()),
		filter.GetUser() != "" && r.GetRequester() != filter.GetUser():
		return false
	}
	return true
}

func (f *fake) ListRequests(
	ctx context.Context, in *apiv1.ListRequestsRequest,
) (*apiv1.ListRequestsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &apiv1.ListRequestsResponse{}
	for _, r := range f.requests {
		if f.matches(me(ctx), in.GetFilter(), r) {
			answer.Requests = append(answer.Requests, f.shown(r))
		}
	}
	return answer, nil
}

func (f *fake) WatchRequests(
	in *apiv1.WatchRequestsRequest, stream grpc.ServerStreamingServer[apiv1.WatchRequestsResponse],
) error {
	who, _ := f.caller(stream.Context())
	sent := map[string]*apiv1.Request{}
	f.mu.Lock()
	breaks := f.breaks
	f.streams++
	f.mu.Unlock()
	for {
		f.mu.Lock()
		changed := f.changed
		var news []*apiv1.Request
		for _, r := range f.requests {
			wanted := in.GetId() == r.GetId() || in.GetId() == "" && f.matches(who, in.GetFilter(), r)
			if wanted && !proto.Equal(sent[r.GetId()], r) {
				news = append(news, proto.CloneOf(r))
				sent[r.GetId()] = proto.CloneOf(r)
			}
		}
		f.mu.Unlock()
		for _, r := range news {
			if err := stream.Send(&apiv1.WatchRequestsResponse{Request: r}); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-breaks:
			return status.Error(codes.Unavailable, "going away")
		case <-changed:
		}
	}
}

func (f *fake) Approve(
	ctx context.Context, in *apiv1.ApproveRequest,
) (*apiv1.ApproveResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.find(in.GetId())
	if err != nil {
		return nil, err
	}
	if in.GetRevision() != r.GetRevision() {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "the request moved on")
	}
	key, err := sshsig.Verify(in.GetSshsig(), sshsig.NamespaceApprove, r.GetTerms())
	if err != nil || !f.owns(me(ctx), key) {
		return nil, refuse(apiv1.Code_CODE_DENIED, "the signature does not verify")
	}
	r.Decisions = append(r.Decisions, &apiv1.Decision{
		Approver: me(ctx), Approved: true, AtMs: time.Now().UnixMilli(), Revision: r.GetRevision(),
	})
	err = f.record(&trail.Record{
		Kind: "request.approved", Actor: me(ctx), RequestID: r.GetId(),
	})
	if err != nil {
		return nil, err
	}
	if err := f.issue(r); err != nil {
		return nil, err
	}
	return &apiv1.ApproveResponse{Request: proto.CloneOf(r)}, nil
}

// issue makes grants for the newest revision; connected hosts answer at once.
func (f *fake) issue(r *apiv1.Request) error {
	r.State, r.ExtensionPending = apiv1.RequestState_REQUEST_STATE_GRANTED, false
	for _, name := range r.GetHosts() {
		host := f.hosts[name]
		id := grant.IDOf(r.GetTerms(), grant.HostID(host.GetId()))
		g := &apiv1.HostGrant{
			GrantId: id[:], HostId: host.GetId(), HostName: name, Revision: r.GetRevision(),
		}
		for _, old := range r.GetGrants() {
			if old.GetHostName() == name && old.GetEndedMs() == 0 {
				old.EndedMs, old.EndCause = time.Now().UnixMilli(), curfewv1.EndCause_END_CAUSE_EXTENDED
				g.StartMs = old.GetStartMs()
			}
		}
		r.Grants = append(r.Grants, g)
		if host.GetConnected() {
			if err := f.answer(host, r, g); err != nil {
				return err
			}
		}
	}
	f.wake()
	return nil
}

// answer is a host's answer to a grant.
func (f *fake) answer(h *fakeHost, r *apiv1.Request, g *apiv1.HostGrant) error {
	now := time.Now().UnixMilli()
	if h.refuse != "" {
		g.Status, g.Detail = curfewv1.GrantStatus_GRANT_STATUS_REJECTED, h.refuse
		return f.hostEvent(h, trail.KindGrantRejected, r.GetId(), g.GetGrantId())
	}
	if g.GetStartMs() == 0 {
		g.StartMs = now
	}
	g.Status, g.ConfirmedMs = curfewv1.GrantStatus_GRANT_STATUS_APPLIED, now
	g.EndMs = g.GetStartMs() + r.GetDurationMs()
	return f.hostEvent(h, trail.KindGrantApplied, r.GetId(), g.GetGrantId())
}

// connect brings a host back: it answers what waited for it.
func (f *fake) connect(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hosts[name]
	h.Connected = true
	for _, r := range f.requests {
		for _, g := range r.GetGrants() {
			if g.GetHostName() == name && g.GetStatus() == 0 {
				if err := f.answer(h, r, g); err != nil {
					return err
				}
			}
		}
	}
	f.wake()
	return nil
}

func (f *fake) Deny(ctx context.Context, in *apiv1.DenyRequest) (*apiv1.DenyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.find(in.GetId())
	if err != nil {
		return nil, err
	}
	r.Decisions = append(r.Decisions, &apiv1.Decision{
		Approver: me(ctx), Reason: in.GetReason(), AtMs: time.Now().UnixMilli(),
		Revision: in.GetRevision(),
	})
	if r.GetExtensionPending() {
		r.ExtensionPending = false
	} else {
		r.State = apiv1.RequestState_REQUEST_STATE_DENIED
	}
	f.wake()
	return &apiv1.DenyResponse{Request: proto.CloneOf(r)}, nil
}

func (f *fake) end(
	id string, state apiv1.RequestState, cause curfewv1.EndCause, by string,
) (*apiv1.Request, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.find(id)
	if err != nil {
		return nil, err
	}
	if r.GetState() == apiv1.RequestState_REQUEST_STATE_ENDED {
		return nil, refuse(apiv1.Code_CODE_CONFLICT, "%s has ended already", id)
	}
	r.State, r.EndCause, r.EndedBy = state, cause, by
	for _, g := range r.GetGrants() {
		if g.GetEndedMs() == 0 {
			g.EndedMs, g.EndCause, g.EndedBy = time.Now().UnixMilli(), cause, by
		}
	}
	f.wake()
	return proto.CloneOf(r), nil
}

func (f *fake) Withdraw(
	ctx context.Context, in *apiv1.WithdrawRequest,
) (*apiv1.WithdrawResponse, error) {
	r, err := f.end(in.GetId(), apiv1.RequestState_REQUEST_STATE_WITHDRAWN, 0, me(ctx))
	return &apiv1.WithdrawResponse{Request: r}, err
}

func (f *fake) Done(ctx context.Context, in *apiv1.DoneRequest) (*apiv1.DoneResponse, error) {
	r, err := f.end(in.GetId(), apiv1.RequestState_REQUEST_STATE_ENDED,
		curfewv1.EndCause_END_CAUSE_DONE, me(ctx))
	return &apiv1.DoneResponse{Request: r}, err
}

func (f *fake) Revoke(ctx context.Context, in *apiv1.RevokeRequest) (*apiv1.RevokeResponse, error) {
	r, err := f.end(in.GetId(), apiv1.RequestState_REQUEST_STATE_ENDED,
		curfewv1.EndCause_END_CAUSE_REVOKED, me(ctx))
	return &apiv1.RevokeResponse{Request: r}, err
}

func (f *fake) Extend(_ context.Context, in *apiv1.ExtendRequest) (*apiv1.ExtendResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, err := f.find(in.GetId())
	if err != nil {
		return nil, err
	}
	old := r.GetTerms()
	r.Revision++
	r.DurationMs += in.GetMoreMs()
	r.ExtensionPending = true
	if err := grant.CheckReason(in.GetReason()); err != nil {
		return nil, refuse(apiv1.Code_CODE_INVALID, "%v", err)
	}
	if f.reasons[r.GetId()] == "" {
		f.reasons[r.GetId()] = r.GetReason()
	}
	r.Reason = in.GetReason()
	if err := f.draw(r, old); err != nil {
		return nil, err
	}
	f.wake()
	return &apiv1.ExtendResponse{Request: proto.CloneOf(r)}, nil
}

func (f *fake) ListRecords(
	in *apiv1.ListRecordsRequest, stream grpc.ServerStreamingServer[apiv1.ListRecordsResponse],
) error {
	next := in.GetFrom()
	for {
		f.mu.Lock()
		changed := f.changed
		answer := &apiv1.ListRecordsResponse{TrailCount: uint64(len(f.leaves))}
		head, err := trail.Head(answer.GetTrailCount(), f.hashes)
		answer.TrailHead = head
		for ; next < uint64(len(f.leaves)); next++ {
			record, err := trail.ParseRecord(f.leaves[next])
			if err == nil && in.GetRequestId() != "" && record.RequestID != in.GetRequestId() {
				continue
			}
			answer.Records = append(answer.Records,
				&apiv1.Record{Number: next, Leaf: f.leaves[next]})
		}
		f.mu.Unlock()
		if err != nil {
			return err
		}
		if err := stream.Send(answer); err != nil || !in.GetFollow() {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}
