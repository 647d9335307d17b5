// Package cloudtest makes identity documents and metadata services for tests.
//
// FIXTURES: nothing here was recorded from a cloud. The documents are made by us, with our keys, to the
// shape that AWS, Google and Microsoft document; what only their real services would show is not shown.
// No program of Curfew imports this package.
package cloudtest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/smallstep/pkcs7"
)

// What the fixtures say unless a test changes it.
const (
	Account      = "123456789012"
	Region       = "eu-central-1"
	EC2Instance  = "i-1234567890abcdef0"
	Project      = "acme-prod"
	Zone         = "europe-west3-b"
	GCEInstance  = "1234567890123456789"
	GCEName      = "web1"
	Subscription = "8d10da13-8125-4ba9-a717-bf7490507b3d"
	VM           = "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
	azureTime    = "01/02/06 15:04:05 -0700"
)

// Clouds are all three, each with keys of its own.
type Clouds struct {
	Now func() time.Time

	AWSKey  *rsa.PrivateKey
	AWSCert *x509.Certificate

	GoogleKey *rsa.PrivateKey
	KeyID     string

	AzureKey                *rsa.PrivateKey
	Root, Middle, AzureCert *x509.Certificate
	middleKey               *rsa.PrivateKey
}

// keys are drawn once for a test program: drawing them is slow.
var keys = sync.OnceValues(func() (out [5]*rsa.PrivateKey, err error) {
	for i := range out {
		if out[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return out, err
		}
	}
	return out, nil
})

// StrangersKey is nobody's that is trusted.
func StrangersKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := keys()
	if err != nil {
		t.Fatal(err)
	}
	return k[4]
}

// New draws keys and certificates that are valid around now.
func New(t testing.TB, now func() time.Time) *Clouds {
	t.Helper()
	k, err := keys()
	if err != nil {
		t.Fatal(err)
	}
	c := &Clouds{
		Now: now, AWSKey: k[0], GoogleKey: k[1], KeyID: "fixture-1", AzureKey: k[2], middleKey: k[3],
	}
	// AWS signs with one self-signed certificate for each region.
	c.AWSCert = Certify(t, &x509.Certificate{
		Subject:   pkix.Name{Country: []string{"US"}, Organization: []string{"Amazon Web Services LLC"}},
		NotBefore: now().Add(-time.Hour), NotAfter: now().Add(48 * time.Hour),
	}, nil, k[0], k[0])
	c.Root = Certify(t, authority("Fixture Global Root", now()), nil, k[3], k[3])
	c.Middle = Certify(t, authority("Fixture Azure TLS Issuing CA", now()), c.Root, k[3], k[3])
	c.AzureCert = c.AzureLeaf(t, "metadata.azure.com")
	return c
}

func authority(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour),
	}
}

// AzureLeaf is a certificate of the metadata service's key, under another name perhaps.
func (c *Clouds) AzureLeaf(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	return Certify(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore:   c.Now().Add(-time.Hour), NotAfter: c.Now().Add(48 * time.Hour),
	}, c.Middle, c.AzureKey, c.middleKey)
}

// Certify makes a certificate for key, signed by parent's key by; parent nil: by itself.
func Certify(
	t testing.TB, template, parent *x509.Certificate, key, by *rsa.PrivateKey,
) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber == nil {
		template.SerialNumber = serial
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// PEM is a file of certificates.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// Sign wraps content in PKCS #7, signed by key under cert.
func Sign(
	t testing.TB, content []byte, cert *x509.Certificate, key crypto.PrivateKey, change func(*pkcs7.SignedData),
) []byte {
	t.Helper()
	s, err := pkcs7.NewSignedData(content)
	if err != nil {
		t.Fatal(err)
	}
	s.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if change != nil {
		change(s)
	}
	if err := s.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	der, err := s.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// lines breaks base64 as the metadata services do.
func lines(der []byte) string {
	text := base64.StdEncoding.EncodeToString(der)
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + "\n")
		text = text[64:]
	}
	return b.String() + text
}

