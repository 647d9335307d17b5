package pam_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/agent/enforce/account"
	"github.com/curfew-access/curfew/internal/gatewire"
)

// pure is the module's pure half in a process of its own, under ASan and UBSan. Its death is a
// finding.
type pure struct {
	mu     sync.Mutex
	in     io.WriteCloser
	out    io.Reader
	stderr bytes.Buffer
	cmd    *exec.Cmd
}

func startPure(t testing.TB) *pure {
	t.Helper()
	p := &pure{cmd: exec.Command(bin + "/pam_pure.asan")}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.in.Close()
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("the C half died: %v\n%s", err, p.stderr.String())
		}
	})
	return p
}

// fataler is what a test, a fuzz target and a property have in common.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func (p *pure) ask(t fataler, question []byte) []byte {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	frame := binary.LittleEndian.AppendUint32(nil, uint32(len(question)))
	if _, err := p.in.Write(append(frame, question...)); err != nil {
		t.Fatalf("the C half is gone (%v) before %q", err, question)
	}
	var head [4]byte
	if _, err := io.ReadFull(p.out, head[:]); err != nil {
		_ = p.cmd.Wait()
		t.Fatalf("the C half died of %q:\n%s", question, p.stderr.String())
	}
	answer := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(p.out, answer); err != nil {
		t.Fatalf("the C half's answer to %q is cut", question)
	}
	return answer
}

// reply asks the C half what it reads from a packet.
func (p *pure) reply(t fataler, packet []byte) gatewire.Reply {
	t.Helper()
	a := p.ask(t, append([]byte("R"), packet...))
	return gatewire.Reply{Verdict: gatewire.Verdict(a[0]), Text: string(a[1:])}
}

// TestKeptCorpus runs the C fuzz target over every input that libFuzzer's runs left (make fuzz).
func TestKeptCorpus(t *testing.T) {
	inputs, err := filepath.Glob("testdata/corpus/*")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	if out, err := exec.Command(bin+"/pam_replay.asan", inputs...).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func FuzzReply(f *testing.F) {
	p := startPure(f)
	for _, s := range []string{
		"", "CFA1", "CFA1\x01\x00\x00\x00", "CFA1\x02\x00\x06\x00no: \xc3\xa9",
		"CFA1\x04\x00\x01\x00\x7f", "CFA1\x01\x00\x02\x00\xc2\x9b", "CFA1\x01\x00\x02\x00\xc0\xaf",
		"CFA1\x01\x00\x03\x00\xed\xa0\x80", "CFA1\x01\x00\x04\x00\xf4\x90\x80\x80",
		"CFA1\x01\x00\x04\x00\xf4\x8f\xbf\xbf", "CFA1\x01\x00\x03\x00\xe0\x9f\xbf",
		"CFA1\x01\x00\x04\x00\xf0\x8f\xbf\xbf", "CFA1\x01\x00\x02\x00\xe2\x82",
		"CFA1\x03\x00\x00\x02" + strings.Repeat("a", 512),
		"CFA1\x03\x00\x01\x02" + strings.Repeat("a", 513),
		"CFA1\x03\x00\xf9\x03" + strings.Repeat("a", 1017),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		// A refused packet is the zero Reply in both languages.
		want, _ := gatewire.DecodeReply(packet)
		if got := p.reply(t, packet); got != want {
			t.Fatalf("%q: C reads %+v, Go reads %+v", packet, got, want)
		}
	})
}

// tableAnswer is what the C half says of a table.
type tableAnswer struct {
	Whole, Observe      bool
	UIDClass, NameClass int
	Asks                bool
	Trial               bool
	Wall, Boot          uint64
}

type subject struct {
	byUID     bool
	uid       uint32
	name      string // "" for none
	elevation bool
}

func (p *pure) table(t fataler, s subject, piece int, table []byte) tableAnswer {
	t.Helper()
	q := append([]byte("T"), 0)
	if s.byUID {
		q[1] = 1
	}
	q = binary.LittleEndian.AppendUint32(q, s.uid)
	if s.name == "" {
		q = binary.LittleEndian.AppendUint32(q, 1<<32-1)
	} else {
		q = binary.LittleEndian.AppendUint32(q, uint32(len(s.name)))
		q = append(q, s.name...)
	}
	elevation := byte(0)
	if s.elevation {
		elevation = 1
	}
	q = append(q, elevation)
	q = binary.LittleEndian.AppendUint32(q, uint32(max(1, piece)))
	a := p.ask(t, append(q, table...))
	return tableAnswer{
		a[0] != 0, a[1] != 0, int(a[2]), int(a[3]), a[4] != 0,
		a[5] != 0, binary.LittleEndian.Uint64(a[6:]), binary.LittleEndian.Uint64(a[14:]),
	}
}

var (
	tableLine = regexp.MustCompile(
		`^(account|gated|elevate|exempt) (0|[1-9][0-9]{0,9}) ([!-~]{1,64})$`)
	tableMode = regexp.MustCompile(
		`^mode (?:observe|enforce|trial (0|[1-9][0-9]{0,14}) (0|[1-9][0-9]{0,14}))$`)
	classOf = map[string]int{"account": 1, "gated": 2, "elevate": 3, "exempt": 4}
)

