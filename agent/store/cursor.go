package store

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/curfew-access/curfew/agent/folder"
)

const (
	cursorFile = "journal.cursor"
	maxCursor  = 1 << 10
)

// SaveCursor keeps how far the host's journal was read.
func (s *Store) SaveCursor(cursor string) error {
	if err := s.dir.Write(cursorFile, folder.File{Data: []byte(cursor), Mode: 0o600}); err != nil {
		return fmt.Errorf("keeping how far the journal was read: %w", err)
	}
	return nil
}

// Cursor returns what SaveCursor kept; empty when there is nothing.
func (s *Store) Cursor() (string, error) {
	data, err := s.dir.Read(cursorFile, maxCursor)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("reading how far the journal was read: %w", err)
	}
	return string(data), nil
}
