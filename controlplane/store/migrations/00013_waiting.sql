-- +goose Up
-- What a requester has waiting is counted at every request, however long their history is.
CREATE INDEX requests_waiting ON requests (requester) WHERE waits = 1;
