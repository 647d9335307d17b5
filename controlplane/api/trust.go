package api

import (
	"context"
	"crypto/ed25519"

	"github.com/curfew-access/curfew/controlplane/identity"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// GetTrust implements curfew.api.v1.Directory.
func (s *Server) GetTrust(
	ctx context.Context, _ *apiv1.GetTrustRequest,
) (*apiv1.GetTrustResponse, error) {
	row, waiting, err := s.c.Identity.TrustNow(ctx)
	return &apiv1.GetTrustResponse{
		Envelope: row.Envelope, Unsigned: waiting.Content, Waiting: waiting.Text,
	}, err
}

// ProposeTrust implements curfew.api.v1.Directory.
func (s *Server) ProposeTrust(
	ctx context.Context, req *apiv1.ProposeTrustRequest,
) (*apiv1.ProposeTrustResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	c := identity.Change{RootThreshold: int(req.GetRootThreshold()), BumpEpoch: req.GetBumpEpoch()}
	if c.RootKeys, err = publicKeys(req.GetRootKeys()); err != nil {
		return nil, err
	}
	if c.IssuerKeys, err = publicKeys(req.GetIssuerKeys()); err != nil {
		return nil, err
	}
	waiting, err := s.c.Identity.ProposeTrust(ctx, p.Name, c)
	return &apiv1.ProposeTrustResponse{Unsigned: waiting.Content, Waiting: waiting.Text}, err
}

func publicKeys(raw [][]byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for _, k := range raw {
		if len(k) != ed25519.PublicKeySize {
			return nil, reason.Invalid("a public key has %d bytes, want %d", len(k), ed25519.PublicKeySize)
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// SignTrust implements curfew.api.v1.Directory.
func (s *Server) SignTrust(
	ctx context.Context, req *apiv1.SignTrustRequest,
) (*apiv1.SignTrustResponse, error) {
	p, err := personOf(ctx)
	if err != nil {
		return nil, err
	}
	version, waiting, err := s.c.Identity.AddSignature(ctx, p.Name, req.GetContent(),
		grant.RootSignature{Key: grant.Key(req.GetPublicKey()), Sig: req.GetSignature()})
	return &apiv1.SignTrustResponse{Version: version, Waiting: waiting.Text}, err
}
