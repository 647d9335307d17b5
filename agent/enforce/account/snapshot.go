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
	"hash/fnv"
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
	pageMagic     = "CFPAGE1\n"
	pageSize      = 4096
	pageHead      = 32
	slotSize      = 8
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

// Check tells whether Render would take an account, with its private group, for itself. It makes no
// file: all accounts are checked whenever anything changes.
func Check(a Account) error {
	if _, err := accountRecord(a); err != nil {
		return err
	}
	groups, err := withPrivateGroups([]Account{a}, nil)
	for _, g := range groups {
		if err == nil {
			_, err = groupRecord(g)
		}
	}
	return err
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
	name   string
	id     uint32
	joined bool // a group that has members
	bytes  []byte
	inside bool   // it stands in a page
	at     uint32 // where it stands in the file
}

// renderRecords renders all and sorts by id, refusing duplicates.
func renderRecords[T any](what string, in []T, one func(T) (record, error)) ([]*record, error) {
	out := make([]*record, 0, len(in))
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
		out = append(out, &r)
	}
	slices.SortFunc(out, func(a, b *record) int { return cmp.Compare(a.id, b.id) })
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
	return record{name: g.Name, id: g.GID, joined: len(members) > 0, bytes: b}, nil
}

// assemble lays the file out: header, indexes, records, and pages by which a look-up reads once.
//
// The pages were added to a format that modules out there read, so they stand where those do not look:
// to them they are more room for records, which they find by the indexes as ever.
func assemble(passwd, group []*record) ([]byte, error) {
	pages := paged(passwd, group)
	pwName := headerSize
	pwUID := pwName + 4*len(passwd)
	grName := pwUID + 4*len(passwd)
	grGID := grName + 4*len(group)
	joined := slices.DeleteFunc(slices.Clone(group), func(r *record) bool { return !r.joined })
	grJoined := grGID + 4*len(group)
	at := grJoined + 4*len(joined)
	outside := slices.DeleteFunc(slices.Concat(passwd, group), func(r *record) bool { return r.inside })
	for _, r := range outside {
		r.at = uint32(at)
		at += len(r.bytes)
	}
	if len(pages) > 0 {
		at = (at + pageSize - 1) / pageSize * pageSize
		for _, p := range pages {
			p.place(at)
			at += pageSize
		}
		at += len(pages) // the size of the file says how many there are
	}
	if at > MaxSnapshot {
		return nil, refusef("%d bytes are over the cap of %d", at, MaxSnapshot)
	}

	b := append(make([]byte, 0, at), snapshotMagic...)
	b = appendNumbers(b, at, len(passwd), len(group), pwName, pwUID, grName, grGID)
	b = append(b, make([]byte, headerSize-len(b))...)
	for _, byID := range [][]*record{passwd, group} {
		byName := slices.SortedFunc(slices.Values(byID),
			func(a, b *record) int { return strings.Compare(a.name, b.name) })
		b = appendOffsets(appendOffsets(b, byName), byID)
	}
	b = appendOffsets(b, joined)
	for _, r := range outside {
		b = append(b, r.bytes...)
	}
	for i, p := range pages {
		b = append(b, make([]byte, (pageSize-len(b)%pageSize)%pageSize)...)
		b = append(b, pageMagic...)
		b = appendNumbers(b, at, i, len(p.keys), grJoined, len(joined), 0)
		for _, k := range p.keys {
			b = appendNumbers(b, int(k.hash), int(k.kind<<31|k.record.at))
		}
		for _, r := range p.records {
			b = append(b, r.bytes...)
		}
	}
	return append(b, make([]byte, at-len(b))...), nil
}

func appendNumbers(b []byte, numbers ...int) []byte {
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return b
}

func appendOffsets(b []byte, records []*record) []byte {
	for _, r := range records {
		b = binary.LittleEndian.AppendUint32(b, r.at)
	}
	return b
}

// key is one way to find a record: by its name or by the bytes of its id.
type key struct {
	hash, kind uint32
	record     *record
}

func keysOf(kind uint32, records []*record) []key {
	keys := make([]key, 0, 2*len(records))
	for _, r := range records {
		id := binary.LittleEndian.AppendUint32(nil, r.id)
		keys = append(keys, key{hash(kind, []byte(r.name)), kind, r}, key{hash(kind, id), kind, r})
	}
	return keys
}

// hash is 32-bit FNV-1a of the kind, as a byte, and the key.
func hash(kind uint32, key []byte) uint32 {
	h := fnv.New32a()
	_, _ = h.Write(append([]byte{byte(kind)}, key...)) // it never fails
	return h.Sum32()
}

// page holds the slots of all keys whose hash falls on it, and as many of the accounts that are looked
// up by name there as fit; other records stand outside.
type page struct {
	keys    []key
	records []*record
}

func (p *page) room() int {
	room := pageSize - pageHead - slotSize*len(p.keys)
	for _, r := range p.records {
		room -= len(r.bytes)
	}
	return room
}

// place says where the page's records will stand when the page does at an offset.
func (p *page) place(at int) {
	at += pageHead + slotSize*len(p.keys)
	for _, r := range p.records {
		r.at = uint32(at)
		at += len(r.bytes)
	}
}

// paged distributes keys and accounts over pages that they would fill to two thirds. There are none
// when the slots of one page do not fit into it, which takes hundreds of names that were made to meet,
// or when the file would be too large: readers search the indexes then.
func paged(passwd, group []*record) []*page {
	keys := slices.Concat(keysOf(0, passwd), keysOf(1, group))
	size := slotSize * len(keys)
	for _, r := range passwd {
		size += len(r.bytes)
	}
	n := size*3/2/(pageSize-pageHead) + 1
	if len(keys) == 0 || n*pageSize > MaxSnapshot/2 {
		return nil
	}
	pages := make([]*page, n)
	for i := range pages {
		pages[i] = new(page)
	}
	of := func(k key) *page { return pages[k.hash%uint32(n)] }
	for _, k := range keys {
		of(k).keys = append(of(k).keys, k)
	}
	for _, p := range pages {
		if p.room() < 0 {
			return nil
		}
	}
	for i, k := range keys[:2*len(passwd)] {
		// Of an account's two keys, the first is the name.
		if p := of(k); i%2 == 0 && len(k.record.bytes) <= p.room() {
			p.records, k.record.inside = append(p.records, k.record), true
		}
	}
	return pages
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
