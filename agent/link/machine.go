package link

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// MachineID is the file by which a copied disk is told from the machine that it was copied from.
const MachineID = "/etc/machine-id"

// ErrClone means that this disk was copied from a host, whose keys the copy must not use.
var ErrClone = errors.New("this disk is a copy of a host's: its machine-id is another than when the host " +
	"joined. On a copy, remove /var/lib/curfew and /var/lib/curfew-link and join anew; where only the " +
	"machine-id was changed, remove /var/lib/curfew-link/" + machineFile)

// machine is what is kept of a machine-id, which machine-id(5) asks not to pass on; empty for none.
func machine(path string) (string, error) {
	raw, err := readBounded(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(raw))
	if id == "" || id == "uninitialized" {
		return "", nil
	}
	sum := sha256.Sum256([]byte("curfew host v1\x00" + id))
	return hex.EncodeToString(sum[:]), nil
}

// sameMachine refuses the identity of a host on another machine. Who can change both files can change
// anything here: this keeps an honest copy from being taken for the host, and the host from being
// refused for it.
func sameMachine(dir, path string) error {
	kept, err := readBounded(filepath.Join(dir, machineFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil // it joined before this was kept, or has no machine-id
	}
	if err != nil {
		return err
	}
	now, err := machine(path)
	if err != nil {
		return fmt.Errorf("reading the machine-id: %w", err)
	}
	if now != strings.TrimSpace(string(kept)) {
		return ErrClone
	}
	return nil
}
