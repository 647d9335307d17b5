package nss_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

const (
	aliceLine = "alice:*:1900000002:1900000002:Alice Ångström:/home/alice:/bin/bash\n"
	bobLine   = "bob:*:1900000001:1900000001:Alice Ångström:/home/bob:/usr/sbin/nologin\n"
	carolLine = "carol:*:1900000003:1900000003:Alice Ångström:/home/carol:/usr/sbin/nologin\n"
	daveLine  = "dave:*:4294967293:4294967293::/home/dave:/bin/bash\n"
	teamLine  = "aaa-team:*:1900000100:alice,daemon,dave\n"
)

func TestLookUps(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		d.put(t, renderPeople(t))
		for _, c := range []struct {
			what byte
			id   uint32
			name string
			want string
		}{
			{'N', 0, "alice", aliceLine + found},
			{'U', 1900000002, "", aliceLine + found},
			{'N', 0, "dave", daveLine + found},
			{'U', 4294967293, "", daveLine + found},
			// Past their time: the name stays, the shell does not.
			{'N', 0, "bob", bobLine + found},
			{'U', 1900000001, "", bobLine + found},
			{'N', 0, "carol", carolLine + found},
			{'N', 0, "alic", notFound},
			{'N', 0, "alicee", notFound},
			{'N', 0, "Alice", notFound},
			{'N', 0, "root", notFound},
			{'N', 0, "", notFound},
			{'N', 0, strings.Repeat("a", 5000), notFound},
			{'U', 0, "", notFound},
			{'U', 1900000004, "", notFound},
			{'U', 4294967295, "", notFound},
			{'G', 0, "aaa-team", teamLine + found},
			{'H', 1900000100, "", teamLine + found},
			{'G', 0, "alice", "alice:*:1900000002:\n" + found},
			{'H', 4294967293, "", "dave:*:4294967293:\n" + found},
			{'H', 4294967292, "", "huge:*:4294967292:daemon\n" + found},
			{'G', 0, "gone-wall", "gone-wall:*:1900000101:\n" + found},
			{'H', 1900000102, "", "gone-boot:*:1900000102:\n" + found},
			{'G', 0, "adm", notFound},
			{'H', 0, "", notFound},
			{'H', 999, "", notFound},
			{'P', 0, "alice", "alice:*:1:-1:-1:-1:-1:-1:18446744073709551615\n" + found},
			{'P', 0, "bob", "bob:*:1:-1:-1:-1:-1:-1:18446744073709551615\n" + found},
			{'P', 0, "root", notFound},
		} {
			for _, skew := range []byte{0, 1, 3, 7} {
				q := question{what: c.what, skew: skew, id: c.id, name: c.name}
				if got := d.question(t, q); got != c.want {
					t.Errorf("%+v: %q, want %q", q, got, c.want)
				}
			}
		}
	})
}

func TestGroupsOfAUser(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		d.put(t, renderPeople(t))
		for _, c := range []struct {
			name    string
			primary uint32
			want    string
		}{
			{"alice", 1900000002, "4,999,1900000100\n" + found},
			{"alice", 999, "4,1900000100\n" + found},
			{"bob", 1900000001, "\n" + found},   // wall clock
			{"carol", 1900000003, "\n" + found}, // boot clock
			{"dave", 4294967293, "1900000100\n" + found},
			{"daemon", 1, "1900000100,4294967292\n" + found}, // a local user
			{"daemo", 1, "\n" + notFound},
			{"daemonn", 1, "\n" + notFound},
			{"root", 0, "\n" + notFound},
			{"", 0, "\n" + notFound},
		} {
			if got := d.groups(t, c.name, c.primary); got != c.want {
				t.Errorf("groups of %q: %q, want %q", c.name, got, c.want)
			}
		}
		for limit, want := range map[int32]string{
			1: "4\n" + found, 2: "4,999\n" + found, 3: "4,999,1900000100\n" + found,
			64: "4,999,1900000100\n" + found,
		} {
			q := question{what: 'I', size: 1, id: 1900000002, limit: limit, name: "alice"}
			if got := d.question(t, q); got != want {
				t.Errorf("limit %d: %q, want %q", limit, got, want)
			}
		}
	})
}

