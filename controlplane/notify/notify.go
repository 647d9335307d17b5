// Package notify tells approvers by webhook. It is a leaf: it holds no rule and changes nothing but
// its own outbox.
//
// Messages are written to the outbox in the transaction of what they tell, so that none is lost and
// none is told of what did not happen. Delivery is at least once, for 24 hours, with exponential
// backoff; receivers drop doubles by the id. Data comes from the Store and goes to the configured
// URLs, signed:
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
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
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

// Delivery is one message for one URL.
type Delivery struct {
	ID       string
	URL      string
	Body     []byte
	Created  time.Time
	Attempts int
}

// Store is the durable outbox.
type Store interface {
	// DueDeliveries lists at most limit for one URL that are due now, oldest first.
	DueDeliveries(ctx context.Context, url string, now time.Time, limit int) ([]Delivery, error)
	// NextDelivery is when the next one for this URL is due; zero for none.
	NextDelivery(ctx context.Context, url string) (time.Time, error)
	PutAttempt(ctx context.Context, d Delivery, next time.Time, why string) error
	DropDelivery(ctx context.Context, d Delivery) error
	// DropOthers removes what is for none of these URLs.
	DropOthers(ctx context.Context, urls []string) error
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
	Webhook
	wake chan struct{} // of one
}

// New checks the configuration.
func New(c Config) (*Sender, error) {
	if c.Store == nil || c.Now == nil || c.Log == nil {
		return nil, errors.New("webhooks: store, clock or log is missing")
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
		s.lanes = append(s.lanes, &lane{Webhook: w, wake: make(chan struct{}, 1)})
	}
	s.client = &http.Client{
		Timeout: timeout, Transport: c.Transport,
		// A redirect could carry what approvers read to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
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
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("webhook secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("webhook secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("webhook secret %s has mode %04o: others can read it; chmod 0600 it",
			path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("webhook secret: %w", err)
	}
	b = bytes.TrimSpace(b)
	if len(b) < minSecret || len(b) > maxSecret {
		return nil, fmt.Errorf("webhook secret %s has %d bytes; want %d to %d", path, len(b), minSecret,
			maxSecret)
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
	urls := make([]string, 0, len(s.lanes))
	for _, l := range s.lanes {
		urls = append(urls, l.URL)
	}
	if err := s.c.Store.DropOthers(ctx, urls); err != nil && ctx.Err() == nil {
		return fmt.Errorf("webhooks: %w", err)
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
			s.c.Log.Error("the webhook outbox cannot be read", "url", l.URL, "error", err)
		}
		wait := longestIdle
		if next, err := s.c.Store.NextDelivery(ctx, l.URL); err == nil && !next.IsZero() {
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
	due, err := s.c.Store.DueDeliveries(ctx, l.URL, s.c.Now(), batch)
	if err != nil {
		return err
	}
	for _, d := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.try(ctx, d, l.Secret)
	}
	return nil
}

func (s *Sender) try(ctx context.Context, d Delivery, secret []byte) {
	log := s.c.Log.With("message", d.ID, "url", d.URL)
	err := s.send(ctx, d, secret)
	if ctx.Err() != nil {
		return // stopping; it will come again
	}
	now := s.c.Now()
	switch {
	case err == nil:
		log.Debug("message delivered")
		s.settle(log, s.c.Store.DropDelivery(ctx, d))
	case now.Sub(d.Created) >= Lifetime:
		log.Error("message given up", "attempts", d.Attempts+1, "error", err)
		s.settle(log, s.c.Store.DropDelivery(ctx, d))
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

func (s *Sender) send(ctx context.Context, d Delivery, secret []byte) error {
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
