package store

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// Snapshot writes a consistent copy of the whole store into a new file of mode 0600, while others
// read and write.
func (s *Store) Snapshot(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("copying the store: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("copying the store: %w", err)
	}
	// Into an empty file, whose mode is ours.
	if _, err := s.write.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return errors.Join(fmt.Errorf("copying the store: %w", err), os.Remove(path))
	}
	return nil
}

// Forget drops what a restored store must not bring back: sign-ins that may have ended since, and
// tokens that may have been used. Hosts may have events that they were told are durable here.
func (t *Tx) Forget() error {
	return errors.Join(t.exec("DELETE FROM sessions"), t.exec("DELETE FROM challenges"),
		t.exec("DELETE FROM join_tokens"), t.exec("DELETE FROM outbox"),
		t.exec("UPDATE hosts SET restored = 1"))
}
