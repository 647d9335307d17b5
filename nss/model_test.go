package nss_test

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/agent/enforce/account"
)

// drawPeople draws accounts and groups with few names and numbers, so that they meet.
func drawPeople(t *rapid.T) ([]account.Account, []account.Group) {
	now, boot := time.Now(), bootNow()
	wallEnd := rapid.SampledFrom([]time.Time{now.Add(time.Hour), now.Add(-time.Hour)})
	bootEnd := rapid.SampledFrom([]time.Duration{boot + time.Hour, boot - time.Second, 0, 1 << 62})
	gids := rapid.SliceOfNDistinct(rapid.Uint32Range(1, 1200), 0, 30, rapid.ID)
	names := rapid.StringMatching(`[a-c_][a-c0-9_-]{0,2}`)
	ids := rapid.OneOf(rapid.Uint32Range(1000, 1040), rapid.Uint32Range(4294967200, 4294967293))
	field := rapid.StringMatching(`[ -9;-~é]{0,300}`)

	var accounts []account.Account
	seen, numbers := map[string]bool{}, map[uint32]bool{}
	for range rapid.IntRange(0, 40).Draw(t, "accounts") {
		a := account.Account{
			Login: names.Draw(t, "login"), UID: ids.Draw(t, "uid"),
			Gecos: field.Draw(t, "gecos"), Home: "/" + field.Draw(t, "home"),
			Shell:        "/" + field.Draw(t, "shell"),
			Groups:       gids.Draw(t, "gids"),
			WallDeadline: wallEnd.Draw(t, "wall"), BootDeadline: bootEnd.Draw(t, "boot"),
		}
		a.GID = a.UID
		if !seen[a.Login] && !numbers[a.UID] {
			seen[a.Login], numbers[a.UID] = true, true
			accounts = append(accounts, a)
		}
	}
	var groups []account.Group
	for range rapid.IntRange(0, 20).Draw(t, "groups") {
		g := account.Group{
			Name: names.Draw(t, "group"), GID: ids.Draw(t, "gid"),
			Members:      rapid.SliceOfNDistinct(names, 0, 20, rapid.ID).Draw(t, "members"),
			WallDeadline: wallEnd.Draw(t, "wall"), BootDeadline: bootEnd.Draw(t, "boot"),
		}
		if !seen[g.Name] && !numbers[g.GID] {
			seen[g.Name], numbers[g.GID] = true, true
			groups = append(groups, g)
		}
	}
	return accounts, groups
}

// model answers as section 6 says, from the accounts themselves.
type model struct {
	accounts []account.Account
	groups   []account.Group // private ones included
}

func over(wall time.Time, boot time.Duration) bool {
	return !time.Now().Before(wall) || bootNow() >= boot
}

func passwdLine(a account.Account) string {
	shell := a.Shell
	if over(a.WallDeadline, a.BootDeadline) {
		shell = "/usr/sbin/nologin"
	}
	return fmt.Sprintf("%s:*:%d:%d:%s:%s:%s\n", a.Login, a.UID, a.GID, a.Gecos, a.Home, shell)
}

func groupLine(g account.Group) string {
	members := slices.Sorted(slices.Values(g.Members))
	if over(g.WallDeadline, g.BootDeadline) {
		members = nil
	}
	return fmt.Sprintf("%s:*:%d:%s\n", g.Name, g.GID, strings.Join(members, ","))
}

func (m model) gids(user string, primary uint32) string {
	var gids []uint32
	known := false
	for _, a := range m.accounts {
		if a.Login == user {
			known = true
			if !over(a.WallDeadline, a.BootDeadline) {
				gids = append(gids, slices.Sorted(slices.Values(a.Groups))...)
			}
		}
	}
	for _, g := range m.groups {
		if slices.Contains(g.Members, user) && !over(g.WallDeadline, g.BootDeadline) {
			gids = append(gids, g.GID)
		}
	}
	var text []string
	for i, g := range gids {
		if g != primary && !slices.Contains(gids[:i], g) {
			text = append(text, fmt.Sprint(g))
		}
	}
	status := found
	if !known && len(text) == 0 {
		status = notFound
	}
	return strings.Join(text, ",") + "\n" + status
}

// TestTheModuleAnswersWhatWasRendered compares every answer, by name, by number, of groups and in
// order, with the model's. Deadlines are an hour away or past, so that none passes meanwhile.
func TestTheModuleAnswersWhatWasRendered(t *testing.T) {
	both(t, func(t *testing.T, d *driver) {
		rapid.Check(t, func(t *rapid.T) { compare(t, d) })
	})
}

