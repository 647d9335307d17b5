// Package keyfile keeps an Ed25519 private key in a file: one PEM block of PKCS #8 (RFC 5958), mode
// 0600. The grant key and the root keys lie in such files, beside a control plane or far from it.
//
// It never overwrites a file, and refuses one that others can read: a key that somebody may have read
// is to be replaced, not used.
package keyfile

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	block   = "PRIVATE KEY"
	maxSize = 16 << 10
)

// Create draws a key and writes it to a new file, durably. What is the key's name in errors.
func Create(path, what string, random io.Reader) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(random)
	if err != nil {
		return nil, fmt.Errorf("drawing the %s: %w", what, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the %s: %w", what, err)
	}
	if err := WriteNew(path, pem.EncodeToMemory(&pem.Block{Type: block, Bytes: der})); err != nil {
		return nil, fmt.Errorf("writing the %s: %w", what, err)
	}
	return key, nil
}

// WriteNew writes a new file of mode 0600, durably, and refuses to touch one that exists.
func WriteNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Load reads a key. A missing file is fs.ErrNotExist.
func Load(path, what string) (ed25519.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s %s has mode %04o: others can read it; chmod 0600 it, and replace "+
			"the key if anybody may have read it", what, path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	b, rest := pem.Decode(data)
	if b == nil || b.Type != block || len(rest) > 0 {
		return nil, fmt.Errorf("%s %s is not one PEM block of type %q", what, path, block)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", what, path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s %s is not an Ed25519 key", what, path)
	}
	return key, nil
}
