package cloud_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/curfew-access/curfew/controlplane/enrol/cloud"
	"github.com/curfew-access/curfew/controlplane/reason"
	"github.com/curfew-access/curfew/internal/cloudtest"
	"github.com/curfew-access/curfew/internal/join"
	apiv1 "github.com/curfew-access/curfew/proto/curfew/api/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a verifier that admits what the fixtures say, and the clouds that made them.
type world struct {
	t        *testing.T
	now      time.Time
	clouds   *cloudtest.Clouds
	config   cloud.Config
	verifier *cloud.Verifier
	binding  join.Binding
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: time.Now().Truncate(time.Second)}
	w.clouds = cloudtest.New(t, func() time.Time { return w.now })
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.binding = join.CloudBinding(join.Pin([]byte("ca")), pub)
	keys := httptest.NewServer(w.clouds.GoogleKeys(t))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	t.Cleanup(keys.Close)
	roots := x509.NewCertPool()
	roots.AddCert(w.clouds.Root)
	w.config = cloud.Config{
		HTTP: client,
		AWS: &cloud.AWS{
			Accounts: []string{"000000000001", cloudtest.Account}, Regions: []string{cloudtest.Region},
			Certificates: []*x509.Certificate{w.clouds.AWSCert}, MaxAge: cloud.DefaultMaxAge,
		},
		GCP: &cloud.GCP{
			Projects: []string{cloudtest.Project}, KeysURL: keys.URL, MaxAge: cloud.DefaultMaxAge,
		},
		Azure: &cloud.Azure{
			Subscriptions: []string{cloudtest.Subscription}, Roots: roots, MaxAge: cloud.DefaultMaxAge,
			Intermediates: []*x509.Certificate{w.clouds.Middle},
		},
	}
	w.verifier, err = cloud.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) verify(provider string, document []byte) (cloud.Instance, error) {
	return w.verifier.Verify(context.Background(), provider, document, w.binding, w.now)
}

// fixture is a good document of the provider.
func (w *world) fixture(provider string) []byte {
	switch provider {
	case join.AWS:
		return w.clouds.AWS(w.t, w.clouds.EC2())
	case join.GCP:
		return w.clouds.GCP(w.t, w.clouds.Claims(w.binding.Audience()))
	}
	return w.clouds.Azure(w.t, w.clouds.AttestedData(w.binding.Nonce()))
}

// Documents of the documented shape, fixtures of ours, name an instance.
func TestGoodDocuments(t *testing.T) {
	w := newWorld(t)
	for provider, want := range map[string]cloud.Instance{
		"aws": {
			Provider: "aws", Account: "123456789012", ID: "i-1234567890abcdef0", Region: "eu-central-1",
			Zone: "eu-central-1a",
		},
		"gcp": {
			Provider: "gcp", Account: "acme-prod", ID: "1234567890123456789", Name: "web1",
			Region: "europe-west3", Zone: "europe-west3-b",
		},
		"azure": {
			Provider: "azure", Account: "8d10da13-8125-4ba9-a717-bf7490507b3d",
			ID: "02aab8a4-74ef-476e-8182-f6d2ba4166a6",
		},
	} {
		got, err := w.verify(provider, w.fixture(provider))
		if err != nil {
			t.Errorf("%s: %v", provider, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", provider, diff)
		}
	}
}

// with changes one field of a fixture's content.
func with(m map[string]any, field string, value any) map[string]any {
	m = maps.Clone(m)
	m[field] = value
	return m
}

func (w *world) engine(field string, value any) map[string]any {
	c := w.clouds.Claims(w.binding.Audience())
	g := c["google"].(map[string]any)["compute_engine"].(map[string]any)
	g[field] = value
	return c
}

func (w *world) stamped(created, expires time.Time) map[string]any {
	const layout = "01/02/06 15:04:05 -0700"
	return with(w.clouds.AttestedData(w.binding.Nonce()), "timeStamp", map[string]any{
		"createdOn": created.UTC().Format(layout), "expiresOn": expires.UTC().Format(layout),
	})
}

// altered flips one bit of what is signed, wherever it stands in the base64.
func altered(t *testing.T, document []byte, what string) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(document), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(der, []byte(what))
	if at < 0 {
		t.Fatalf("%q is not in the document", what)
	}
	der[at+len(what)-1] ^= 1
	return []byte(base64.StdEncoding.EncodeToString(der))
}

