package nss_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// reader is section 6 read a second time, in Go: what the C module makes of any file at all must
// be what this makes of it. It also shows Go's fuzzer the ways through the format, which the
// fuzzer cannot see in C.
type reader struct {
	b               []byte
	n, byName, byID [2]uint32
}

const passwdKind, groupKind = 0, 1

func u16(b []byte) uint32 { return uint32(binary.LittleEndian.Uint16(b)) }
func u32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// at returns length bytes at offset.
func (r *reader) at(offset, length uint64) ([]byte, bool) {
	if offset > uint64(len(r.b)) || length > uint64(len(r.b))-offset {
		return nil, false
	}
	return r.b[offset : offset+length], true
}

func open(b []byte) (*reader, bool) {
	if len(b) < 64 || len(b) > 16<<20 || string(b[:8]) != "CFNSS01\n" ||
		u32(b[8:]) != uint32(len(b)) || strings.Trim(string(b[36:64]), "\x00") != "" {
		return nil, false
	}
	r := &reader{b: b}
	for kind := range uint32(2) {
		r.n[kind] = u32(b[12+4*kind:])
		r.byName[kind], r.byID[kind] = u32(b[20+8*kind:]), u32(b[24+8*kind:])
		for _, index := range []uint32{r.byName[kind], r.byID[kind]} {
			if _, ok := r.at(uint64(index), 4*uint64(r.n[kind])); !ok || index < 64 {
				return nil, false
			}
		}
	}
	return r, true
}

// entry is one record, taken apart.
type entry struct {
	id, gid  uint32
	live     bool
	name     string
	fields   []string // gecos, home, shell
	gids     []uint32
	members  []byte // as they stand in the file
	nMembers uint32
}

func (r *reader) entry(kind int, offset uint32) (entry, bool) {
	fixed := uint64([]int{44, 28}[kind])
	h, ok := r.at(uint64(offset), fixed)
	if !ok || offset < 64 {
		return entry{}, false
	}
	body, ok := r.at(uint64(offset), uint64(u32(h)))
	if !ok || uint64(len(body)) < fixed {
		return entry{}, false
	}
	body = body[fixed:]
	e := entry{id: u32(h[4:]), gid: u32(h[4:])}
	var deadlines []byte
	if kind == passwdKind {
		e.gid, deadlines = u32(h[8:]), h[16:]
		count := u16(h[40:])
		lengths := []uint32{u16(h[32:]), u16(h[34:]), u16(h[36:]), u16(h[38:])}
		total := 4*count + lengths[0] + lengths[1] + lengths[2] + lengths[3]
		if u32(h[12:]) != 0 || u16(h[42:]) != 0 || uint64(total) != uint64(len(body)) {
			return entry{}, false
		}
		for range count {
			e.gids = append(e.gids, u32(body))
			body = body[4:]
		}
		for _, n := range lengths {
			e.fields = append(e.fields, string(body[:n]))
			body = body[n:]
		}
		e.name, e.fields = e.fields[0], e.fields[1:]
	} else {
		deadlines, e.nMembers = h[8:], u16(h[26:])
		n := u16(h[24:])
		if uint64(n)+2*uint64(e.nMembers) > uint64(len(body)) {
			return entry{}, false
		}
		e.name, e.members = string(body[:n]), body[n:]
	}
	if e.name == "" || len(e.name) > 64 || e.id < 1000 || e.gid < 1000 {
		return entry{}, false
	}
	e.live = uint64(time.Now().UnixMilli()) < u64(deadlines) &&
		uint64(bootNow().Milliseconds()) < u64(deadlines[8:])
	return e, true
}

// list takes a group's members apart.
func (e entry) list() ([]string, bool) {
	var all []string
	rest := e.members
	for range e.nMembers {
		name, after, ok := cutMember(rest)
		if !ok {
			return nil, false
		}
		all, rest = append(all, name), after
	}
	return all, len(rest) == 0
}

func cutMember(b []byte) (string, []byte, bool) {
	if len(b) < 2 {
		return "", nil, false
	}
	n := int(u16(b))
	if n == 0 || n > 64 || n > len(b)-2 || !plain(string(b[2:2+n])) {
		return "", nil, false
	}
	return string(b[2 : 2+n]), b[2+n:], true
}

