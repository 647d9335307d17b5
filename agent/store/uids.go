package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	maxUIDs     = 1_000_000
	maxUIDsFile = 64 << 20
)

// ErrUID means that a login and a uid cannot belong together: files on this host may still carry the
// uid of whoever had it, so it is never given to a second person.
var ErrUID = errors.New("uid refused")

type uidsData struct {
	Version int               `json:"version"`
	UIDs    map[string]uint32 `json:"uids"`
}

func (s *Store) loadUIDs() error {
	s.uids, s.owners = make(map[string]uint32), make(map[uint32]string)
	data, err := s.dir.Read(uidsFile, maxUIDsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the uid table: %w", err)
	}
	var d uidsData
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return s.corrupt(uidsFile, err.Error())
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || d.Version != 1 {
		return s.corrupt(uidsFile, "it is of another version or goes on after its end")
	}
	for login, uid := range d.UIDs {
		if err := grant.CheckUserName(login); err != nil {
			return s.corrupt(uidsFile, err.Error())
		}
		if other, taken := s.owners[uid]; taken {
			return s.corrupt(uidsFile, fmt.Sprintf("uid %d stands for %s and %s", uid, other, login))
		}
		s.uids[login], s.owners[uid] = uid, login
	}
	return nil
}

// UIDs returns a copy of the table: every login that ever had an account here, with its uid.
func (s *Store) UIDs() map[string]uint32 { return maps.Clone(s.uids) }

// ReserveUID ties a uid to a login for ever. It is a no-op when they are tied already, and ErrUID
// when either is tied to another. The tie is durable when it returns.
func (s *Store) ReserveUID(login string, uid uint32) error {
	if err := grant.CheckUserName(login); err != nil {
		return fmt.Errorf("%w: %w", ErrUID, err)
	}
	if have, ok := s.uids[login]; ok && have != uid {
		return fmt.Errorf("%w: login %s has the uid %d on this host, not %d", ErrUID, login, have, uid)
	}
	if owner, ok := s.owners[uid]; ok {
		if owner != login {
			return fmt.Errorf("%w: uid %d belonged to %s on this host", ErrUID, uid, owner)
		}
		return nil
	}
	if len(s.uids) >= maxUIDs {
		return fmt.Errorf("%w: the table holds %d logins", ErrUID, len(s.uids))
	}
	next := maps.Clone(s.uids)
	next[login] = uid
	data, err := json.Marshal(uidsData{Version: 1, UIDs: next})
	if err != nil {
		return fmt.Errorf("keeping the uid table: %w", err)
	}
	if err := s.dir.Write(uidsFile, folder.File{Data: data, Mode: 0o600}); err != nil {
		return fmt.Errorf("keeping the uid table: %w", err)
	}
	s.uids, s.owners[uid] = next, login
	return nil
}
