package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/curfew-access/curfew/agent/folder"
)

const (
	sealedFile = "break-glass.sealed"
	maxSealed  = 256 << 10
)

// SaveSealedCodes keeps a sealed set of break-glass codes until the control plane has taken it, and
// after: a control plane that was restored from a backup asks for it again. Nothing sealed removes what
// was there.
func (s *Store) SaveSealedCodes(sealed []byte) error {
	if len(sealed) > maxSealed {
		return fmt.Errorf("keeping the sealed codes: %d bytes; at most %d", len(sealed), maxSealed)
	}
	if len(sealed) == 0 {
		err := s.dir.Remove(sealedFile)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	if err := s.dir.Write(sealedFile, folder.File{Data: sealed, Mode: 0o600}); err != nil {
		return fmt.Errorf("keeping the sealed codes: %w", err)
	}
	return nil
}

// SealedCodes returns what SaveSealedCodes kept; nil when there is nothing.
func (s *Store) SealedCodes() ([]byte, error) {
	data, err := s.dir.Read(sealedFile, maxSealed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the sealed codes: %w", err)
	}
	return data, nil
}

// Place tells this store from a copy of it: the file of the host's key is written once, and a copy of
// it is another inode, born later. A copy of the whole disk, block by block, it cannot tell.
func (s *Store) Place() (string, error) {
	inode, born, err := s.dir.Born(keyFile)
	return fmt.Sprintf("%d.%d", inode, born), err
}
