-- +goose Up
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE users (
    name       TEXT PRIMARY KEY,
    uid        INTEGER NOT NULL UNIQUE,
    admin      INTEGER NOT NULL,
    disabled   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- The primary key is the promise that a key stands under one person only.
CREATE TABLE user_keys (
    ssh_key  TEXT PRIMARY KEY,
    user     TEXT NOT NULL REFERENCES users (name),
    position INTEGER NOT NULL
) STRICT;
CREATE INDEX user_keys_user ON user_keys (user);

CREATE TABLE groups (
    name TEXT PRIMARY KEY
) STRICT;

CREATE TABLE group_members (
    grp  TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
    user TEXT NOT NULL REFERENCES users (name),
    PRIMARY KEY (grp, user)
) STRICT;
CREATE INDEX group_members_user ON group_members (user);

CREATE TABLE roles (
    name           TEXT PRIMARY KEY,
    approver_group TEXT NOT NULL REFERENCES groups (name),
    body           TEXT NOT NULL -- JSON of policy.Role
) STRICT;

CREATE TABLE sessions (
    key        BLOB PRIMARY KEY, -- SHA-256 of the session's public key
    user       TEXT NOT NULL REFERENCES users (name),
    ssh_key    TEXT NOT NULL,    -- the key that signed in
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_user ON sessions (user);

CREATE TABLE challenges (
    hash       BLOB PRIMARY KEY,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE hosts (
    id              BLOB PRIMARY KEY,
    name            TEXT NOT NULL,
    address         TEXT NOT NULL,
    labels          TEXT NOT NULL, -- JSON
    ssh_host_keys   TEXT NOT NULL, -- JSON
    root_key        BLOB NOT NULL UNIQUE,
    link_key        BLOB NOT NULL,
    agent_version   TEXT NOT NULL,
    enrolled_ms     INTEGER NOT NULL,
    certificate_ms  INTEGER NOT NULL,
    refused         TEXT NOT NULL DEFAULT '',
    removed         INTEGER NOT NULL DEFAULT 0,
    mode            TEXT NOT NULL DEFAULT '',
    last_seen_ms    INTEGER NOT NULL DEFAULT 0,
    acked_epoch     INTEGER NOT NULL DEFAULT 0,
    acked_sequence  INTEGER NOT NULL DEFAULT 0,
    ack_detail      TEXT NOT NULL DEFAULT '',
    sequence        INTEGER NOT NULL DEFAULT 0, -- the last one given out
    event_count     INTEGER NOT NULL DEFAULT 0,
    event_head      BLOB NOT NULL DEFAULT x'',
    restored        INTEGER NOT NULL DEFAULT 0 -- until the first events after a restore
) STRICT;
CREATE UNIQUE INDEX hosts_name ON hosts (name) WHERE removed = 0;

CREATE TABLE host_events (
    host   BLOB NOT NULL REFERENCES hosts (id),
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (host, number)
) STRICT;

CREATE TABLE join_tokens (
    hash       BLOB PRIMARY KEY,
    name       TEXT NOT NULL,
    labels     TEXT NOT NULL,
    created_by TEXT NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE requests (
    id              TEXT PRIMARY KEY,
    requester       TEXT NOT NULL REFERENCES users (name),
    role            TEXT NOT NULL, -- roles may go, requests stay
    state           INTEGER NOT NULL,
    root_equivalent INTEGER NOT NULL,
    in_force        INTEGER NOT NULL,
    cause           INTEGER NOT NULL,
    ended_by        TEXT NOT NULL,
    ended_ms        INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    changed_ms      INTEGER NOT NULL,
    waits           INTEGER NOT NULL, -- 1 when a revision waits for decisions
    unissued        INTEGER NOT NULL, -- 1 when an approved revision waits for grants
    lapses_ms       INTEGER NOT NULL  -- of the newest revision
) STRICT;
CREATE INDEX requests_created ON requests (created_ms);
CREATE INDEX requests_requester ON requests (requester, created_ms);
CREATE INDEX requests_open ON requests (state, created_ms);
CREATE INDEX requests_waits ON requests (lapses_ms) WHERE waits = 1;
CREATE INDEX requests_unissued ON requests (id) WHERE unissued = 1;

CREATE TABLE request_hosts (
    request  TEXT NOT NULL REFERENCES requests (id),
    host     BLOB NOT NULL REFERENCES hosts (id),
    name     TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (request, host)
) STRICT;
CREATE INDEX request_hosts_name ON request_hosts (name);

CREATE TABLE revisions (
    request     TEXT NOT NULL REFERENCES requests (id),
    number      INTEGER NOT NULL,
    terms       BLOB NOT NULL,
    duration_ms INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    lapses_ms   INTEGER NOT NULL,
    needed      INTEGER NOT NULL,
    grp         TEXT NOT NULL,
    outcome     INTEGER NOT NULL,
    PRIMARY KEY (request, number)
) STRICT;

CREATE TABLE decisions (
    request  TEXT NOT NULL,
    revision INTEGER NOT NULL,
    approver TEXT NOT NULL REFERENCES users (name),
    approved INTEGER NOT NULL,
    reason   TEXT NOT NULL,
    at_ms    INTEGER NOT NULL,
    sshsig   BLOB NOT NULL,
    void     INTEGER NOT NULL,
    PRIMARY KEY (request, revision, approver),
    FOREIGN KEY (request, revision) REFERENCES revisions (request, number)
) STRICT;

CREATE TABLE grants (
    id            BLOB PRIMARY KEY,
    request       TEXT NOT NULL,
    revision      INTEGER NOT NULL,
    host          BLOB NOT NULL REFERENCES hosts (id),
    envelope      BLOB NOT NULL,
    issued_ms     INTEGER NOT NULL,
    hard_end_ms   INTEGER NOT NULL,
    live          INTEGER NOT NULL,
    cause         INTEGER NOT NULL DEFAULT 0,
    ended_by      TEXT NOT NULL DEFAULT '',
    ended_ms      INTEGER NOT NULL DEFAULT 0, -- here
    status        INTEGER NOT NULL DEFAULT 0,
    detail        TEXT NOT NULL DEFAULT '',
    confirmed_ms  INTEGER NOT NULL DEFAULT 0,
    start_ms      INTEGER NOT NULL DEFAULT 0,
    end_ms        INTEGER NOT NULL DEFAULT 0,
    host_ended_ms INTEGER NOT NULL DEFAULT 0, -- as the host reported
    FOREIGN KEY (request, revision) REFERENCES revisions (request, number)
) STRICT;
CREATE INDEX grants_request ON grants (request);
CREATE INDEX grants_live ON grants (host) WHERE live = 1;
CREATE INDEX grants_ended ON grants (host, ended_ms) WHERE live = 0;

CREATE TABLE trust (
    version  INTEGER PRIMARY KEY,
    envelope BLOB NOT NULL
) STRICT;

-- At most one row: content that waits for the root key.
CREATE TABLE trust_unsigned (
    only    INTEGER PRIMARY KEY CHECK (only = 1),
    content BLOB NOT NULL
) STRICT;

CREATE TABLE trail (
    number  INTEGER PRIMARY KEY,
    leaf    BLOB NOT NULL,
    request TEXT NOT NULL,
    actor   TEXT NOT NULL
) STRICT;
CREATE INDEX trail_request ON trail (request) WHERE request <> '';
CREATE INDEX trail_actor ON trail (actor);

CREATE TABLE trail_hashes (
    position INTEGER PRIMARY KEY,
    hash     BLOB NOT NULL
) STRICT;

CREATE TABLE outbox (
    id         TEXT NOT NULL,
    url        TEXT NOT NULL,
    body       BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    next_ms    INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    last_error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (id, url)
) STRICT;
CREATE INDEX outbox_next ON outbox (url, next_ms);
