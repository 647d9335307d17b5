package session

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/folder"
	"github.com/curfew-access/curfew/internal/grant"
)

const (
	recordVersion = 1
	maxRecord     = 16 << 10
	recordSuffix  = ".json"
)

var sessionID = regexp.MustCompile(`^[0-9a-f]{16}$`)

// record is a session's file. BootID tells a file that a Dir on a disk kept through a reboot.
type record struct {
	Version int     `json:"version"`
	BootID  string  `json:"boot_id"`
	Session Session `json:"session"`
}

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// openDir opens the folder of records, and makes it when it is missing. Its parent must be root's.
func openDir(path string) (*folder.Folder, error) {
	parent, err := folder.Open(filepath.Dir(path), nil)
	if err != nil {
		return nil, fmt.Errorf("opening the session records: %w", err)
	}
	dir, err := parent.Sub(filepath.Base(path), 0o700)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the session records: %w", err), parent.Close())
	}
	return dir, parent.Close()
}

// readRecords returns the sessions of this boot. What is not a record is named in problems and left
// alone: it may be a newer version's.
func readRecords(dir *folder.Folder, bootID string) (sessions []Session, problems []error) {
	names, err := dir.List()
	if err != nil {
		return nil, []error{err}
	}
	for _, name := range names {
		id, ok := strings.CutSuffix(name, recordSuffix)
		if !ok || !sessionID.MatchString(id) {
			continue
		}
		s, stale, err := readRecord(dir, name, bootID)
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("session record %s/%s: %w", dir.Path(), name, err))
		case stale:
			if err := dir.Remove(name); err != nil {
				problems = append(problems, err)
			}
		case s.ID != id:
			problems = append(problems, fmt.Errorf("session record %s/%s is session %s's",
				dir.Path(), name, s.ID))
		case len(sessions) < MaxSessions:
			sessions = append(sessions, s)
		}
	}
	return sessions, problems
}

func readRecord(dir *folder.Folder, name, bootID string) (s Session, stale bool, err error) {
	data, err := dir.Read(name, maxRecord)
	if err != nil {
		return Session{}, false, err
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	var r record
	if err := dec.Decode(&r); err != nil {
		return Session{}, false, err
	}
	if r.Version != recordVersion {
		return Session{}, false, fmt.Errorf("version %d, this program reads %d",
			r.Version, recordVersion)
	}
	if r.BootID != bootID {
		return Session{}, true, nil
	}
	return r.Session, false, r.Session.check()
}

// check refuses a session that nothing could be done with.
func (s Session) check() error {
	switch {
	case s.PID <= 1 || s.StartTicks == 0:
		return fmt.Errorf("session of process %d started at %d", s.PID, s.StartTicks)
	case s.UID < firstPerson:
		return fmt.Errorf("session of uid %d, which Curfew never manages", s.UID)
	}
	if err := grant.CheckUserName(s.Login); err != nil {
		return err
	}
	return grant.CheckRequestID(s.RequestID)
}

func writeRecord(dir *folder.Folder, s Session, bootID string) error {
	data, err := json.Marshal(record{Version: recordVersion, BootID: bootID, Session: s})
	if err != nil {
		return fmt.Errorf("encoding session %s: %w", s.ID, err)
	}
	return dir.Write(s.ID+recordSuffix, folder.File{Data: data, Mode: 0o600})
}

// Folders that may hold what would run or count later. Of each the names differ between Debian and
// Red Hat; a missing one holds nothing.
var (
	ticketFolders = []string{"/run/sudo/ts", "/var/run/sudo/ts", "/var/db/sudo/ts"}
	cronFolders   = []string{"/var/spool/cron/crontabs", "/var/spool/cron"}
	atFolders     = []string{"/var/spool/cron/atjobs", "/var/spool/at"}
)

// removeTickets removes sudo's time stamps of a person, which sudo names by login or, from 1.9.15
// on, by uid.
func removeTickets(login string, uid uint32) error {
	var errs []error
	for _, dir := range ticketFolders {
		errs = append(errs, unlinkIn(dir, login, fmt.Sprint(uid)))
	}
	return errors.Join(errs...)
}

// removeJobs removes the crontab and the at jobs of a Curfew account.
func removeJobs(login string, uid uint32) error {
	var errs []error
	for _, dir := range cronFolders {
		errs = append(errs, unlinkIn(dir, login))
	}
	for _, dir := range atFolders {
		errs = append(errs, unlinkOwned(dir, uid))
	}
	return errors.Join(errs...)
}

// unlinkIn removes names from a folder by its descriptor. A name is unlinked, never followed; a
// folder in its place stays.
func unlinkIn(path string, names ...string) error {
	dir, err := openPlain(path)
	if dir == nil {
		return err
	}
	defer func() { _ = dir.Close() }() // read only
	var errs []error
	for _, name := range names {
		err := unix.Unlinkat(int(dir.Fd()), name, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) {
			errs = append(errs, fmt.Errorf("removing %s/%s: %w", path, name, err))
		}
	}
	return errors.Join(errs...)
}

// unlinkOwned removes the regular files that belong to uid. Such folders are sticky, so that nobody
// can put another's file in a name's place between the look and the removal.
func unlinkOwned(path string, uid uint32) error {
	dir, err := openPlain(path)
	if dir == nil {
		return err
	}
	defer func() { _ = dir.Close() }() // read only
	names, err := dir.Readdirnames(maxEntries)
	if err != nil && len(names) == 0 && !errors.Is(err, io.EOF) {
		return fmt.Errorf("listing %s: %w", path, err)
	}
	var errs []error
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil || st.Uid != uid || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		err = unix.Unlinkat(int(dir.Fd()), name, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("removing %s/%s: %w", path, name, err))
		}
	}
	return errors.Join(errs...)
}

// openPlain opens a folder without following a link in its last component; nil when there is none.
func openPlain(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
