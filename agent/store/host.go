package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	hostFile    = "host.json"
	maxHostFile = 4 << 10
)

// Host is what this machine is called where it joined.
type Host struct {
	Name         string `json:"name"`
	Organisation string `json:"organisation"`
}

// SaveHost keeps the host's name.
func (s *Store) SaveHost(h Host) error {
	if err := grant.CheckHostName(h.Name); err != nil {
		return fmt.Errorf("keeping the host's name: %w", err)
	}
	data, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("keeping the host's name: %w", err)
	}
	if err := s.dir.Write(hostFile, folder.File{Data: data, Mode: 0o600}); err != nil {
		return fmt.Errorf("keeping the host's name: %w", err)
	}
	return nil
}

// Host reads the host's name; ErrNotJoined means that there is none.
func (s *Store) Host() (Host, error) {
	data, err := s.dir.Read(hostFile, maxHostFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Host{}, ErrNotJoined
	}
	if err != nil {
		return Host{}, fmt.Errorf("reading the host's name: %w", err)
	}
	var h Host
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h); err != nil {
		return Host{}, s.corrupt(hostFile, err.Error())
	}
	if err := grant.CheckHostName(h.Name); err != nil {
		return Host{}, s.corrupt(hostFile, err.Error())
	}
	return h, nil
}
