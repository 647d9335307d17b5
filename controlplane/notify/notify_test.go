package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

var secret = []byte("a secret of many bytes")

// box is an outbox in memory; what it holds outlives a Sender, as the store does.
type box struct {
	mu   sync.Mutex // guards the rest
	rows map[string]Delivery
	next map[string]time.Time
}

func newBox(at time.Time, urls ...string) *box {
	b := &box{rows: map[string]Delivery{}, next: map[string]time.Time{}}
	for _, u := range urls {
		b.rows[u] = Delivery{ID: "r1.1.request.pending", URL: u, Body: []byte(`{"a":1}`), Created: at}
		b.next[u] = at
	}
	return b
}

func (b *box) DueDeliveries(_ context.Context, url string, now time.Time, limit int) (
	out []Delivery, _ error,
) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for u, d := range b.rows {
		if u == url && !b.next[u].After(now) && len(out) < limit {
			out = append(out, d)
		}
	}
	return out, nil
}

func (b *box) NextDelivery(_ context.Context, url string) (time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next[url], nil
}

func (b *box) DropOthers(_ context.Context, urls []string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for u := range b.rows {
		if !slices.Contains(urls, u) {
			delete(b.rows, u)
			delete(b.next, u)
		}
	}
	return nil
}

func (b *box) PutAttempt(_ context.Context, d Delivery, next time.Time, why string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if why == "" {
		return errors.New("an attempt failed without a reason")
	}
	b.rows[d.URL], b.next[d.URL] = d, next
	return nil
}

func (b *box) DropDelivery(_ context.Context, d Delivery) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.rows, d.URL)
	delete(b.next, d.URL)
	return nil
}

func (b *box) left() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.rows)
}

func sender(t *testing.T, b *box, now *time.Time, urls ...string) *Sender {
	t.Helper()
	var hooks []Webhook
	for _, u := range urls {
		hooks = append(hooks, Webhook{URL: u, Secret: secret})
	}
	s, err := New(Config{
		Store: b, Webhooks: hooks,
		Now: func() time.Time { return *now }, Log: hclog.NewNullLogger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// all runs one round of every lane.
func (s *Sender) all(ctx context.Context) error {
	var err error
	for _, l := range s.lanes {
		err = errors.Join(err, s.once(ctx, l))
	}
	return err
}

func TestDeliveryIsSignedAndRetried(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		stamp, sum, ok := strings.Cut(r.Header.Get("Curfew-Signature"), ",v1=")
		mac := hmac.New(sha256.New, secret)
		fmt.Fprintf(mac, "%s.%s", strings.TrimPrefix(stamp, "t="), body)
		if !ok || sum != hex.EncodeToString(mac.Sum(nil)) {
			t.Errorf("the signature %q does not fit the body", r.Header.Get("Curfew-Signature"))
		}
		if r.Header.Get("Curfew-Delivery") != "r1.1.request.pending" || r.Method != http.MethodPost {
			t.Errorf("%s with id %q", r.Method, r.Header.Get("Curfew-Delivery"))
		}
		if calls.Add(1) < 4 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer srv.Close()
	b := newBox(now, srv.URL)
	var gaps []time.Duration
	for range 4 {
		// A new Sender each time: a restart loses nothing.
		if err := sender(t, b, &now, srv.URL).all(t.Context()); err != nil {
			t.Fatal(err)
		}
		next, _ := b.NextDelivery(t.Context(), srv.URL)
		if next.IsZero() {
			break
		}
		if err := sender(t, b, &now, srv.URL).all(t.Context()); err != nil {
			t.Fatal(err) // not due yet: nothing is sent
		}
		gaps = append(gaps, next.Sub(now))
		now = next
	}
	if calls.Load() != 4 || b.left() != 0 {
		t.Errorf("%d calls, %d left", calls.Load(), b.left())
	}
	if fmt.Sprint(gaps) != "[2s 4s 8s]" {
		t.Errorf("the waits were %v", gaps)
	}
}

func TestGivenUpAfterADay(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	began := now
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
	}))
	defer srv.Close()
	b := newBox(now, srv.URL)
	s := sender(t, b, &now, srv.URL)
	for tries := 0; b.left() > 0; tries++ {
		if tries > 200 {
			t.Fatal("it is never given up")
		}
		if err := s.all(t.Context()); err != nil {
			t.Fatal(err)
		}
		if next, _ := b.NextDelivery(t.Context(), srv.URL); !next.IsZero() {
			now = next
		}
	}
	if lived := now.Sub(began); lived < 24*time.Hour || lived > 25*time.Hour {
		t.Errorf("it was given up after %s", lived)
	}
}

func TestNoRedirectElsewhere(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	var stolen atomic.Bool
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		stolen.Store(true)
	}))
	defer thief.Close()
	srv := httptest.NewServer(http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	b := newBox(now, srv.URL)
	if err := sender(t, b, &now, srv.URL).all(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stolen.Load() || b.left() != 1 {
		t.Error("a redirect was followed, or taken for a delivery")
	}
}

func TestUnconfiguredWebhookIsDropped(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	b := newBox(now, "http://127.0.0.1:1/gone")
	if err := sender(t, b, &now).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.left() != 0 {
		t.Error("a message for a webhook that is gone waits for ever")
	}
}

// One dead receiver does not keep the others waiting.
func TestDeadReceiverDoesNotBlock(t *testing.T) {
	now := time.UnixMilli(1_800_000_000_000)
	release := make(chan struct{})
	dead := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer dead.Close()
	defer close(release)
	heard := make(chan struct{}, 1)
	live := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		heard <- struct{}{}
	}))
	defer live.Close()
	b := newBox(now, dead.URL, live.URL)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := sender(t, b, &now, dead.URL, live.URL)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-heard:
	case <-time.After(5 * time.Second):
		t.Error("the live receiver heard nothing")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	got, err := LoadSecret(write("good", "0123456789abcdef\n", 0o600))
	if err != nil || string(got) != "0123456789abcdef" {
		t.Errorf("a good secret reads as %q, %v", got, err)
	}
	for _, path := range []string{
		write("short", "0123", 0o600), write("open", "0123456789abcdef", 0o644),
		write("long", strings.Repeat("x", 5000), 0o600), filepath.Join(dir, "none"),
	} {
		if _, err := LoadSecret(path); err == nil {
			t.Errorf("%s is taken as a secret", filepath.Base(path))
		}
	}
	for _, u := range []string{"", "x", "ftp://x/", "https://", "https://u:p@x/", "//x"} {
		if CheckURL(u) == nil {
			t.Errorf("%q is taken as a webhook", u)
		}
	}
}
