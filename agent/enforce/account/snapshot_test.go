package account

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func alice() Account {
	return Account{
		Login: "alice", UID: 1900000002, GID: 1900000002, Gecos: "Alice Ångström",
		Home: "/home/alice", Shell: "/bin/bash", Groups: []uint32{999, 4},
		WallDeadline: time.UnixMilli(1_800_000_000_123), BootDeadline: 90 * time.Minute,
	}
}

func bob() Account {
	return Account{
		Login: "bob", UID: 1900000001, GID: 1900000001, Home: "/home/bob", Shell: "/bin/sh",
		WallDeadline: time.UnixMilli(1), BootDeadline: -time.Hour,
	}
}

func team() Group {
	return Group{
		Name: "aaa-team", GID: 1900000100, Members: []string{"carol", "alice"},
		WallDeadline: time.UnixMilli(1_800_000_000_000), BootDeadline: time.Hour,
	}
}

// The golden file is the format: when this fails, every host that runs an older NSS module fails.
func TestRenderGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/snapshot.hex")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Render([]Account{alice(), bob()}, []Group{team()})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), dump(got)); diff != "" {
		t.Errorf("the snapshot's bytes changed (-golden +now):\n%s\nnow:\n%s", diff, dump(got))
	}
}

// dump leaves out lines of zeros, of which pages have many.
func dump(b []byte) string {
	var text strings.Builder
	for line := range strings.Lines(hex.Dump(b)) {
		if !strings.HasSuffix(line, "|................|\n") || strings.Trim(line[8:58], " 0") != "" {
			text.WriteString(line)
		}
	}
	return text.String()
}

