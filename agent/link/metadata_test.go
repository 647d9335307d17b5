package link_test

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/curfew-access/curfew/agent/link"
	"github.com/curfew-access/curfew/internal/cloudtest"
	"github.com/curfew-access/curfew/internal/join"
)

func (c *control) cloudConfig(provider, metadata string) link.JoinConfig {
	c.t.Helper()
	config := c.joinConfig(filepath.Join(c.t.TempDir(), "link"))
	config.Token, config.Cloud, config.CAPin, config.Metadata = "", provider, join.Pin(c.ca.Raw), metadata
	return config
}

// Metadata services here are fixtures: local servers of the documented shape.
func TestJoinByTheCloudsWord(t *testing.T) {
	c := newControl(t)
	service := httptest.NewServer(cloudtest.New(t, time.Now).Metadata(t))
	t.Cleanup(service.Close)
	for _, provider := range []string{join.AWS, join.GCP, join.Azure} {
		config := c.cloudConfig(provider, service.URL)
		if _, err := link.Join(context.Background(), config); err != nil {
			t.Fatalf("%s: %v", provider, err)
		}
		r, pin := c.enrolled, join.Pin(c.ca.Raw)
		pub := config.RootKey.Public().(ed25519.PublicKey)
		if r.GetCloud().GetProvider() != provider || r.GetToken() != "" || !ed25519.Verify(pub,
			join.CloudMessage(pin, provider, r.GetCloud().GetDocument(), r.GetCsr()), r.GetSignature()) {
			t.Errorf("%s: it sent %v", provider, r)
		}
		binding, doc := join.CloudBinding(pin, pub), string(r.GetCloud().GetDocument())
		switch provider {
		case join.GCP:
			payload, err := base64.RawURLEncoding.DecodeString(strings.Split(doc, ".")[1])
			if err != nil || !strings.Contains(string(payload), `"aud":"`+binding.Audience()+`"`) {
				t.Errorf("gcp: %s, %v", payload, err)
			}
		case join.Azure:
			if content := attested(t, doc); !strings.Contains(content, `"nonce":"`+binding.Nonce()+`"`) {
				t.Errorf("azure: %s", content)
			}
		}
	}
}

func attested(t *testing.T, doc string) string {
	t.Helper()
	var outer struct{ Signature []byte }
	if err := json.Unmarshal([]byte(doc), &outer); err != nil {
		t.Fatal(err)
	}
	p, err := pkcs7.Parse(outer.Signature)
	if err != nil {
		t.Fatal(err)
	}
	return string(p.Content)
}

// What a metadata service must not do to us, and whether waiting helps.
func TestMetadataServices(t *testing.T) {
	c := newControl(t)
	answer := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write([]byte(body))
		}
	}
	for name, s := range map[string]struct {
		provider string
		handler  http.HandlerFunc
		want     string
		later    bool
	}{
		"no IMDSv2":          {join.AWS, answer(404, ""), "404", false},
		"no service account": {join.GCP, answer(404, ""), "has the instance a service account?", false},
		"not Google":         {join.GCP, answer(200, "x.y.z"), "not Google's", false},
		"throttled":          {join.Azure, answer(429, ""), "429", true},
		"down":               {join.Azure, answer(503, ""), "503", true},
		"endless":            {join.Azure, answer(200, strings.Repeat("x", 1<<20)), "more than 16384", false},
		"redirecting": {join.Azure, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, "redirects", true},
	} {
		t.Run(name, func(t *testing.T) {
			service := httptest.NewServer(s.handler)
			t.Cleanup(service.Close)
			_, err := link.Join(context.Background(), c.cloudConfig(s.provider, service.URL))
			if err == nil || !strings.Contains(err.Error(), s.want) || link.TryLater(err) != s.later {
				t.Errorf("it says %v (later: %v), want %q", err, link.TryLater(err), s.want)
			}
		})
	}
	if _, err := link.Join(context.Background(), c.cloudConfig(join.AWS, "http://127.0.0.1:1")); !link.TryLater(err) {
		t.Errorf("without a network: %v", err)
	}
	if c.enrolled != nil {
		t.Error("the control plane was asked")
	}
	both, nopin := c.cloudConfig(join.AWS, ""), c.cloudConfig(join.AWS, "")
	both.Token, nopin.CAPin = c.token, [32]byte{}
	for name, config := range map[string]link.JoinConfig{
		"token and cloud": both, "no pin": nopin, "another cloud": c.cloudConfig("oci", ""),
	} {
		if _, err := link.Join(context.Background(), config); err == nil || link.TryLater(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
