package grant

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"google.golang.org/protobuf/proto"

	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

// Payload types of the sealed objects, PROTOCOL.md section 1.
const (
	TypeGrant       = "application/vnd.curfew.grant.v1+protobuf"
	TypeHostState   = "application/vnd.curfew.host-state.v1+protobuf"
	TypeTrust       = "application/vnd.curfew.trust.v1+json"
	TypeHostMessage = "application/vnd.curfew.host-message.v1+protobuf"
)

// Caps on sealed objects in bytes, checked before anything is parsed.
const (
	MaxGrant       = 64 << 10
	MaxHostState   = 256 << 10
	MaxTrust       = 1 << 20
	MaxHostMessage = 256 << 10
	maxSignatures  = 16
)

// Refusals that callers tell apart.
var (
	// ErrSignature means that too few keys of the trust file signed; nothing was parsed.
	ErrSignature = errors.New("not signed by a trusted key")
	// ErrMalformed means that bytes which a trusted key did sign are not what they should be.
	ErrMalformed = errors.New("malformed")
)

type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// KeyID is the hint that a signature carries: hex SHA-256 of the public key.
func KeyID(pub ed25519.PublicKey) string {
	sum := sha256.Sum256(pub)
	return hex.EncodeToString(sum[:])
}

// Seal wraps payload in a DSSE envelope signed by each key.
func Seal(payloadType string, payload []byte, keys ...ed25519.PrivateKey) ([]byte, error) {
	if len(keys) == 0 || len(keys) > maxSignatures {
		return nil, fmt.Errorf("sealing with %d keys: want 1 to %d", len(keys), maxSignatures)
	}
	pae := dsse.PAE(payloadType, payload)
	env := envelope{PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload)}
	used := make(map[string]bool, len(keys))
	for _, key := range keys {
		if len(key) != ed25519.PrivateKeySize {
			return nil, errors.New("sealing: not an Ed25519 private key")
		}
		pub := ed25519.PublicKey(key[ed25519.SeedSize:])
		if used[string(pub)] {
			return nil, errors.New("sealing: one key is given twice")
		}
		used[string(pub)] = true
		env.Signatures = append(env.Signatures, signature{
			KeyID: KeyID(pub), Sig: base64.StdEncoding.EncodeToString(ed25519.Sign(key, pae)),
		})
	}
	return json.Marshal(env)
}

// Open returns the payload of an envelope of at most limit bytes that carries valid signatures of
// at least threshold distinct keys. Nothing of the payload is parsed; parse exactly what Open
// returns.
func Open(
	data []byte, payloadType string, limit, threshold int, keys []ed25519.PublicKey,
) ([]byte, error) {
	if len(data) > limit {
		return nil, fmt.Errorf("%w: envelope of %d bytes is over the limit of %d",
			ErrMalformed, len(data), limit)
	}
	env, payload, err := parseEnvelope(data)
	if err != nil {
		return nil, err
	}
	if env.PayloadType != payloadType {
		return nil, fmt.Errorf("%w: payload type %q, want %q",
			ErrMalformed, VisibleText(env.PayloadType), payloadType)
	}
	if threshold < 1 {
		return nil, fmt.Errorf("%w: a threshold of %d accepts everything", ErrSignature, threshold)
	}
	pae := dsse.PAE(payloadType, payload)
	signers := make(map[string]bool)
	for _, sig := range env.Signatures {
		raw, err := strictBase64(sig.Sig)
		if err != nil {
			return nil, fmt.Errorf("%w: signature: %w", ErrMalformed, err)
		}
		for _, key := range keys {
			// The hint saves work: garbage costs one hash and not one verification for each key.
			if len(key) != ed25519.PublicKeySize || sig.KeyID != KeyID(key) ||
				!ed25519.Verify(key, pae, raw) {
				continue
			}
			if signers[string(key)] {
				return nil, fmt.Errorf("%w: one key signed twice", ErrMalformed)
			}
			signers[string(key)] = true
		}
	}
	if len(signers) < threshold {
		return nil, fmt.Errorf("%w: %d of %d needed signatures verify",
			ErrSignature, len(signers), threshold)
	}
	return payload, nil
}