// TestADeadlinePassesByItself: nobody writes the file; the module alone ends the grant.
func TestADeadlinePassesByItself(t *testing.T) {
	for name, set := range map[string]func(end time.Duration) (time.Time, time.Duration){
		"wall": func(end time.Duration) (time.Time, time.Duration) {
			return time.Now().Add(end), bootNow() + time.Hour
		},
		"boot": func(end time.Duration) (time.Time, time.Duration) {
			return time.Now().Add(time.Hour), bootNow() + end
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := sanitized(t)
			accounts, groups := people()
			wall, boot := set(400 * time.Millisecond)
			for i := range accounts {
				accounts[i].WallDeadline, accounts[i].BootDeadline = wall, boot
			}
			groups[0].WallDeadline, groups[0].BootDeadline = wall, boot
			d.put(t, render(t, accounts, groups[:1]))
			if got := d.ask(t, 'N', 0, "alice"); got != aliceLine+found {
				t.Errorf("before: %q", got)
			}
			if got, want := d.groups(t, "daemon", 1), "1900000100\n"+found; got != want {
				t.Errorf("before: groups %q, want %q", got, want)
			}
			time.Sleep(450 * time.Millisecond)
			want := strings.Replace(aliceLine, "/bin/bash", "/usr/sbin/nologin", 1) + found
			if got := d.ask(t, 'N', 0, "alice"); got != want {
				t.Errorf("after: %q, want %q", got, want)
			}
			if got, want := d.groups(t, "alice", 1900000002), "\n"+found; got != want {
				t.Errorf("after: groups %q, want %q", got, want)
			}
			if got, want := d.groups(t, "daemon", 1), "\n"+notFound; got != want {
				t.Errorf("after: groups of a local user %q, want %q", got, want)
			}
			want = "aaa-team:*:1900000100:\n" + found
			if got := d.ask(t, 'G', 0, "aaa-team"); got != want {
				t.Errorf("after: group %q, want %q", got, want)
			}
		})
	}
}

// TestBufferTooSmall walks every size below what is needed: each must say ERANGE, and no more.
func TestBufferTooSmall(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		d.put(t, renderPeople(t))
		for _, c := range []struct {
			what, skew byte
			name       string
			need       uint32
		}{
			{'N', 0, "alice", 6 + 2 + 17 + 12 + 10},
			{'N', 0, "bob", 4 + 2 + 17 + 10 + 18},
			{'G', 0, "aaa-team", 4*8 + 6 + 7 + 5 + 9 + 2},
			{'G', 3, "aaa-team", 5 + 4*8 + 6 + 7 + 5 + 9 + 2},
			{'G', 0, "alice", 8 + 6 + 2},
			{'P', 0, "alice", 6 + 2},
		} {
			for size := range c.need + 8 {
				q := question{
					what: 'O', skew: c.skew, size: size, limit: int32(c.what), name: c.name,
				}
				got := d.question(t, q)
				fits := strings.HasSuffix(got, found)
				if size < c.need && got != "-2 34" || size >= c.need && !fits {
					t.Errorf("%c %s with %d of %d bytes: %q", c.what, c.name, size, c.need, got)
				}
			}
		}
	})
}

