-- +goose Up
-- The newest set of one-use codes of a host, sealed to people; message is what the host signed.
CREATE TABLE break_glass_sets (
    host       BLOB PRIMARY KEY REFERENCES hosts (id),
    set_id     BLOB NOT NULL,
    made_ms    INTEGER NOT NULL,
    custodians TEXT NOT NULL, -- JSON of names
    message    BLOB NOT NULL
) STRICT;
-- One row per code of that set, numbered from 1.
CREATE TABLE break_glass_codes (
    host       BLOB NOT NULL REFERENCES break_glass_sets (host) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    fetched_by TEXT NOT NULL DEFAULT '',
    fetched_ms INTEGER NOT NULL DEFAULT 0,
    used_by    TEXT NOT NULL DEFAULT '',
    used_ms    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (host, number)
) STRICT, WITHOUT ROWID;
