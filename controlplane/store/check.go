package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrDamaged means that the file is not, or no longer, a whole store of this program.
var ErrDamaged = errors.New("the store is damaged")

// ErrNewer means that a newer program wrote the store.
var ErrNewer = errors.New("the store is of a newer curfew-controlplane")

func damaged(path string, err error) error {
	return fmt.Errorf("%w: %s: %w; nothing was changed: move the data folder away and restore the "+
		"newest backup with curfew-controlplane restore FILE", ErrDamaged, path, err)
}

// checkWhole reads the whole file once, before anything trusts a part of it.
func checkWhole(ctx context.Context, db *sql.DB, path string) error {
	rows, err := db.QueryContext(ctx, "PRAGMA quick_check(3)")
	if err != nil {
		return damaged(path, err)
	}
	defer rows.Close()
	var findings []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return damaged(path, err)
		}
		if line != "ok" {
			findings = append(findings, line)
		}
	}
	if err := rows.Err(); err != nil {
		return damaged(path, err)
	}
	if len(findings) > 0 {
		return damaged(path, errors.New(strings.Join(findings, "; ")))
	}
	return nil
}

func migrate(ctx context.Context, db *sql.DB, path string) error {
	tables, err := tablesOf(ctx, db)
	if err != nil {
		return damaged(path, err)
	}
	if len(tables) > 0 && !slices.Contains(tables, "goose_db_version") {
		return damaged(path, errors.New("it is another program's database"))
	}
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("reading the migrations: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, dir, goose.WithVerbose(false))
	if err != nil {
		return fmt.Errorf("preparing the migrations: %w", err)
	}
	sources := provider.ListSources()
	newest := sources[len(sources)-1].Version
	if len(tables) > 0 {
		have, err := provider.GetDBVersion(ctx)
		if err != nil {
			return damaged(path, err)
		}
		if have > newest {
			return fmt.Errorf("%w: its schema is version %d, this program knows %d; install the newer "+
				"program again, or restore a backup of this one", ErrNewer, have, newest)
		}
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrating the store: %w", err)
	}
	return checkTables(ctx, db, path)
}

func tablesOf(ctx context.Context, db *sql.DB) ([]string, error) {
	rows, err := db.QueryContext(ctx, "SELECT name FROM sqlite_master WHERE type = 'table'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, rows.Err()
}

// house are the tables without which the program would read half a store.
var house = []string{
	"meta", "users", "user_keys", "groups", "group_members", "roles", "sessions", "challenges",
	"hosts", "host_events", "join_tokens", "requests", "request_hosts", "revisions", "decisions",
	"grants", "trust", "trust_unsigned", "trail", "trail_hashes", "outbox",
	"user_links", "workloads", "spent_tokens", "scim_tokens", "scim_users", "scim_groups",
	"cloud_instances", "rollouts", "rollout_hosts",
}

func checkTables(ctx context.Context, db *sql.DB, path string) error {
	tables, err := tablesOf(ctx, db)
	if err != nil {
		return damaged(path, err)
	}
	for _, want := range house {
		if !slices.Contains(tables, want) {
			return damaged(path, fmt.Errorf("table %s is missing", want))
		}
	}
	return nil
}
