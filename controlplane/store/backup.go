package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/curfew-access/curfew/internal/grant"
	"github.com/curfew-access/curfew/internal/trail"
)

// Snapshot writes a consistent copy of the whole store into a new file of mode 0600, while others
// read and write.
func (s *Store) Snapshot(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("copying the store: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("copying the store: %w", err)
	}
	// Into an empty file, whose mode is ours.
	if _, err := s.write.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return errors.Join(fmt.Errorf("copying the store: %w", err), os.Remove(path))
	}
	return nil
}

// Forget drops what a restored store must not bring back: sign-ins that may have ended since, and
// tokens that may have been used. Hosts may have events that they were told are durable here.
func (t *Tx) Forget() error {
	return errors.Join(t.exec("DELETE FROM sessions"), t.exec("DELETE FROM challenges"),
		t.exec("DELETE FROM join_tokens"), t.exec("DELETE FROM outbox"),
		t.exec("UPDATE user_links SET refresh = x''"),
		t.exec("UPDATE hosts SET restored = 1"), t.keepRestored(), t.pauseRollouts())
}

// metaRestored is how many records the trail had when it was last restored.
const metaRestored = "restored_trail"

func (t *Tx) keepRestored() error {
	count, err := t.trailCount()
	if err != nil {
		return err
	}
	return t.PutMeta(metaRestored, strconv.FormatUint(count, 10))
}

// PutHeard notes a host's first word after a restore; see stream.Store.
func (s *Store) PutHeard(ctx context.Context, id grant.HostID, held []grant.ID, trailSeen uint64,
	r trail.Record,
) (lost int, err error) {
	err = s.Update(ctx, func(t *Tx) error {
		first, err := t.one("UPDATE hosts SET restored = 2 WHERE id = ? AND restored = 1", id[:])
		if err != nil || !first {
			return err
		}
		unknown, err := t.unknownGrants(id, held)
		if err != nil {
			return err
		}
		text, err := t.Meta(metaRestored)
		if err != nil {
			return err
		}
		kept := trailSeen // restored by a version that did not keep it
		if text != "" {
			if kept, err = strconv.ParseUint(text, 10, 64); err != nil {
				return fmt.Errorf("%w: the length of the restored trail: %w", ErrDamaged, err)
			}
		}
		lost = len(unknown)
		if lost == 0 && trailSeen <= kept {
			return nil
		}
		r.Details = map[string]string{"grants": fmt.Sprint(lost)}
		if lost > 0 {
			r.Details["grant_ids"] = strings.Join(unknown[:min(lost, maxLostNamed)], " ")
		}
		if trailSeen > kept {
			r.Details["records"] = fmt.Sprintf("%d, numbers %d to %d of the trail before", trailSeen-kept,
				kept, trailSeen-1)
		}
		return t.Append(r)
	})
	return lost, err
}

// maxLostNamed bounds the grants that one record names.
const maxLostNamed = 32

// unknownGrants are those of a host's grants that this store does not know.
func (t *Tx) unknownGrants(host grant.HostID, held []grant.ID) (unknown []string, err error) {
	for _, id := range held {
		var known bool
		err := t.row("SELECT EXISTS (SELECT 1 FROM grants WHERE id = ? AND host = ?)", id[:], host[:]).
			Scan(&known)
		if err != nil {
			return nil, fmt.Errorf("looking for grant %s: %w", id, err)
		}
		if !known {
			unknown = append(unknown, id.Short())
		}
	}
	slices.Sort(unknown)
	return unknown, nil
}