func TestRenderIsDeterministicAndLeavesItsInput(t *testing.T) {
	var accounts []Account
	for i := range 50 {
		a := alice()
		a.Login = fmt.Sprintf("user%d", i*7%50)
		a.UID = uint32(2000 + i)
		a.GID = a.UID
		accounts = append(accounts, a)
	}
	want, err := Render(accounts, []Group{team()})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		shuffled := slices.Clone(accounts)
		rand.Shuffle(len(shuffled), func(i, j int) {
			shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
		})
		before := fmt.Sprint(shuffled)
		got, err := Render(shuffled, []Group{team()})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(want, got) {
			t.Fatal("the order of accounts changes the file")
		}
		if fmt.Sprint(shuffled) != before {
			t.Fatal("Render reorders its caller's accounts")
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	long := strings.Repeat("a", maxField+1)
	for name, edit := range map[string]func(a, b *Account, g *Group){
		"two of one name":         func(a, b *Account, _ *Group) { b.Login = a.Login },
		"two of one uid":          func(a, b *Account, _ *Group) { b.UID, b.GID = a.UID, a.GID },
		"uid 0":                   func(a, _ *Account, _ *Group) { a.UID = 0 },
		"gid 0":                   func(a, _ *Account, _ *Group) { a.GID = 0 },
		"system uid":              func(a, _ *Account, _ *Group) { a.UID, a.GID = 999, 999 },
		"uid of no change":        func(a, _ *Account, _ *Group) { a.UID, a.GID = 1<<32-1, 1<<32-1 },
		"gid of no group":         func(a, _ *Account, _ *Group) { a.GID = 5000 },
		"private group's name":    func(a, _ *Account, g *Group) { g.Name = a.Login },
		"supplementary gid 0":     func(a, _ *Account, _ *Group) { a.Groups = []uint32{4, 0} },
		"supplementary gid twice": func(a, _ *Account, _ *Group) { a.Groups = []uint32{4, 999, 4} },
		"too many groups":         func(a, _ *Account, _ *Group) { a.Groups = make([]uint32, 1025) },
		"no name":                 func(a, _ *Account, _ *Group) { a.Login = "" },
		"name with a colon":       func(a, _ *Account, _ *Group) { a.Login = "a:b" },
		"name with a newline":     func(a, _ *Account, _ *Group) { a.Login = "a\nroot" },
		"name with a dot":         func(a, _ *Account, _ *Group) { a.Login = "a.b" },
		"name of digits":          func(a, _ *Account, _ *Group) { a.Login = "1000" },
		"name with a dash first":  func(a, _ *Account, _ *Group) { a.Login = "-a" },
		"homoglyph":               func(a, _ *Account, _ *Group) { a.Login = "\u0430lice" },
		"gecos with a colon":      func(a, _ *Account, _ *Group) { a.Gecos = "x:0:0" },
		"gecos with a newline":    func(a, _ *Account, _ *Group) { a.Gecos = "x\nroot::0:0" },
		"gecos with a C1 control": func(a, _ *Account, _ *Group) { a.Gecos = "\u009b" },
		"gecos not UTF-8":         func(a, _ *Account, _ *Group) { a.Gecos = "\xff" },
		"gecos too long":          func(a, _ *Account, _ *Group) { a.Gecos = long },
		"home with NUL":           func(a, _ *Account, _ *Group) { a.Home = "/home/a\x00" },
		"home relative":           func(a, _ *Account, _ *Group) { a.Home = "home" },
		"no home":                 func(a, _ *Account, _ *Group) { a.Home = "" },
		"no shell":                func(a, _ *Account, _ *Group) { a.Shell = "" },
		"shell with DEL":          func(a, _ *Account, _ *Group) { a.Shell = "/bin/\x7f" },
		"no deadline":             func(a, _ *Account, _ *Group) { a.WallDeadline = time.Time{} },
		"group 0":                 func(_, _ *Account, g *Group) { g.GID = 0 },
		"system group":            func(_, _ *Account, g *Group) { g.GID = 999 },
		"group of no change":      func(_, _ *Account, g *Group) { g.GID = 1<<32 - 1 },
		"group without a name":    func(_, _ *Account, g *Group) { g.Name = "" },
		"group with a colon":      func(_, _ *Account, g *Group) { g.Name = "a:b" },
		"group without deadline":  func(_, _ *Account, g *Group) { g.WallDeadline = time.Time{} },
		"member twice":            func(_, _ *Account, g *Group) { g.Members = []string{"b", "a", "b"} },
		"member with a comma":     func(_, _ *Account, g *Group) { g.Members = []string{"b,root"} },
		"member with a newline":   func(_, _ *Account, g *Group) { g.Members = []string{"b\nroot"} },
		"member without a name":   func(_, _ *Account, g *Group) { g.Members = []string{""} },
		"member with long name":   func(_, _ *Account, g *Group) { g.Members = []string{long[:65]} },
		"too many members":        func(_, _ *Account, g *Group) { g.Members = make([]string, 65536) },
	} {
		a, b, g := alice(), bob(), team()
		edit(&a, &b, &g)
		out, err := Render([]Account{a, b}, []Group{g})
		if !errors.Is(err, ErrSnapshot) || out != nil {
			t.Errorf("%s: Render = %d bytes, %v; want ErrSnapshot and nothing", name, len(out), err)
		}
		for _, x := range []Account{a, b} {
			_, err := Render([]Account{x}, nil)
			if got := Check(x); (got == nil) != (err == nil) {
				t.Errorf("%s: Check(%s) = %v, Render says %v", name, x.Login, got, err)
			}
		}
	}
}

func TestRenderRefusesTwoGroups(t *testing.T) {
	for name, edit := range map[string]func(*Group){
		"name": func(g *Group) { g.GID++ },
		"gid":  func(g *Group) { g.Name = "other" },
	} {
		other := team()
		edit(&other)
		if _, err := Render(nil, []Group{team(), other}); !errors.Is(err, ErrSnapshot) {
			t.Errorf("two groups of one %s: %v", name, err)
		}
	}
}

func TestRenderTakesAGivenPrivateGroup(t *testing.T) {
	a := alice()
	g := Group{Name: "people", GID: 5000, WallDeadline: a.WallDeadline}
	a.GID = 5000
	out, err := Render([]Account{a}, []Group{g})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(out), "alice") != 2 || strings.Count(string(out), "people") != 1 {
		t.Errorf("want alice's name and home, and one group people:\n%s", hex.Dump(out))
	}
}

func TestRenderRefusesAFileOverItsCap(t *testing.T) {
	var accounts []Account
	for i := range 5000 {
		a := bob()
		a.Login, a.UID, a.GID = fmt.Sprintf("u%d", i), uint32(2000+i), uint32(2000+i)
		a.Gecos = strings.Repeat("x", maxField)
		accounts = append(accounts, a)
	}
	if _, err := Render(accounts, nil); !errors.Is(err, ErrSnapshot) {
		t.Errorf("20 MB of accounts: %v", err)
	}
}

