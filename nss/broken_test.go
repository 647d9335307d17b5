package nss_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/pace"
)

// answers asks one of everything and returns the last line of each: the statuses.
func answers(t *testing.T, d *driver) []string {
	t.Helper()
	var got []string
	for _, q := range []question{
		{what: 'N', name: "alice"},
		{what: 'U', id: 1900000002},
		{what: 'G', name: "aaa-team"},
		{what: 'H', id: 1900000100},
		{what: 'P', name: "alice"},
		{what: 'I', size: 1, limit: -1, name: "alice"},
		{what: 'O', size: 1024, limit: 'e'},
		{what: 'O', size: 1024, limit: 'E'},
	} {
		all := lines(d.question(t, q))
		got = append(got, all[len(all)-1])
	}
	return got
}

// TestNoFileIsNobody: before the agent's first write a look-up finds nobody and fails nothing.
func TestNoFileIsNobody(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		for i, got := range answers(t, d) {
			if got != notFound {
				t.Errorf("question %d without a file: %q, want %q", i, got, notFound)
			}
		}
	})
}

func TestFilesThatAreNotToBeTrusted(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(db string) error
		want  string
	}{
		"another's":      {func(db string) error { return os.Chown(db, 1000, 0) }, unavailable},
		"group-writable": {func(db string) error { return os.Chmod(db, 0o664) }, unavailable},
		"world-writable": {func(db string) error { return os.Chmod(db, 0o646) }, unavailable},
		"FIFO": {func(db string) error {
			return errors.Join(os.Remove(db), unix.Mkfifo(db, 0o644))
		}, unavailable},
		"folder": {func(db string) error {
			return errors.Join(os.Remove(db), os.Mkdir(db, 0o755))
		}, unavailable},
		"device": {func(db string) error {
			zero := int(unix.Mkdev(1, 5))
			return errors.Join(os.Remove(db), unix.Mknod(db, unix.S_IFCHR|0o644, zero))
		}, unavailable},
		"link to a good one": {func(db string) error {
			return errors.Join(os.Rename(db, db+".good"), os.Symlink("nss.db.good", db))
		}, "-1 40"}, // ELOOP
		"dangling link": {func(db string) error {
			return errors.Join(os.Remove(db), os.Symlink("no", db))
		}, "-1 40"},
		"socket": {func(db string) error {
			return errors.Join(os.Remove(db), unix.Mknod(db, unix.S_IFSOCK|0o644, 0))
		}, "-1 6"}, // ENXIO
		"empty":      {func(db string) error { return os.Truncate(db, 0) }, unavailable},
		"longer":     {func(db string) error { return grow(db, 1) }, unavailable},
		"one short":  {func(db string) error { return grow(db, -1) }, unavailable},
		"over 16MiB": {oversize, unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, d *driver) {
				d.put(t, renderPeople(t))
				if err := c.spoil(d.db); err != nil {
					t.Fatal(err)
				}
				start := pace.Start()
				for i, got := range answers(t, d) {
					if got != c.want {
						t.Errorf("question %d: %q, want %q", i, got, c.want)
					}
				}
				if spent := start.Elapsed(); spent > time.Second {
					t.Errorf("eight questions took %v: something waited", spent)
				}
			})
		})
	}
}

func grow(path string, by int64) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, st.Size()+by)
}

// oversize makes a file of one byte over the cap that is otherwise right.
func oversize(db string) error {
	b, err := os.ReadFile(db)
	if err != nil {
		return err
	}
	size := account.MaxSnapshot + 1
	binary.LittleEndian.PutUint32(b[8:], uint32(size))
	return errors.Join(os.WriteFile(db, b, 0o644), os.Truncate(db, int64(size)))
}

