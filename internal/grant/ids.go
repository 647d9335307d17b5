package grant

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
)

// ID names a grant: a hash of its terms and its host, so that nobody chooses it.
type ID [32]byte

// HostID names a host: SHA-256 of its root half's Ed25519 public key.
type HostID [32]byte

// String returns the id as 64 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first 12 hexadecimal digits, for people and unit names.
func (id ID) Short() string { return hex.EncodeToString(id[:6]) }

// String returns the id as 64 lower-case hexadecimal digits.
func (id HostID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes the id as hexadecimal.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText accepts exactly what MarshalText writes.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	*id = parsed
	return err
}

// MarshalText encodes the id as hexadecimal.
func (id HostID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText accepts exactly what MarshalText writes.
func (id *HostID) UnmarshalText(text []byte) error {
	parsed, err := ParseHostID(string(text))
	*id = parsed
	return err
}

// ParseID reads 64 lower-case hexadecimal digits.
func ParseID(s string) (ID, error) {
	b, err := parseHex32(s)
	if err != nil {
		return ID{}, fmt.Errorf("grant id: %w", err)
	}
	return ID(b), nil
}

// ParseHostID reads 64 lower-case hexadecimal digits.
func ParseHostID(s string) (HostID, error) {
	b, err := parseHex32(s)
	if err != nil {
		return HostID{}, fmt.Errorf("host id: %w", err)
	}
	return HostID(b), nil
}

func parseHex32(s string) (out [32]byte, err error) {
	if len(s) != 64 || strings.ToLower(s) != s {
		return out, fmt.Errorf("%q is not 64 lower-case hexadecimal digits", VisibleText(s))
	}
	if _, err := hex.Decode(out[:], []byte(s)); err != nil {
		return out, fmt.Errorf("%q is not hexadecimal: %w", VisibleText(s), err)
	}
	return out, nil
}

// IDFromBytes takes an id off the wire.
func IDFromBytes(b []byte) (ID, error) {
	if len(b) != len(ID{}) {
		return ID{}, fmt.Errorf("grant id has %d bytes, want 32", len(b))
	}
	return ID(b), nil
}

// HostIDFromBytes takes an id off the wire.
func HostIDFromBytes(b []byte) (HostID, error) {
	if len(b) != len(HostID{}) {
		return HostID{}, fmt.Errorf("host id has %d bytes, want 32", len(b))
	}
	return HostID(b), nil
}

// HostIDOf derives a host's id from its root half's public key.
func HostIDOf(pub ed25519.PublicKey) HostID { return sha256.Sum256(pub) }

// TermsDigest is SHA-256 of the terms' bytes; extensions name what they follow by it.
func TermsDigest(raw []byte) [32]byte { return sha256.Sum256(raw) }

// IDOf derives a grant's id from the exact bytes of its terms and its host.
func IDOf(rawTerms []byte, host HostID) ID { return IDOfWindow(rawTerms, host, 0) }

// IDOfWindow derives the id of the grant for one of the terms' windows, from 1; 0 is IDOf.
func IDOfWindow(rawTerms []byte, host HostID, window uint32) ID {
	digest := TermsDigest(rawTerms)
	h := sha256.New()
	if window == 0 {
		h.Write([]byte("curfew grant v1\x00"))
	} else {
		h.Write([]byte("curfew grant v2\x00"))
	}
	h.Write(digest[:])
	h.Write(host[:])
	if window > 0 {
		h.Write(binary.LittleEndian.AppendUint32(nil, window))
	}
	return ID(h.Sum(nil))
}

var requestIDEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").
	WithPadding(base32.NoPadding)

// NewRequestID draws a request id of 60 random bits: 12 characters that are easy to read aloud.
func NewRequestID(random io.Reader) (string, error) {
	var b [8]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("drawing a request id: %w", err)
	}
	return requestIDEncoding.EncodeToString(b[:])[:12], nil
}
