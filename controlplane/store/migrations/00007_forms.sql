-- +goose Up
-- Emergency requests are reviewed afterwards. review: 0 nothing to review, 1 due, 2 done.
ALTER TABLE requests ADD COLUMN review INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN reviewer TEXT NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN justified INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN review_comment TEXT NOT NULL DEFAULT '';
ALTER TABLE requests ADD COLUMN reviewed_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE requests ADD COLUMN reminded_ms INTEGER NOT NULL DEFAULT 0;
CREATE INDEX requests_review ON requests (reminded_ms) WHERE review = 1;
