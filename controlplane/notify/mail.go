package notify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/smtp"
	"net/textproto"
	"os"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// TLSMode is how a mail server is spoken to. There is no mode without TLS: a password, and who asks
// for what, are nobody else's.
type TLSMode string

// The modes.
const (
	StartTLS TLSMode = "starttls" // usually port 587
	Implicit TLSMode = "implicit" // usually port 465
)

// Set reads a mode.
func (m *TLSMode) Set(v string) error {
	if v != string(StartTLS) && v != string(Implicit) {
		return fmt.Errorf("%q is neither starttls nor implicit", grant.VisibleText(v))
	}
	*m = TLSMode(v)
	return nil
}

const (
	mailTimeout = 30 * time.Second
	maxSubject  = 180
)

// Mail is the server that mail goes out by.
type Mail struct {
	Server             string // HOST:PORT
	TLS                TLSMode
	From               string // a plain address
	Username, Password string // empty: no authentication
	CAs                []byte // PEM; nil for the system's
}

// mailer sends one mail per recipient, so that nobody sees who else is asked, and one bad address
// keeps no other waiting.
type mailer struct {
	Mail
	host string
	tls  *tls.Config
	now  func() time.Time
}

func newMailer(m Mail, now func() time.Time) (*mailer, error) {
	host, _, err := net.SplitHostPort(m.Server)
	if err != nil {
		return nil, fmt.Errorf("mail: server %q: %w", m.Server, err)
	}
	config := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if m.CAs != nil {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(m.CAs) {
			return nil, errors.New("mail: the file of CA certificates holds none in PEM")
		}
	}
	if m.TLS != StartTLS && m.TLS != Implicit {
		return nil, fmt.Errorf("mail: TLS mode %q", m.TLS)
	}
	return &mailer{Mail: m, host: host, tls: config, now: now}, nil
}

// letter is what a message says, as webhooks get it.
type letter struct {
	Event          string   `json:"event"`
	Organisation   string   `json:"organisation"`
	RequestID      string   `json:"request_id"`
	Revision       uint32   `json:"revision"`
	Requester      string   `json:"requester"`
	Role           string   `json:"role"`
	RootEquivalent bool     `json:"root_equivalent"`
	Hosts          []string `json:"hosts"`
	DurationMS     int64    `json:"duration_ms"`
	Reason         string   `json:"reason"`
	LapsesMS       int64    `json:"lapses_ms"`
	Text           string   `json:"text"`
	Command        string   `json:"command"`
}

// send delivers one mail.
func (m *mailer) send(ctx context.Context, d Delivery) error {
	to, ok := strings.CutPrefix(d.URL, "mailto:")
	address, err := mail.ParseAddress(to)
	if !ok || err != nil || address.Address != to {
		return fmt.Errorf("%q is no address", d.URL)
	}
	text, err := m.compose(d, to)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mailTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", m.Server)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if m.TLS == Implicit {
		conn = tls.Client(conn, m.tls)
	}
	c, err := m.greet(conn)
	if err != nil {
		return err
	}
	if err := m.deliver(c, to, text); err != nil {
		return forGood(err)
	}
	// It is delivered; a server that does not say goodbye is not asked again.
	_ = c.Quit()
	return nil
}

// greet makes a session that is encrypted and, where there is a password, authenticated.
func (m *mailer) greet(conn net.Conn) (*smtp.Client, error) {
	c, err := smtp.NewClient(conn, m.host)
	if err != nil {
		return nil, err
	}
	if err := c.Hello(helloName()); err != nil {
		return nil, err
	}
	if m.TLS == StartTLS {
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return nil, errors.New("the mail server does not offer STARTTLS; nothing is sent without")
		}
		if err := c.StartTLS(m.tls); err != nil {
			return nil, err
		}
	}
	if m.Username == "" {
		return c, nil
	}
	_, mechanisms := c.Extension("AUTH")
	auth := smtp.PlainAuth("", m.Username, m.Password, m.host)
	offered := strings.Fields(mechanisms)
	if !has(offered, "PLAIN") && has(offered, "LOGIN") {
		auth = &loginAuth{m.Username, m.Password}
	}
	return c, c.Auth(auth)
}

