-- +goose Up
ALTER TABLE users ADD COLUMN verify_required INTEGER NOT NULL DEFAULT 0;