// Everything that is not exactly right is refused, and says why.
func TestRefusedDocuments(t *testing.T) {
	w := newWorld(t)
	c, stranger := w.clouds, cloudtest.StrangersKey(t)
	old, future := w.now.Add(-11*time.Minute), w.now.Add(3*time.Minute)
	ago := func(d time.Duration) string { return w.now.Add(-d).UTC().Format(time.RFC3339) }
	attested := c.AttestedData(w.binding.Nonce())
	claims := c.Claims(w.binding.Audience())
	other := join.CloudBinding(join.Pin([]byte("another ca")), make([]byte, ed25519.PublicKeySize))
	validity := func(from, to time.Duration) *x509.Certificate {
		return cloudtest.Certify(t, &x509.Certificate{
			Subject:   pkix.Name{CommonName: "metadata.azure.com"},
			DNSNames:  []string{"metadata.azure.com"},
			NotBefore: w.now.Add(from), NotAfter: w.now.Add(to),
		}, nil, c.AWSKey, c.AWSKey)
	}
	forged := cloudtest.Certify(t, &x509.Certificate{
		RawSubject: c.AWSCert.RawSubject, SerialNumber: c.AWSCert.SerialNumber, NotBefore: c.AWSCert.NotBefore, NotAfter: c.AWSCert.NotAfter,
	}, nil, stranger, stranger)
	base := func(der []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(der)) }
	for name, r := range map[string]struct {
		provider string
		document []byte
		want     string
	}{
		"aws: forged signature":     {"aws", forgedAWS(t, c, stranger), "signature does not verify"},
		"aws: its own certificate":  {"aws", base(cloudtest.Sign(t, encode(t, c.EC2()), forged, stranger, nil)), "signature does not verify"},
		"aws: an unknown signer":    {"aws", base(cloudtest.Sign(t, encode(t, c.EC2()), c.AzureCert, c.AzureKey, nil)), "none of the known"},
		"aws: altered account":      {"aws", altered(t, w.fixture("aws"), "123456789012"), "signature does not verify"},
		"aws: altered instance":     {"aws", altered(t, w.fixture("aws"), "i-1234567890abcdef0"), "signature does not verify"},
		"aws: another account":      {"aws", c.AWS(t, with(c.EC2(), "accountId", "999999999999")), `account "999999999999" is not among`},
		"aws: another region":       {"aws", c.AWS(t, with(c.EC2(), "region", "us-east-1")), `region "us-east-1" is not among`},
		"aws: stale":                {"aws", c.AWS(t, with(c.EC2(), "pendingTime", ago(11*time.Minute))), "too old"},
		"aws: of the future":        {"aws", c.AWS(t, with(c.EC2(), "pendingTime", ago(-3*time.Minute))), "still to come"},
		"aws: no time":              {"aws", c.AWS(t, with(c.EC2(), "pendingTime", nil)), "does not say when"},
		"aws: no instance":          {"aws", c.AWS(t, with(c.EC2(), "instanceId", "web1")), "names no instance"},
		"aws: not a document":       {"aws", base(cloudtest.Sign(t, []byte("hello"), c.AWSCert, c.AWSKey, nil)), "not an instance identity document"},
		"aws: SHA-1":                {"aws", base(cloudtest.Sign(t, encode(t, c.EC2()), c.AWSCert, c.AWSKey, sha1)), "not SHA-256"},
		"aws: two signers":          {"aws", base(cloudtest.Sign(t, encode(t, c.EC2()), c.AWSCert, c.AWSKey, twice(t, c.AWSCert, c.AWSKey))), "2 signers"},
		"aws: content left out":     {"aws", detached(t, c), "0 bytes of content"},
		"aws: garbage":              {"aws", []byte("AAAA"), "cannot be read"},
		"aws: not base64":           {"aws", []byte("{}"), "not base64"},
		"aws: empty":                {"aws", nil, "cannot be read"},
		"aws: oversized":            {"aws", bytes.Repeat([]byte("A"), 16<<10+1), "at most 16384"},
		"aws: azure's document":     {"aws", w.fixture("azure"), "not base64"},
		"gcp: forged signature":     {"gcp", cloudtest.JWT(t, jose.RS256, stranger, c.KeyID, claims), "failed to verify"},
		"gcp: unknown key":          {"gcp", cloudtest.JWT(t, jose.RS256, stranger, "other", claims), "failed to verify"},
		"gcp: another algorithm":    {"gcp", cloudtest.JWT(t, jose.RS512, c.GoogleKey, c.KeyID, claims), "unexpected signature algorithm"},
		"gcp: the public key's MAC": {"gcp", cloudtest.JWT(t, jose.HS256, x509.MarshalPKCS1PublicKey(&c.GoogleKey.PublicKey), c.KeyID, claims), "unexpected signature algorithm"},
		"gcp: altered content":      {"gcp", swapPayload(w.fixture("gcp"), c.GCP(t, w.engine("instance_id", "2"))), "failed to verify"},
		"gcp: another's audience":   {"gcp", c.GCP(t, c.Claims(other.Audience())), "audience"},
		"gcp: two audiences":        {"gcp", c.GCP(t, with(claims, "aud", []string{w.binding.Audience(), "x"})), "2 audiences"},
		"gcp: another issuer":       {"gcp", c.GCP(t, with(claims, "iss", "https://accounts.example.org")), "different provider"},
		"gcp: another project":      {"gcp", c.GCP(t, w.engine("project_id", "evil-project")), `project "evil-project" is not among`},
		"gcp: stale":                {"gcp", c.GCP(t, with(claims, "iat", old.Unix())), "too old"},
		"gcp: of the future":        {"gcp", c.GCP(t, with(claims, "iat", future.Unix())), "still to come"},
		"gcp: expired":              {"gcp", c.GCP(t, with(claims, "exp", w.now.Unix()-1)), "expired"},
		"gcp: no time":              {"gcp", c.GCP(t, with(claims, "iat", 0)), "does not say when"},
		"gcp: standard format":      {"gcp", c.GCP(t, with(claims, "google", nil)), "format=full"},
		"gcp: oversized":            {"gcp", c.GCP(t, with(claims, "x", strings.Repeat("x", 16<<10))), "at most 16384"},
		"gcp: aws's document":       {"gcp", w.fixture("aws"), "malformed"},
		"azure: forged signature":   {"azure", c.AzureBy(t, attested, c.AzureCert, stranger), "signature does not verify"},
		"azure: altered content":    {"azure", alteredAzure(t, w.fixture("azure")), "signature does not verify"},
		"azure: its own authority":  {"azure", c.AzureBy(t, attested, validity(-time.Hour, time.Hour), c.AWSKey), "leads to no trusted root"},
		"azure: expired signer":     {"azure", c.AzureBy(t, attested, validity(-time.Hour, -time.Minute), c.AWSKey), "certificate is valid from"},
		"azure: signer to come":     {"azure", c.AzureBy(t, attested, validity(time.Minute, time.Hour), c.AWSKey), "certificate is valid from"},
		"azure: another service":    {"azure", c.AzureBy(t, attested, c.AzureLeaf(t, "www.example.org"), c.AzureKey), "not Azure's metadata service"},
		"azure: a name's end":       {"azure", c.AzureBy(t, attested, c.AzureLeaf(t, "evilmetadata.azure.com"), c.AzureKey), "not Azure's metadata service"},
		"azure: another's nonce":    {"azure", c.Azure(t, with(attested, "nonce", other.Nonce())), "nonce"},
		"azure: no nonce":           {"azure", c.Azure(t, with(attested, "nonce", "")), "nonce"},
		"azure: another account":    {"azure", c.Azure(t, with(attested, "subscriptionId", cloudtest.VM)), "is not among"},
		"azure: no machine":         {"azure", c.Azure(t, with(attested, "vmId", "")), "no instance"},
		"azure: stale":              {"azure", c.Azure(t, w.stamped(old, w.now.Add(time.Hour))), "too old"},
		"azure: expired":            {"azure", c.Azure(t, w.stamped(w.now.Add(-time.Minute), w.now)), "expired"},
		"azure: of the future":      {"azure", c.Azure(t, w.stamped(future, w.now.Add(time.Hour))), "still to come"},
		"azure: no time":            {"azure", c.Azure(t, with(attested, "timeStamp", nil)), "does not say when"},
		"azure: SHA-1":              {"azure", envelope(base(cloudtest.Sign(t, encode(t, attested), c.AzureCert, c.AzureKey, sha1))), "not SHA-256"},
		"azure: another encoding":   {"azure", []byte(`{"encoding":"none","signature":""}`), "attested document"},
		"azure: aws's document":     {"azure", w.fixture("aws"), "attested document"},
		"another cloud":             {"oci", nil, "want aws, gcp or azure"},
		"escape in the cloud":       {"\x1b[2J", nil, "want aws, gcp or azure"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := w.verify(r.provider, r.document)
			if err == nil || !strings.Contains(err.Error(), r.want) {
				t.Errorf("it says %v, want %q", err, r.want)
			}
			why, ok := reason.Of(err)
			if !ok || why.Code != apiv1.Code_CODE_DENIED && why.Code != apiv1.Code_CODE_INVALID {
				t.Errorf("refused as %v", why)
			}
			if got != (cloud.Instance{}) && err == nil {
				t.Errorf("and names %+v", got)
			}
		})
	}
}

