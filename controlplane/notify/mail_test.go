package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/internal/mailtest"
)

var noon = time.UnixMilli(1_800_000_000_000)

func note(t *testing.T, change func(map[string]any)) []byte {
	t.Helper()
	m := map[string]any{
		"organisation": "acme", "request_id": "abcdefghijkl", "revision": 1, "requester": "alice",
		"role": "ops", "hosts": []string{"web1", "web2"}, "duration_ms": 3_600_000,
		"reason": "nginx hangs, INC-7", "lapses_ms": noon.Add(time.Hour).UnixMilli(),
		"command": "curfew approve abcdefghijkl",
	}
	if change != nil {
		change(m)
	}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func post(t *testing.T, m Mail, d Delivery) error {
	t.Helper()
	if m.From == "" {
		m.From = "curfew@acme.org"
	}
	mailer, err := newMailer(m, func() time.Time { return noon })
	if err != nil {
		t.Fatal(err)
	}
	return mailer.send(t.Context(), d)
}

// read takes a delivered mail apart as a mail reader does.
func read(t *testing.T, m mailtest.Mail) (mail.Header, string) {
	t.Helper()
	msg, err := mail.ReadMessage(strings.NewReader(m.Data))
	if err != nil {
		t.Fatalf("%v in %q", err, m.Data)
	}
	body, err := io.ReadAll(quotedprintable.NewReader(msg.Body))
	if err != nil {
		t.Fatal(err)
	}
	return msg.Header, string(body)
}

// A mail says who, what, why, until when, and what to type.
func TestMailSaysEverything(t *testing.T) {
	s := mailtest.Start(t, mailtest.Options{})
	d := Delivery{ID: "m1", URL: "mailto:bob@acme.org", Body: note(t, nil)}
	m := Mail{Server: s.Addr, TLS: StartTLS, CAs: s.CAs}
	for range 2 {
		if err := post(t, m, d); err != nil {
			t.Fatal(err)
		}
	}
	got := s.Mails()
	if len(got) != 2 || got[0].From != "curfew@acme.org" || strings.Join(got[0].To, " ") != "bob@acme.org" {
		t.Fatalf("delivered: %+v", got)
	}
	h, body := read(t, got[0])
	if h.Get("Subject") != "[curfew acme] alice asks for ops on web1, web2" ||
		h.Get("To") != "<bob@acme.org>" || h.Get("Auto-Submitted") != "auto-generated" {
		t.Errorf("the header is %v", h)
	}
	again, _ := read(t, got[1])
	if h.Get("Message-ID") == "" || h.Get("Message-ID") != again.Get("Message-ID") {
		t.Error("a second try looks like a second mail")
	}
	for _, want := range []string{
		"alice asks for role ops", "web1, web2", "1h0m0s", "nginx hangs, INC-7",
		"Fri 15 Jan 2027 09:00 UTC", "\r\n    curfew approve abcdefghijkl\r\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in %q", want, body)
		}
	}
}

// What has happened is told, not asked about.
func TestMailTellsNews(t *testing.T) {
	s := mailtest.Start(t, mailtest.Options{})
	d := Delivery{ID: "m1", URL: "mailto:bob@acme.org", Body: note(t, func(m map[string]any) {
		m["event"], m["text"] = "break_glass.used", "BREAK-GLASS: bob opened access on web1"
		m["command"], m["root_equivalent"] = "curfew log", true
	})}
	if err := post(t, Mail{Server: s.Addr, TLS: StartTLS, CAs: s.CAs}, d); err != nil {
		t.Fatal(err)
	}
	h, body := read(t, s.Mails()[0])
	if h.Get("Subject") != "[curfew acme] BREAK-GLASS: bob opened access on web1" ||
		!strings.HasPrefix(body, "BREAK-GLASS: bob opened access on web1\r\n") ||
		!strings.Contains(body, "ROOT-EQUIVALENT") || !strings.Contains(body, "\r\n    curfew log\r\n") ||
		strings.Contains(body, "sign") || strings.Contains(body, "refuse") {
		t.Errorf("%v\n%s", h, body)
	}
}

