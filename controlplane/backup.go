package controlplane

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/controlplane/enrol"
	"github.com/curfew-access/curfew/controlplane/store"
	"github.com/curfew-access/curfew/internal/trail"
)

// backupFiles is everything that a backup holds, and the only names that a restore takes.
var backupFiles = append([]string{storeFile, enrol.CAKeyFile, enrol.CACertFile, issuerFile}, optionalFiles...)

// optionalFiles are those of them that a backup may lack: a root key that is kept elsewhere, and what a
// rotation of the CA leaves while it goes on.
var optionalFiles = []string{RootFile, enrol.NextKeyFile, enrol.NextCertFile, enrol.OldCertsFile}

const (
	maxKeyFile   = 64 << 10
	maxStoreFile = 64 << 30
)

// Backup writes one consistent tar file of mode 0600 with the store and all keys. The server may run
// meanwhile. A file that exists is not touched.
func (o *Offline) Backup(ctx context.Context, path string) (err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s exists, or cannot be looked at; choose another name", path)
	}
	// Beside the target, so that the rename is one step and the copy has room.
	work, err := os.MkdirTemp(filepath.Dir(path), ".curfew-backup-")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	snapshot := filepath.Join(work, storeFile)
	if err := o.store.Snapshot(ctx, snapshot); err != nil {
		return err
	}
	archive := filepath.Join(work, "archive")
	f, err := os.OpenFile(archive, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	err = writeArchive(f, o.dir, snapshot, o.now())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	// Link, unlike rename, refuses a name that was taken meanwhile.
	if err := os.Link(archive, path); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := stamp(o.dir, o.now()); err != nil {
		return fmt.Errorf("%s is written, but the server cannot tell: %w", path, err)
	}
	return nil
}

func writeArchive(w io.Writer, dir, snapshot string, now time.Time) error {
	out := tar.NewWriter(w)
	for _, name := range backupFiles {
		path := filepath.Join(dir, name)
		if name == storeFile {
			path = snapshot
		}
		err := addFile(out, path, name, now)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(optionalFiles, name) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return out.Close()
}

func addFile(out *tar.Writer, path, name string, now time.Time) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	err = out.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: info.Size(), ModTime: now.Truncate(time.Second),
		Format: tar.FormatPAX,
	})
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, f, info.Size())
	return err
}

// Restored is what a restore did, for the person who ran it.
type Restored struct {
	// At is when the backup was made: everything after it is lost here.
	At time.Time
	// Signed is whether the new epoch is in force; else it waits for `trust sign`.
	Signed bool
}

// Restore unpacks a backup into an empty data folder and bumps the trust epoch, so that hosts accept
// the restored state although they have seen newer ones. It never touches a folder that holds
// anything, and takes away what it wrote when it fails.
func Restore(ctx context.Context, path, dir string, now func() time.Time, log hclog.Logger) (
	r Restored, err error,
) {
	in, err := os.Open(path)
	if err != nil {
		return r, fmt.Errorf("restore: %w", err)
	}
	defer in.Close()
	if err := emptyDir(dir); err != nil {
		return r, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clearDir(dir))
		}
	}()
	if r.At, err = unpack(in, dir); err != nil {
		return r, fmt.Errorf("restoring %s: %w", path, err)
	}
	o, err := OpenOffline(ctx, dir, now, log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	err = o.store.Update(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.Forget(), tx.SkipUIDs(now()), tx.Append(trail.Record{
			TimeMS: now().UnixMilli(), Kind: kindRestored, Actor: "curfew",
			Details: map[string]string{"backup_of": r.At.UTC().Format(time.RFC3339)},
		}))
	})
	if err != nil {
		return r, err
	}
	if r.Signed, err = o.People.BumpEpoch(ctx, "curfew"); err != nil {
		return r, err
	}
	return r, syncDir(dir)
}

func unpack(in io.Reader, dir string) (at time.Time, err error) {
	archive, seen := tar.NewReader(in), []string{}
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return at, fmt.Errorf("it is not a whole backup: %w", err)
		}
		limit := int64(maxKeyFile)
		if h.Name == storeFile {
			limit, at = maxStoreFile, h.ModTime
		}
		if !slices.Contains(backupFiles, h.Name) || slices.Contains(seen, h.Name) ||
			h.Typeflag != tar.TypeReg || h.Size > limit {
			return at, fmt.Errorf("it holds %q, which no backup does", h.Name)
		}
		seen = append(seen, h.Name)
		if err := unpackFile(archive, filepath.Join(dir, h.Name), h.Size); err != nil {
			return at, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	for _, name := range backupFiles {
		if !slices.Contains(optionalFiles, name) && !slices.Contains(seen, name) {
			return at, fmt.Errorf("it is not a whole backup: %s is missing", name)
		}
	}
	return at, nil
}

func unpackFile(in io.Reader, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, in, size)
	return errors.Join(err, f.Sync(), f.Close())
}

// clearDir empties the folder that a failed restore filled.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
