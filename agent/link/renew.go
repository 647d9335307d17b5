package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"time"

	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

// maxRenewPause bounds the pause between two failed renewals.
const maxRenewPause = 15 * time.Minute

// keepFresh renews the certificate when two thirds of its life are over, and at once when that was
// long ago. The running stream goes on; the next connection uses the new certificate.
func (l *Link) keepFresh(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		if err := pause(ctx, wait); err != nil {
			return err
		}
		if !l.id.overdue(l.now()) {
			wait = l.timing.RenewCheck
			continue
		}
		err := l.renew(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			l.log.Info("certificate renewed", "ends", l.id.certificate().Leaf.NotAfter.UTC())
			wait = l.timing.RenewCheck
			continue
		}
		l.log.Warn("certificate not renewed", "ends", l.id.certificate().Leaf.NotAfter.UTC(),
			"error", err)
		wait = min(max(2*wait, l.timing.RenewCheck), maxRenewPause)
	}
}

// renew asks for a certificate of the same key and takes it into use once it is on the disk.
func (l *Link) renew(ctx context.Context) error {
	csr, err := certificateRequest(l.id.key)
	if err != nil {
		return err
	}
	conn, err := l.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, l.timing.Connect)
	defer cancel()
	resp, err := apiv1.NewEnrolmentClient(conn).Renew(ctx, &apiv1.RenewRequest{Csr: csr})
	if err != nil {
		return fmt.Errorf("asking for a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(resp.GetCertificate())
	if err != nil {
		return fmt.Errorf("the renewed certificate does not parse: %w", err)
	}
	old := l.id.certificate().Leaf
	if err := l.id.adopt(cert); err != nil {
		return fmt.Errorf("the renewed certificate is of no use: %w", err)
	}
	if err := l.id.store(cert); err != nil {
		return fmt.Errorf("keeping the old certificate: %w", keepOld(l.id, old, err))
	}
	return nil
}

// keepOld goes back to the certificate that is on the disk.
func keepOld(id *identity, old *x509.Certificate, cause error) error {
	if err := id.adopt(old); err != nil {
		return fmt.Errorf("%w; and the old one is of no use: %w", cause, err)
	}
	return cause
}

// certificateRequest says nothing but the key: the control plane gives the names.
func certificateRequest(key ed25519.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "curfew link"},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return csr, nil
}
