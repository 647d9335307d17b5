package gatewire

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// full has every field, so that each rule can be broken by one edit.
var full = Request{
	Op: OpOpenSession, Service: "sshd", User: "alice", RUser: "root", RHost: "192.0.2.7",
	TTY: "ssh", UID: 0x01020304, AuthInfo: "publickey ssh-ed25519 AAAA\npassword\n",
}

const fullBytes = "CFQ1\x02\x07" +
	"\x01\x04\x00sshd" +
	"\x02\x05\x00alice" +
	"\x03\x04\x00root" +
	"\x04\x09\x00192.0.2.7" +
	"\x05\x03\x00ssh" +
	"\x06\x04\x00\x04\x03\x02\x01" +
	"\x07\x24\x00publickey ssh-ed25519 AAAA\npassword\n"

const leastBytes = "CFQ1\x01\x03\x01\x04\x00cron\x02\x03\x00bob\x06\x04\x00\xe9\x03\x00\x00"

func TestRequestBytes(t *testing.T) {
	for _, c := range []struct {
		bytes string
		want  Request
	}{
		{fullBytes, full},
		{leastBytes, Request{Op: OpAccount, Service: "cron", User: "bob", UID: 1001}},
	} {
		b, err := c.want.Encode()
		if err != nil || string(b) != c.bytes {
			t.Errorf("Encode(%+v) = %q, %v; want %q", c.want, b, err, c.bytes)
		}
		got, err := DecodeRequest([]byte(c.bytes))
		if err != nil || got != c.want {
			t.Errorf("DecodeRequest(%q) = %+v, %v; want %+v", c.bytes, got, err, c.want)
		}
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	head := func(count byte) string { return "CFQ1\x01" + string(count) }
	const (
		service = "\x01\x04\x00sshd"
		user    = "\x02\x03\x00bob"
		uid     = "\x06\x04\x00\x00\x00\x00\x00"
	)
	for name, b := range map[string]string{
		"nothing":            "",
		"magic alone":        "CFQ1",
		"reply's magic":      "CFA1" + leastBytes[4:],
		"op 0":               "CFQ1\x00" + leastBytes[5:],
		"op 3":               "CFQ1\x03" + leastBytes[5:],
		"trailing byte":      leastBytes + "\x00",
		"count too low":      head(2) + service + user + uid,
		"count too high":     head(4) + service + user + uid,
		"cut field head":     head(4) + service + user + uid + "\x07\x01",
		"cut field":          head(4) + service + user + uid + "\x07\x02\x00a",
		"descending":         head(3) + user + service + uid,
		"twice":              head(4) + service + user + user + uid,
		"tag 0":              head(4) + "\x00\x01\x00a" + service + user + uid,
		"tag 8":              head(4) + service + user + uid + "\x08\x01\x00a",
		"no service":         head(2) + user + uid,
		"no user":            head(2) + service + uid,
		"no uid":             head(2) + service + user,
		"empty field":        head(4) + service + user + "\x03\x00\x00" + uid,
		"short uid":          head(3) + service + user + "\x06\x03\x00\x00\x00\x00",
		"long uid":           head(3) + service + user + "\x06\x05\x00\x00\x00\x00\x00\x00",
		"NUL":                head(3) + service + "\x02\x03\x00b\x00b" + uid,
		"newline in a user":  head(3) + service + "\x02\x03\x00b\nb" + uid,
		"DEL in a user":      head(3) + service + "\x02\x03\x00b\x7fb" + uid,
		"NUL in auth_info":   head(4) + service + user + uid + "\x07\x01\x00\x00",
		"service over cap":   head(3) + "\x01\x21\x00" + strings.Repeat("s", 33) + user + uid,
		"user over cap":      head(3) + service + "\x02\x41\x00" + strings.Repeat("u", 65) + uid,
		"auth_info over cap": head(4) + service + user + uid + "\x07\x01\x08" + strings.Repeat("a", 2049),
		"packet over cap":    leastBytes + strings.Repeat("a", 4096),
	} {
		r, err := DecodeRequest([]byte(b))
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: DecodeRequest = %+v, %v; want ErrRefused", name, r, err)
		}
		if r != (Request{}) {
			t.Errorf("%s: a refused request still says %+v", name, r)
		}
	}
}

func TestEncodeRequestRefuses(t *testing.T) {
	for name, edit := range map[string]func(*Request){
		"no op":        func(r *Request) { r.Op = 0 },
		"no service":   func(r *Request) { r.Service = "" },
		"no user":      func(r *Request) { r.User = "" },
		"control byte": func(r *Request) { r.TTY = "pts/\x1b" },
		"long rhost":   func(r *Request) { r.RHost = strings.Repeat("h", 256) },
	} {
		r := full
		edit(&r)
		if b, err := r.Encode(); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: Encode = %q, %v; want ErrRefused", name, b, err)
		}
	}
}

func TestReplyBytes(t *testing.T) {
	for bytes, want := range map[string]Reply{
		"CFA1\x01\x00\x00\x00":           {Verdict: Allow},
		"CFA1\x02\x00\x06\x00no: é":      {Verdict: Deny, Text: "no: é"},
		"CFA1\x03\x00\x00\x00":           {Verdict: Ignore},
		"CFA1\x04\x00\x05\x00later":      {Verdict: TryAgain, Text: "later"},
		"CFA1\x01\x00\x04\x00\U0010ffff": {Verdict: Allow, Text: "\U0010ffff"},
	} {
		b, err := want.Encode()
		if err != nil || string(b) != bytes {
			t.Errorf("Encode(%+v) = %q, %v; want %q", want, b, err, bytes)
		}
		got, err := DecodeReply([]byte(bytes))
		if err != nil || got != want {
			t.Errorf("DecodeReply(%q) = %+v, %v; want %+v", bytes, got, err, want)
		}
	}
}