func parseEnvelope(data []byte) (env envelope, payload []byte, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&env); err != nil {
		return env, nil, fmt.Errorf("%w: envelope: %v", ErrMalformed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return env, nil, fmt.Errorf("%w: bytes after the envelope", ErrMalformed)
	}
	// Equality with our own encoding refuses doubled and differently cased fields.
	if again, err := json.Marshal(env); err != nil || !bytes.Equal(again, data) {
		return env, nil, fmt.Errorf("%w: envelope is not in canonical form", ErrMalformed)
	}
	if n := len(env.Signatures); n == 0 || n > maxSignatures {
		return env, nil, fmt.Errorf("%w: envelope with %d signatures, want 1 to %d",
			ErrMalformed, n, maxSignatures)
	}
	payload, err = strictBase64(env.Payload)
	if err != nil {
		return env, nil, fmt.Errorf("%w: payload: %w", ErrMalformed, err)
	}
	return env, payload, nil
}

// strictBase64 accepts the one standard encoding of its bytes. Go's decoder by itself skips line
// breaks, which would give one object many forms.
func strictBase64(s string) ([]byte, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || base64.StdEncoding.EncodeToString(raw) != s {
		return nil, errors.New("not in standard base64")
	}
	return raw, nil
}

var canonical = proto.MarshalOptions{Deterministic: true}

// unmarshalCanonical parses data and demands that it is exactly our own encoding of what it parsed
// to: unknown fields, doubled fields and trailing bytes all differ.
func unmarshalCanonical(data []byte, m proto.Message) error {
	return unmarshalSame(data, m, proto.UnmarshalOptions{DiscardUnknown: true})
}

// unmarshalReport is unmarshalCanonical for what opens nothing: a host of the next version may say
// more than is understood here (PROTOCOL.md section 9). New fields have higher numbers, so what is
// not known stands at the end, where our own encoding puts it too.
func unmarshalReport(data []byte, m proto.Message) error {
	return unmarshalSame(data, m, proto.UnmarshalOptions{})
}

func unmarshalSame(data []byte, m proto.Message, how proto.UnmarshalOptions) error {
	if err := how.Unmarshal(data, m); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	again, err := canonical.Marshal(m)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if !bytes.Equal(again, data) {
		return fmt.Errorf("%w: not in canonical form (unknown or doubled fields?)", ErrMalformed)
	}
	return nil
}

// SignHostMessage signs what the root half sends, so that the link half can only delay or drop it.
func SignHostMessage(
	m *curfewv1.HostMessage, key ed25519.PrivateKey,
) (*curfewv1.SignedHostMessage, error) {
	body, err := canonical.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding a host message: %w", err)
	}
	if len(body) > MaxHostMessage {
		return nil, fmt.Errorf("host message of %d bytes is over the limit of %d",
			len(body), MaxHostMessage)
	}
	sig := ed25519.Sign(key, dsse.PAE(TypeHostMessage, body))
	return &curfewv1.SignedHostMessage{Body: body, Signature: sig}, nil
}

// OpenHostMessage verifies a host's message under its root half's key, then parses it.
func OpenHostMessage(
	s *curfewv1.SignedHostMessage, pub ed25519.PublicKey,
) (*curfewv1.HostMessage, error) {
	if len(s.GetBody()) > MaxHostMessage {
		return nil, fmt.Errorf("%w: host message of %d bytes", ErrMalformed, len(s.GetBody()))
	}
	if len(pub) != ed25519.PublicKeySize ||
		!ed25519.Verify(pub, dsse.PAE(TypeHostMessage, s.GetBody()), s.GetSignature()) {
		return nil, fmt.Errorf("host message: %w", ErrSignature)
	}
	m := new(curfewv1.HostMessage)
	if err := unmarshalReport(s.GetBody(), m); err != nil {
		return nil, fmt.Errorf("host message: %w", err)
	}
	return m, nil
}