func TestLargeRecords(t *testing.T) {
	accounts, groups := people()
	accounts[0].Gecos = strings.Repeat("g", 4096)
	accounts[0].Home = "/" + strings.Repeat("h", 4095)
	accounts[0].Groups = nil
	want := ""
	for gid := range uint32(1000) {
		accounts[0].Groups = append(accounts[0].Groups, 5000+gid)
		want += fmt.Sprintf("%d,", 5000+gid)
	}
	var members []string
	for i := range 20000 {
		members = append(members, fmt.Sprintf("m%05d", i))
	}
	groups[0].Members = append([]string{"alice"}, members...)
	b := render(t, accounts, groups)
	both(t, func(t *testing.T, d *driver) {
		d.put(t, b)
		rest := accounts[0].Gecos + ":" + accounts[0].Home + ":/bin/bash\n" + found
		if got := d.ask(t, 'N', 0, "alice"); !strings.HasSuffix(got, rest) {
			t.Errorf("alice: %.200q", got)
		}
		if got := d.groups(t, "alice", 1900000002); got != want+"1900000100\n"+found {
			t.Errorf("groups of alice: %.200q", got)
		}
		if got := d.groups(t, "m19999", 1); got != "1900000100\n"+found {
			t.Errorf("groups of the last member: %q", got)
		}
		rest = "aaa-team:*:1900000100:alice," + strings.Join(members, ",") + "\n" + found
		if got := d.ask(t, 'G', 0, "aaa-team"); got != rest {
			t.Errorf("the group of 20,001: %.200q", got)
		}
	})
}

func TestEnumeration(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		d.put(t, renderPeople(t))
		if got, want := d.ask(t, 'e', 0, ""), bobLine+aliceLine+carolLine+daveLine; got != want {
			t.Errorf("passwd: %q, want %q", got, want)
		}
		const want = "bob:*:1900000001:\nalice:*:1900000002:\ncarol:*:1900000003:\n" + teamLine +
			"gone-wall:*:1900000101:\ngone-boot:*:1900000102:\nhuge:*:4294967292:daemon\n" +
			"dave:*:4294967293:\n"
		if got := d.ask(t, 'E', 0, ""); got != want {
			t.Errorf("group: %q, want %q", got, want)
		}
		d.put(t, render(t, nil, nil))
		if got := d.ask(t, 'e', 0, "") + d.ask(t, 'E', 0, ""); got != "" {
			t.Errorf("an empty snapshot holds %q", got)
		}
	})
}

func TestAThousandAccounts(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		d.put(t, render(t, many(1000), nil))
		all := lines(d.ask(t, 'e', 0, ""))
		if len(all) != 1000 || !slices.IsSorted(all) || len(slices.Compact(all)) != 1000 {
			t.Errorf("%d passwd lines, want 1000 in order, each once", len(all))
		}
		if n := len(lines(d.ask(t, 'E', 0, ""))); n != 1000 {
			t.Errorf("%d group lines, want 1000", n)
		}
		for i := range 1000 {
			name := fmt.Sprintf("user%05d", i)
			for _, got := range []string{
				d.ask(t, 'N', 0, name), d.ask(t, 'U', uint32(1900000000+i), ""), d.ask(t, 'G', 0, name),
				d.ask(t, 'H', uint32(1900000000+i), ""),
			} {
				if !strings.HasPrefix(got, name+":*:") {
					t.Fatalf("%s: %q", name, got)
				}
			}
		}
	})
}

// TestReads counts the reads of look-ups, which are what they cost: the page of the key, and the record
// where it stands elsewhere.
func TestReads(t *testing.T) {
	d := sanitized(t)
	group := account.Group{
		Name: "team", GID: 5000, Members: []string{"user00001", "daemon"},
		WallDeadline: time.Now().Add(time.Hour), BootDeadline: bootNow() + time.Hour,
	}
	for _, c := range []struct {
		people      int
		groups      []account.Group
		q           question
		reads, want string
	}{
		{1000, nil, question{what: 'N', name: "user00500"}, "1", found},
		{1000, nil, question{what: 'U', id: 1900000500}, "2", found},
		{1000, nil, question{what: 'G', name: "user00500"}, "2", found},
		{1000, nil, question{what: 'H', id: 1900000500}, "2", found},
		{1000, nil, question{what: 'N', name: "postgres"}, "1", notFound},
		{1000, nil, question{what: 'U', id: 117}, "1", notFound},
		{1000, nil, question{what: 'I', limit: -1, id: 1900000500, name: "user00500"}, "1", found},
		{1000, nil, question{what: 'I', limit: -1, id: 1, name: "daemon"}, "1", notFound},
		{1000, []account.Group{group}, question{what: 'I', limit: -1, id: 1, name: "daemon"}, "3", found},
		{5, nil, question{what: 'N', name: "user00003"}, "1", found},
		{5, nil, question{what: 'U', id: 1900000003}, "1", found},
		{0, nil, question{what: 'N', name: "postgres"}, "1", notFound},
	} {
		d.put(t, render(t, many(c.people), c.groups))
		c.q.size = 1024
		d.fault(t, 0, 0, 0)
		got := d.question(t, c.q)
		if reads := d.fault(t, 0, 0, 0); reads != c.reads || !strings.HasSuffix(got, c.want) {
			t.Errorf("%+v among %d: %s reads, want %s; %q", c.q, c.people, reads, c.reads, got)
		}
	}
}

