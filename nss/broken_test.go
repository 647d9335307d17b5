package nss_test

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/curfew-access/curfew/agent/enforce/account"
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
				start := time.Now()
				for i, got := range answers(t, d) {
					if got != c.want {
						t.Errorf("question %d: %q, want %q", i, got, c.want)
					}
				}
				if spent := time.Since(start); spent > time.Second {
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
	passwd, group := []byte("NUPI"), []byte("GHI")
	for name, c := range map[string]struct {
		at   uint32
		put  any
		asks []byte
	}{
		"magic":                       {0, uint8('X'), []byte("NUGHPI")},
		"version":                     {6, uint8('2'), []byte("NUGHPI")},
		"reserved":                    {36, uint8(1), []byte("NUGHPI")},
		"last reserved":               {63, uint8(1), []byte("NUGHPI")},
		"count of accounts":           {12, uint32(1 << 30), []byte("NUGHPI")},
		"count that wraps":            {12, uint32(1<<30 + 1), []byte("NUGHPI")},
		"count of groups":             {16, uint32(1 << 22), []byte("NUGHPI")},
		"name index in the header":    {20, uint32(0), []byte("NUGHPI")},
		"name index past the end":     {20, uint32(len(good)), []byte("NUGHPI")},
		"uid index wraps":             {24, uint32(0xfffffffc), []byte("NUGHPI")},
		"gid index past the end":      {32, uint32(len(good) - 4), []byte("NUGHPI")},
		"entry in the header":         {byName, uint32(0), []byte("NP")},
		"entry past the end":          {byName, uint32(len(good)), []byte("NP")},
		"entry that wraps":            {byName, uint32(0xffffffff), []byte("NP")},
		"entry near the end":          {byName, uint32(len(good) - 43), []byte("NP")},
		"length too small":            {alice, le.Uint32(good[alice:]) - 1, passwd},
		"length too large":            {alice, le.Uint32(good[alice:]) + 1, passwd},
		"uid 0":                       {alice + 4, uint32(0), []byte("NP")},
		"system uid":                  {alice + 4, uint32(999), []byte("NP")},
		"gid 0":                       {alice + 8, uint32(0), passwd},
		"system gid":                  {alice + 8, uint32(999), passwd},
		"record's reserved":           {alice + 12, uint32(1), passwd},
		"no name":                     {alice + 32, uint16(0), passwd},
		"name too long":               {alice + 32, uint16(65), passwd},
		"gecos over the end":          {alice + 34, uint16(0xffff), passwd},
		"too many gids":               {alice + 40, uint16(3), passwd},
		"record's zero":               {alice + 42, uint16(1), passwd},
		"colon in a name":             {alice + 44 + 8 + 4, uint8(':'), []byte("U")},
		"newline in the gecos":        {alice + 44 + 8 + 5, uint8('\n'), []byte("NU")},
		"NUL in the home":             {alice + 44 + 8 + 5 + 16, uint8(0), []byte("NU")},
		"DEL in the shell":            {alice + 44 + 8 + 5 + 16 + 11, uint8(0x7f), []byte("NU")},
		"group's length":              {team, le.Uint32(good[team:]) + 1, []byte("GH")},
		"group's length too small":    {team, uint32(28), group},
		"group 0":                     {team + 4, uint32(0), []byte("GI")},
		"group's name over the end":   {team + 24, uint16(0xffff), group},
		"one member too few":          {team + 26, uint16(2), []byte("GH")},
		"one member too many":         {team + 26, uint16(4), []byte("GH")},
		"members without end":         {team + 26, uint16(0xffff), group},
		"member's length over":        {team + 36, uint16(0xffff), group},
		"member's length over by one": {team + 36 + 15, uint16(5), []byte("GH")},
		"member without a name":       {team + 36, uint16(0), group},
		"newline in a member":         {team + 38, uint8('\n'), group},
	} {
		t.Run(name, func(t *testing.T) {
			b := append([]byte(nil), good...)
			switch v := c.put.(type) {
			case uint8:
				b[c.at] = v
			case uint16:
				le.PutUint16(b[c.at:], v)
			case uint32:
				le.PutUint32(b[c.at:], v)
			}
			both(t, func(t *testing.T, d *driver) {
				d.put(t, b)
				d.ask(t, 'A', 0, "")
				for _, what := range c.asks {
					q := question{what: what, name: "alice", id: 1900000002}
					switch what {
					case 'G', 'H':
						q.name, q.id = "aaa-team", 1900000100
					case 'I':
						q.size, q.limit = 1, -1
					}
					if got := d.question(t, q); !strings.HasSuffix(got, unavailable) {
						t.Errorf("%c is answered %q", what, got)
					}
				}
			})
		})
	}
}

// TestEveryTruncation and TestEveryBitFlip ask everything of every file that is one cut or one bit
// away from a good one. The driver's own checks and the sanitizers are the judges.
func TestEveryTruncation(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		good := renderPeople(t)
		for n := range good {
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

func TestEveryBitFlip(t *testing.T) {
	d := sanitized(t)
	b := renderPeople(t)
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			d.put(t, b)
			d.ask(t, 'A', 0, "")
			agree(t, d, b)
			b[i] ^= 1 << bit
		}
	}
}

// fault makes the driver's reads fail; see driver.c.
func (d *driver) fault(t *testing.T, cutAt, cutTo uint32, most int32) {
	t.Helper()
	d.question(t, question{what: 'F', id: cutAt, size: cutTo, limit: most})
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