// TestRenderWithoutPages: logins that were made to meet on one page cost readers time, nothing else.
func TestRenderWithoutPages(t *testing.T) {
	accounts := func(n int, meet bool) (list []Account) {
		for i := 0; len(list) < n; i++ {
			a := bob()
			a.Login, a.UID, a.GID = fmt.Sprintf("u%d", i), uint32(2000+i), uint32(2000+i)
			if !meet || hash(0, []byte(a.Login))%26 == 7 {
				list = append(list, a)
			}
		}
		return list
	}
	for _, c := range []struct {
		accounts []Account
		pages    int
	}{
		{nil, 0},
		{accounts(1, false), 1},
		{accounts(1000, false), 36},
		{accounts(697, true), 0},
	} {
		b, err := Render(c.accounts, nil)
		if err != nil {
			t.Fatal(err)
		}
		pages := strings.Count(string(b), pageMagic)
		if pages != c.pages || pages > 0 && len(b)%pageSize != pages {
			t.Errorf("%d accounts: %d pages in %d bytes, want %d", len(c.accounts), pages, len(b), c.pages)
		}
	}
}

func TestRenderGateTable(t *testing.T) {
	got, err := RenderGateTable(ModeEnforce, nil, []Principal{
		{ClassExempt, 1003, "rescue"},
		{ClassAccount, 1900000001, "alice"},
		{ClassGated, 1001, `EXAMPLE\bob`},
		{ClassGated, 1001, "bob"},
		{ClassElevate, 1002, "carol@example.com"},
		{ClassExempt, 0, "toor"},
	})
	const want = "curfew-gate 1\nmode enforce\nexempt 0 toor\n" +
		"gated 1001 EXAMPLE\\bob\ngated 1001 bob\nelevate 1002 carol@example.com\n" +
		"exempt 1003 rescue\naccount 1900000001 alice\nend\n"
	if diff := cmp.Diff(want, string(got)); err != nil || diff != "" {
		t.Errorf("RenderGateTable: %v\n%s", err, diff)
	}
	if got, err := RenderGateTable(ModeObserve, nil, nil); err != nil ||
		string(got) != "curfew-gate 1\nmode observe\nend\n" {
		t.Errorf("empty table: %q, %v", got, err)
	}
}

func TestRenderGateTableRefuses(t *testing.T) {
	var many []Principal
	for i := range 60_000 {
		name := fmt.Sprintf("%064d", i)
		many = append(many, Principal{ClassGated, uint32(100_000 + i), name})
	}
	for name, list := range map[string][]Principal{
		"no class":           {{0, 1001, "bob"}},
		"unknown class":      {{5, 1001, "bob"}},
		"gated root":         {{ClassGated, 0, "root"}},
		"system account":     {{ClassAccount, 999, "bob"}},
		"uid of no change":   {{ClassGated, 1<<32 - 1, "bob"}},
		"no name":            {{ClassGated, 1001, ""}},
		"name with a space":  {{ClassGated, 1001, "bob x"}},
		"newline in a name":  {{ClassGated, 1001, "bob\nend"}},
		"name too long":      {{ClassGated, 1001, strings.Repeat("b", 65)}},
		"name twice":         {{ClassGated, 1001, "bob"}, {ClassGated, 1002, "bob"}},
		"uid in two classes": {{ClassGated, 1001, "bob"}, {ClassExempt, 1001, "bob2"}},
		"too many":           many,
	} {
		if out, err := RenderGateTable(ModeEnforce, nil, list); err == nil {
			t.Errorf("%s: RenderGateTable wrote %.200q", name, out)
		}
	}
	trial := &Trial{Wall: time.UnixMilli(1790000000123), Boot: 1234567 * time.Millisecond}
	if got, err := RenderGateTable(ModeEnforce, trial, nil); err != nil ||
		string(got) != "curfew-gate 1\nmode trial 1790000000123 1234567\nend\n" {
		t.Errorf("a trial: %q, %v", got, err)
	}
	if got, err := RenderGateTable(ModeObserve, trial, nil); err != nil ||
		string(got) != "curfew-gate 1\nmode observe\nend\n" {
		t.Errorf("observe has no trial: %q, %v", got, err)
	}
	if out, err := RenderGateTable(ModeEnforce, &Trial{Wall: time.Now()}, nil); err == nil {
		t.Errorf("a trial without an end: %q", out)
	}
	if _, err := RenderGateTable(0, nil, nil); err == nil {
		t.Error("no mode: RenderGateTable wrote a table")
	}
}
