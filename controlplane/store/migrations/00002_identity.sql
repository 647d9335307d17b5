-- +goose Up
-- Who a user is and who says so: a person or a workload, kept by hand, by OpenID sign-ins or by SCIM.
ALTER TABLE users ADD COLUMN kind TEXT NOT NULL DEFAULT 'person';
ALTER TABLE users ADD COLUMN source TEXT NOT NULL DEFAULT 'local';
ALTER TABLE users ADD COLUMN auditor INTEGER NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN email TEXT NOT NULL DEFAULT '';
ALTER TABLE users ADD COLUMN manager TEXT NOT NULL DEFAULT ''; -- a user name; may be nobody's yet
-- Whose word disabled them: admin, scim, oidc; empty while enabled.
ALTER TABLE users ADD COLUMN disabled_by TEXT NOT NULL DEFAULT '';
UPDATE users SET disabled_by = 'admin' WHERE disabled = 1;

ALTER TABLE groups ADD COLUMN source TEXT NOT NULL DEFAULT 'local';

ALTER TABLE sessions ADD COLUMN method TEXT NOT NULL DEFAULT 'ssh';
ALTER TABLE sessions ADD COLUMN device TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN address TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN used_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN used_address TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN claims TEXT NOT NULL DEFAULT '{}'; -- JSON, of a workload's token

-- Which subject of which issuer is which user. A subject is one user's, a user has one per issuer.
CREATE TABLE user_links (
    issuer     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    user       TEXT NOT NULL REFERENCES users (name),
    refresh    BLOB NOT NULL,    -- sealed refresh token; empty for none
    checked_ms INTEGER NOT NULL, -- when the issuer last vouched for them
    PRIMARY KEY (issuer, subject)
) STRICT;
CREATE UNIQUE INDEX user_links_user ON user_links (user, issuer);

CREATE TABLE workloads (
    name    TEXT PRIMARY KEY REFERENCES users (name),
    issuer  TEXT NOT NULL,
    subject TEXT NOT NULL, -- pattern
    claims  TEXT NOT NULL  -- JSON: claim to pattern
) STRICT;

-- Workload tokens that signed somebody in; kept until they expire by themselves.
CREATE TABLE spent_tokens (
    hash       BLOB PRIMARY KEY,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE scim_tokens (
    hash       BLOB PRIMARY KEY,
    created_by TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE scim_users (
    id         TEXT PRIMARY KEY,
    user       TEXT NOT NULL UNIQUE REFERENCES users (name),
    user_name  TEXT NOT NULL UNIQUE, -- as the client wrote it
    body       TEXT NOT NULL,        -- JSON: what else the client wrote and we keep
    active     INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    version    INTEGER NOT NULL
) STRICT;

CREATE TABLE scim_groups (
    id           TEXT PRIMARY KEY,
    grp          TEXT NOT NULL UNIQUE REFERENCES groups (name) ON DELETE CASCADE,
    display_name TEXT NOT NULL UNIQUE,
    external_id  TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    changed_ms   INTEGER NOT NULL,
    version      INTEGER NOT NULL
) STRICT;

-- Which queue a message stands in: a webhook's own, or the mail server's.
ALTER TABLE outbox ADD COLUMN lane TEXT NOT NULL DEFAULT '';
UPDATE outbox SET lane = url;
DROP INDEX outbox_next;
CREATE INDEX outbox_next ON outbox (lane, next_ms);
