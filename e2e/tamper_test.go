package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver registers itself
)

// tamper does what an attacker with the control plane's database does: it changes a record of the
// trail while the control plane is stopped.
func (s *story) tamper() (err error) {
	if _, err := s.Control.Exec(s.ctx, "systemctl", "stop", "curfew-controlplane"); err != nil {
		return err
	}
	found, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/var/lib/curfew-controlplane/*.db", s.Control.PID()))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("looking for the database: %v %w", found, err)
	}
	db, err := sql.Open("sqlite", found[0])
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
	_, err = s.Control.Exec(s.ctx, "systemctl", "start", "curfew-controlplane")
	return err
}
