package api

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/controlplane/request"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// maxHostsAsked is refused before anything is looked up; policy says the real limit.
const maxHostsAsked = 100

// deed is a call of one person about one request, as they all go.
func (s *Server) deed(
	ctx context.Context, do func(identity.Person) (*request.Request, error),
) (*apiv1.Request, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	r, err := do(p)
	if err != nil {
		return nil, err
	}
	return s.request(ctx, r)
}

// CreateRequest implements curfew.api.v1.Access.
func (s *Server) CreateRequest(
	ctx context.Context, req *apiv1.CreateRequestRequest,
) (*apiv1.CreateRequestResponse, error) {
	if len(req.GetHosts()) > maxHostsAsked || len(req.GetWindows()) > maxHostsAsked {
		return nil, reason.Limit("the request names %d hosts and %d windows", len(req.GetHosts()),
			len(req.GetWindows()))
	}
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Create(ctx, p, askIn(req), req.GetDryRun())
	})
	return &apiv1.CreateRequestResponse{Request: r}, err
}

// askIn is what a call asks for; who asks is the caller.
func askIn(req *apiv1.CreateRequestRequest) request.Ask {
	a := request.Ask{
		Role: req.GetRole(), Hosts: req.GetHosts(), Duration: durationOf(req.GetDurationMs()),
		Reason: req.GetReason(), Ticket: req.GetTicket(), SingleUse: req.GetSingleUse(),
		Emergency: req.GetEmergency(), Start: timeOf(req.GetStartEarliestMs()),
		Selector: req.GetSelector(),
	}
	for _, w := range req.GetWindows() {
		a.Windows = append(a.Windows, request.Span{Start: timeOf(w.GetStartMs()), End: timeOf(w.GetEndMs())})
	}
	return a
}

// Edit implements curfew.api.v1.Access.
func (s *Server) Edit(ctx context.Context, req *apiv1.EditRequest) (*apiv1.EditResponse, error) {
	in := req.GetAsk()
	if len(in.GetHosts()) > maxHostsAsked || len(in.GetWindows()) > maxHostsAsked {
		return nil, reason.Limit("the request names %d hosts and %d windows", len(in.GetHosts()),
			len(in.GetWindows()))
	}
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Edit(ctx, p, req.GetId(), req.GetRevision(), func(a *request.Ask) {
			edit(a, askIn(in))
		})
	})
	return &apiv1.EditResponse{Request: r}, err
}

// edit replaces what a change says; what it leaves out stays.
func edit(a *request.Ask, change request.Ask) {
	if len(change.Hosts)+len(change.Selector) > 0 {
		a.Hosts, a.Selector = change.Hosts, change.Selector
	}
	if change.Role != "" {
		a.Role = change.Role
	}
	if change.Reason != "" {
		a.Reason = change.Reason
	}
	if change.Ticket != "" {
		a.Ticket = change.Ticket
	}
	switch {
	case len(change.Windows) > 0:
		a.Windows, a.Duration, a.Start = change.Windows, 0, time.Time{}
	case change.Duration != 0 || !change.Start.IsZero():
		a.Windows = nil
		if change.Duration != 0 {
			a.Duration = change.Duration
		}
		if !change.Start.IsZero() {
			a.Start = change.Start
		}
	}
	a.SingleUse = a.SingleUse || change.SingleUse
}

// ReviewEmergency implements curfew.api.v1.Access.
func (s *Server) ReviewEmergency(
	ctx context.Context, req *apiv1.ReviewEmergencyRequest,
) (*apiv1.ReviewEmergencyResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Review(ctx, p, req.GetId(), req.GetJustified(), req.GetComment())
	})
	return &apiv1.ReviewEmergencyResponse{Request: r}, err
}

// GetRequest implements curfew.api.v1.Access.
func (s *Server) GetRequest(
	ctx context.Context, req *apiv1.GetRequestRequest,
) (*apiv1.GetRequestResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Get(ctx, p, req.GetId())
	})
	return &apiv1.GetRequestResponse{Request: r}, err
}

