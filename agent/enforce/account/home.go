package account

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/internal/grant"
)

// MakeHome makes homeRoot/login, 0700 and owned by uid:gid, filled from the folder skel. A home
// that is there already and belongs to uid is left as it is; one that belongs to somebody else is
// an error that says what to do. A skel of "" or one that does not exist gives an empty home.
//
// Peers lost hosts to races between a path's check and its use in just this routine, so no path
// is walked twice: everything below homeRoot and skel is reached from a descriptor, beneath it,
// through no symbolic link. The home grows under a temporary name, in a folder that only root can
// enter, and is handed over and renamed when it is complete and on disk; after a crash in between
// the next call starts afresh or finishes the rename. Callers make one home of a login at a time.
//
// SELinux labels and extended attributes of skel are not copied.
//
// Every error wraps ErrNoHome.
func MakeHome(homeRoot string, login string, uid, gid uint32, skel string) error {
	err := makeHome(homeRoot, login, uid, gid, skel)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		err = fmt.Errorf("%w: root may not do that here, since %s squashes root, is read-only or is immutable; "+
			"make %s/%s where homes are kept, mode 0700 and owned by uid %d", err, homeRoot, homeRoot, login, uid)
	}
	return fmt.Errorf("%w %s/%s: %w", ErrNoHome, homeRoot, login, err)
}

// ErrNoHome is what keeps somebody out until an administrator has done something about their home.
var ErrNoHome = errors.New("making home")

func makeHome(homeRoot, login string, uid, gid uint32, skel string) error {
	if err := grant.CheckUserName(login); err != nil {
		return err
	}
	if uid < minID || gid < minID {
		return fmt.Errorf("uid %d or gid %d is not a person's", uid, gid)
	}
	root, err := openTrusted(homeRoot)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if done, err := existing(root, login, homeRoot, uid); done || err != nil {
		return err
	}

	// The name starts with a dot and is no login, so no second account can ask for it.
	temporary := ".curfew-new-" + login
	complete, err := startAfresh(root, temporary, uid)
	if err != nil {
		return err
	}
	if !complete {
		if err := fill(root, temporary, uid, gid, skel); err != nil {
			return errors.Join(err, removeTree(root, temporary, maxDepth))
		}
	}
	switch err := unix.Renameat2(root, temporary, root, login, unix.RENAME_NOREPLACE); err {
	case nil:
	case unix.EEXIST:
		_, err := existing(root, login, homeRoot, uid)
		return errors.Join(err, removeTree(root, temporary, maxDepth))
	default:
		return fmt.Errorf("renaming %s: %w", temporary, err)
	}
	if err := unix.Fsync(root); err != nil {
		return fmt.Errorf("syncing %s: %w", homeRoot, err)
	}
	return nil
}

// existing reports whether a home is there that may be used.
func existing(root int, login, homeRoot string, uid uint32) (bool, error) {
	fd, err := openBeneath(root, login, unix.O_PATH)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening what is there: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, fmt.Errorf("something that is no folder is in the way: remove or rename %s/%s",
			homeRoot, login)
	}
	if st.Uid != uid {
		return false, fmt.Errorf("it belongs to uid %d, not to %d: rename it, or give it away "+
			"with chown -R --no-dereference %d %s/%s", st.Uid, uid, uid, homeRoot, login)
	}
	return true, nil
}

// startAfresh clears what a crash left under the temporary name. It reports true for a complete
// home: fill gives the top folder away last, so a folder that is uid's lacks only its rename.
func startAfresh(root int, temporary string, uid uint32) (complete bool, err error) {
	fd, err := openBeneath(root, temporary, unix.O_PATH)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("opening %s: %w", temporary, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isDir && st.Uid == uid:
		return true, nil
	case isDir && st.Uid == 0:
		return false, removeTree(root, temporary, maxDepth)
	}
	return false, fmt.Errorf("%s is in the way, and uid %d's: remove it by hand", temporary, st.Uid)
}

// fill makes the temporary folder and all that is in it, and gives it to the person at the end.
func fill(root int, temporary string, uid, gid uint32, skel string) error {
	if err := unix.Mkdirat(root, temporary, 0o700); err != nil {
		return fmt.Errorf("making %s: %w", temporary, err)
	}
	top, err := openBeneath(root, temporary, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("opening %s: %w", temporary, err)
	}
	defer unix.Close(top)
	if skel != "" {
		from, err := openTrusted(skel)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			defer unix.Close(from)
			c := copier{uid: int(uid), gid: int(gid), entries: maxEntries, bytes: maxBytes}
			if err := c.folder(from, top, 0); err != nil {
				return fmt.Errorf("copying %s: %w", skel, err)
			}
		}
	}
	// mkdir's mode went through the umask.
	if err := unix.Fchmod(top, 0o700); err != nil {
		return fmt.Errorf("setting the mode of %s: %w", temporary, err)
	}
	if err := unix.Fsync(top); err != nil {
		return fmt.Errorf("syncing %s: %w", temporary, err)
	}
	if err := unix.Fchown(top, int(uid), int(gid)); err != nil {
		return fmt.Errorf("giving %s to uid %d: %w", temporary, uid, err)
	}
	// Else a power cut could keep the rename and lose the owner.
	return unix.Fsync(top)
}

// openTrusted opens a configured folder. Its path comes from root and may hold links (/home is
// one on some systems), but the folder itself must be root's alone to change: in a folder of
// somebody else's no order of system calls is safe.
func openTrusted(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, &fs.PathError{Op: "fstat", Path: path, Err: err}
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		unix.Close(fd)
		return -1, fmt.Errorf("%s must belong to root and be writable by nobody else: "+
			"chown root %s; chmod go-w %s", path, path, path)
	}
	return fd, nil
}

// openBeneath opens one name in the folder dir, through no link and out of no folder. It never
// blocks: a FIFO opens at once. The error is the bare errno.
func openBeneath(dir int, name string, flags uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = 0o600
	}
	for {
		fd, err := unix.Openat2(dir, name, how)
		// EAGAIN: a rename somewhere raced the check of RESOLVE_BENEATH; openat2(2) says retry.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}
