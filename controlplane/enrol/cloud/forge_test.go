package cloud_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/smallstep/pkcs7"

	"github.com/curfew-access/curfew/internal/cloudtest"
)

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func envelope(signature []byte) []byte {
	return fmt.Appendf(nil, `{"encoding":"pkcs7","signature":%q}`, signature)
}

// forgedAWS names AWS's certificate as its signer and is signed by another key.
func forgedAWS(t *testing.T, c *cloudtest.Clouds, key *rsa.PrivateKey) []byte {
	t.Helper()
	forger := *c
	forger.AWSKey = key
	template := *c.AWSCert
	template.PublicKey = nil
	forger.AWSCert = cloudtest.Certify(t, &template, nil, key, key)
	return forger.AWS(t, c.EC2())
}

// detached is a good signature beside which the content is missing.
func detached(t *testing.T, c *cloudtest.Clouds) []byte {
	t.Helper()
	s, err := pkcs7.NewSignedData(encode(t, c.EC2()))
	if err != nil {
		t.Fatal(err)
	}
	s.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := s.AddSigner(c.AWSCert, c.AWSKey, pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	s.Detach()
	der, err := s.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(der))
}

func alteredAzure(t *testing.T, document []byte) []byte {
	t.Helper()
	var outer struct{ Signature string }
	if err := json.Unmarshal(document, &outer); err != nil {
		t.Fatal(err)
	}
	return envelope(altered(t, []byte(outer.Signature), cloudtest.VM))
}

// swapPayload is a's header and signature around b's claims.
func swapPayload(a, b []byte) []byte {
	x, y := bytes.Split(a, []byte(".")), bytes.Split(b, []byte("."))
	return bytes.Join([][]byte{x[0], y[1], x[2]}, []byte("."))
}

// twice signs once more than is due.
func twice(t *testing.T, cert *x509.Certificate, key *rsa.PrivateKey) func(*pkcs7.SignedData) {
	return func(s *pkcs7.SignedData) {
		if err := s.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
			t.Fatal(err)
		}
	}
}

func sha1(s *pkcs7.SignedData) { s.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA1) }
