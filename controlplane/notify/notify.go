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
	concurrent  = 4
	minSecret   = 16 // bytes
	maxSecret   = 4 << 10
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
	// DueDeliveries lists at most limit that are due now.
	DueDeliveries(ctx context.Context, now time.Time, limit int) ([]Delivery, error)
	// NextDelivery is when the next one is due; zero for none.
	NextDelivery(ctx context.Context) (time.Time, error)
	PutAttempt(ctx context.Context, d Delivery, next time.Time, why string) error
	DropDelivery(ctx context.Context, d Delivery) error
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
	// Wake is signalled when the outbox grew; it needs a buffer of one.
	Wake <-chan struct{}
	// Transport is nil for http.DefaultTransport's behaviour.
	Transport http.RoundTripper
	Now       func() time.Time
	Log       hclog.Logger
}

// Sender empties the outbox.
type Sender struct {
	c       Config
	secrets map[string][]byte
	client  *http.Client
}

// New checks the configuration.
func New(c Config) (*Sender, error) {
	if c.Store == nil || c.Now == nil || c.Log == nil || c.Wake == nil {
		return nil, errors.New("webhooks: store, clock, log or wake-up is missing")
	}
	s := &Sender{c: c, secrets: make(map[string][]byte)}
	for _, w := range c.Webhooks {
		if err := CheckURL(w.URL); err != nil {
			return nil, err
		}
		if len(w.Secret) < minSecret {
			return nil, fmt.Errorf("webhook %s: the secret has %d bytes; at least %d",
				w.URL, len(w.Secret), minSecret)
		}
		s.secrets[w.URL] = w.Secret
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

// Run delivers until ctx ends.
func (s *Sender) Run(ctx context.Context) error {
	for {
		if err := s.Once(ctx); err != nil && ctx.Err() == nil {
			s.c.Log.Error("the webhook outbox cannot be read", "error", err)
		}
		wait := time.Minute
		if next, err := s.c.Store.NextDelivery(ctx); err == nil && !next.IsZero() {
			wait = min(max(next.Sub(s.c.Now()), 100*time.Millisecond), wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.c.Wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// Once tries everything that is due now, a few at a time.
func (s *Sender) Once(ctx context.Context) error {
	due, err := s.c.Store.DueDeliveries(ctx, s.c.Now(), 100)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, concurrent)
	for _, d := range due {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			s.try(ctx, d)
		})
	}
	wg.Wait()
	return ctx.Err()
}

func (s *Sender) try(ctx context.Context, d Delivery) {
	log := s.c.Log.With("message", d.ID, "url", d.URL)
	secret, known := s.secrets[d.URL]
	if !known {
		log.Warn("message dropped: the webhook is no longer configured")
		s.settle(log, s.c.Store.DropDelivery(ctx, d))
		return
	}
	err := s.send(ctx, d, secret)
	if ctx.Err() != nil {
		return
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
