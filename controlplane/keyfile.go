package controlplane

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files in the data folder, beside those of the CA.
const (
	storeFile  = "curfew.db"
	issuerFile = "issuer.key"
	// RootFile may be moved away: then trust changes wait for `curfew-controlplane trust sign`.
	RootFile = "root.key"
)

const keyBlock = "PRIVATE KEY"

// createRootKey draws the key that signs the trust file and writes it to a new file of mode 0600.
func createRootKey(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("drawing the root key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the root key: %w", err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
	if err := writeNew(path, block); err != nil {
		return nil, fmt.Errorf("writing the root key: %w", err)
	}
	return key, nil
}

// LoadRootKey reads a root key and refuses a file that others can read.
func LoadRootKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("root key %s has mode %04o: others can read it; chmod 0600 it, and "+
			"replace the key if anybody may have read it", path, info.Mode().Perm())
	}
	if info.Size() > 16<<10 {
		return nil, fmt.Errorf("root key %s is too long", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != keyBlock || len(rest) > 0 {
		return nil, fmt.Errorf("root key %s is not one PEM block of type %q", path, keyBlock)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("root key %s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("root key %s is not an Ed25519 key", path)
	}
	return key, nil
}

// rootKeys reads the root key that lies in a data folder; none when it was moved away.
func rootKeys(dir string) func() ([]ed25519.PrivateKey, error) {
	return func() ([]ed25519.PrivateKey, error) {
		key, err := LoadRootKey(filepath.Join(dir, RootFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []ed25519.PrivateKey{key}, nil
	}
}

// writeNew writes a new file of mode 0600, durably, and refuses to touch one that exists.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
