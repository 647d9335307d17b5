-- +goose Up
-- A grant stands in its host's states from release_ms on, once the sweep has released it.
ALTER TABLE grants ADD COLUMN window INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grants ADD COLUMN release_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grants ADD COLUMN released INTEGER NOT NULL DEFAULT 1;
CREATE INDEX grants_unreleased ON grants (release_ms) WHERE released = 0 AND live = 1;
