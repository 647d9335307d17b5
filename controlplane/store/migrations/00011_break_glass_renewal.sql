-- +goose Up
-- Who asked that the set be replaced by a new one; empty: nobody.
ALTER TABLE break_glass_sets ADD COLUMN renew_by TEXT NOT NULL DEFAULT '';
