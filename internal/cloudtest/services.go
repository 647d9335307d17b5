package cloudtest

import (
	"net/http"
	"regexp"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// GoogleKeys serves Google's public keys as a JWK set.
func (c *Clouds) GoogleKeys(t testing.TB) http.Handler {
	set := encode(t, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{
		Key: &c.GoogleKey.PublicKey, KeyID: c.KeyID, Algorithm: "RS256", Use: "sig",
	}}})
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(set)
	})
}

// imdsToken is the session token of the EC2 fixture.
const imdsToken = "AQAEAFIXTUREFIXTUREFIXTURE=="

var tenDigits = regexp.MustCompile(`^[0-9]{10}$`)

// Metadata is the metadata service of an instance of any of the three, answering by path. It insists on
// what the real ones insist on: the session token of IMDSv2, the headers Metadata-Flavor and Metadata,
// no X-Forwarded-For.
func (c *Clouds) Metadata(t testing.TB) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") == "" {
			http.Error(w, "no time to live", http.StatusBadRequest)
			return
		}
		_, _ = w.Write([]byte(imdsToken))
	})
	mux.HandleFunc("GET /latest/dynamic/instance-identity/rsa2048", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-aws-ec2-metadata-token") != imdsToken {
			http.Error(w, "no session", http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(c.AWS(t, c.EC2()))
	})
	mux.HandleFunc("GET /computeMetadata/v1/instance/service-accounts/default/identity",
		func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			if r.Header.Get("Metadata-Flavor") != "Google" || q.Get("audience") == "" ||
				q.Get("format") != "full" {
				http.Error(w, "missing Metadata-Flavor, audience or format", http.StatusForbidden)
				return
			}
			w.Header().Set("Metadata-Flavor", "Google")
			_, _ = w.Write(c.GCP(t, c.Claims(q.Get("audience"))))
		})
	mux.HandleFunc("GET /metadata/attested/document", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.Header.Get("Metadata") != "true" || q.Get("api-version") == "" ||
			!tenDigits.MatchString(q.Get("nonce")) {
			http.Error(w, "missing Metadata, api-version or a nonce of ten digits", http.StatusBadRequest)
			return
		}
		_, _ = w.Write(c.Azure(t, c.AttestedData(q.Get("nonce"))))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Forwarded-For") != "" {
			http.Error(w, "proxied", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}
