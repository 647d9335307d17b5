package api

import (
	"context"

	"github.com/curfew-access/curfew/controlplane/access"
	"github.com/curfew-access/curfew/internal/breakglass"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// ListCodes implements curfew.api.v1.BreakGlass.
func (s *Server) ListCodes(
	ctx context.Context, req *apiv1.ListCodesRequest,
) (*apiv1.ListCodesResponse, error) {
	sets, err := s.c.Access.Codes(ctx, req.GetHost())
	resp := &apiv1.ListCodesResponse{}
	for _, set := range sets {
		resp.Sets = append(resp.Sets, s.codeSet(set))
	}
	return resp, err
}

// FetchCode implements curfew.api.v1.BreakGlass.
func (s *Server) FetchCode(
	ctx context.Context, req *apiv1.FetchCodeRequest,
) (*apiv1.FetchCodeResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	number := int(min(req.GetNumber(), breakglass.MaxCodes+1))
	set, number, sealed, err := s.c.Access.FetchCode(ctx, p, req.GetHost(), number)
	if err != nil {
		return nil, err
	}
	return &apiv1.FetchCodeResponse{
		Set: s.codeSet(set), Number: uint32(number), Sealed: sealed,
	}, nil
}

// RotateCodes implements curfew.api.v1.BreakGlass.
func (s *Server) RotateCodes(
	ctx context.Context, req *apiv1.RotateCodesRequest,
) (*apiv1.RotateCodesResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	set, err := s.c.Access.RotateCodes(ctx, p, req.GetHost())
	if err != nil {
		return nil, err
	}
	s.c.Hub.RenewCodes(set.Host)
	return &apiv1.RotateCodesResponse{Set: s.codeSet(set)}, nil
}

func (s *Server) codeSet(set access.CodeSet) *apiv1.CodeSet {
	out := &apiv1.CodeSet{
		Host: set.HostName, HostId: set.Host[:], SetId: set.ID[:], MadeMs: msOf(set.Made),
		Custodians: set.Custodians, RotatingBy: set.RotatingBy,
	}
	for _, c := range set.Codes {
		out.Codes = append(out.Codes, &apiv1.CodeState{
			Number: uint32(c.Number), FetchedBy: c.FetchedBy, FetchedMs: msOf(c.Fetched), UsedBy: c.UsedBy,
			UsedMs: msOf(c.Used),
		})
	}
	if health, known := s.c.Hub.Health(set.Host); known && health.Connected {
		out.Connected, out.Enabled, out.Open = true, health.Codes.Enabled, health.Codes.Open
		out.MaxDurationMs = health.Codes.MaxDuration.Milliseconds()
	}
	return out
}