// refusedReplies are shared with the C parser's test by way of the fuzz seeds.
var refusedReplies = map[string]string{
	"nothing":         "",
	"magic alone":     "CFA1",
	"cut head":        "CFA1\x01\x00\x00",
	"request's magic": "CFQ1\x01\x00\x00\x00",
	"verdict 0":       "CFA1\x00\x00\x00\x00",
	"verdict 5":       "CFA1\x05\x00\x00\x00",
	"flags":           "CFA1\x01\x01\x00\x00",
	"text cut":        "CFA1\x01\x00\x02\x00a",
	"trailing":        "CFA1\x01\x00\x01\x00ab",
	"text over cap":   "CFA1\x02\x00\x01\x02" + strings.Repeat("a", 513),
	"packet over cap": "CFA1\x02\x00\xf9\x03" + strings.Repeat("a", 1017),
	"newline":         "CFA1\x02\x00\x01\x00\n",
	"NUL":             "CFA1\x02\x00\x01\x00\x00",
	"escape":          "CFA1\x02\x00\x02\x00\x1b[",
	"DEL":             "CFA1\x02\x00\x01\x00\x7f",
	"C1 control":      "CFA1\x02\x00\x02\x00\u009b",
	"half a rune":     "CFA1\x02\x00\x01\x00\xc3",
	"overlong":        "CFA1\x02\x00\x02\x00\xc0\xaf",
	"surrogate":       "CFA1\x02\x00\x03\x00\xed\xa0\x80",
	"above U+10FFFF":  "CFA1\x02\x00\x04\x00\xf4\x90\x80\x80",
}

func TestDecodeReplyRefuses(t *testing.T) {
	for name, b := range refusedReplies {
		if r, err := DecodeReply([]byte(b)); !errors.Is(err, ErrRefused) || r != (Reply{}) {
			t.Errorf("%s: DecodeReply = %+v, %v; want ErrRefused and nothing", name, r, err)
		}
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"Curfew: no grant":             "Curfew: no grant",
		"a\nb\x00c\x1b[2Jd":            "a\ufffdb\ufffdc\ufffd[2Jd",
		"\u009b31m":                    "\ufffd31m",
		"admin\u202egnp.exe":           "admin\ufffdgnp.exe",
		"\xff":                         "\ufffd",
		strings.Repeat("é", 300):       strings.Repeat("é", 256),
		"x" + strings.Repeat("é", 300): "x" + strings.Repeat("é", 255),
	} {
		if got := CleanText(in); got != want {
			t.Errorf("CleanText(%q) = %q, want %q", in, got, want)
		}
	}
}

// wireText draws what a field of the request may hold.
func wireText(minimum, limit int, newlines bool) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		b := rapid.SliceOfN(rapid.ByteRange(0x20, 0xff).
			Filter(func(c byte) bool { return c != 0x7f }), minimum, limit).Draw(t, "text")
		if newlines && len(b) > 0 && rapid.Bool().Draw(t, "newline") {
			b[0] = '\n'
		}
		return string(b)
	})
}

func drawRequest(t *rapid.T) Request {
	return Request{
		Op:       rapid.SampledFrom([]Op{OpAccount, OpOpenSession}).Draw(t, "op"),
		Service:  wireText(1, MaxService, false).Draw(t, "service"),
		User:     wireText(1, MaxUser, false).Draw(t, "user"),
		RUser:    wireText(0, MaxRUser, false).Draw(t, "ruser"),
		RHost:    wireText(0, MaxRHost, false).Draw(t, "rhost"),
		TTY:      wireText(0, MaxTTY, false).Draw(t, "tty"),
		UID:      rapid.Uint32().Draw(t, "uid"),
		AuthInfo: wireText(0, MaxAuthInfo, true).Draw(t, "auth info"),
	}
}

func TestRequestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawRequest(t)
		b, err := want.Encode()
		if err != nil {
			t.Fatalf("Encode(%+v): %v", want, err)
		}
		got, err := DecodeRequest(b)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Fatalf("decoded otherwise than encoded (%v): %s", err, diff)
		}
		// One bit decides: every packet means one thing, so a changed one never means the same.
		i := rapid.IntRange(0, 8*len(b)-1).Draw(t, "bit")
		b[i/8] ^= 1 << (i % 8)
		if got, err := DecodeRequest(b); err == nil && got == want {
			t.Fatalf("bit %d of %q does not count", i, b)
		}
	})
}

func TestAnyTextCleansToAReply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Reply{Verdict: Deny, Text: CleanText(string(rapid.SliceOf(rapid.Byte()).Draw(t, "text")))}
		b, err := r.Encode()
		if err != nil {
			t.Fatalf("CleanText left %q: %v", r.Text, err)
		}
		if got, err := DecodeReply(b); err != nil || got != r {
			t.Fatalf("DecodeReply(%q) = %+v, %v", b, got, err)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(fullBytes))
	f.Add([]byte(leastBytes))
	f.Add([]byte("CFQ1\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRequest(b)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || string(again) != string(b) {
			t.Fatalf("%q decodes to %+v, which is said %q (%v)", b, r, again, err)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, b := range refusedReplies {
		f.Add([]byte(b))
	}
	f.Add([]byte("CFA1\x02\x00\x06\x00no: é"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeReply(b)
		if err != nil {
			return
		}
		if !utf8.ValidString(r.Text) || strings.ContainsAny(r.Text, "\x00\n\r\x1b\u009b") {
			t.Fatalf("%q shows a person %q", b, r.Text)
		}
		again, err := r.Encode()
		if err != nil || string(again) != string(b) {
			t.Fatalf("%q decodes to %+v, which is said %q (%v)", b, r, again, err)
		}
	})
}
