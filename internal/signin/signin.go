// Package signin is what both ends of a sign-in compute alike (PROTOCOL.md section 7). It is pure.
package signin

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"slices"
)

// ChallengeSize is a challenge's length in bytes.
const ChallengeSize = 32

// A Binding ties a proof to one sign-in: one challenge, one session key, one control plane. Whoever
// steals the proof cannot make another key speak with it.
type Binding struct {
	Challenge []byte
	Session   ed25519.PublicKey
	CA        [sha256.Size]byte // of the CA certificate's DER
}

func (b Binding) bound(what string) []byte {
	session := sha256.Sum256(b.Session)
	return slices.Concat([]byte(what), []byte{0}, b.Challenge, session[:], b.CA[:])
}

func (b Binding) text(what string) string {
	sum := sha256.Sum256(b.bound(what))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Login is what an SSH key signs to sign in.
func (b Binding) Login() []byte { return b.bound("curfew login v1") }

// Nonce is what an ID token must carry.
func (b Binding) Nonce() string { return b.text("curfew oidc v1") }

// Key is what a new SSH key signs to become user's; the session is the one that enrols it.
func (b Binding) Key(user string) []byte { return append(b.bound("curfew key v1"), user...) }

// Audience is what the token of a workload must name when its issuer lets the pipeline choose one per
// sign-in; base is the control plane's.
func (b Binding) Audience(base string) string { return base + "/" + b.text("curfew workload v1") }
