-- +goose Up
-- Every policy file that was ever applied, as it was written. The greatest number is in force.
CREATE TABLE policies (
    number     INTEGER PRIMARY KEY,
    hash       BLOB NOT NULL, -- SHA-256 of the text
    text       BLOB NOT NULL,
    file       TEXT NOT NULL,
    roles      INTEGER NOT NULL,
    rules      INTEGER NOT NULL,
    applied_by TEXT NOT NULL,
    applied_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX policies_hash ON policies (hash);

-- All that a revision needs, beside needed and grp, which hold the first of it.
ALTER TABLE revisions ADD COLUMN needs TEXT NOT NULL DEFAULT '[]'; -- JSON of grant.Need
UPDATE revisions SET needs = json_array(json_object('group', grp, 'approvals', needed));
ALTER TABLE revisions ADD COLUMN standing TEXT NOT NULL DEFAULT '';
ALTER TABLE revisions ADD COLUMN rule TEXT NOT NULL DEFAULT '';
ALTER TABLE revisions ADD COLUMN policy_hash BLOB NOT NULL DEFAULT x'';
ALTER TABLE revisions ADD COLUMN facts BLOB NOT NULL DEFAULT x''; -- JSON of policy.Kept
CREATE INDEX revisions_created ON revisions (created_ms);

-- The groups for which an approver counted, with spaces between.
ALTER TABLE decisions ADD COLUMN counts TEXT NOT NULL DEFAULT '';
UPDATE decisions SET counts = (SELECT grp FROM revisions r
    WHERE r.request = decisions.request AND r.number = decisions.revision);

CREATE INDEX users_manager ON users (manager) WHERE manager <> '';
