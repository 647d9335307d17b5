package account

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLocalFile bounds /etc/passwd and /etc/group, in bytes.
const maxLocalFile = 16 << 20

// LocalUser is one line of /etc/passwd.
type LocalUser struct {
	Name, Home, Shell string
	UID, GID          uint32
}

// LocalGroup is one line of /etc/group.
type LocalGroup struct {
	Name    string
	GID     uint32
	Members []string
}

// Local is what the host's own files say of users and groups. They are read directly: a look-up
// through NSS would come back to Curfew's own module, or hang on a directory that is down.
type Local struct {
	Users  []LocalUser
	Groups []LocalGroup
}

// ReadLocal reads etc/passwd and etc/group below root.
func ReadLocal(root string) (Local, error) {
	var l Local
	passwd, err := readLines(root + "/etc/passwd")
	if err != nil {
		return Local{}, err
	}
	for _, fields := range passwd {
		uid, gid, ok := ids(fields, 7)
		if !ok {
			continue // NIS marks and broken lines name nobody
		}
		l.Users = append(l.Users, LocalUser{
			Name: fields[0], UID: uid, GID: gid, Home: fields[5], Shell: fields[6],
		})
	}
	groups, err := readLines(root + "/etc/group")
	if err != nil {
		return Local{}, err
	}
	for _, fields := range groups {
		if len(fields) != 4 || fields[0] == "" {
			continue
		}
		gid, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			continue
		}
		g := LocalGroup{Name: fields[0], GID: uint32(gid)}
		for member := range strings.SplitSeq(fields[3], ",") {
			if member = strings.TrimSpace(member); member != "" {
				g.Members = append(g.Members, member)
			}
		}
		l.Groups = append(l.Groups, g)
	}
	// A file that is empty, or cut while somebody writes it in place, is no word about anybody.
	if _, ok := l.UserByUID(0); !ok {
		return Local{}, fmt.Errorf("reading local users: %s/etc/passwd has no root", root)
	}
	if _, ok := l.GroupByGID(0); !ok {
		return Local{}, fmt.Errorf("reading local users: %s/etc/group has no group 0", root)
	}
	return l, nil
}

func ids(fields []string, want int) (uid, gid uint32, ok bool) {
	if len(fields) != want || fields[0] == "" {
		return 0, 0, false
	}
	u, errU := strconv.ParseUint(fields[2], 10, 32)
	g, errG := strconv.ParseUint(fields[3], 10, 32)
	return uint32(u), uint32(g), errU == nil && errG == nil
}

func readLines(path string) ([][]string, error) {
	// Not blocking: a pipe in the file's place must not hang the agent.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("reading local users: %w", err)
	}
	defer func() { _ = file.Close() }() // read only
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading local users: %w", err)
	}
	if info.Mode().Type() != 0 || info.Size() > maxLocalFile {
		return nil, fmt.Errorf("reading local users: %s is %v of %d bytes; want a file of at most %d",
			path, info.Mode().Type(), info.Size(), maxLocalFile)
	}
	data := make([]byte, info.Size())
	if n, err := file.ReadAt(data, 0); n != len(data) {
		return nil, fmt.Errorf("reading local users: %s: %w", path, errors.Join(err, fs.ErrInvalid))
	}
	var lines [][]string
	for line := range strings.SplitSeq(string(data), "\n") {
		if line != "" && line[0] != '#' {
			lines = append(lines, strings.Split(line, ":"))
		}
	}
	return lines, nil
}

// User finds a local user by name.
func (l Local) User(name string) (LocalUser, bool) {
	i := slices.IndexFunc(l.Users, func(u LocalUser) bool { return u.Name == name })
	if i < 0 {
		return LocalUser{}, false
	}
	return l.Users[i], true
}

// UserByUID finds the first local user with a uid.
func (l Local) UserByUID(uid uint32) (LocalUser, bool) {
	i := slices.IndexFunc(l.Users, func(u LocalUser) bool { return u.UID == uid })
	if i < 0 {
		return LocalUser{}, false
	}
	return l.Users[i], true
}

// Group finds a local group by name.
func (l Local) Group(name string) (LocalGroup, bool) {
	i := slices.IndexFunc(l.Groups, func(g LocalGroup) bool { return g.Name == name })
	if i < 0 {
		return LocalGroup{}, false
	}
	return l.Groups[i], true
}

// GroupByGID finds the first local group with a gid.
func (l Local) GroupByGID(gid uint32) (LocalGroup, bool) {
	i := slices.IndexFunc(l.Groups, func(g LocalGroup) bool { return g.GID == gid })
	if i < 0 {
		return LocalGroup{}, false
	}
	return l.Groups[i], true
}

// GroupsOf returns the names and gids of a local user's groups, the primary one included.
func (l Local) GroupsOf(u LocalUser) (names []string, gids []uint32) {
	for _, g := range l.Groups {
		if g.GID == u.GID || slices.Contains(g.Members, u.Name) {
			names, gids = append(names, g.Name), append(gids, g.GID)
		}
	}
	if !slices.Contains(gids, u.GID) {
		gids = append(gids, u.GID)
	}
	return names, gids
}

// MembersOf returns the local users in a group, by list or by primary gid. No group, no members.
func (l Local) MembersOf(group string) []LocalUser {
	g, ok := l.Group(group)
	if !ok {
		return nil
	}
	var members []LocalUser
	for _, u := range l.Users {
		if u.GID == g.GID || slices.Contains(g.Members, u.Name) {
			members = append(members, u)
		}
	}
	return members
}
