package sshsig_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/sshsig"
)

// fixed is a signer that is the same in every run.
func fixed(f *testing.F) ssh.Signer {
	f.Helper()
	seed := sha256.Sum256([]byte("sshsig fuzz"))
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		f.Fatal(err)
	}
	return signer
}

// Only one string of bytes is this key's signature of these bytes.
func FuzzVerify(f *testing.F) {
	signer := fixed(f)
	good, err := sshsig.Sign(signer, ns, []byte("terms"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("SSHSIG"))
	f.Add(append([]byte("SSHSIG"), ssh.Marshal(blob{Version: 1, Namespace: ns, Hash: "sha512"})...))
	rs, _ := key(f, "rsa")
	ec, _ := key(f, "ecdsa-256")
	for _, s := range []ssh.Signer{rs, ec} {
		sig, err := sshsig.Sign(s, ns, []byte("terms"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sig)
	}
	f.Fuzz(func(t *testing.T, sig []byte) {
		k, err := sshsig.Verify(sig, ns, []byte("terms"))
		if err != nil {
			return
		}
		if bytes.Equal(k.Marshal(), signer.PublicKey().Marshal()) && !bytes.Equal(sig, good) {
			t.Error("a second signature of an Ed25519 key verifies")
		}
		if _, err := sshsig.Verify(sig, ns, []byte("other")); err == nil {
			t.Error("one signature verifies over two messages")
		}
	})
}

func FuzzUnarmor(f *testing.F) {
	f.Add(sshsig.Armor([]byte("x")))
	f.Add([]byte("-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		sig, err := sshsig.Unarmor(text)
		if err != nil {
			return
		}
		again, err := sshsig.Unarmor(sshsig.Armor(sig))
		if err != nil || !bytes.Equal(again, sig) {
			t.Errorf("armored again it differs: %v", err)
		}
	})
}