// TestBrokenNumbers breaks one number of a good file each, and demands a refusal, not a guess.
func TestBrokenNumbers(t *testing.T) {
	le := binary.LittleEndian
	good := renderPeople(t)
	// Where alice's passwd record, her index entry and a group's record stand.
	byName := le.Uint32(good[20:])
	alice := le.Uint32(good[byName:])
	byGroup := le.Uint32(good[28:])
	team := le.Uint32(good[byGroup:])
	if string(good[alice+52:alice+57]) != "alice" || string(good[team+28:team+36]) != "aaa-team" {
		t.Fatal("the test looks in the wrong place")
	}
	// And where the one page's slots for them are.
	page := uint32(pageAt(good, 0))
	slot := func(kind int, key string, offset uint32) uint32 {
		p, _, ok := open(good).page(kind, []byte(key))
		for i := range p.n {
			at := p.slots + 8*i
			if ok && u32(good[at:]) == p.hash && u32(good[at+4:]) == offset|uint32(kind)<<31 {
				return at + 4
			}
		}
		t.Fatalf("%q has no slot", key)
		return 0
	}
	byAlice := slot(passwdKind, "alice", alice)
	byUID := slot(passwdKind, string(le.AppendUint32(nil, 1900000002)), alice)
	byTeam := slot(groupKind, "aaa-team", team)
	joined := u32(good[page+20:])
	const (
		older = 1 + iota // only in a file without pages
		newer            // only in one with them
	)
	drivers := []*driver{sanitized(t), real(t)}
	passwd, group, all := []byte("NUPI"), []byte("GHI"), []byte("NUGHPI")
	for name, c := range map[string]struct {
		at   uint32
		put  any
		asks []byte
		of   int
	}{
		"magic":                       {0, uint8('X'), all, older},
		"version":                     {6, uint8('2'), all, older},
		"reserved":                    {36, uint8(1), all, older},
		"last reserved":               {63, uint8(1), all, older},
		"count of accounts":           {12, uint32(1 << 30), all, older},
		"count that wraps":            {12, uint32(1<<30 + 1), all, older},
		"count of groups":             {16, uint32(1 << 22), all, older},
		"name index in the header":    {20, uint32(0), all, older},
		"name index past the end":     {20, uint32(len(good)), all, older},
		"uid index wraps":             {24, uint32(0xfffffffc), all, older},
		"gid index past the end":      {32, uint32(len(good) - 4), all, older},
		"entry in the header":         {byName, uint32(0), []byte("NP"), older},
		"entry past the end":          {byName, uint32(len(good)), []byte("NP"), older},
		"entry that wraps":            {byName, uint32(0xffffffff), []byte("NP"), older},
		"entry near the end":          {byName, uint32(len(good) - 43), []byte("NP"), older},
		"length too small":            {alice, le.Uint32(good[alice:]) - 1, passwd, 0},
		"length too large":            {alice, le.Uint32(good[alice:]) + 1, passwd, 0},
		"uid 0":                       {alice + 4, uint32(0), []byte("NP"), 0},
		"system uid":                  {alice + 4, uint32(999), []byte("NP"), 0},
		"gid 0":                       {alice + 8, uint32(0), passwd, 0},
		"system gid":                  {alice + 8, uint32(999), passwd, 0},
		"record's reserved":           {alice + 12, uint32(1), passwd, 0},
		"no name":                     {alice + 32, uint16(0), passwd, 0},
		"name too long":               {alice + 32, uint16(65), passwd, 0},
		"gecos over the end":          {alice + 34, uint16(0xffff), passwd, 0},
		"too many gids":               {alice + 40, uint16(3), passwd, 0},
		"record's zero":               {alice + 42, uint16(1), passwd, 0},
		"colon in a name":             {alice + 44 + 8 + 4, uint8(':'), []byte("U"), 0},
		"newline in the gecos":        {alice + 44 + 8 + 5, uint8('\n'), []byte("NU"), 0},
		"NUL in the home":             {alice + 44 + 8 + 5 + 16, uint8(0), []byte("NU"), 0},
		"DEL in the shell":            {alice + 44 + 8 + 5 + 16 + 11, uint8(0x7f), []byte("NU"), 0},
		"group's length":              {team, le.Uint32(good[team:]) + 1, []byte("GH"), 0},
		"group's length too small":    {team, uint32(28), group, 0},
		"group 0":                     {team + 4, uint32(0), []byte("GI"), 0},
		"group's name over the end":   {team + 24, uint16(0xffff), group, 0},
		"one member too few":          {team + 26, uint16(2), []byte("GH"), 0},
		"one member too many":         {team + 26, uint16(4), []byte("GH"), 0},
		"members without end":         {team + 26, uint16(0xffff), group, 0},
		"member's length over":        {team + 36, uint16(0xffff), group, 0},
		"member's length over by one": {team + 36 + 15, uint16(5), []byte("GH"), 0},
		"member without a name":       {team + 36, uint16(0), group, 0},
		"newline in a member":         {team + 38, uint8('\n'), group, 0},
		"no enumeration without it":   {0, uint8('X'), []byte("eE"), newer},
		"page of another size":        {page + 8, uint32(len(good) + 1), []byte("NUGHPI"), newer},
		"another page":                {page + 12, uint32(1), []byte("NUGHPI"), newer},
		"more slots than fit":         {page + 16, uint32(509), []byte("NUGHPI"), newer},
		"joined index in the header":  {page + 20, uint32(0), []byte("NUGHPI"), newer},
		"joined index past the end":   {page + 20, uint32(len(good)), []byte("NUGHPI"), newer},
		"count of joined that wraps":  {page + 24, uint32(1<<30 + 1), []byte("NUGHPI"), newer},
		"slot in the header":          {byAlice, uint32(63), []byte("NPI"), newer},
		"slot past the end":           {byAlice, uint32(len(good)), []byte("NPI"), newer},
		"slot near the end":           {byAlice, uint32(len(good) - 43), []byte("NPI"), newer},
		"slot in mid-record":          {byAlice, alice + 1, []byte("NPI"), newer},
		"uid's slot past the end":     {byUID, uint32(len(good)), []byte("U"), newer},
		"group's slot in the header":  {byTeam, 1<<31 | uint32(63), []byte("G"), newer},
		"joined group in the header":  {joined, uint32(0), []byte("I"), newer},
		"joined group past the end":   {joined, uint32(len(good)), []byte("I"), newer},
	} {
		for of, b := range map[int][]byte{older: unpaged(good), newer: slices.Clone(good)} {
			if c.of != 0 && c.of != of {
				continue
			}
			switch v := c.put.(type) {
			case uint8:
				b[c.at] = v
			case uint16:
				le.PutUint16(b[c.at:], v)
			case uint32:
				le.PutUint32(b[c.at:], v)
			}
			t.Run(name, func(t *testing.T) {
				for _, d := range drivers {
					refused(t, d, b, c.asks)
				}
			})
		}
	}
}

