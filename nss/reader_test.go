package nss_test

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"
)

// reader is section 6 read a second time, in Go: what the C module makes of any file at all must
// be what this makes of it. It also shows Go's fuzzer the ways through the format, which the
// fuzzer cannot see in C.
type reader struct {
	b               []byte
	headed          bool // the header is good, and with it what follows
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

func open(b []byte) *reader {
	r := &reader{b: b}
	if len(b) < 64 || len(b) > 16<<20 || string(b[:8]) != "CFNSS01\n" ||
		u32(b[8:]) != uint32(len(b)) || strings.Trim(string(b[36:64]), "\x00") != "" {
		return r
	}
	for kind := range uint32(2) {
		r.n[kind] = u32(b[12+4*kind:])
		r.byName[kind], r.byID[kind] = u32(b[20+8*kind:]), u32(b[24+8*kind:])
		for _, index := range []uint32{r.byName[kind], r.byID[kind]} {
			if _, ok := r.at(uint64(index), 4*uint64(r.n[kind])); !ok || index < 64 {
				return r
			}
		}
	}
	r.headed = true
	return r
}

// openOlder reads as modules do that know no pages.
func openOlder(b []byte) *reader {
	r := open(b)
	r.b = unpaged(b)
	return r
}

// unpaged is the file that an older agent would have written: its pages cannot be told from records.
func unpaged(b []byte) []byte {
	b = slices.Clone(b)
	for i := range pagesOf(b) {
		copy(b[pageAt(b, i):], strings.Repeat("records\n", 4))
	}
	return b
}

func pagesOf(b []byte) int {
	if n := len(b) % 4096; n < len(b)/4096 {
		return n
	}
	return 0
}

func pageAt(b []byte, i int) int { return (len(b)/4096 - pagesOf(b) + i) * 4096 }

// page is where the slots are in which a key can stand, and the groups that can have members.
type page struct {
	hash, slots, n  uint32
	joined, nJoined uint32
}

// page finds a key's page. A file without pages has none, and a bad page is not ok.
func (r *reader) page(kind int, key []byte) (p page, exists, ok bool) {
	n := pagesOf(r.b)
	if len(r.b) < 64 || len(r.b) > 16<<20 || n == 0 {
		return p, false, true
	}
	h := fnv.New32a()
	h.Write(append([]byte{byte(kind)}, key...))
	i := h.Sum32() % uint32(n)
	at := uint32(pageAt(r.b, int(i)))
	b := r.b[at:]
	if string(b[:8]) != "CFPAGE1\n" {
		return p, false, true
	}
	p = page{h.Sum32(), at + 32, u32(b[16:]), u32(b[20:]), u32(b[24:])}
	_, okJoined := r.at(uint64(p.joined), 4*uint64(p.nJoined))
	return p, true, u32(b[8:]) == uint32(len(r.b)) && u32(b[12:]) == i && p.n <= 508 &&
		p.joined >= 64 && okJoined
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
func (r *reader) search(kind int, high func(entry) bool) (e entry, exists, ok bool) {
	if !r.headed {
		return entry{}, false, false
	}
	index := r.byID[kind]
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
		e, exists, ok := r.search(kind, reached)
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

// find looks a key up in its page; paged is false in a file without.
func (r *reader) find(kind int, key []byte, is func(entry) bool) (e entry, paged, exists, ok bool) {
	p, paged, ok := r.page(kind, key)
	if !paged || !ok {
		return entry{}, paged, false, ok
	}
	for i := range p.n {
		slot := r.b[p.slots+8*i:]
		if u32(slot) != p.hash || u32(slot[4:])>>31 != uint32(kind) {
			continue
		}
		if e, ok = r.entry(kind, u32(slot[4:])&(1<<31-1)); !ok || is(e) {
			return e, true, ok, ok
		}
	}
	return entry{}, true, false, true
}

func (r *reader) findNumber(kind int, id uint32) (e entry, exists, ok bool) {
	key := binary.LittleEndian.AppendUint32(nil, id)
	e, paged, exists, ok := r.find(kind, key, func(e entry) bool { return e.id == id })
	if paged {
		return e, exists, ok
	}
	e, exists, ok = r.search(kind, func(e entry) bool { return e.id >= id })
	return e, exists && e.id == id, ok
}

func (r *reader) findName(kind int, name string) (e entry, exists, ok bool) {
	nobody := name == "" || len(name) > 64
	if !nobody {
		e, paged, exists, ok := r.find(kind, []byte(name), func(e entry) bool { return e.name == name })
		if paged {
			return e, exists, ok
		}
	}
	if nobody || !r.headed {
		return entry{}, false, r.headed
	}
	// The module ends its search at the name; so does this, since a broken file may hold it twice.
	low, top := uint32(0), r.n[kind]
	for low < top {
		mid := low + (top-low)/2
		e, ok := r.entry(kind, u32(r.b[r.byName[kind]+4*mid:]))
		switch {
		case !ok || e.name == name:
			return e, ok, ok
		case name < e.name:
			top = mid
		default:
			low = mid + 1
		}
	}
	return entry{}, false, true
}

// numbered is a look-up by uid or gid, as the driver answers it; named is one by name.
func (r *reader) numbered(kind int, id uint32) string {
	return answer(kind)(r.findNumber(kind, id))
}

func (r *reader) named(kind int, name string) string {
	return answer(kind)(r.findName(kind, name))
}

func answer(kind int) func(e entry, exists, ok bool) string {
	return func(e entry, exists, ok bool) string {
		if !ok {
			return unavailable
		}
		if !exists {
			return notFound
		}
		line, ok := e.line(kind)
		if !ok {
			return unavailable
		}
		return line + found
	}
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
	e, known, ok := r.findName(passwdKind, user)
	if !ok {
		return "\n" + unavailable
	}
	if e.live {
		for _, g := range e.gids {
			add(g)
		}
	}
	joined, n := r.byID[groupKind], r.n[groupKind]
	if p, paged, _ := r.page(passwdKind, []byte(user)); paged && user != "" && len(user) <= 64 {
		joined, n = p.joined, p.nJoined
	}
	for i := range n {
		e, ok := r.entry(groupKind, u32(r.b[joined+4*i:]))
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
