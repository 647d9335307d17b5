package controlplane

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/curfew-access/curfew/internal/keyfile"
)

// sealFile is no part of a backup: what is sealed under it is forgotten by a restore.
const sealFile = "seal.key"

// sealbox keeps refresh tokens secret in the store, in its snapshots and on its disks: AES-256-GCM
// under a key that lies beside the store and is never in it.
type sealbox struct{ aead cipher.AEAD }

// openSealbox reads the key of a data folder, and draws one when there is none.
func openSealbox(dir string) (*sealbox, error) {
	path := filepath.Join(dir, sealFile)
	key, err := readSealKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("drawing the seal key: %w", err)
		}
		err = keyfile.WriteNew(path, key)
		if errors.Is(err, fs.ErrExist) { // another process was faster
			key, err = readSealKey(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &sealbox{aead}, err
}

func readSealKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o: others can read it; remove it, and people sign in anew",
			path, info.Mode().Perm())
	}
	key, err := os.ReadFile(path)
	if err == nil && len(key) != 32 {
		err = fmt.Errorf("%s has %d bytes, not 32; remove it, and people sign in anew", path, len(key))
	}
	return key, err
}

// Seal implements identity.Sealer.
func (b *sealbox) Seal(plain []byte, about string) ([]byte, error) {
	return b.aead.Seal(nil, nil, plain, []byte(about)), nil
}

// Open implements identity.Sealer.
func (b *sealbox) Open(sealed []byte, about string) ([]byte, error) {
	return b.aead.Open(nil, nil, sealed, []byte(about))
}