func refused(t *testing.T, d *driver, b, asks []byte) {
	d.put(t, b)
	d.ask(t, 'A', 0, "")
	for _, what := range asks {
		q := question{what: what, name: "alice", id: 1900000002}
		switch what {
		case 'G', 'H':
			q.name, q.id = "aaa-team", 1900000100
		case 'I':
			q.size, q.limit = 1, -1
		case 'e', 'E':
			q.what, q.size, q.limit = 'O', 1024, int32(what)
		}
		if got := d.question(t, q); !strings.HasSuffix(got, unavailable) {
			t.Errorf("%c is answered %q", what, got)
		}
	}
}

// TestEveryTruncation and TestEveryBitFlip ask everything of every file that is one cut or one bit
// away from a good one; of the zeros that fill a page, those that stand at an end and every 256th. The
// driver's own checks and the sanitizers are the judges.
func TestEveryTruncation(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		good := renderPeople(t)
		for n := range good {
			if padding(good, n) {
				continue
			}
			d.put(t, good[:n])
			if got := d.ask(t, 'A', 0, ""); got != "0 0" {
				t.Errorf("cut at %d of %d: %q entries, want none", n, len(good), got)
			}
			// With a header that agrees, the damage is found further in, or is none.
			if n >= 64 {
				cut := append([]byte(nil), good[:n]...)
				binary.LittleEndian.PutUint32(cut[8:], uint32(n))
				d.put(t, cut)
				d.ask(t, 'A', 0, "")
			}
		}
	})
}

