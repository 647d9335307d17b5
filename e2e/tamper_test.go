package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver registers itself
)

// tamper does what an attacker with the control plane's database does: it changes a record of the
// trail while the control plane is stopped.
func (s *story) tamper() (err error) {
	if _, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane"); err != nil {
		return err
	}
	const database = "/var/lib/curfew-controlplane/curfew.db"
	data, err := s.Control.Read(database)
	if err != nil {
		return err
	}
	beside := filepath.Join(s.t.TempDir(), "curfew.db")
	if err := os.WriteFile(beside, data, 0o600); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", beside)
	if err != nil {
		return err
	}
	changed, err := db.ExecContext(s.ctx,
		`UPDATE trail SET leaf = CAST(replace(CAST(leaf AS TEXT), 'dana', 'nobody') AS BLOB) WHERE number = 3`)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if n, err := changed.RowsAffected(); err != nil || n != 1 {
		return fmt.Errorf("changed %d records: %w", n, err)
	}
	if data, err = os.ReadFile(beside); err != nil {
		return err
	}
	if err := s.Control.Write(database, data, 0o600); err != nil {
		return err
	}
	_, err = s.Control.Exec(s.ctx, "systemctl", "start", "curfew-controlplane")
	return err
}