// TestNobodyWithSomebodysHash gives nobody's keys to slots of others: what is found must be compared.
func TestNobodyWithSomebodysHash(t *testing.T) {
	b := render(t, many(20), nil) // on one page
	p, paged, ok := open(b).page(passwdKind, []byte("nobody"))
	if !paged || !ok || pagesOf(b) != 1 || p.n != 80 {
		t.Fatalf("%d pages, %d slots", pagesOf(b), p.n)
	}
	nobody := func(kind int, key []byte) []byte {
		b := slices.Clone(b)
		p, _, _ := open(b).page(kind, key)
		for i := range p.n {
			binary.LittleEndian.PutUint32(b[p.slots+8*i:], p.hash)
		}
		return b
	}
	both(t, func(t *testing.T, d *driver) {
		for kind, asks := range []string{"NU", "GH"} {
			d.put(t, nobody(kind, []byte("nobody")))
			if got := d.ask(t, asks[0], 0, "nobody"); got != notFound {
				t.Errorf("%c nobody: %q", asks[0], got)
			}
			d.put(t, nobody(kind, binary.LittleEndian.AppendUint32(nil, 65534)))
			if got := d.ask(t, asks[1], 65534, ""); got != notFound {
				t.Errorf("%c 65534: %q", asks[1], got)
			}
		}
	})
}

// TestReplacedWhileReading: renames swap whole files, so every answer is of one of them, and an
// enumeration neither skips nor repeats who stands in both.
func TestReplacedWhileReading(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		few, all := render(t, many(1000)[500:], nil), render(t, many(1000), nil)
		d.put(t, all)
		stop, stopped := make(chan struct{}), make(chan error)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					stopped <- nil
					return
				default:
				}
				if err := d.replace([][]byte{few, all}[i%2]); err != nil {
					stopped <- err
					return
				}
			}
		}()
		for range 20 {
			got := lines(d.ask(t, 'e', 0, ""))
			if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
				t.Error("an enumeration repeats somebody")
			}
			i := slices.IndexFunc(got, func(l string) bool { return l >= "user00500" })
			if len(got)-i != 500 {
				t.Errorf("an enumeration skips somebody: %d of 500", len(got)-i)
			}
			for range 200 {
				if got := d.ask(t, 'U', 1900000999, ""); !strings.HasSuffix(got, found) {
					t.Fatalf("user00999: %q", got)
				}
			}
		}
		close(stop)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
	})
}

// BenchmarkLookUp is measured inside the real object, without the pipe.
func BenchmarkLookUp(b *testing.B) {
	d := real(b)
	for _, n := range []int{30, 1000} {
		accounts := many(n)
		d.put(b, render(b, accounts, []account.Group{{
			Name: "team", GID: 5000, Members: []string{"daemon"},
			WallDeadline: time.Now().Add(time.Hour), BootDeadline: bootNow() + time.Hour,
		}}))
		for name, q := range map[string]question{
			"hit":         {limit: 'N', name: accounts[n/3].Login},
			"miss":        {limit: 'N', name: "postgres"},
			"uid":         {limit: 'U', id: accounts[n/3].UID},
			"groups":      {limit: 'I', name: accounts[n/3].Login},
			"local-group": {limit: 'I', name: "daemon"},
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				q.what, q.size = 'B', uint32(b.N)
				b.ReportMetric(0, "ns/op")
				var ns float64
				if _, err := fmt.Sscan(d.question(b, q), &ns); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(ns/1000, "µs/look-up")
			})
		}
	}
}