func padding(b []byte, i int) bool {
	const around = 8
	near := b[max(i-around, 0):min(i+around, len(b))]
	return i%256 != 0 && bytes.Count(near, []byte{0}) == 2*around
}

func TestEveryBitFlip(t *testing.T) {
	d := sanitized(t)
	b := renderPeople(t)
	for i := range b {
		if padding(b, i) {
			continue
		}
		step := 1
		if i >= 4096 { // in a page, whose records stand before it once more
			step = 7
		}
		for bit := 0; bit < 8; bit += step {
			b[i] ^= 1 << bit
			d.put(t, b)
			d.ask(t, 'A', 0, "")
			agree(t, d, b)
			b[i] ^= 1 << bit
		}
	}
}

// fault makes the driver's reads fail, and tells how many there were before; see driver.c.
func (d *driver) fault(t *testing.T, cutAt, cutTo uint32, most int32) (reads string) {
	t.Helper()
	return d.question(t, question{what: 'F', id: cutAt, size: cutTo, limit: most})
}

// TestCutBetweenTwoReads cuts the file before each single read of a look-up. A mapping would be
// SIGBUS here (sssd#5369).
func TestCutBetweenTwoReads(t *testing.T) {
	d := sanitized(t)
	good := renderPeople(t)
	for _, q := range []question{
		{what: 'N', size: 1024, name: "alice"},
		{what: 'U', size: 1024, id: 1900000002},
		{what: 'G', size: 1024, name: "aaa-team"},
		{what: 'I', size: 1, limit: -1, name: "alice"},
	} {
		for at := uint32(1); ; at++ {
			d.put(t, good)
			d.fault(t, at, 0, 0)
			got := d.question(t, q)
			if strings.HasSuffix(got, found) {
				if at == 1 {
					t.Errorf("%+v reads nothing", q)
				}
				break // more reads than it makes
			}
			if !strings.HasSuffix(got, unavailable) {
				t.Errorf("%+v, cut before read %d: %q", q, at, got)
			}
		}
	}
}

// TestShortReadsAndSignals: one byte at a time, every other read interrupted, the same answers.
func TestShortReadsAndSignals(t *testing.T) {
	d := sanitized(t)
	good := renderPeople(t)
	d.put(t, good)
	for _, most := range []int32{1, 3, 64} {
		d.fault(t, 0, 0, most)
		agree(t, d, good)
		if got := d.ask(t, 'N', 0, "alice"); got != aliceLine+found {
			t.Errorf("%d bytes a read: %q", most, got)
		}
	}
}

// TestTruncatedWhileReading: a full disk or a careless hand cuts the file under the reader.
func TestTruncatedWhileReading(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		accounts := many(200)
		good := render(t, accounts, nil)
		d.put(t, good)
		stop, stopped := make(chan struct{}), make(chan error)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					stopped <- nil
					return
				default:
				}
				err := os.Truncate(d.db, int64(i*37%len(good)))
				if err == nil {
					err = os.WriteFile(d.db, good, 0o644)
				}
				if err != nil {
					stopped <- err
					return
				}
			}
		}()
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
			d.ask(t, 'e', 0, "")
			for _, c := range [][2]string{
				{d.ask(t, 'N', 0, "user00100"), passwdLine(accounts[100]) + found},
				{d.groups(t, "user00150", 1900000150), "4\n" + found},
			} {
				if c[0] != c[1] && strings.TrimSpace(c[0]) != unavailable {
					t.Fatalf("%q; want %q or a refusal", c[0], c[1])
				}
			}
		}
		close(stop)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
	})
}