// model reads a table as section 5 says, in another language and another way than the module. The
// zero answer means that the table is to be disregarded.
func model(s subject, table []byte) tableAnswer {
	text, ended := strings.CutSuffix(string(table), "\nend\n")
	lines := strings.Split(text, "\n")
	if !ended || len(table) > 4<<20 || len(lines) < 2 || lines[0] != "curfew-gate 1" ||
		!tableMode.MatchString(lines[1]) {
		return tableAnswer{}
	}
	a := tableAnswer{Whole: true, Observe: lines[1] == "mode observe"}
	if m := tableMode.FindStringSubmatch(lines[1]); m[1] != "" {
		a.Trial = true
		a.Wall, _ = strconv.ParseUint(m[1], 10, 64) // 15 digits
		a.Boot, _ = strconv.ParseUint(m[2], 10, 64)
	}
	for _, line := range lines[2:] {
		m := tableLine.FindStringSubmatch(line)
		if m == nil {
			return tableAnswer{}
		}
		uid, err := strconv.ParseUint(m[2], 10, 32)
		if err != nil {
			return tableAnswer{}
		}
		class := classOf[m[1]]
		if uid < 1000 {
			class = 4
		}
		if s.byUID && uint32(uid) == s.uid {
			a.UIDClass = class
		}
		if m[3] == s.name {
			a.NameClass = class
		}
	}
	asks := func(class int) bool { return class == 1 || class == 2 || class == 3 && s.elevation }
	a.Asks = asks(a.UIDClass) || a.UIDClass != 4 && asks(a.NameClass)
	return a
}

func FuzzGateTable(f *testing.F) {
	p := startPure(f)
	for _, s := range []string{
		"", "end\n", "curfew-gate 1\nend\n", "curfew-gate 1\nmode observe\nend\n", enforce,
		enforce + "x", enforce[:len(enforce)-1], strings.ReplaceAll(enforce, "\n", "\r\n"),
		strings.Replace(enforce, "1001", "4294967295", 1),
		strings.Replace(enforce, "1001", "4294967296", 1),
		strings.Replace(enforce, "1001", "10010010010", 1),
		strings.Replace(enforce, "1001", "01001", 1),
		strings.Replace(enforce, "1001", "0", 1), strings.Replace(enforce, "1001", "", 1),
		strings.Replace(enforce, "bob", strings.Repeat("b", 64), 1),
		strings.Replace(enforce, "bob", strings.Repeat("b", 65), 1),
		strings.Replace(enforce, "bob", strings.Repeat("b", 116), 1), // a line at its cap
		strings.Replace(enforce, "bob", strings.Repeat("b", 117), 1),
		strings.Replace(enforce, "bob", strings.Repeat("b", 200), 1),
		strings.Replace(enforce, "bob", "b\x00b", 1), strings.Replace(enforce, "bob", "b\x7fb", 1),
		strings.Replace(enforce, "bob", "", 1), strings.Replace(enforce, "bob", "b b", 1),
		strings.Replace(enforce, "gated", "gatd", 1),
		strings.Replace(enforce, "end", "end\nend", 1),
		strings.Replace(enforce, "enforce", "trial 1790000000000 1234567", 1),
		strings.Replace(enforce, "enforce", "trial 0 0", 1), strings.Replace(enforce, "enforce", "trial 1", 1),
		strings.Replace(enforce, "enforce", "trial 01 2", 1), strings.Replace(enforce, "enforce", "trial 1 2 ", 1),
		strings.Replace(enforce, "enforce", "trial 999999999999999 1000000000000000", 1),
	} {
		f.Add(true, uint32(1001), "alice", true, uint16(7), []byte(s))
		f.Add(false, uint32(0), "bob", false, uint16(1), []byte(s))
	}
	f.Fuzz(func(t *testing.T, byUID bool, uid uint32, name string, sudo bool, n uint16, table []byte) {
		name, _, _ = strings.Cut(name, "\x00")
		s := subject{byUID, uid, name, sudo}
		got, want := p.table(t, s, int(n), table), model(s, table)
		if !got.Whole {
			got = tableAnswer{} // what a broken table said until it broke is not used
		}
		if got != want {
			t.Fatalf("%+v in %q: C reads %+v, the model %+v", s, table, got, want)
		}
	})
}

// optional is what section 4 lets the module send of a field that PAM holds.
func optional(s string, limit int) string {
	control := func(c rune) bool { return c < 0x20 || c == 0x7f }
	if len(s) > limit || strings.ContainsFunc(s, control) {
		return ""
	}
	return s
}

