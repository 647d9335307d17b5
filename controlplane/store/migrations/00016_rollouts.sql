-- +goose Up
-- Staged rollouts of enforcing. plan never changes; refusals are counted with the events that tell of them.
CREATE TABLE rollouts (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    plan       TEXT NOT NULL, -- JSON of rollout.Plan
    state      TEXT NOT NULL,
    stage      INTEGER NOT NULL,
    stage_ms   INTEGER NOT NULL,
    refusals   INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    started_ms INTEGER NOT NULL
) STRICT;

-- How far a rollout has got with a host; wish is what the host's states carry, 0 for nothing.
CREATE TABLE rollout_hosts (
    rollout      TEXT NOT NULL REFERENCES rollouts (id),
    host         BLOB NOT NULL REFERENCES hosts (id),
    stage        INTEGER NOT NULL,
    state        TEXT NOT NULL,
    since_ms     INTEGER NOT NULL,
    attempt      INTEGER NOT NULL,
    wish         INTEGER NOT NULL,
    refused      INTEGER NOT NULL,
    would_refuse INTEGER NOT NULL,
    detail       TEXT NOT NULL,
    PRIMARY KEY (host, rollout)
) STRICT;
CREATE INDEX rollout_hosts_rollout ON rollout_hosts (rollout);
