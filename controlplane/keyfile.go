package controlplane

import (
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/curfew-access/curfew/internal/keyfile"
)

// Files in the data folder, beside those of the CA.
const (
	storeFile  = "curfew.db"
	issuerFile = "issuer.key"
	// RootFile may be moved away: then trust changes wait for `curfew-controlplane trust sign`.
	RootFile = "root.key"
)

// rootKeys reads the root key that lies in a data folder; none when it was moved away.
func rootKeys(dir string) func() ([]ed25519.PrivateKey, error) {
	return func() ([]ed25519.PrivateKey, error) {
		key, err := keyfile.Load(filepath.Join(dir, RootFile), "root key")
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []ed25519.PrivateKey{key}, nil
	}
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
