-- +goose Up
-- Instances of clouds that joined by their cloud's word; kept for good, so that each does once.
CREATE TABLE cloud_instances (
    hash      BLOB PRIMARY KEY,
    host      BLOB NOT NULL,
    joined_ms INTEGER NOT NULL
) STRICT;
