-- +goose Up
-- The CA that a host's newest certificate is from, and those whose server certificates it accepts by its
-- own word: SHA-256 of their certificates in hex, separated by spaces; empty: not known.
ALTER TABLE hosts ADD COLUMN certified_by TEXT NOT NULL DEFAULT '';
ALTER TABLE hosts ADD COLUMN trusts_cas TEXT NOT NULL DEFAULT '';
