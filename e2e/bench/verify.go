package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/grant/granttest"
	"github.com/curfew-access/curfew/internal/sshsig"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

const verifySamples, verifyBatch = 61, 20

// termsVerify measures what a host does with a sealed grant of three approvals (parse, canonical form,
// issuer, needs, quorum, people) beside nothing but the four signature checks.
func termsVerify(_ context.Context, b *Bench) error {
	w := granttest.NewWorld()
	terms := w.Terms(granttest.Noon(), func(t *curfewv1.Terms) {
		t.Role, t.ApprovalsNeeded = granttest.RoleRoot, 3
	})
	_, env := w.Grant(terms, w.Bob, w.Carol, w.Dave)
	g, _, err := grant.OpenGrant(env, w.Trust.Issuers())
	if err != nil {
		return err
	}
	hosts := []grant.HostID{w.Host}
	pae := dsse.PAE(grant.TypeGrant, env)
	sig := ed25519.Sign(w.Issuer, pae)
	whole := func() error {
		g, t, err := grant.OpenGrant(env, w.Trust.Issuers())
		if err != nil {
			return err
		}
		return grant.CheckQuorum(w.Trust, t, g.GetTerms(), hosts, g.GetApprovals())
	}
	bare := func() error {
		if !ed25519.Verify(granttest.Public(w.Issuer), pae, sig) {
			return errors.New("the issuer's signature does not verify")
		}
		for _, a := range g.GetApprovals() {
			if _, err := sshsig.Verify(a.GetSshsig(), sshsig.NamespaceApprove, g.GetTerms()); err != nil {
				return err
			}
		}
		return nil
	}
	mine, theirs, err := Pairs(verifySamples, batch(whole), batch(bare))
	if err != nil {
		return err
	}
	b.Print(Line{
		Name: "terms_verify", Value: us(mine.median()) / verifyBatch, Unit: "us",
		Peer: us(theirs.median()) / verifyBatch, Against: "four_signature_checks", Bar: 1.4,
		N: verifySamples,
	})
	return nil
}

// batch is a side that does a short thing many times.
func batch(f func() error) side {
	return func() (time.Duration, error) {
		began := time.Now()
		for range verifyBatch {
			if err := f(); err != nil {
				return 0, err
			}
		}
		return time.Since(began), nil
	}
}
