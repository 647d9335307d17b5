package residue

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

const setid = unix.S_ISUID | unix.S_ISGID

// hunter clears the setuid and setgid bits by which a file would hand on what a grant gave.
//
// Cleared are, on regular files only (on a folder the bit gives nobody anything but the group of new
// files):
//
//   - both bits of what an ended account owns, when no other grant of it is live;
//   - the setgid bit of an ended gid, on files of the account, and on those of anybody else who is a
//     person (uid 1000 and up) and no member of the group: such a file was made while running another
//     setgid copy, since chmod(2) takes the bit away from who is not in the group.
//
// Files of root and of system users are never changed: only root can have made them, and a setgid
// crontab(1) is the host's own. They are in the report when they are new.
type hunter struct {
	quarry []Record
	local  account.Local
	// holders are the gids of live grants by uid: the copies of those who still hold the gid go later.
	holders map[uint32][]uint32

	cleared    map[string]*clearing // by request
	total      int
	failed     []string
	failedMore int
}

// clearing is what was cleared for one request.
type clearing struct {
	Files []string `json:"files"`
	More  int      `json:"more"`
}

// doomed returns the bits of a file that must go, and for whose sake.
func (h *hunter) doomed(st *unix.Stat_t) (bits uint32, request string) {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&setid == 0 || st.Uid < firstPerson {
		return 0, ""
	}
	for _, r := range h.quarry {
		switch {
		case st.Uid == r.UID && r.Whole:
			return st.Mode & setid, r.Request
		case st.Mode&unix.S_ISGID == 0 || !slices.Contains(r.GIDs, st.Gid),
			slices.Contains(h.holders[st.Uid], st.Gid):
		case st.Uid == r.UID || !h.member(st.Uid, st.Gid):
			return unix.S_ISGID, r.Request
		}
	}
	return 0, ""
}

// member tells whether a local user is in a group by /etc/passwd and /etc/group.
func (h *hunter) member(uid, gid uint32) bool {
	return slices.ContainsFunc(h.local.Users, func(u account.LocalUser) bool {
		if u.UID != uid {
			return false
		}
		_, gids := h.local.GroupsOf(u)
		return slices.Contains(gids, gid)
	})
}

const maxCleared = 32

// visit looks at one file and clears what is doomed.
func (h *hunter) visit(f found) {
	if bits, _ := h.doomed(&f.stat); bits == 0 {
		return
	}
	request, err := h.clear(f)
	switch {
	case err != nil && len(h.failed) < maxCleared:
		h.failed = append(h.failed, fmt.Sprintf("%s: %v", f.path(), err))
	case err != nil:
		h.failedMore++
	case request != "":
		h.note(request, f.path())
	}
}

func (h *hunter) note(request, path string) {
	h.total++
	c := h.cleared[request]
	if c == nil {
		c = new(clearing)
		h.cleared[request] = c
	}
	if len(c.Files) < maxCleared {
		c.Files = append(c.Files, path)
	} else {
		c.More++
	}
}

// clear takes the bits from the very file that is open, whatever the name means by now.
func (h *hunter) clear(f found) (request string, err error) {
	fd, err := unix.Openat2(f.dir, f.name, &unix.OpenHow{
		// O_PATH: opening a device or a pipe for reading would do things.
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: resolve,
	})
	if vanished(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }() // O_PATH
	for range 8 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return "", err
		}
		bits, whose := h.doomed(&st)
		if bits == 0 {
			return request, nil
		}
		request = whose
		// fchmod(2) refuses O_PATH; the link in /proc means the open file itself and no name.
		err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), (st.Mode&^bits)&0o7777)
		if err != nil {
			return "", err
		}
	}
	return "", errors.New("its bits come back as often as they are cleared")
}
