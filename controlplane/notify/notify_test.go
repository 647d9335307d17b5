package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
	// gaveUp is what will not be delivered, and why.
	gaveUp []string
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

func (b *box) GiveUp(ctx context.Context, d Delivery, why string) error {
	if why == "" {
		return errors.New("given up without a reason")
	}
	b.mu.Lock()
	b.gaveUp = append(b.gaveUp, d.URL+": "+why)
	b.mu.Unlock()
	return b.DropDelivery(ctx, d)
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

// A secret that systemd hands over is found by its name, whatever its mode: systemd keeps others out.
func TestSecretsThatSystemdHandsOver(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hook"), []byte("0123456789abcdef\n"), 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if got, err := LoadSecret("credential:hook"); err != nil || string(got) != "0123456789abcdef" {
		t.Errorf("it reads as %q, %v", got, err)
	}
	if _, err := LoadSecret("credential:none"); err == nil {
		t.Error("a credential that is not there is read")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if _, err := LoadSecret("credential:hook"); err == nil ||
		!strings.Contains(err.Error(), "LoadCredential=hook:/PATH") {
		t.Errorf("without systemd: %v", err)
	}
}

// A secret is the owner's alone; one of root's may be readable to the group that the service runs as.
func TestWhoMayReadASecret(t *testing.T) {
	const service = 64443
	for name, tt := range map[string]struct {
		mode          fs.FileMode
		owner, group  uint32
		gid           int
		othersMayRead bool
	}{
		"the owner's":            {0o600, service, service, service, false},
		"everybody's":            {0o644, service, service, service, true},
		"as Kubernetes mounts":   {0o440, 0, service, service, false},
		"the service writes too": {0o460, 0, service, service, true},
		"another group's":        {0o440, 0, 50, service, true},
		"root's own group":       {0o640, 0, 0, 0, true},
		"a user's, to the group": {0o640, 1000, service, service, true},
		"root's, to everybody":   {0o444, 0, service, service, true},
	} {
		got := othersRead(file{tt.mode, &syscall.Stat_t{Uid: tt.owner, Gid: tt.group}}, tt.gid)
		if got != tt.othersMayRead {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// file is what stat says.
type file struct {
	mode fs.FileMode
	sys  *syscall.Stat_t
}

func (f file) Name() string       { return "" }
func (f file) Size() int64        { return 0 }
func (f file) Mode() fs.FileMode  { return f.mode }
func (f file) ModTime() time.Time { return time.Time{} }
func (f file) IsDir() bool        { return false }
func (f file) Sys() any           { return f.sys }