// ListRequests implements curfew.api.v1.Access.
func (s *Server) ListRequests(
	ctx context.Context, req *apiv1.ListRequestsRequest,
) (*apiv1.ListRequestsResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.c.Access.List(ctx, p, queryOf(req.GetFilter()))
	if err != nil {
		return nil, err
	}
	resp, size := &apiv1.ListRequestsResponse{}, 0
	for _, r := range found {
		out, err := s.request(ctx, r)
		if err != nil {
			return nil, err
		}
		// The newest that fit into one answer.
		if size += proto.Size(out); size > 3*maxAnswer {
			break
		}
		resp.Requests = append(resp.Requests, out)
	}
	return resp, nil
}

func queryOf(f *apiv1.RequestFilter) access.Query {
	return access.Query{
		Mine: f.GetMine(), PendingForMe: f.GetPendingForMe(), Open: f.GetOpen(), Host: f.GetHost(),
		User: f.GetUser(), Limit: f.GetLimit(),
	}
}

// Withdraw implements curfew.api.v1.Access.
func (s *Server) Withdraw(
	ctx context.Context, req *apiv1.WithdrawRequest,
) (*apiv1.WithdrawResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Withdraw(ctx, p, req.GetId())
	})
	return &apiv1.WithdrawResponse{Request: r}, err
}

// Extend implements curfew.api.v1.Access.
func (s *Server) Extend(
	ctx context.Context, req *apiv1.ExtendRequest,
) (*apiv1.ExtendResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Extend(ctx, p, req.GetId(), durationOf(req.GetMoreMs()), req.GetReason())
	})
	return &apiv1.ExtendResponse{Request: r}, err
}

// Done implements curfew.api.v1.Access.
func (s *Server) Done(ctx context.Context, req *apiv1.DoneRequest) (*apiv1.DoneResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Done(ctx, p, req.GetId())
	})
	return &apiv1.DoneResponse{Request: r}, err
}

// Approve implements curfew.api.v1.Access.
func (s *Server) Approve(
	ctx context.Context, req *apiv1.ApproveRequest,
) (*apiv1.ApproveResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Approve(ctx, p, req.GetId(), req.GetRevision(), req.GetSshsig())
	})
	return &apiv1.ApproveResponse{Request: r}, err
}

// Deny implements curfew.api.v1.Access.
func (s *Server) Deny(ctx context.Context, req *apiv1.DenyRequest) (*apiv1.DenyResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Deny(ctx, p, req.GetId(), req.GetRevision(), req.GetReason())
	})
	return &apiv1.DenyResponse{Request: r}, err
}

// Revoke implements curfew.api.v1.Access.
func (s *Server) Revoke(
	ctx context.Context, req *apiv1.RevokeRequest,
) (*apiv1.RevokeResponse, error) {
	r, err := s.deed(ctx, func(p identity.Person) (*request.Request, error) {
		return s.c.Access.Revoke(ctx, p, req.GetId(), req.GetReason())
	})
	return &apiv1.RevokeResponse{Request: r}, err
}

// ListHosts implements curfew.api.v1.Access.
func (s *Server) ListHosts(
	ctx context.Context, _ *apiv1.ListHostsRequest,
) (*apiv1.ListHostsResponse, error) {
	hosts, err := s.c.Access.Hosts(ctx)
	resp := &apiv1.ListHostsResponse{}
	for _, h := range hosts {
		resp.Hosts = append(resp.Hosts, s.host(h))
	}
	return resp, err
}

// ListRoles implements curfew.api.v1.Access.
func (s *Server) ListRoles(
	ctx context.Context, _ *apiv1.ListRolesRequest,
) (*apiv1.ListRolesResponse, error) {
	roles, err := s.c.Identity.Roles(ctx)
	resp := &apiv1.ListRolesResponse{}
	for i := range roles {
		resp.Roles = append(resp.Roles, roleOut(&roles[i]))
	}
	return resp, err
}
