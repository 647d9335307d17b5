package cli

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// The session is a key (PROTOCOL.md section 7): whoever holds session.key is signed in, until the
// control plane says otherwise.

func loadSessionKey(dir string) (ed25519.PrivateKey, error) {
	path := filepath.Join(dir, keyName)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fail(exitFailed, "%s may be read by others (mode %#o)", path, mode).
			hint("if nobody else has read it: chmod 600 %s; otherwise curfew logout and "+
				"curfew login", path)
	}
	data, err := readCapped(path, maxConfigSize)
	if err != nil {
		return nil, err
	}
	bad := func(why string) error {
		return fail(exitFailed, "%s is corrupt: %s", path, why).
			hint("make a new one: curfew login")
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, bad("no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, bad(err.Error())
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, bad("not an Ed25519 key")
	}
	return key, nil
}

func saveSessionKey(dir string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the session key: %w", err)
	}
	return writeFile(dir, keyName,
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// sessionCertificate wraps the session key in a self-signed client certificate; the control plane
// looks at nothing in it but the key.
func sessionCertificate(key ed25519.PrivateKey, now time.Time) (tls.Certificate, error) {
	public, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return tls.Certificate{}, errors.New("the session key has no public half")
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "curfew session"},
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.Add(366 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the session certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
