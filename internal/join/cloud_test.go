package join_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"regexp"
	"testing"

	"github.com/curfew-access/curfew/internal/join"
)

func TestPinHasOneForm(t *testing.T) {
	pin := join.Pin([]byte("ca"))
	good := base64.RawURLEncoding.EncodeToString(pin[:])
	if got, err := join.ParsePin(good); err != nil || got != pin {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", good[:42], good + "A", good + "=", good + "\n", good[:42] + "\n" + good[42:]} {
		if _, err := join.ParsePin(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// What ties a document to a machine differs with the control plane and with the key.
func TestBinding(t *testing.T) {
	key, other := make(ed25519.PublicKey, 32), bytes.Repeat([]byte{1}, 32)
	pin := join.Pin([]byte("ca"))
	b := join.CloudBinding(pin, key)
	if b == join.CloudBinding(pin, other) || b == join.CloudBinding(join.Pin([]byte("cb")), key) {
		t.Error("two machines have one binding")
	}
	if !regexp.MustCompile(`^[0-9]{10}$`).MatchString(b.Nonce()) || b.Nonce() == join.CloudBinding(pin, other).Nonce() {
		t.Errorf("nonce %q", b.Nonce())
	}
	if got := (join.Binding{}).Nonce(); got != "0000000000" {
		t.Errorf("a small nonce is %q: it must have ten digits", got)
	}
	if !regexp.MustCompile(`^curfew:[A-Za-z0-9_-]{43}$`).MatchString(b.Audience()) {
		t.Errorf("audience %q", b.Audience())
	}
}

func TestCloudMessageTiesEverything(t *testing.T) {
	pin := join.Pin([]byte("ca"))
	seen := map[string]bool{string(join.Message("aws", []byte("csr"))): true}
	for _, m := range [][]byte{
		join.CloudMessage(pin, "aws", []byte("doc"), []byte("csr")),
		join.CloudMessage(join.Pin(nil), "aws", []byte("doc"), []byte("csr")),
		join.CloudMessage(pin, "gcp", []byte("doc"), []byte("csr")),
		join.CloudMessage(pin, "aws", []byte("dod"), []byte("csr")),
		join.CloudMessage(pin, "aws", []byte("doc"), []byte("css")),
		join.CloudMessage(pin, "awsd", []byte("oc"), []byte("csr")),
	} {
		if seen[string(m)] {
			t.Errorf("%q stands for two enrolments", m)
		}
		seen[string(m)] = true
	}
}
