package nss_test

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
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
	d.put(t, render(t, m.accounts, groups))
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

// FuzzSnapshot feeds the module files of any content. The sanitizers and the driver's own checks
// judge it, and a second reader in Go must read the same. With fix the header is made to agree
// with the file, which lets the fuzzer in.
func FuzzSnapshot(f *testing.F) {
	d := sanitized(f)
	good := renderPeople(f)
	for _, b := range [][]byte{nil, good, good[:300], render(f, nil, nil), render(f, many(3), nil)} {
		f.Add(b, true)
		f.Add(b, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		if fix && len(b) >= 64 {
			b = slices.Clone(b)
			copy(b, "CFNSS01\n")
			binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
			clear(b[36:64])
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
	r, ok := open(b)
	for _, c := range []struct {
		q    question
		want func() string
		bad  string
	}{
		{question{what: 'e'}, func() string { return r.enumerate(passwdKind) }, ""},
		{question{what: 'E'}, func() string { return r.enumerate(groupKind) }, ""},
		{
			question{what: 'U', id: 1900000002},
			func() string { return r.byNumber(passwdKind, 1900000002) }, unavailable,
		},
		{
			question{what: 'H', id: 1900000100},
			func() string { return r.byNumber(groupKind, 1900000100) }, unavailable,
		},
		{
			question{what: 'I', size: 1, limit: -1, id: 999, name: "alice"},
			func() string { return r.groupsOf("alice", 999) }, "\n" + unavailable,
		},
		{
			question{what: 'I', size: 1, limit: -1, id: 1, name: "daemon"},
			func() string { return r.groupsOf("daemon", 1) }, "\n" + unavailable,
		},
	} {
		want := c.bad
		if ok {
			want = c.want()
		}
		if got := d.question(t, c.q); got != want {
			t.Fatalf("%+v: C answers %q, Go %q, of the file\n%s", c.q, got, want, hex.Dump(b))
		}
	}
}