// Certificates end; what they sign ends with them.
func TestExpiredCertificateOfAWS(t *testing.T) {
	w := newWorld(t)
	w.now = w.now.Add(72 * time.Hour)
	_, err := w.verify("aws", w.fixture("aws"))
	if err == nil || !strings.Contains(err.Error(), "certificate is valid from") {
		t.Errorf("it says %v", err)
	}
}

// Short keys could be factored.
func TestShortKeyOfAWS(t *testing.T) {
	w := newWorld(t)
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	w.config.AWS.Certificates = []*x509.Certificate{cloudtest.Certify(t, &x509.Certificate{
		NotBefore: w.now.Add(-time.Hour), NotAfter: w.now.Add(time.Hour),
	}, nil, key, key)}
	w.clouds.AWSCert, w.clouds.AWSKey = w.config.AWS.Certificates[0], key
	if _, err := w.verify("aws", w.fixture("aws")); err == nil || !strings.Contains(err.Error(), "2048") {
		t.Errorf("it says %v", err)
	}
}

// Azure sends the leaf alone: without the certificate above it nothing leads to a root.
func TestAzureNeedsWhatIsInTheMiddle(t *testing.T) {
	w := newWorld(t)
	w.config.Azure.Intermediates = nil
	_, err := w.verify("azure", w.fixture("azure"))
	if err == nil || !strings.Contains(err.Error(), `issued by "Fixture Azure TLS Issuing CA"`) {
		t.Errorf("it says %v", err)
	}
	w.config.Azure.Intermediates = []*x509.Certificate{w.clouds.Middle}
	for _, name := range []string{"*.metadata.azure.com", "eastus.metadata.azure.us", "metadata.azure.cn"} {
		doc := w.clouds.AzureBy(t, w.clouds.AttestedData(w.binding.Nonce()), w.clouds.AzureLeaf(t, name),
			w.clouds.AzureKey)
		if _, err := w.verify("azure", doc); err != nil {
			t.Errorf("signed by %s: %v", name, err)
		}
	}
}

