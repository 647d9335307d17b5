package cli

import (
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30m": 30 * time.Minute, "1h": time.Hour, "2h30m": 150 * time.Minute, "1d": 24 * time.Hour,
		"1d2h3m4s": 26*time.Hour + 3*time.Minute + 4*time.Second, "90m": 90 * time.Minute,
		"10m0s": 10 * time.Minute, "30d": 720 * time.Hour, "007m": 7 * time.Minute,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for text, why := range map[string]string{
		"": "empty", "0m": "zero", "0h0m": "zero", "-5m": "negative", "10": "no unit",
		"m": "not a duration", "5m1h": "not a duration", "1h1h": "not a duration",
		"1.5h": "not a duration", "1 h": "not a duration", "1w": "not a duration",
		"٣m": "not a duration", "31d": "longer than 30 days", "30d1s": "longer than 30 days",
		"9999999999s":          "longer than 30 days",
		"999999999d999999999h": "longer than 30 days",
	} {
		if got, err := parseDuration(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("parseDuration(%q) = %v, %v; want an error with %q", text, got, err, why)
		}
	}
}

// What is shown as an exact duration means the same when it is typed.
func FuzzDuration(f *testing.F) {
	f.Add("2h30m")
	f.Add("1d1s")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDuration(s)
		if err != nil {
			return
		}
		if d <= 0 || d > maxDuration {
			t.Fatalf("parseDuration(%q) = %v, out of bounds", s, d)
		}
		if again, err := parseDuration(exactDuration(d)); err != nil || again != d {
			t.Fatalf("%q is %v, shown as %q, which is %v, %v", s, d, exactDuration(d), again, err)
		}
	})
}

func TestWhen(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	now := time.Date(2026, 11, 24, 14, 5, 3, 0, zone)
	p := &printer{now: func() time.Time { return now }}
	for offset, want := range map[time.Duration]string{
		10 * time.Minute:               "14:15:03 CET (in 10m)",
		0:                              "14:05:03 CET (now)",
		-90 * time.Second:              "14:03:33 CET (1m30s ago)",
		24 * time.Hour:                 "2026-11-25 14:05:03 CET (in 1d)",
		10*time.Hour + 200*time.Second: "2026-11-25 00:08:23 CET (in 10h3m)",
	} {
		c := p.when(now.Add(offset).UnixMilli())
		if c.text != want {
			t.Errorf("when(%v) = %q, want %q", offset, c.text, want)
		}
		if at, err := time.Parse(time.RFC3339, c.raw); err != nil || !at.Equal(now.Add(offset)) {
			t.Errorf("when(%v) in a pipe = %q, %v", offset, c.raw, err)
		}
	}
	if got := p.when(0).text; got != "-" {
		t.Errorf("an absent moment shows as %q", got)
	}
}