func has(list []string, word string) bool {
	for _, w := range list {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}

func helloName() string {
	name, err := os.Hostname()
	if err != nil || grant.CheckHostName(strings.ToLower(name)) != nil {
		return "localhost"
	}
	return name
}

// forGood marks a reply of 5xx to a mail: the server will say the same of it tomorrow. What it says of
// the session (a wrong password, no TLS) is not of the mail, and an admin can mend it.
func forGood(err error) error {
	if reply := new(textproto.Error); errors.As(err, &reply) && reply.Code >= 500 {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

func (m *mailer) deliver(c *smtp.Client, to string, text []byte) error {
	if err := c.Mail(m.From); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	return w.Close()
}

// compose writes a mail. Nothing that a person wrote reaches a header but through header, and the body
// is encoded, so that no line of it can end the mail or begin another.
func (m *mailer) compose(d Delivery, to string) ([]byte, error) {
	var l letter
	if err := json.Unmarshal(d.Body, &l); err != nil {
		return nil, fmt.Errorf("message %s: %w", d.ID, err)
	}
	subject, words := l.question()
	if l.Event != "" && l.Event != pending {
		subject, words = l.news()
	}
	subject = fmt.Sprintf("[curfew %s] %s", l.Organisation, subject)
	_, domain, _ := strings.Cut(m.From, "@")
	id := sha256.Sum256([]byte(d.ID + "\x00" + to))
	var out bytes.Buffer
	for _, h := range [][2]string{
		{"From", (&mail.Address{Name: "Curfew", Address: m.From}).String()},
		{"To", (&mail.Address{Address: to}).String()},
		{"Subject", header(subject)},
		{"Date", m.now().UTC().Format(time.RFC1123Z)},
		// The same at every try, so that mail readers drop doubles.
		{"Message-ID", "<" + hex.EncodeToString(id[:16]) + "@" + domain + ">"},
		{"Auto-Submitted", "auto-generated"},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "quoted-printable"},
	} {
		out.WriteString(h[0] + ": " + h[1] + "\r\n")
	}
	out.WriteString("\r\n")
	body := quotedprintable.NewWriter(&out)
	if _, err := io.WriteString(body, words); err != nil {
		return nil, err
	}
	return out.Bytes(), body.Close()
}

// header makes one line of plain or encoded words of a text.
func header(s string) string {
	s = grant.VisibleText(s)
	if len(s) > maxSubject {
		s = strings.ToValidUTF8(s[:maxSubject], "") + "…"
	}
	return mime.QEncoding.Encode("utf-8", s)
}

// pending is the event of a request that waits for whoever gets the mail.
const pending = "request.pending"

// news tells what happened; nobody is asked to sign anything.
func (l *letter) news() (subject, body string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\r\n\r\n", grant.VisibleText(l.Text))
	if l.RootEquivalent {
		b.WriteString("Beware: ROOT-EQUIVALENT: whoever has it can do anything there.\r\n\r\n")
	}
	if l.Command != "" {
		fmt.Fprintf(&b, "Look into it:\r\n\r\n    %s\r\n", grant.VisibleText(l.Command))
	}
	return l.Text, b.String()
}

// question asks for a decision.
func (l *letter) question() (subject, body string) {
	verb := "asks for"
	if l.Revision > 1 {
		verb = "asks to extend"
	}
	return fmt.Sprintf("%s %s %s on %s", l.Requester, verb, l.Role, strings.Join(l.Hosts, ", ")), l.body(verb)
}

func (l *letter) body(verb string) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	plain := grant.VisibleText
	line("%s %s role %s.", plain(l.Requester), verb, plain(l.Role))
	line("")
	line("  Hosts:   %s", plain(strings.Join(l.Hosts, ", ")))
	line("  For:     %s, from when it is approved", time.Duration(l.DurationMS)*time.Millisecond)
	line("  Why:     %s", plain(l.Reason))
	line("  Decide:  until %s", time.UnixMilli(l.LapsesMS).UTC().Format("Mon 2 Jan 2006 15:04 MST"))
	if l.RootEquivalent {
		line("  Beware:  ROOT-EQUIVALENT: whoever has it can do anything there")
	}
	line("")
	line("Read the terms and sign them:")
	line("")
	line("    %s", plain(l.Command))
	line("")
	line("To refuse: curfew deny %s --reason \"...\"", plain(l.RequestID))
	return b.String()
}

// loginAuth is AUTH LOGIN, for servers that offer nothing better.
type loginAuth struct{ username, password string }

// Start implements smtp.Auth.
func (a *loginAuth) Start(server *smtp.ServerInfo) (string, []byte, error) {
	if !server.TLS {
		return "", nil, errors.New("no password without TLS")
	}
	return "LOGIN", nil, nil
}

// Next implements smtp.Auth.
func (a *loginAuth) Next(from []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	switch strings.ToLower(strings.TrimSpace(string(from))) {
	case "username:":
		return []byte(a.username), nil
	case "password:":
		return []byte(a.password), nil
	}
	return nil, fmt.Errorf("the mail server asks for %q", from)
}