// What nobody configured admits nobody.
func TestNothingIsAdmittedByDefault(t *testing.T) {
	w := newWorld(t)
	for _, provider := range []string{"aws", "gcp", "azure"} {
		document := w.fixture(provider)
		empty, err := cloud.New(cloud.Config{})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []*cloud.Verifier{nil, empty} {
			_, err := v.Verify(context.Background(), provider, document, w.binding, w.now)
			if !reason.Is(err, apiv1.Code_CODE_DENIED) || !strings.Contains(err.Error(), "admits no machines") {
				t.Errorf("%s: %v", provider, err)
			}
		}
	}
	for name, c := range map[string]cloud.Config{
		"aws without accounts":        {AWS: &cloud.AWS{Certificates: w.config.AWS.Certificates, MaxAge: 1}},
		"aws without certificates":    {AWS: &cloud.AWS{Accounts: []string{"1"}, MaxAge: 1}},
		"aws for ever":                {AWS: &cloud.AWS{Accounts: []string{"1"}, Certificates: w.config.AWS.Certificates}},
		"gcp without projects":        {GCP: &cloud.GCP{MaxAge: 1}, HTTP: w.config.HTTP},
		"azure without subscriptions": {Azure: &cloud.Azure{MaxAge: 1}},
	} {
		if _, err := cloud.New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// Keys that cannot be fetched are not the machine's fault, and admit nobody.
func TestGoogleOutOfReach(t *testing.T) {
	w := newWorld(t)
	w.config.GCP.KeysURL = "http://127.0.0.1:1/keys"
	v, err := cloud.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(context.Background(), "gcp", w.fixture("gcp"), w.binding, w.now)
	if !reason.Is(err, apiv1.Code_CODE_INTERNAL) || !strings.Contains(err.Error(), "cannot fetch the keys") {
		t.Errorf("it says %v", err)
	}
}

func TestInstanceKeys(t *testing.T) {
	seen := make(map[[32]byte]cloud.Instance)
	for _, i := range []cloud.Instance{
		{Provider: "aws", Account: "1", ID: "2"},
		{Provider: "gcp", Account: "1", ID: "2"},
		{Provider: "aws", Account: "12", ID: ""},
		{Provider: "aws", Account: "", ID: "12"},
		{Provider: "aws", Account: "1", ID: "3"},
	} {
		if other, known := seen[i.Key()]; known {
			t.Errorf("%+v and %+v are one", i, other)
		}
		seen[i.Key()] = i
	}
	a := cloud.Instance{Provider: "aws", Account: "1", ID: "2", Name: "x", Region: "y"}
	if _, known := seen[a.Key()]; !known {
		t.Error("a name makes another instance of it")
	}
}

func TestParseCertificates(t *testing.T) {
	w := newWorld(t)
	good := cloudtest.PEM(w.clouds.Root, w.clouds.Middle)
	if certs, err := cloud.ParseCertificates(append([]byte("a comment\n"), good...)); err != nil || len(certs) != 2 {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
	for name, bad := range map[string]string{
		"empty": "", "text": "hello", "a key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"damaged": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
	} {
		if _, err := cloud.ParseCertificates([]byte(bad)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzVerify(f *testing.F) {
	now := time.Now()
	c := cloudtest.New(f, func() time.Time { return now })
	f.Add(true, c.AWS(f, c.EC2()))
	f.Add(false, c.Azure(f, c.AttestedData("0123456789")))
	f.Add(true, []byte("MIAGCSqGSIb3DQEHAqCAMIACAQExAA=="))
	v, err := cloud.New(cloud.Config{
		AWS: &cloud.AWS{
			Accounts: []string{"1"}, Certificates: []*x509.Certificate{c.Root}, MaxAge: time.Hour,
		},
		Azure: &cloud.Azure{Subscriptions: []string{"1"}, Roots: x509.NewCertPool(), MaxAge: time.Hour},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, aws bool, document []byte) {
		provider := "azure"
		if aws {
			provider = "aws"
		}
		if i, err := v.Verify(t.Context(), provider, document, join.Binding{}, now); err == nil {
			t.Errorf("%q is taken for %+v", document, i)
		}
	})
}
