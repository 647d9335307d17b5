package sshsig_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/curfew-access/curfew/internal/sshsig"
)

const ns = sshsig.NamespaceApprove

// key makes a signer of a named kind.
func key(t testing.TB, kind string) (ssh.Signer, any) {
	t.Helper()
	var private any
	var err error
	switch kind {
	case "ed25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa-256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ecdsa-521":
		private, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "rsa":
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, private
}

var kinds = []string{"ed25519", "ecdsa-256", "ecdsa-384", "ecdsa-521", "rsa"}

func TestSignAndVerify(t *testing.T) {
	for _, kind := range kinds {
		signer, _ := key(t, kind)
		sig, err := sshsig.Sign(signer, ns, []byte("terms"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := sshsig.Verify(sig, ns, []byte("terms"))
		if err != nil || !bytes.Equal(got.Marshal(), signer.PublicKey().Marshal()) {
			t.Errorf("%s: %v", kind, err)
		}
		for name, c := range map[string]struct{ ns, text string }{
			"other bytes": {ns, "term"}, "more bytes": {ns, "terms "}, "no bytes": {ns, ""},
			"another namespace": {sshsig.NamespaceLogin, "terms"}, "none": {"", "terms"}, "file": {"file", "terms"},
		} {
			if _, err := sshsig.Verify(sig, c.ns, []byte(c.text)); err == nil {
				t.Errorf("%s, %s: verifies", kind, name)
			}
		}
		for i := range sig {
			if _, err := sshsig.Verify(sig[:i], ns, []byte("terms")); err == nil {
				t.Fatalf("%s: cut after %d bytes, verifies", kind, i)
			}
			bad := bytes.Clone(sig)
			bad[i] ^= 1 << (i % 8)
			if k, err := sshsig.Verify(bad, ns, []byte("terms")); err == nil &&
				bytes.Equal(k.Marshal(), signer.PublicKey().Marshal()) {
				t.Fatalf("%s: bit %d of byte %d flipped, verifies", kind, i%8, i)
			}
		}
		if _, err := sshsig.Verify(append(bytes.Clone(sig), 0), ns, []byte("terms")); err == nil {
			t.Errorf("%s: a byte behind it, verifies", kind)
		}
	}
	signer, _ := key(t, "ed25519")
	if _, err := sshsig.Sign(signer, "", nil); err == nil {
		t.Error("signs without a namespace")
	}
}

// blob and signed are PROTOCOL.sshsig's, to build what Sign never would.
type blob struct {
	Version                                         uint32
	PublicKey, Namespace, Reserved, Hash, Signature string
}

type signed struct{ Namespace, Reserved, Hash, Digest string }

type crafted struct {
	blob
	algorithm string // of RSA
	inner     func(*ssh.Signature)
	trailing  string
}

// craft signs what a blob says of itself, so that only the blob's form is wrong.
func craft(t *testing.T, signer ssh.Signer, message string, edit func(*crafted)) []byte {
	t.Helper()
	c := crafted{blob: blob{
		Version: 1, PublicKey: string(signer.PublicKey().Marshal()), Namespace: ns, Hash: "sha512",
	}}
	edit(&c)
	var digest []byte
	if c.Hash == "sha256" {
		d := sha256.Sum256([]byte(message))
		digest = d[:]
	} else {
		d := sha512.Sum512([]byte(message))
		digest = d[:]
	}
	data := append([]byte("SSHSIG"), ssh.Marshal(signed{c.Namespace, c.Reserved, c.Hash, string(digest)})...)
	var sig *ssh.Signature
	var err error
	if c.algorithm != "" {
		sig, err = signer.(ssh.AlgorithmSigner).SignWithAlgorithm(rand.Reader, data, c.algorithm)
	} else {
		sig, err = signer.Sign(rand.Reader, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	if c.inner != nil {
		c.inner(sig)
	}
	c.Signature = string(ssh.Marshal(sig)) + c.trailing
	return append([]byte("SSHSIG"), ssh.Marshal(c.blob)...)
}

func TestVerifyRefusesOtherForms(t *testing.T) {
	ed, _ := key(t, "ed25519")
	other, _ := key(t, "ed25519")
	rs, private := key(t, "rsa")
	ec, _ := key(t, "ecdsa-256")
	cert := &ssh.Certificate{Key: ed.PublicKey(), CertType: ssh.UserCert, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, other); err != nil {
		t.Fatal(err)
	}
	if _, err := sshsig.Verify(craft(t, ed, "x", func(*crafted) {}), ns, []byte("x")); err != nil {
		t.Fatalf("the crafted form itself: %v", err)
	}
	for name, algorithm := range map[string]string{"sha2-256": ssh.KeyAlgoRSASHA256, "sha2-512": ssh.KeyAlgoRSASHA512} {
		sig := craft(t, rs, "x", func(c *crafted) { c.algorithm = algorithm })
		if _, err := sshsig.Verify(sig, ns, []byte("x")); err != nil {
			t.Errorf("rsa with %s: %v", name, err)
		}
	}
	n := private.(*rsa.PrivateKey).N
	paddedRSA := string(ssh.Marshal(struct {
		Name string
		E, N string
	}{"ssh-rsa", "\x01\x00\x01", "\x00\x00" + string(n.Bytes())}))
	for name, bad := range map[string][]byte{
		"SHA-1 RSA":                craft(t, rs, "x", func(c *crafted) { c.algorithm = ssh.KeyAlgoRSA }),
		"version 0":                craft(t, ed, "x", func(c *crafted) { c.Version = 0 }),
		"version 2":                craft(t, ed, "x", func(c *crafted) { c.Version = 2 }),
		"reserved set":             craft(t, ed, "x", func(c *crafted) { c.Reserved = "x" }),
		"hash sha256":              craft(t, ed, "x", func(c *crafted) { c.Hash = "sha256" }),
		"hash unknown":             craft(t, ed, "x", func(c *crafted) { c.Hash = "SHA512" }),
		"another's key":            craft(t, ed, "x", func(c *crafted) { c.PublicKey = string(other.PublicKey().Marshal()) }),
		"a certificate":            craft(t, ed, "x", func(c *crafted) { c.PublicKey = string(cert.Marshal()) }),
		"no key":                   craft(t, ed, "x", func(c *crafted) { c.PublicKey = "" }),
		"key and more":             craft(t, ed, "x", func(c *crafted) { c.PublicKey += "\x00" }),
		"key not minimal":          craft(t, rs, "x", func(c *crafted) { c.PublicKey, c.algorithm = paddedRSA, "rsa-sha2-512" }),
		"format of others":         craft(t, ec, "x", func(c *crafted) { c.inner = func(s *ssh.Signature) { s.Format = "ssh-ed25519" } }),
		"no format":                craft(t, ed, "x", func(c *crafted) { c.inner = func(s *ssh.Signature) { s.Format = "" } }),
		"empty signature":          craft(t, ed, "x", func(c *crafted) { c.inner = func(s *ssh.Signature) { s.Blob = nil } }),
		"bytes behind it":          craft(t, ed, "x", func(c *crafted) { c.trailing = "\x01\x00\x00\x00\x01" }),
		"too large":                append([]byte("SSHSIG"), make([]byte, sshsig.MaxSize)...),
		"no magic":                 craft(t, ed, "x", func(*crafted) {})[6:],
		"armored":                  sshsig.Armor(craft(t, ed, "x", func(*crafted) {})),
		"an SSH packet":            ed.PublicKey().Marshal(),
		"DSA":                      dsaSignature(t),
		"a security key, no touch": securityKey(t, 0, 5),
		"a security key, no flags": securityKey(t, 1, 0),
		"a security key, and more": securityKey(t, 1, 6),
	} {
		if k, err := sshsig.Verify(bad, ns, []byte("x")); err == nil {
			t.Errorf("%s: verifies as %s", name, ssh.FingerprintSHA256(k))
		}
	}
	if _, err := sshsig.Verify(securityKey(t, 1, 5), ns, []byte("x")); err != nil {
		t.Errorf("a touched security key: %v", err)
	}
}

// dsa is the name of keys that nobody should use any more.
const dsa = "ssh-dss"

// dsaSignature has the right form and a key that nobody should use.
func dsaSignature(t *testing.T) []byte {
	t.Helper()
	number := string(big.NewInt(1 << 30).Bytes())
	public := ssh.Marshal(struct{ Name, P, Q, G, Y string }{dsa, number, number, number, number})
	sig := ssh.Marshal(ssh.Signature{Format: dsa, Blob: make([]byte, 40)})
	return append([]byte("SSHSIG"), ssh.Marshal(blob{1, string(public), ns, "", "sha512", string(sig)})...)
}

// securityKey signs "x" as a FIDO key does, with flags and the given number of bytes behind.
func securityKey(t *testing.T, flags byte, trailing int) []byte {
	t.Helper()
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := ssh.Marshal(struct{ Name, Key, Application string }{ssh.KeyAlgoSKED25519, string(pub), "ssh:"})
	digest := sha512.Sum512([]byte("x"))
	data := append([]byte("SSHSIG"), ssh.Marshal(signed{ns, "", "sha512", string(digest[:])})...)
	app, hash := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	counter := binary.BigEndian.AppendUint32(nil, 7)
	over := bytes.Join([][]byte{app[:], {flags}, counter, hash[:]}, nil)
	rest := append(append([]byte{flags}, counter...), 0)
	sig := ssh.Marshal(ssh.Signature{
		Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(private, over), Rest: rest[:trailing],
	})
	return append([]byte("SSHSIG"), ssh.Marshal(blob{1, string(public), ns, "", "sha512", string(sig)})...)
}

func TestArmor(t *testing.T) {
	signer, _ := key(t, "ed25519")
	sig, err := sshsig.Sign(signer, ns, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	armored := sshsig.Armor(sig)
	back, err := sshsig.Unarmor(append([]byte("\n"), armored...))
	if err != nil || !bytes.Equal(back, sig) {
		t.Errorf("%v", err)
	}
	text := string(armored)
	for name, bad := range map[string]string{
		"nothing": "", "text in front": "hello\n" + text, "text behind": text + "hello", "two": text + text,
		"another block": strings.ReplaceAll(text, "SSH SIGNATURE", "OPENSSH PRIVATE KEY"),
		"headers":       string(pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Headers: map[string]string{"A": "b"}, Bytes: sig})),
		"cut":           text[:len(text)-5],
	} {
		if _, err := sshsig.Unarmor([]byte(bad)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}
