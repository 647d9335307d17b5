package grant

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// RootSignature is one root key's signature over the content of a trust file, made wherever the key
// is kept. It is the same signature as the envelope carries.
type RootSignature struct {
	Key Key    `json:"key"`
	Sig []byte `json:"sig"`
}

// SignTrust signs the content of a trust file.
func SignTrust(content []byte, key ed25519.PrivateKey) RootSignature {
	return RootSignature{
		Key: Key(key.Public().(ed25519.PublicKey)),
		Sig: ed25519.Sign(key, dsse.PAE(TypeTrust, content)),
	}
}

// Valid tells whether the signature is the key's over this content.
func (s RootSignature) Valid(content []byte) bool {
	return len(s.Key) == ed25519.PublicKeySize &&
		ed25519.Verify(ed25519.PublicKey(s.Key), dsse.PAE(TypeTrust, content), s.Sig)
}

// ParseTrust reads the content of a trust file that is to be signed, in canonical form.
func ParseTrust(content []byte) (*Trust, error) {
	if len(content) > MaxTrust {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(content), MaxTrust)
	}
	return parseTrust(content)
}

// AssembleTrust puts a content and its signatures into an envelope. Whether they suffice is for
// OpenTrust to say.
func AssembleTrust(content []byte, signatures []RootSignature) ([]byte, error) {
	if n := len(signatures); n == 0 || n > maxSignatures {
		return nil, fmt.Errorf("%d signatures: want 1 to %d", n, maxSignatures)
	}
	env := envelope{PayloadType: TypeTrust, Payload: base64.StdEncoding.EncodeToString(content)}
	for _, s := range signatures {
		env.Signatures = append(env.Signatures, signature{
			KeyID: KeyID(ed25519.PublicKey(s.Key)), Sig: base64.StdEncoding.EncodeToString(s.Sig),
		})
	}
	return json.Marshal(env)
}

// Signed counts the signatures by root keys of a trust file, each key once.
func (t *Trust) Signed(signatures []RootSignature) (n int) {
	for _, k := range t.RootKeys {
		if slices.ContainsFunc(signatures, func(s RootSignature) bool {
			return string(s.Key) == string(k)
		}) {
			n++
		}
	}
	return n
}