func compare(t *rapid.T, d *driver) {
	m := model{}
	var groups []account.Group
	m.accounts, groups = drawPeople(t)
	b := render(t, m.accounts, groups)
	if rapid.Bool().Draw(t, "older agent") {
		b = unpaged(b)
	}
	d.put(t, b)
	m.groups = slices.Clone(groups)
	for _, a := range m.accounts {
		m.groups = append(m.groups, account.Group{
			Name: a.Login, GID: a.GID, WallDeadline: a.WallDeadline, BootDeadline: a.BootDeadline,
		})
	}
	slices.SortFunc(m.groups, func(a, b account.Group) int { return cmp.Compare(a.GID, b.GID) })
	slices.SortFunc(m.accounts, func(a, b account.Account) int { return cmp.Compare(a.UID, b.UID) })

	same := func(q question, want string) {
		t.Helper()
		if got := d.question(t, q); got != want {
			t.Fatalf("%+v: %q, want %q", q, got, want)
		}
	}
	skew := rapid.ByteRange(0, 7).Draw(t, "skew")
	all := ""
	for _, a := range m.accounts {
		all += passwdLine(a)
		same(question{what: 'N', skew: skew, size: 1, name: a.Login}, passwdLine(a)+found)
		same(question{what: 'U', skew: skew, size: 64, id: a.UID}, passwdLine(a)+found)
		same(question{what: 'P', skew: skew, name: a.Login},
			a.Login+":*:1:-1:-1:-1:-1:-1:18446744073709551615\n"+found)
	}
	same(question{what: 'e'}, all)
	all = ""
	for _, g := range m.groups {
		all += groupLine(g)
		same(question{what: 'G', skew: skew, size: 1, name: g.Name}, groupLine(g)+found)
		same(question{what: 'H', skew: skew, size: 64, id: g.GID}, groupLine(g)+found)
	}
	same(question{what: 'E'}, all)
	for range 20 {
		user := rapid.StringMatching(`[a-c_][a-c0-9_-]{0,2}`).Draw(t, "user")
		primary := rapid.Uint32Range(1, 1040).Draw(t, "primary")
		q := question{what: 'I', size: 1, limit: -1, id: primary, name: user}
		same(q, m.gids(user, primary))
		named := func(a account.Account) bool { return a.Login == user }
		if !slices.ContainsFunc(m.accounts, named) {
			same(question{what: 'N', name: user}, notFound)
		}
	}
	for _, id := range []uint32{0, 999, 1041, 4294967294} {
		same(question{what: 'U', id: id}, notFound)
		same(question{what: 'H', id: id}, notFound)
	}
}

// TestAnOlderModuleReadsIt: processes keep the module that they have loaded for as long as they live,
// and it finds the same people in a file that has pages.
func TestAnOlderModuleReadsIt(t *testing.T) {
	accounts, groups := people()
	for _, b := range [][]byte{
		render(t, accounts, groups), render(t, nil, nil), render(t, nil, groups), render(t, many(300), groups),
	} {
		r, older := open(b), openOlder(b)
		_, paged, _ := r.page(passwdKind, []byte("alice"))
		_, olderPaged, _ := older.page(passwdKind, []byte("alice"))
		if !r.headed || !older.headed || paged != (len(b) > 64) || olderPaged {
			t.Fatalf("not read: %v, %v, %v, %v", r.headed, older.headed, paged, olderPaged)
		}
		for kind := range 2 {
			all := r.enumerate(kind)
			if got := older.enumerate(kind); got != all {
				t.Errorf("an older module enumerates %q, a newer one %q", got, all)
			}
			for _, line := range strings.SplitAfter(all, "\n") {
				fields := strings.Split(line, ":")
				if len(fields) < 3 {
					continue
				}
				id, err := strconv.ParseUint(fields[2], 10, 32)
				if err != nil {
					t.Fatal(err)
				}
				for which, r := range map[string]*reader{"a newer": r, "an older": older} {
					if got := r.named(kind, fields[0]); got != line+found {
						t.Errorf("%s module finds %q of name %q, want %q", which, got, fields[0], line)
					}
					if got := r.numbered(kind, uint32(id)); got != line+found {
						t.Errorf("%s module finds %q of number %d, want %q", which, got, id, line)
					}
				}
			}
		}
		for _, user := range []string{"alice", "bob", "daemon", "dave", "root", "user00100"} {
			if got, want := older.groupsOf(user, 1), r.groupsOf(user, 1); got != want {
				t.Errorf("an older module has %s in %q, a newer one in %q", user, got, want)
			}
		}
	}
}

// TestKeptCorpus runs the C fuzz target over every input that libFuzzer's runs left (make fuzz).
func TestKeptCorpus(t *testing.T) {
	inputs, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	if out, err := exec.Command(bin+"/nss_replay.asan", inputs...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// FuzzSnapshot feeds the module files of any content. The sanitizers and the driver's own checks
// judge it, and a second reader in Go must read the same. With fix header and pages are made to agree
// with the file, which lets the fuzzer in.
func FuzzSnapshot(f *testing.F) {
	d := sanitized(f)
	good := renderPeople(f)
	for _, b := range [][]byte{
		nil, good, good[:300], unpaged(good), render(f, nil, nil), render(f, many(3), nil),
	} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= 64 {
			b = slices.Clone(b)
			copy(b, "CFNSS01\n")
			binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
			clear(b[36:64])
			for i := range pagesOf(b) {
				binary.LittleEndian.PutUint32(b[pageAt(b, i)+8:], uint32(len(b)))
			}
		}
		d.put(t, b)
		d.ask(t, 'A', 0, "")
		agree(t, d, b)
	})
}

// agree compares the module's answers with the second reader's. No deadline that a test makes
// passes meanwhile, and a fuzzer does not hit the present millisecond.
func agree(t fataler, d *driver, b []byte) {
	t.Helper()
	r := open(b)
	for _, c := range []struct {
		q    question
		want string
	}{
		{question{what: 'e'}, r.enumerate(passwdKind)},
		{question{what: 'E'}, r.enumerate(groupKind)},
		{question{what: 'U', id: 1900000002}, r.numbered(passwdKind, 1900000002)},
		{question{what: 'H', id: 1900000100}, r.numbered(groupKind, 1900000100)},
		{question{what: 'N', name: "alice"}, r.named(passwdKind, "alice")},
		{question{what: 'G', name: "aaa-team"}, r.named(groupKind, "aaa-team")},
		{question{what: 'I', size: 1, limit: -1, id: 999, name: "alice"}, r.groupsOf("alice", 999)},
		{question{what: 'I', size: 1, limit: -1, id: 1, name: "daemon"}, r.groupsOf("daemon", 1)},
	} {
		if got := d.question(t, c.q); got != c.want {
			t.Fatalf("%+v: C answers %q, Go %q, of the file\n%s", c.q, got, c.want, hex.Dump(b))
		}
	}
}