// TestRequestsAreWhatPAMKnows: any strings at all, built in C, read in Go.
func TestRequestsAreWhatPAMKnows(t *testing.T) {
	p := startPure(t)
	text := func(limit int) *rapid.Generator[string] {
		return rapid.OneOf(
			rapid.StringMatching(`[a-z0-9.:/-]{0,70}`),
			rapid.Just(strings.Repeat("x", limit)),
			rapid.Just(strings.Repeat("x", limit+1)),
			rapid.Map(rapid.SliceOfN(rapid.ByteRange(1, 255), 0, limit+2),
				func(b []byte) string { return string(b) }),
		)
	}
	rapid.Check(t, func(t *rapid.T) {
		r := gatewire.Request{
			Op:      rapid.SampledFrom([]gatewire.Op{1, 2}).Draw(t, "op"),
			UID:     rapid.Uint32().Draw(t, "uid"),
			Service: text(32).Draw(t, "service"), User: text(64).Draw(t, "user"),
			RUser: text(64).Draw(t, "ruser"), RHost: text(255).Draw(t, "rhost"),
			TTY: text(64).Draw(t, "tty"), AuthInfo: text(2048).Draw(t, "auth info"),
		}
		q := append([]byte("Q"), byte(r.Op))
		q = binary.LittleEndian.AppendUint32(q, r.UID)
		for _, s := range []string{r.Service, r.User, r.RUser, r.RHost, r.TTY, r.AuthInfo} {
			if s == "" && rapid.Bool().Draw(t, "absent") {
				q = binary.LittleEndian.AppendUint32(q, 1<<32-1)
				continue
			}
			q = binary.LittleEndian.AppendUint32(q, uint32(len(s)))
			q = append(q, s...)
		}
		packet := p.ask(t, q)

		want := r
		want.Service, want.User = optional(r.Service, 32), optional(r.User, 64)
		want.RUser, want.RHost = optional(r.RUser, 64), optional(r.RHost, 255)
		want.TTY = optional(r.TTY, 64)
		want.AuthInfo = r.AuthInfo[:min(len(r.AuthInfo), 2048)]
		if one := strings.ReplaceAll(want.AuthInfo, "\n", "n"); optional(one, 2048) != one {
			want.AuthInfo = ""
		}
		if want.Service == "" || want.User == "" {
			if len(packet) != 0 {
				t.Fatalf("%+v is sent as %q", r, packet)
			}
			return
		}
		got, err := gatewire.DecodeRequest(packet)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Fatalf("%q: %v\n%s", packet, err, diff)
		}
	})
}

// TestRenderedTablesAreRead: what the agent writes is what the module reads, for every principal.
func TestRenderedTablesAreRead(t *testing.T) {
	p := startPure(t)
	rapid.Check(t, func(t *rapid.T) {
		byName := map[string]account.Principal{}
		classes := map[uint32]account.Class{}
		for range rapid.IntRange(0, 30).Draw(t, "principals") {
			// Few uids, so that several names share one.
			uid := rapid.SampledFrom([]uint32{1000, 1001, 1002, 65534, 1900000001}).Draw(t, "uid")
			if _, ok := classes[uid]; !ok {
				classes[uid] = account.Class(rapid.IntRange(1, 4).Draw(t, "class"))
			}
			name := rapid.StringMatching(`[!-9;-~]{1,64}`).Draw(t, "name")
			name = strings.ReplaceAll(name, ",", "_")
			byName[name] = account.Principal{Class: classes[uid], UID: uid, Name: name}
		}
		observe := rapid.Bool().Draw(t, "observe")
		mode := account.ModeEnforce
		if observe {
			mode = account.ModeObserve
		}
		var trial *account.Trial
		told := tableAnswer{Whole: true, Observe: observe}
		if !observe && rapid.Bool().Draw(t, "trial") {
			told.Trial = true
			told.Wall = rapid.Uint64Range(1, 999_999_999_999_999).Draw(t, "wall")
			told.Boot = rapid.Uint64Range(1, 999_999_999_999).Draw(t, "boot")
			trial = &account.Trial{
				Wall: time.UnixMilli(int64(told.Wall)), Boot: time.Duration(told.Boot) * time.Millisecond,
			}
		}
		table, err := account.RenderGateTable(mode, trial, slices.Collect(maps.Values(byName)))
		if err != nil {
			t.Fatalf("%v: %v", byName, err)
		}
		sudo := rapid.Bool().Draw(t, "sudo")
		piece := rapid.IntRange(1, 5000).Draw(t, "piece")
		for name, want := range byName {
			class := int(want.Class)
			asks := want.Class <= account.ClassGated || want.Class == account.ClassElevate && sudo
			byUID := p.table(t, subject{true, want.UID, "", sudo}, piece, table)
			named := p.table(t, subject{false, 0, name, sudo}, piece, table)
			wantUID, wantName := told, told
			wantUID.UIDClass, wantUID.Asks = class, asks
			wantName.NameClass, wantName.Asks = class, asks
			if byUID != wantUID || named != wantName {
				t.Fatalf("%+v: by uid %+v, by name %+v", want, byUID, named)
			}
		}
		stranger := p.table(t, subject{true, 1003, " nobody", true}, piece, table)
		if stranger != told {
			t.Fatalf("a stranger is %+v", stranger)
		}
	})
}