// Nothing that a person wrote becomes a header, a second mail or the end of this one.
func TestMailInjection(t *testing.T) {
	s := mailtest.Start(t, mailtest.Options{})
	m := Mail{Server: s.Addr, TLS: StartTLS, CAs: s.CAs}
	const evil = "x\r\nBcc: thief@evil.org\r\n\r\n.\r\nMAIL FROM:<a@b>\r\n\u202e\x1b[2J"
	for _, field := range []string{"reason", "requester", "role", "organisation", "request_id", "command"} {
		d := Delivery{ID: field, URL: "mailto:bob@acme.org", Body: note(t, func(m map[string]any) {
			m[field] = evil
		})}
		if err := post(t, m, d); err != nil {
			t.Fatal(err)
		}
		got := s.Mails()
		h, body := read(t, got[len(got)-1])
		subject, err := new(mime.WordDecoder).DecodeHeader(h.Get("Subject"))
		if err != nil || h.Get("Bcc") != "" || len(h) != 9 ||
			strings.ContainsAny(subject+body, "\u202e\x1b") {
			t.Errorf("%s: header %v, body %q", field, h, body)
		}
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, "Bcc:") || strings.TrimSpace(line) == "." {
				t.Errorf("%s reaches the line %q", field, line)
			}
		}
	}
	if n := len(s.Mails()); n != 6 {
		t.Errorf("%d mails of 6", n)
	}
	for _, bad := range []string{
		"mailto:a@b.org>\r\nRCPT TO:<thief@evil.org", "mailto:a@b.org, c@d.org", "mailto:", "a@b.org",
		"mailto:Bob <a@b.org>",
	} {
		if err := post(t, m, Delivery{ID: "x", URL: bad, Body: note(t, nil)}); err == nil {
			t.Errorf("%q was sent to", bad)
		}
	}
	if n := len(s.Mails()); n != 6 {
		t.Errorf("%d mails of 6", n)
	}
}

