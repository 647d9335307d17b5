// Package notify tells approvers by webhook and by mail. It is a leaf: it holds no rule and changes
// nothing but its own outbox.
//
// Messages are written to the outbox in the transaction of what they tell, so that none is lost and
// none is told of what did not happen. Delivery is at least once, for 24 hours, with exponential
// backoff; receivers drop doubles by the id. Data comes from the Store and goes to the configured mail
// server and URLs, signed:
//
//	Curfew-Signature: t=UNIX,v1=HEX(HMAC-SHA256(secret, "UNIX." + body))
package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Limits on delivery.
const (
	Lifetime    = 24 * time.Hour
	firstRetry  = 2 * time.Second
	longestWait = 30 * time.Minute
	timeout     = 10 * time.Second
	batch       = 100
	minSecret   = 16 // bytes
	maxSecret   = 4 << 10
	// A lane looks again after at most longestIdle, and never sooner than shortestIdle.
	shortestIdle = 100 * time.Millisecond
	longestIdle  = time.Minute
)

// KindUndeliverable is the trail's record of a message that its receiver will not get.
const KindUndeliverable = "notify.undeliverable"

// ErrRefused means that the receiver refused this message for good: to try again is no use.
var ErrRefused = errors.New("refused for good")

// MailLane is the queue of the mail server; a webhook's is its URL.
const MailLane = "mail"

// Delivery is one message for one receiver.
type Delivery struct {
	ID       string
	Lane     string
	URL      string // of a mail: mailto:ADDRESS
	Body     []byte
	Created  time.Time
	Attempts int
}

// Store is the durable outbox.
type Store interface {
	// DueDeliveries lists at most limit of one lane that are due now, oldest first.
	DueDeliveries(ctx context.Context, lane string, now time.Time, limit int) ([]Delivery, error)
	// NextDelivery is when the next one of this lane is due; zero for none.
	NextDelivery(ctx context.Context, lane string) (time.Time, error)
	PutAttempt(ctx context.Context, d Delivery, next time.Time, why string) error
	DropDelivery(ctx context.Context, d Delivery) error
	// GiveUp removes one that cannot be delivered and puts why on the trail, in one transaction.
	GiveUp(ctx context.Context, d Delivery, why string) error
	// DropOthers removes what is for none of these lanes.
	DropOthers(ctx context.Context, lanes []string) error
}

// Webhook is one receiver. Secret signs what it gets.
type Webhook struct {
	URL    string
	Secret []byte
}

// Config is what a Sender needs.
type Config struct {
	Store    Store
	Webhooks []Webhook
	// Mail is nil for none.
	Mail *Mail
	// Transport is nil for http.DefaultTransport's behaviour.
	Transport http.RoundTripper
	Now       func() time.Time
	Log       hclog.Logger
}

// Sender empties the outbox.
type Sender struct {
	c      Config
	lanes  []*lane
	client *http.Client
}

// lane is one receiver's own queue: a dead one keeps nobody else waiting.
type lane struct {
	name    string
	deliver func(context.Context, Delivery) error
	wake    chan struct{} // of one
}

// New checks the configuration.
func New(c Config) (*Sender, error) {
	if c.Store == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("notify: store, clock or log is missing")
	}
	s := &Sender{c: c}
	for _, w := range c.Webhooks {
		if err := CheckURL(w.URL); err != nil {
			return nil, err
		}
		if len(w.Secret) < minSecret {
			return nil, fmt.Errorf("webhook %s: the secret has %d bytes; at least %d",
				w.URL, len(w.Secret), minSecret)
		}
		s.add(w.URL, func(ctx context.Context, d Delivery) error { return s.post(ctx, d, w.Secret) })
	}
	if c.Mail != nil {
		m, err := newMailer(*c.Mail, c.Now)
		if err != nil {
			return nil, err
		}
		s.add(MailLane, m.send)
	}
	s.client = &http.Client{
		Timeout: timeout, Transport: c.Transport,
		// A redirect could carry what approvers read to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

func (s *Sender) add(name string, deliver func(context.Context, Delivery) error) {
	s.lanes = append(s.lanes, &lane{name: name, deliver: deliver, wake: make(chan struct{}, 1)})
}

// CheckURL accepts an absolute http or https URL with a host and without a password.
func CheckURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("webhook URL: %w", err)
	}
	if u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return fmt.Errorf("webhook URL %q: want https://HOST/PATH without user or password", raw)
	}
	return nil
}

// LoadSecret reads a webhook's secret from a file that only its owner may read; white space around
// it is dropped.
func LoadSecret(path string) ([]byte, error) {
	b, err := loadPrivate(path)
	if err == nil && len(b) < minSecret {
		err = fmt.Errorf("webhook secret %s has %d bytes; at least %d", path, len(b), minSecret)
	}
	return b, err
}

// LoadPassword reads a password that somebody else chose, by the same rules but any length.
func LoadPassword(path string) (string, error) {
	b, err := loadPrivate(path)
	if err == nil && len(b) == 0 {
		err = fmt.Errorf("secret %s is empty", path)
	}
	return string(b), err
}

