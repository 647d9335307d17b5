package cli

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/curfew-access/curfew/internal/breakglass/seal"
	"github.com/curfew-access/curfew/internal/grant"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// fakeCodes are web1's break-glass codes, sealed to bob's key by what seals them on a host.
type fakeCodes struct {
	apiv1.UnimplementedBreakGlassServer
	f       *fake
	set     *seal.Set
	fetched int
	by      string
}

func (c *fakeCodes) host() grant.HostID { return grant.HostID(c.f.hosts["web1"].GetId()) }

// draw makes two codes for bob.
func (c *fakeCodes) draw() error {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	to, err := seal.Custodians(&grant.Trust{Approvers: []grant.Approver{
		{Name: "bob", Groups: []string{"sre"}, SSHKeys: c.f.users["bob"].GetSshKeys()},
	}}, nil)
	if err == nil {
		c.set, err = seal.Draw(c.host(), 2, &to, time.UnixMilli(1_800_000_000_000), rand.Reader)
	}
	return err
}

func (c *fakeCodes) view() *apiv1.CodeSet {
	id := c.host()
	out := &apiv1.CodeSet{
		Host: "web1", HostId: id[:], SetId: c.set.ID[:], MadeMs: 1_800_000_000_000, Custodians: []string{"bob"},
		Connected: true, Enabled: true, MaxDurationMs: time.Hour.Milliseconds(), RotatingBy: c.by,
	}
	for i := range c.set.Codes {
		state := &apiv1.CodeState{Number: uint32(i + 1)}
		if i < c.fetched {
			state.FetchedBy, state.FetchedMs = "bob", 1_800_000_000_000
		}
		out.Codes = append(out.Codes, state)
	}
	if c.fetched > 0 {
		out.Codes[0].UsedBy, out.Codes[0].UsedMs, out.Open = "carol\x1b[2J", 1_800_000_000_000, 1
	}
	return out
}

func (c *fakeCodes) ListCodes(context.Context, *apiv1.ListCodesRequest) (*apiv1.ListCodesResponse, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.set == nil {
		return &apiv1.ListCodesResponse{}, nil
	}
	return &apiv1.ListCodesResponse{Sets: []*apiv1.CodeSet{c.view()}}, nil
}

func (c *fakeCodes) FetchCode(
	_ context.Context, in *apiv1.FetchCodeRequest,
) (*apiv1.FetchCodeResponse, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	if c.set == nil || in.GetHost() != "web1" {
		return nil, refuse(apiv1.Code_CODE_NOT_FOUND, "no break-glass codes of %s are held here", in.GetHost())
	}
	number := int(in.GetNumber())
	if number == 0 {
		c.fetched++
		number = c.fetched
	}
	out := &apiv1.FetchCodeResponse{Set: c.view(), Number: uint32(number)}
	out.Sealed = c.set.Sealed.GetCodes()[number-1]
	if c.f.tamper["code"] {
		out.Sealed = c.set.Sealed.GetCodes()[number%2]
	}
	return out, nil
}

func (c *fakeCodes) RotateCodes(
	context.Context, *apiv1.RotateCodesRequest,
) (*apiv1.RotateCodesResponse, error) {
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.by = "bob"
	return &apiv1.RotateCodesResponse{Set: c.view()}, nil
}
