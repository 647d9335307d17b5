-- +goose Up
-- JSON of the root keys' signatures that the waiting content has.
ALTER TABLE trust_unsigned ADD COLUMN signatures TEXT NOT NULL DEFAULT '[]';
