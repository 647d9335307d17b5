// Package account gives granted people a Unix account for the time of their grant: it renders the
// account snapshot that libnss_curfew.so.2 answers from and the gate table that pam_curfew.so
// consults first (proto/PROTOCOL.md, sections 6 and 5), and makes homes.
//
// What is rendered comes from the live grants alone; both files are complete sets, replaced whole,
// so there is no code that edits or deletes an entry. Render functions are pure: same input, same
// bytes. Every process on the host reads the snapshot, so whatever could turn text into syntax in
// a passwd line, or a person into root, is refused here and not left to the readers.
package account

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/curfew-access/curfew/internal/grant"
)

// Account is one passwd record. Login is as grant.CheckUserName has it. UID and GID are at least
// 1000; GID equals UID or is the gid of a Group given beside it. Groups are supplementary gids,
// none of them 0 and none twice. Past either deadline the record is answered with nologin and
// without groups. WallDeadline is required; BootDeadline is time since boot (CLOCK_BOOTTIME), and
// zero or less has passed.
type Account struct {
	Login        string
	UID, GID     uint32
	Gecos        string
	Home, Shell  string
	Groups       []uint32
	WallDeadline time.Time
	BootDeadline time.Duration
}

// Group is one group record. GID is at least 1000. Members may be accounts or local users; they
// are in the group until either deadline (see Account).
type Group struct {
	Name         string
	GID          uint32
	Members      []string
	WallDeadline time.Time
	BootDeadline time.Duration
}

// Caps of section 6, and the widths of its fixed parts.
const (
	MaxSnapshot = 16 << 20
	maxName     = 64   // of local users, the gate socket's cap too; logins are 32 at most
	maxField    = 4096 // of gecos, home, shell
	maxGroups   = 1024
	maxMembers  = 65535
	minID       = 1000

	snapshotMagic = "CFNSS01\n"
	headerSize    = 64
	passwdFixed   = 44
	groupFixed    = 28
)

// ErrSnapshot is wrapped by every refusal of Render: the set as a whole is not written, and the
// snapshot on disk stays as it is, since each of its entries still carries its own deadline.
var ErrSnapshot = errors.New("snapshot refused")

// Render returns the whole snapshot file for exactly these accounts and groups, in any order.
// Each account whose GID is its UID gets a private group of its own name and without members,
// unless groups holds one with that gid. Duplicate names, uids and gids are refused: two people
// behind one number is the bug that gives one person the files of another.
func Render(accounts []Account, groups []Group) ([]byte, error) {
	groups, err := withPrivateGroups(accounts, groups)
	if err != nil {
		return nil, err
	}
	passwd, err := renderRecords("account", accounts, accountRecord)
	if err != nil {
		return nil, err
	}
	group, err := renderRecords("group", groups, groupRecord)
	if err != nil {
		return nil, err
	}
	return assemble(passwd, group)
}

func withPrivateGroups(accounts []Account, groups []Group) ([]Group, error) {
	given := make(map[uint32]bool, len(groups))
	for _, g := range groups {
		given[g.GID] = true
	}
	all := slices.Clone(groups)
	for _, a := range accounts {
		if given[a.GID] {
			continue
		}
		if a.GID != a.UID {
			return nil, refusef("account %q: no group has its gid %d", a.Login, a.GID)
		}
		all = append(all, Group{
			Name: a.Login, GID: a.GID,
			WallDeadline: a.WallDeadline, BootDeadline: a.BootDeadline,
		})
	}
	return all, nil
}

// record is one rendered record and the two keys that it is found by.
type record struct {
	name  string
	id    uint32
	bytes []byte
}

// renderRecords renders all and sorts by id, refusing duplicates.
func renderRecords[T any](what string, in []T, one func(T) (record, error)) ([]record, error) {
	out := make([]record, 0, len(in))
	names := make(map[string]bool, len(in))
	ids := make(map[uint32]bool, len(in))
	for _, v := range in {
		r, err := one(v)
		if err != nil {
			return nil, err
		}
		if names[r.name] {
			return nil, refusef("two %ss named %q", what, r.name)
		}
		if ids[r.id] {
			return nil, refusef("two %ss numbered %d", what, r.id)
		}
		names[r.name], ids[r.id] = true, true
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b record) int { return cmp.Compare(a.id, b.id) })
	return out, nil
}

func accountRecord(a Account) (record, error) {
	if err := grant.CheckUserName(a.Login); err != nil {
		return record{}, refusef("account %q: %w", a.Login, err)
	}
	// The highest two are (uid_t)-1, "no change" to chown(2), and the old 16-bit alias of it.
	if a.UID < minID || a.GID < minID || a.UID >= 1<<32-2 || a.GID >= 1<<32-2 {
		return record{}, refusef("account %q: uid %d or gid %d is not a person's",
			a.Login, a.UID, a.GID)
	}
	for _, f := range []string{a.Gecos, a.Home, a.Shell} {
		if err := checkField(f); err != nil {
			return record{}, refusef("account %q: field %q: %w", a.Login, f, err)
		}
	}
	if !strings.HasPrefix(a.Home, "/") || !strings.HasPrefix(a.Shell, "/") {
		return record{}, refusef("account %q: home %q and shell %q must be absolute paths",
			a.Login, a.Home, a.Shell)
	}
	gids := slices.Sorted(slices.Values(a.Groups))
	if len(gids) > maxGroups {
		return record{}, refusef("account %q: %d groups, the cap is %d",
			a.Login, len(gids), maxGroups)
	}
	for i, g := range gids {
		if g == 0 || g >= 1<<32-2 || i > 0 && g == gids[i-1] {
			return record{}, refusef("account %q: supplementary gid %d", a.Login, g)
		}
	}
	wall, boot, err := deadlines(a.WallDeadline, a.BootDeadline)
	if err != nil {
		return record{}, refusef("account %q: %w", a.Login, err)
	}

	le := binary.LittleEndian
	size := passwdFixed + 4*len(gids) + len(a.Login) + len(a.Gecos) + len(a.Home) + len(a.Shell)
	b := le.AppendUint32(make([]byte, 0, size), uint32(size))
	b = le.AppendUint32(b, a.UID)
	b = le.AppendUint32(b, a.GID)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, wall)
	b = le.AppendUint64(b, boot)
	for _, n := range []int{len(a.Login), len(a.Gecos), len(a.Home), len(a.Shell), len(gids), 0} {
		b = le.AppendUint16(b, uint16(n))
	}
	for _, g := range gids {
		b = le.AppendUint32(b, g)
	}
	b = append(b, a.Login...)
	b = append(b, a.Gecos...)
	b = append(b, a.Home...)
	b = append(b, a.Shell...)
	return record{name: a.Login, id: a.UID, bytes: b}, nil
}

