// Package sshsig makes and checks OpenSSH signatures over arbitrary bytes, in the form that
// `ssh-keygen -Y sign` makes and `ssh-keygen -Y verify` accepts.
//
// Approvers sign the terms of a grant with it and people sign in with it. It decides nothing:
// Verify returns the key that signed, and the caller decides whether that key may. It follows
// OpenSSH's PROTOCOL.sshsig, binary form, message hash sha512 only.
package sshsig

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Namespaces keep a signature made for one purpose from being accepted for another.
const (
	NamespaceApprove = "approve@curfew/v1"
	NamespaceLogin   = "login@curfew/v1"
	NamespaceKey     = "key@curfew/v1"
)

// MaxSize bounds a binary signature; a 16384-bit RSA signature with its key stays below it.
const MaxSize = 8 << 10

const (
	magic    = "SSHSIG"
	version  = 1
	hashName = "sha512"
	pemType  = "SSH SIGNATURE"
	// securityKeyBytes is the length of flags and counter in a security key's signature.
	securityKeyBytes = 5
)

// blob is PROTOCOL.sshsig's signature after the magic preamble.
type blob struct {
	Version   uint32
	PublicKey string
	Namespace string
	Reserved  string
	Hash      string
	Signature string
}

// signed is what the key really signs, after the magic preamble.
type signed struct {
	Namespace string
	Reserved  string
	Hash      string
	Digest    string
}

func signedData(namespace string, message []byte) []byte {
	digest := sha512.Sum512(message)
	return append([]byte(magic), ssh.Marshal(signed{
		Namespace: namespace, Hash: hashName, Digest: string(digest[:]),
	})...)
}

// Sign returns the binary signature of message under namespace. RSA keys sign with SHA-512.
func Sign(signer ssh.Signer, namespace string, message []byte) ([]byte, error) {
	if namespace == "" {
		return nil, errors.New("sshsig: the namespace is empty")
	}
	data := signedData(namespace, message)
	sig, err := signWith(signer, data)
	if err != nil {
		return nil, fmt.Errorf("signing with SSH key %s: %w",
			ssh.FingerprintSHA256(signer.PublicKey()), err)
	}
	return append([]byte(magic), ssh.Marshal(blob{
		Version: version, PublicKey: string(signer.PublicKey().Marshal()), Namespace: namespace,
		Hash: hashName, Signature: string(ssh.Marshal(sig)),
	})...), nil
}

func signWith(signer ssh.Signer, data []byte) (*ssh.Signature, error) {
	if signer.PublicKey().Type() != ssh.KeyAlgoRSA {
		return signer.Sign(rand.Reader, data)
	}
	rsa, ok := signer.(ssh.AlgorithmSigner)
	if !ok {
		return nil, errors.New("this RSA key cannot sign with SHA-512")
	}
	return rsa.SignWithAlgorithm(rand.Reader, data, ssh.KeyAlgoRSASHA512)
}

// A Signature is what a verified signature says.
type Signature struct {
	// Key made it.
	Key ssh.PublicKey
	// UserVerified: a security key says that it checked its user's PIN or fingerprint (WebAuthn's UV
	// flag, which PROTOCOL.u2f carries). False for all other keys.
	UserVerified bool
}

// userVerified is the UV flag of authenticator data (WebAuthn, section 6.1).
const userVerified = 0x04

// Verify checks sig over message under namespace and returns the key that made it.
func Verify(sig []byte, namespace string, message []byte) (ssh.PublicKey, error) {
	s, err := Check(sig, namespace, message)
	return s.Key, err
}

// Check checks sig over message under namespace and returns what it says.
func Check(sig []byte, namespace string, message []byte) (Signature, error) {
	key, s, err := check(sig, namespace, message)
	if err != nil {
		return Signature{}, err
	}
	return Signature{Key: key, UserVerified: len(s.Rest) > 0 && s.Rest[0]&userVerified != 0}, nil
}

func check(sig []byte, namespace string, message []byte) (ssh.PublicKey, *ssh.Signature, error) {
	if len(sig) > MaxSize {
		return nil, nil, fmt.Errorf("SSH signature of %d bytes is over the limit of %d", len(sig), MaxSize)
	}
	rest, ok := bytes.CutPrefix(sig, []byte(magic))
	if !ok {
		return nil, nil, errors.New("not an SSH signature: magic missing")
	}
	var b blob
	if err := ssh.Unmarshal(rest, &b); err != nil {
		return nil, nil, fmt.Errorf("parsing SSH signature: %w", err)
	}
	switch {
	case b.Version != version:
		return nil, nil, fmt.Errorf("SSH signature has version %d, want %d", b.Version, version)
	case b.Namespace != namespace:
		return nil, nil, fmt.Errorf("SSH signature is for %q, not for %q", b.Namespace, namespace)
	case b.Reserved != "":
		return nil, nil, errors.New("SSH signature has a reserved field set")
	case b.Hash != hashName:
		return nil, nil, fmt.Errorf("SSH signature hashes with %q, want %s", b.Hash, hashName)
	}
	key, err := ssh.ParsePublicKey([]byte(b.PublicKey))
	if err != nil {
		return nil, nil, fmt.Errorf("parsing the key of an SSH signature: %w", err)
	}
	var s ssh.Signature
	if err := ssh.Unmarshal([]byte(b.Signature), &s); err != nil {
		return nil, nil, fmt.Errorf("parsing the signature of an SSH signature: %w", err)
	}
	if err := checkFormat(key, &s); err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(key.Marshal(), []byte(b.PublicKey)) {
		return nil, nil, errors.New("the key of an SSH signature is not in canonical form")
	}
	if err := key.Verify(signedData(namespace, message), &s); err != nil {
		return nil, nil, fmt.Errorf("SSH signature does not verify: %w", err)
	}
	return key, &s, nil
}

// checkFormat refuses SHA-1 RSA signatures, DSA, certificates posing as keys, and bytes after the
// signature, which only security keys have: their flags and counter.
func checkFormat(key ssh.PublicKey, s *ssh.Signature) error {
	if _, isCert := key.(*ssh.Certificate); isCert {
		return errors.New("SSH signature was made by a certificate; plain keys only")
	}
	trailing := 0
	switch key.Type() {
	case ssh.KeyAlgoRSA:
		if s.Format != ssh.KeyAlgoRSASHA512 && s.Format != ssh.KeyAlgoRSASHA256 {
			return fmt.Errorf("SSH signature algorithm %q is not accepted for RSA", s.Format)
		}
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		trailing = securityKeyBytes
		fallthrough
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		if s.Format != key.Type() {
			return fmt.Errorf("SSH signature algorithm %q does not fit a %s key", s.Format, key.Type())
		}
	default:
		return fmt.Errorf("SSH signature was made by a %s key, which is not accepted", key.Type())
	}
	if len(s.Rest) != trailing {
		return fmt.Errorf("SSH signature has %d bytes after its end, want %d", len(s.Rest), trailing)
	}
	return nil
}

// Armor wraps a binary signature the way ssh-keygen prints it.
func Armor(sig []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: sig})
}

// Unarmor returns the binary signature inside what ssh-keygen -Y sign printed.
func Unarmor(armored []byte) ([]byte, error) {
	armored = bytes.TrimSpace(armored)
	block, rest := pem.Decode(armored)
	if block == nil || block.Type != pemType || len(block.Headers) > 0 ||
		!bytes.HasPrefix(armored, []byte("-----BEGIN "+pemType+"-----")) {
		return nil, errors.New("no SSH SIGNATURE block found")
	}
	if len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("text after the SSH SIGNATURE block")
	}
	return block.Bytes, nil
}
