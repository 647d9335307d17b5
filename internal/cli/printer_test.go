package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
)

// onPty runs write with a printer on a real terminal of the given width and returns what the
// terminal got.
func onPty(t *testing.T, columns uint16, write func(*printer)) string {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	p := newPrinter(Env{
		Stdout: slave, Stderr: slave, Getenv: func(string) string { return "" }, Now: time.Now,
	})
	write(p)
	const end = "<end>"
	if _, err := slave.WriteString(end); err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.HasSuffix(got.String(), end) {
		if err := master.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := master.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got.String(), err)
		}
		got.Write(buf[:n])
	}
	return strings.TrimSuffix(got.String(), end)
}

var sampleRows = [][]cell{
	{text("k3v9x2"), styled(green, "granted"), text("nginx hangs, and the reason is long")},
	{text("a"), styled(yellow, "pending"), text("日本語の理由")},
}

func TestTableOnATerminal(t *testing.T) {
	got := onPty(t, 40, func(p *printer) { p.Table([]string{"ID", "STATE", "REASON"}, sampleRows) })
	want := "\x1b[1mID\x1b[0m      \x1b[1mSTATE\x1b[0m    \x1b[1mREASON\x1b[0m\r\n" +
		"k3v9x2  \x1b[32mgranted\x1b[0m  nginx hangs, and the r…\r\n" +
		"a       \x1b[33mpending\x1b[0m  日本語の理由\r\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTableInAPipe(t *testing.T) {
	var out bytes.Buffer
	p := &printer{out: &out}
	p.Table([]string{"ID", "STATE", "REASON"}, append(sampleRows,
		[]cell{{text: "x (in 5m)", raw: "x"}, text("a\tb"), text("c\nd")}))
	want := "k3v9x2\tgranted\tnginx hangs, and the reason is long\n" +
		"a\tpending\t日本語の理由\n" +
		"x\ta\\tb\tc\\nd\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestNoColor(t *testing.T) {
	_, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	for name, on := range map[string]bool{"NO_COLOR": false, "OTHER": true} {
		p := newPrinter(Env{Stdout: slave, Stderr: slave, Getenv: func(s string) string {
			if s == name {
				return "1"
			}
			return ""
		}})
		if p.color != on || p.errColor != on {
			t.Errorf("%s=1: colours %v, %v; want %v", name, p.color, p.errColor, on)
		}
	}
}

func TestLiveLineOnATerminal(t *testing.T) {
	got := onPty(t, 30, func(p *printer) {
		l := p.live()
		l.set("k3 pending", "1s")
		l.set("k3 pending", "2s")
		l.set("k3 approved · waiting for a very distant host", "3s")
		l.clear()
		l.clear()
		p.Line("done")
	})
	want := "\rk3 pending · 1s\x1b[K" + "\rk3 pending · 2s\x1b[K" +
		"\rk3 approved · waiting f… · 3s\x1b[K" + "\r\x1b[Kdone\r\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLiveLineInAPipe(t *testing.T) {
	var out bytes.Buffer
	l := (&printer{err: &out}).live()
	l.set("pending", "1s")
	l.set("pending", "2s")
	l.set("approved", "3s")
	l.clear()
	if want := "pending\napproved\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestColumns(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "日本": 4, "e\u0301": 1} {
		if got := columns(s); got != want {
			t.Errorf("columns(%q) = %d, want %d", s, got, want)
		}
	}
	for limit := range 12 {
		if got := columns(cut("日本語abc", limit)); got > max(limit, 1) {
			t.Errorf("cut to %d columns takes %d", limit, got)
		}
	}
}

// Whatever anybody wrote, no byte that steers a terminal comes out, on a terminal or in a pipe; and
// JSON still says exactly what was written.
func FuzzTerminalText(f *testing.F) {
	for _, seed := range []string{
		"plain", "\x1b[2J\x1b]0;title\a", "a\tb\nc\rd", "\u009b31m", "\u202eevil", "\u200b", "\xff\xfe",
		"\U000e0001", "日本語", "\u2028",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, tty := range []bool{false, true} {
			var out bytes.Buffer
			p := &printer{out: &out, err: &out, outTTY: tty, errTTY: tty, now: time.Now}
			p.Line("%s", s)
			p.Talk("%s", s)
			p.Ask("%s", s)
			p.Error("%s", s)
			p.Warn("%s", s)
			p.Hint("%s", s)
			p.Table([]string{"A", "B"}, [][]cell{{text(s), styled(red, s)}, {{raw: s}, {text: s}}})
			p.Fields([]field{{"label", text(s)}, {"other", cell{text: s, raw: s}}})
			if err := p.JSON(map[string]string{s: s}); err != nil {
				t.Fatal(err)
			}
			if !tty {
				p.live().set(s, "1s")
			}
			for _, r := range out.String() {
				if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
					t.Fatalf("%q comes out as %q in %q", s, r, out.String())
				}
			}
			if tabs := strings.Count(out.String(), "\t"); !tty && tabs != 2 || tty && tabs != 0 {
				t.Fatalf("%q brings tabs of its own: %q", s, out.String())
			}
		}
		line, err := encodeJSON(s)
		if err != nil {
			t.Fatal(err)
		}
		var back string
		if err := json.Unmarshal([]byte(line), &back); err != nil ||
			utf8.ValidString(s) && back != s {
			t.Fatalf("%q as JSON is %s, which is %q, %v", s, line, back, err)
		}
	})
}

func TestTerminalWidthOfNoTerminal(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := terminalWidth(file); got != 80 {
		t.Errorf("a file is %d columns wide", got)
	}
	if isTerminal(file) {
		t.Error("a file is a terminal")
	}
}