// EC2 is the content of an instance identity document.
func (c *Clouds) EC2() map[string]any {
	return map[string]any{
		"accountId": Account, "architecture": "x86_64", "availabilityZone": Region + "a",
		"billingProducts": nil, "devpayProductCodes": nil, "marketplaceProductCodes": nil,
		"imageId": "ami-5fb8c835", "instanceId": EC2Instance, "instanceType": "t3.micro",
		"kernelId": nil, "pendingTime": c.Now().UTC().Format(time.RFC3339), "privateIp": "10.158.112.84",
		"ramdiskId": nil, "region": Region, "version": "2017-09-30",
	}
}

// AWS is what /latest/dynamic/instance-identity/rsa2048 serves: no header, no certificate inside.
func (c *Clouds) AWS(t testing.TB, document map[string]any) []byte {
	t.Helper()
	s, err := pkcs7.NewSignedData(encode(t, document))
	if err != nil {
		t.Fatal(err)
	}
	s.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := s.AddSigner(c.AWSCert, c.AWSKey, pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	s.GetSignedData().Certificates.Raw = nil
	der, err := s.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return []byte(lines(der))
}

// Claims are those of an instance's identity token in the full format.
func (c *Clouds) Claims(audience string) map[string]any {
	return map[string]any{
		"iss": "https://accounts.google.com", "iat": c.Now().Unix(), "exp": c.Now().Add(time.Hour).Unix(),
		"aud": audience, "sub": "107517467455664443765", "azp": "107517467455664443765",
		"email": "1234-compute@developer.gserviceaccount.com", "email_verified": true,
		"google": map[string]any{"compute_engine": map[string]any{
			"project_id": Project, "project_number": 739419398126, "zone": Zone,
			"instance_id": GCEInstance, "instance_name": GCEName,
			"instance_creation_timestamp": c.Now().Unix(),
			"instance_confidentiality":    0, "license_id": []string{"1000204"},
		}},
	}
}

// GCP is what the identity endpoint serves.
func (c *Clouds) GCP(t testing.TB, claims map[string]any) []byte {
	t.Helper()
	return JWT(t, jose.RS256, c.GoogleKey, c.KeyID, claims)
}

// JWT signs claims.
func JWT(t testing.TB, alg jose.SignatureAlgorithm, key any, id string, claims map[string]any) []byte {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key},
		(&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", id))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(encode(t, claims))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return []byte(text)
}

// AttestedData is the content of Azure's attested document.
func (c *Clouds) AttestedData(nonce string) map[string]any {
	now := c.Now().UTC()
	return map[string]any{
		"licenseType": "", "nonce": nonce, "sku": "22_04-lts-gen2",
		"plan":           map[string]any{"name": "", "product": "", "publisher": ""},
		"subscriptionId": Subscription, "vmId": VM,
		"timeStamp": map[string]any{
			"createdOn": now.Format(azureTime), "expiresOn": now.Add(6 * time.Hour).Format(azureTime),
		},
	}
}

// Azure is what the attested document endpoint serves: the leaf inside, without the certificate above,
// and the signature's algorithm where the digest's belongs, as Azure writes it.
func (c *Clouds) Azure(t testing.TB, data map[string]any) []byte {
	t.Helper()
	return c.AzureBy(t, data, c.AzureCert, c.AzureKey)
}

// AzureBy is the same by another certificate.
func (c *Clouds) AzureBy(
	t testing.TB, data map[string]any, cert *x509.Certificate, key *rsa.PrivateKey,
) []byte {
	t.Helper()
	s, err := pkcs7.NewSignedData(encode(t, data))
	if err != nil {
		t.Fatal(err)
	}
	s.SetDigestAlgorithm(pkcs7.OIDDigestAlgorithmSHA256)
	if err := s.AddSigner(cert, key, pkcs7.SignerInfoConfig{}); err != nil {
		t.Fatal(err)
	}
	raw := s.GetSignedData()
	raw.SignerInfos[0].DigestAlgorithm.Algorithm = pkcs7.OIDEncryptionAlgorithmRSASHA256
	raw.DigestAlgorithmIdentifiers[0].Algorithm = pkcs7.OIDEncryptionAlgorithmRSASHA256
	der, err := s.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return encode(t, map[string]any{
		"encoding": "pkcs7", "signature": base64.StdEncoding.EncodeToString(der),
	})
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
