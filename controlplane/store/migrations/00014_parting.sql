-- +goose Up
-- When a host was removed that is still owed its last state, or has not said yet that nothing of its
-- grants is left, and when it accepted that state; 0 for all others.
ALTER TABLE hosts ADD COLUMN parting_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE hosts ADD COLUMN told_ms INTEGER NOT NULL DEFAULT 0;
-- When the host said that nothing of a grant is left.
ALTER TABLE grants ADD COLUMN purged_ms INTEGER NOT NULL DEFAULT 0;

-- Grants that break-glass codes opened on a host, by its own word: a last state ends them by name.
CREATE TABLE local_grants (
    id       BLOB PRIMARY KEY,
    host     BLOB NOT NULL REFERENCES hosts (id),
    request  TEXT NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX local_grants_host ON local_grants (host);
