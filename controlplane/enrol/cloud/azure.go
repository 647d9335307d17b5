package cloud

import (
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/join"
)

// attested is the answer of the attested document endpoint
// (learn.microsoft.com/azure/virtual-machines/instance-metadata-service, "Attested data").
type attested struct {
	Encoding  string `json:"encoding"`
	Signature string `json:"signature"`
}

// azureDocument is the part of what is signed that counts here.
type azureDocument struct {
	Nonce        string `json:"nonce"`
	Subscription string `json:"subscriptionId"`
	ID           string `json:"vmId"`
	Time         struct {
		Created string `json:"createdOn"`
		Expires string `json:"expiresOn"`
	} `json:"timeStamp"`
}

const azureTime = "01/02/06 15:04:05 -0700"

// azureNames are who signs attested documents: in the public cloud, for governments, in China. The
// certificates of regions are of names below these.
var azureNames = []string{"metadata.azure.com", "metadata.azure.us", "metadata.azure.cn"}

func (a *Azure) verify(document []byte, binding join.Binding, now time.Time) (i Instance, err error) {
	var outer attested
	if err := json.Unmarshal(document, &outer); err != nil || outer.Encoding != "pkcs7" {
		return i, errors.New("it is not the answer of the attested document endpoint")
	}
	p, err := signed(outer.Signature)
	if err != nil {
		return i, err
	}
	leaf, err := signer(p, p.Certificates, now)
	if err != nil {
		return i, err
	}
	if err := a.trusted(leaf, p.Certificates, now); err != nil {
		return i, err
	}
	var d azureDocument
	if err := json.Unmarshal(p.Content, &d); err != nil {
		return i, errors.New("what is signed is not attested data")
	}
	if subtle.ConstantTimeCompare([]byte(d.Nonce), []byte(binding.Nonce())) != 1 {
		return i, errors.New("its nonce is of another machine's key, or of another control plane")
	}
	created, err := time.Parse(azureTime, d.Time.Created)
	if err != nil {
		return i, errors.New("it does not say when it is of")
	}
	expires, err := time.Parse(azureTime, d.Time.Expires)
	if err != nil || !now.Before(expires) {
		return i, errors.New("it has expired")
	}
	if err := fresh(created, now, a.MaxAge); err != nil {
		return i, err
	}
	if err := listed("subscription", d.Subscription, a.Subscriptions); err != nil {
		return i, err
	}
	return Instance{
		Provider: join.Azure, Account: d.Subscription, ID: strings.ToLower(d.ID),
	}, nil
}

// trusted says whether the leaf is Azure's metadata service's. No certificate is fetched from where a
// stranger's document says: what is missing in the middle, the admin configures.
func (a *Azure) trusted(leaf *x509.Certificate, sent []*x509.Certificate, now time.Time) error {
	named := false
	for _, name := range leaf.DNSNames {
		name = strings.ToLower(strings.TrimPrefix(name, "*."))
		for _, want := range azureNames {
			named = named || name == want || strings.HasSuffix(name, "."+want)
		}
	}
	if !named {
		return errors.New("its signer is not Azure's metadata service")
	}
	middle := x509.NewCertPool()
	for _, list := range [][]*x509.Certificate{sent, a.Intermediates} {
		for _, cert := range list {
			middle.AddCert(cert)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.Roots, Intermediates: middle, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("its signer's certificate, issued by %q, leads to no trusted root: %w",
			leaf.Issuer.CommonName, err)
	}
	return nil
}