// othersRead says whether anybody but the owner may use the file, or where it is root's anybody but root and
// this service's own group: so Kubernetes mounts secrets, and so administrators give files to services.
func othersRead(info fs.FileInfo, gid int) bool {
	over := info.Mode().Perm() & 0o077
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid == 0 && gid != 0 && int(owner.Gid) == gid {
		over &^= 0o040
	}
	return over != 0
}

// Credential begins the name of a secret that systemd hands to the service (LoadCredential=, systemd.exec(5))
// in place of a path: "credential:NAME".
const Credential = "credential:"

// secretPath is where a secret lies, and whether systemd keeps it from others.
func secretPath(path string) (file string, kept bool, err error) {
	name, ok := strings.CutPrefix(path, Credential)
	if !ok {
		return path, false, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return "", false, fmt.Errorf("secret %s: systemd handed over no credentials; the unit needs "+
			"LoadCredential=%s:/PATH", path, name)
	}
	return filepath.Join(dir, name), true, nil
}

func loadPrivate(path string) ([]byte, error) {
	file, kept, err := secretPath(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	if !kept && othersRead(info, os.Getegid()) {
		return nil, fmt.Errorf("secret %s has mode %04o: others can read it; chmod 0600 it",
			path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) > maxSecret {
		return nil, fmt.Errorf("secret %s has more than %d bytes", path, maxSecret)
	}
	return b, nil
}

// Wake says that the outbox grew. It never blocks.
func (s *Sender) Wake() {
	for _, l := range s.lanes {
		select {
		case l.wake <- struct{}{}:
		default: // it is awake already
		}
	}
}

// Run delivers until ctx ends. Messages for receivers that are no longer configured are dropped.
func (s *Sender) Run(ctx context.Context) error {
	names := make([]string, 0, len(s.lanes))
	for _, l := range s.lanes {
		names = append(names, l.name)
	}
	if err := s.c.Store.DropOthers(ctx, names); err != nil && ctx.Err() == nil {
		return fmt.Errorf("notify: %w", err)
	}
	var wg sync.WaitGroup
	for _, l := range s.lanes {
		wg.Go(func() { s.run(ctx, l) })
	}
	wg.Wait()
	return nil
}

func (s *Sender) run(ctx context.Context, l *lane) {
	for ctx.Err() == nil {
		if err := s.once(ctx, l); err != nil && ctx.Err() == nil {
			s.c.Log.Error("the outbox cannot be read", "lane", l.name, "error", err)
		}
		wait := longestIdle
		if next, err := s.c.Store.NextDelivery(ctx, l.name); err == nil && !next.IsZero() {
			wait = min(max(next.Sub(s.c.Now()), shortestIdle), wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// once tries everything that is due now for one receiver, in order.
func (s *Sender) once(ctx context.Context, l *lane) error {
	due, err := s.c.Store.DueDeliveries(ctx, l.name, s.c.Now(), batch)
	if err != nil {
		return err
	}
	for _, d := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.try(ctx, d, l.deliver)
	}
	return nil
}

func (s *Sender) try(
	ctx context.Context, d Delivery, deliver func(context.Context, Delivery) error,
) {
	log := s.c.Log.With("message", d.ID, "url", d.URL)
	err := deliver(ctx, d)
	if ctx.Err() != nil {
		return // stopping; it will come again
	}
	now := s.c.Now()
	switch {
	case err == nil:
		log.Debug("message delivered")
		s.settle(log, s.c.Store.DropDelivery(ctx, d))
	case errors.Is(err, ErrRefused), now.Sub(d.Created) >= Lifetime:
		d.Attempts++
		log.Error("message given up", "attempts", d.Attempts, "error", err)
		s.settle(log, s.c.Store.GiveUp(ctx, d, err.Error()))
	default:
		next := now.Add(backoff(d.Attempts))
		d.Attempts++
		log.Warn("message not delivered yet", "attempts", d.Attempts, "next", next.UTC(), "error", err)
		s.settle(log, s.c.Store.PutAttempt(ctx, d, next, err.Error()))
	}
}

func (s *Sender) settle(log hclog.Logger, err error) {
	if err != nil {
		log.Error("the outbox cannot be written; the message will come again", "error", err)
	}
}

// backoff doubles from 2 s to 30 min.
func backoff(attempts int) time.Duration {
	return min(firstRetry<<min(attempts, 20), longestWait)
}

func (s *Sender) post(ctx context.Context, d Delivery, secret []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL, bytes.NewReader(d.Body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "curfew-controlplane")
	req.Header.Set("Curfew-Delivery", d.ID)
	req.Header.Set("Curfew-Signature", Signature(secret, s.c.Now(), d.Body))
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Read a little, so that the connection can be used again.
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the receiver answered %s", resp.Status)
	}
	return nil
}

// Signature is the value of the Curfew-Signature header.
func Signature(secret []byte, at time.Time, body []byte) string {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	return "t=" + stamp + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