func plain(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f || s[i] == ':' {
			return false
		}
	}
	return true
}

// line is the entry as getent shows it.
func (e entry) line(kind int) (string, bool) {
	if !plain(e.name) {
		return "", false
	}
	if kind == passwdKind {
		shell := "/usr/sbin/nologin"
		if e.live {
			shell = e.fields[2]
		}
		gecos, home := e.fields[0], e.fields[1]
		return fmt.Sprintf("%s:*:%d:%d:%s:%s:%s\n", e.name, e.id, e.gid, gecos, home, shell),
			plain(gecos) && plain(home) && plain(shell)
	}
	members, ok := e.list()
	if !e.live {
		members, ok = nil, true
	}
	return fmt.Sprintf("%s:*:%d:%s\n", e.name, e.id, strings.Join(members, ",")), ok
}

// search is the binary search of the format: the first position for which high is true.
func (r *reader) search(kind int, index uint32, high func(entry) bool) (e entry, exists, ok bool) {
	low, top := uint32(0), r.n[kind]
	for low < top {
		mid := low + (top-low)/2
		if e, ok = r.entry(kind, u32(r.b[index+4*mid:])); !ok {
			return entry{}, false, false
		}
		if high(e) {
			top = mid
		} else {
			low = mid + 1
		}
	}
	if low == r.n[kind] {
		return entry{}, false, true
	}
	e, ok = r.entry(kind, u32(r.b[index+4*low:]))
	return e, ok, ok
}

// enumerate is what an enumeration yields until it ends or fails.
func (r *reader) enumerate(kind int) string {
	var all strings.Builder
	for from := uint64(0); ; {
		reached := func(e entry) bool { return uint64(e.id) >= from }
		e, exists, ok := r.search(kind, r.byID[kind], reached)
		if !exists || !ok {
			return all.String()
		}
		line, ok := e.line(kind)
		if !ok {
			return all.String()
		}
		all.WriteString(line)
		from = uint64(e.id) + 1
	}
}

// byNumber is a look-up by uid or gid, as the driver answers it.
func (r *reader) byNumber(kind int, id uint32) string {
	e, exists, ok := r.search(kind, r.byID[kind], func(e entry) bool { return e.id >= id })
	if !ok {
		return unavailable
	}
	if !exists || e.id != id {
		return notFound
	}
	line, ok := e.line(kind)
	if !ok {
		return unavailable
	}
	return line + found
}

// groupsOf is initgroups, as the driver answers it.
func (r *reader) groupsOf(user string, primary uint32) string {
	var gids []string
	add := func(gid uint32) {
		text := fmt.Sprint(gid)
		if gid != 0 && gid != primary && !slices.Contains(gids, text) {
			gids = append(gids, text)
		}
	}
	known := false
	// The module ends its search at the name; so does this, since a broken file may hold it twice.
	low, top := uint32(0), r.n[passwdKind]
	for low < top && !known {
		mid := low + (top-low)/2
		e, ok := r.entry(passwdKind, u32(r.b[r.byName[passwdKind]+4*mid:]))
		switch {
		case !ok:
			return "\n" + unavailable
		case e.name == user:
			known = true
			if e.live {
				for _, g := range e.gids {
					add(g)
				}
			}
		case user < e.name:
			top = mid
		default:
			low = mid + 1
		}
	}
	for i := range r.n[groupKind] {
		e, ok := r.entry(groupKind, u32(r.b[r.byID[groupKind]+4*i:]))
		if !ok {
			return "\n" + unavailable
		}
		if !e.live {
			continue
		}
		// Nor does it look at what stands behind the name it looks for.
		rest, name := e.members, ""
		for range e.nMembers {
			if name, rest, ok = cutMember(rest); !ok {
				return "\n" + unavailable
			}
			if name == user {
				add(e.id)
				break
			}
		}
	}
	if !known && len(gids) == 0 {
		return "\n" + notFound
	}
	return strings.Join(gids, ",") + "\n" + found
}
