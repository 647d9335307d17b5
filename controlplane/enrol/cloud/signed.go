package cloud

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/smallstep/pkcs7"
)

const minRSA = 2048

// signed reads a PKCS #7 message that has exactly one signer, by RSA and SHA-256, and whose content is
// inside. Nothing is verified yet. The library parses BER from strangers: what it panics at is refused.
func signed(text string) (p *pkcs7.PKCS7, err error) {
	defer func() {
		if r := recover(); r != nil {
			p, err = nil, fmt.Errorf("its PKCS #7 cannot be read: %v", r)
		}
	}()
	der, err := base64.StdEncoding.DecodeString(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, text))
	if err != nil {
		return nil, errors.New("it is not base64")
	}
	p, err = pkcs7.Parse(der)
	if err != nil {
		return nil, fmt.Errorf("its PKCS #7 cannot be read: %w", err)
	}
	if len(p.Signers) != 1 || len(p.Content) == 0 {
		return nil, fmt.Errorf("it has %d signers and %d bytes of content; want one signer and content",
			len(p.Signers), len(p.Content))
	}
	s := &p.Signers[0]
	// Azure names the signature's algorithm where the digest's belongs; they say the same.
	if s.DigestAlgorithm.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSASHA256) {
		s.DigestAlgorithm.Algorithm = pkcs7.OIDDigestAlgorithmSHA256
	}
	if !s.DigestAlgorithm.Algorithm.Equal(pkcs7.OIDDigestAlgorithmSHA256) {
		return nil, fmt.Errorf("its digest is %s and not SHA-256", s.DigestAlgorithm.Algorithm)
	}
	if e := s.DigestEncryptionAlgorithm.Algorithm; !e.Equal(pkcs7.OIDEncryptionAlgorithmRSA) &&
		!e.Equal(pkcs7.OIDEncryptionAlgorithmRSASHA256) {
		return nil, fmt.Errorf("its signature is %s and not RSA", e)
	}
	return p, nil
}

// signer is the certificate among those given that the message's only signer names, once the signature
// has been verified under it.
func signer(p *pkcs7.PKCS7, certs []*x509.Certificate, now time.Time) (*x509.Certificate, error) {
	p.Certificates = certs
	cert := p.GetOnlySigner()
	if cert == nil {
		return nil, errors.New("it is signed by none of the known certificates")
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minRSA {
		return nil, fmt.Errorf("its signer's key is not RSA of %d bits or more", minRSA)
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, fmt.Errorf("its signer's certificate is valid from %s to %s",
			cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := p.Verify(); err != nil {
		return nil, fmt.Errorf("its signature does not verify: %w", err)
	}
	return cert, nil
}
