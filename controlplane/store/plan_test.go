package store_test

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
)

// What a person has waiting is counted at every request of theirs: it must not take longer the more
// they have ever asked for.
func TestCountingWhatWaitsReadsNoHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "curfew.db")
	open(t, path, nil)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var id, parent, unused int
	var plan string
	err = db.QueryRow("EXPLAIN QUERY PLAN SELECT count(*) FROM requests WHERE requester = ? AND waits = 1",
		"alice").Scan(&id, &parent, &unused, &plan)
	if err != nil || !strings.Contains(plan, "requests_waiting") {
		t.Errorf("it is counted by %q, %v", plan, err)
	}
}