func groupRecord(g Group) (record, error) {
	if err := grant.CheckUnixGroup(g.Name); err != nil {
		return record{}, refusef("group %q: %w", g.Name, err)
	}
	if g.GID < minID || g.GID >= 1<<32-2 {
		return record{}, refusef("group %q: gid %d is not Curfew's to give", g.Name, g.GID)
	}
	members := slices.Sorted(slices.Values(g.Members))
	if len(members) > maxMembers {
		return record{}, refusef("group %q: %d members, the cap is %d",
			g.Name, len(members), maxMembers)
	}
	for i, m := range members {
		if err := checkMember(m); err != nil {
			return record{}, refusef("group %q: member %q: %w", g.Name, m, err)
		}
		if i > 0 && m == members[i-1] {
			return record{}, refusef("group %q: member %q twice", g.Name, m)
		}
	}
	wall, boot, err := deadlines(g.WallDeadline, g.BootDeadline)
	if err != nil {
		return record{}, refusef("group %q: %w", g.Name, err)
	}

	le := binary.LittleEndian
	size := groupFixed + len(g.Name)
	for _, m := range members {
		size += 2 + len(m)
	}
	b := le.AppendUint32(make([]byte, 0, size), uint32(size))
	b = le.AppendUint32(b, g.GID)
	b = le.AppendUint64(b, wall)
	b = le.AppendUint64(b, boot)
	b = le.AppendUint16(b, uint16(len(g.Name)))
	b = le.AppendUint16(b, uint16(len(members)))
	b = append(b, g.Name...)
	for _, m := range members {
		b = le.AppendUint16(b, uint16(len(m)))
		b = append(b, m...)
	}
	return record{name: g.Name, id: g.GID, bytes: b}, nil
}

// assemble lays the file out: header, four indexes, passwd records by uid, group records by gid.
// Records in the order of the id index let the reader's initgroups walk the file forwards.
func assemble(passwd, group []record) ([]byte, error) {
	at := headerSize + 8*len(passwd) + 8*len(group)
	size := at
	for _, r := range slices.Concat(passwd, group) {
		size += len(r.bytes)
	}
	if size > MaxSnapshot {
		return nil, refusef("%d bytes are over the cap of %d", size, MaxSnapshot)
	}

	le := binary.LittleEndian
	b := append(make([]byte, 0, size), snapshotMagic...)
	pwName := headerSize
	pwUID := pwName + 4*len(passwd)
	grName := pwUID + 4*len(passwd)
	grGID := grName + 4*len(group)
	for _, v := range []int{size, len(passwd), len(group), pwName, pwUID, grName, grGID} {
		b = le.AppendUint32(b, uint32(v))
	}
	b = append(b, make([]byte, headerSize-len(b))...)
	for _, records := range [][]record{passwd, group} {
		offset := make(map[string]uint32, len(records))
		byName := slices.Clone(records)
		for _, r := range records {
			offset[r.name] = uint32(at)
			at += len(r.bytes)
		}
		slices.SortFunc(byName, func(a, b record) int { return strings.Compare(a.name, b.name) })
		for _, r := range byName {
			b = le.AppendUint32(b, offset[r.name])
		}
		for _, r := range records {
			b = le.AppendUint32(b, offset[r.name])
		}
	}
	for _, r := range slices.Concat(passwd, group) {
		b = append(b, r.bytes...)
	}
	return b, nil
}

// deadlines converts to the file's milliseconds, rounding down: early rather than late.
func deadlines(wall time.Time, boot time.Duration) (wallMS, bootMS uint64, err error) {
	if wall.IsZero() {
		return 0, 0, errors.New("no deadline")
	}
	return uint64(max(0, wall.UnixMilli())), uint64(max(0, boot.Milliseconds())), nil
}

// checkMember admits the names of local users too, which directories may spell DOMAIN\name or
// name@domain: printable ASCII without the three bytes that are syntax in a group line.
func checkMember(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("a name has 1 to %d bytes", maxName)
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == ':' || c == ',' {
			return fmt.Errorf("byte %#02x has no place in a name", c)
		}
	}
	return nil
}

func checkField(s string) error {
	if len(s) > maxField {
		return fmt.Errorf("%d bytes, the cap is %d", len(s), maxField)
	}
	if !utf8.ValidString(s) {
		return errors.New("not UTF-8")
	}
	if strings.ContainsRune(s, ':') || strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("':' or a control character")
	}
	return nil
}

func refusef(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrSnapshot, fmt.Errorf(format, args...))
}