// No password and no mail goes out without TLS to the server that is meant.
func TestMailTLS(t *testing.T) {
	d := Delivery{ID: "m", URL: "mailto:bob@acme.org", Body: note(t, nil)}
	who := mailtest.Options{Username: "curfew", Password: "pw"}
	implicit := who
	implicit.Implicit = true
	start, tls := mailtest.Start(t, who), mailtest.Start(t, implicit)
	plain := mailtest.Start(t, mailtest.Options{NoTLS: true})
	for name, c := range map[string]struct {
		m  Mail
		ok bool
	}{
		"starttls":       {Mail{Server: start.Addr, TLS: StartTLS, CAs: start.CAs, Username: "curfew", Password: "pw"}, true},
		"implicit":       {Mail{Server: tls.Addr, TLS: Implicit, CAs: tls.CAs, Username: "curfew", Password: "pw"}, true},
		"wrong password": {Mail{Server: start.Addr, TLS: StartTLS, CAs: start.CAs, Username: "curfew", Password: "no"}, false},
		"no password":    {Mail{Server: start.Addr, TLS: StartTLS, CAs: start.CAs}, false},
		"another CA":     {Mail{Server: start.Addr, TLS: StartTLS, CAs: tls.CAs, Username: "curfew", Password: "pw"}, false},
		"system CAs":     {Mail{Server: tls.Addr, TLS: Implicit, Username: "curfew", Password: "pw"}, false},
		"no TLS offered": {Mail{Server: plain.Addr, TLS: StartTLS, CAs: start.CAs}, false},
	} {
		if err := post(t, c.m, d); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(start.Mails()) != 1 || len(tls.Mails()) != 1 || len(plain.Mails()) != 0 {
		t.Error("a mail went where it should not")
	}
}

// A reply of 5xx to a mail is final and reported at once; one to the session is not of the mail.
func TestMailThatIsRefusedForGood(t *testing.T) {
	now := noon
	s := mailtest.Start(t, mailtest.Options{Username: "curfew", Password: "pw", Refuse: func(to string) error {
		if strings.HasPrefix(to, "gone") {
			return &smtp.SMTPError{Code: 550, Message: "no such user"}
		}
		return nil
	}})
	b := newBox(now)
	for _, to := range []string{"mailto:gone@acme.org", "mailto:bob@acme.org"} {
		b.rows[to] = Delivery{ID: "m", Lane: MailLane, URL: to, Body: note(t, nil), Created: now}
		b.next[to] = now
	}
	round := func(password string) {
		t.Helper()
		sender, err := New(Config{
			Store: mailBox{b}, Mail: &Mail{
				Server: s.Addr, TLS: StartTLS, CAs: s.CAs, From: "curfew@acme.org", Username: "curfew",
				Password: password,
			},
			Now: func() time.Time { return now }, Log: hclog.NewNullLogger(),
		})
		if err == nil {
			err = sender.all(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	round("wrong") // 535
	if b.left() != 2 || len(b.gaveUp) != 0 {
		t.Fatalf("with a wrong password %d are left, %v given up", b.left(), b.gaveUp)
	}
	now = now.Add(time.Hour)
	round("pw")
	if b.left() != 0 || len(s.Mails()) != 1 || len(b.gaveUp) != 1 ||
		!strings.Contains(b.gaveUp[0], "gone@acme.org: refused for good: 550") ||
		!strings.Contains(b.gaveUp[0], "no such user") {
		t.Errorf("%d left, %d delivered, given up %v", b.left(), len(s.Mails()), b.gaveUp)
	}
}

// A server that is busy gets the mail later; one bad address keeps no other waiting.
func TestMailIsRetried(t *testing.T) {
	now := noon
	busy := true
	s := mailtest.Start(t, mailtest.Options{Refuse: func(to string) error {
		if busy || strings.HasPrefix(to, "gone") {
			return errors.New("not now")
		}
		return nil
	}})
	b := newBox(now)
	for _, to := range []string{"mailto:gone@acme.org", "mailto:bob@acme.org"} {
		b.rows[to] = Delivery{ID: "m", Lane: MailLane, URL: to, Body: note(t, nil), Created: now}
		b.next[to] = now
	}
	sender, err := New(Config{
		Store: mailBox{b}, Mail: &Mail{
			Server: s.Addr, TLS: StartTLS, CAs: s.CAs, From: "curfew@acme.org",
		},
		Now: func() time.Time { return now }, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	round := func() {
		t.Helper()
		if err := sender.all(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if round(); len(s.Mails()) != 0 || b.left() != 2 {
		t.Fatal("a busy server took it")
	}
	busy = false
	if round(); len(s.Mails()) != 0 {
		t.Fatal("it was tried again at once")
	}
	now = now.Add(2 * time.Second)
	if round(); len(s.Mails()) != 1 || b.left() != 1 {
		t.Errorf("%d delivered, %d left", len(s.Mails()), b.left())
	}
}

// mailBox is a box whose rows stand in the mail lane.
type mailBox struct{ *box }

func (m mailBox) DueDeliveries(_ context.Context, lane string, now time.Time, limit int) (
	out []Delivery, _ error,
) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for url, d := range m.rows {
		if d.Lane == lane && !m.next[url].After(now) && len(out) < limit {
			out = append(out, d)
		}
	}
	return out, nil
}

// LOGIN is for servers that offer nothing better, and never without TLS.
func TestLoginAuth(t *testing.T) {
	a := &loginAuth{"u", "p"}
	for _, c := range [][2]string{{"Username:", "u"}, {"Password:", "p"}, {"username:", "u"}} {
		if got, err := a.Next([]byte(c[0]), true); err != nil || !bytes.Equal(got, []byte(c[1])) {
			t.Errorf("%s gets %q, %v", c[0], got, err)
		}
	}
	if _, err := a.Next([]byte("Your cat:"), true); err == nil {
		t.Error("it answers anything")
	}
}
