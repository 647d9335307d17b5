package schedule_test

import (
	"strings"
	"testing"
	"time"

	"github.com/curfew-access/curfew/internal/schedule"
)

func berlin(t *testing.T) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func TestWindows(t *testing.T) {
	zone := berlin(t)
	at := func(s string) time.Time {
		u, err := time.ParseInLocation("2006-01-02 15:04", s, zone)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, c := range []struct {
		name, rule, from, until string
		want                    string // FROM/TO, in UTC
	}{
		{
			"Tuesdays for a month", "Tuesdays 02:00–04:00", "2026-11-28 12:00", "2026-12-28 12:00",
			"12-01 01:00/12-01 03:00 12-08 01:00/12-08 03:00 12-15 01:00/12-15 03:00 12-22 01:00/12-22 03:00",
		},
		{
			"a night across midnight", "Fri 22:00-06:00", "2026-12-04 00:00", "2026-12-06 00:00",
			"12-04 21:00/12-05 05:00",
		},
		{
			"one that has begun starts now", "daily 02:00-04:00", "2026-12-01 03:00", "2026-12-02 01:00",
			"12-01 02:00/12-01 03:00",
		},
		{
			"begun yesterday", "Fri 22:00-06:00", "2026-12-05 01:00", "2026-12-05 03:00",
			"12-05 00:00/12-05 05:00",
		},
		{
			"lists and ranges", "Mon,Thu-Fri 10:00-11:00", "2026-11-30 00:00", "2026-12-05 00:00",
			"11-30 09:00/11-30 10:00 12-03 09:00/12-03 10:00 12-04 09:00/12-04 10:00",
		},
		{
			"a start that does not exist begins when the clock goes on", "Sun 02:30-05:00",
			"2027-03-28 00:00", "2027-03-29 00:00", "03-28 01:00/03-28 03:00",
		},
		{
			"an hour longer in autumn", "Sun 01:00-04:00", "2026-10-25 00:00", "2026-10-26 00:00",
			"10-24 23:00/10-25 03:00",
		},
		{
			"two that would overlap", "daily 12:00-11:59", "2026-12-01 12:00", "2026-12-03 00:00",
			"12-01 11:00/12-02 10:59 12-02 11:00/12-03 10:59",
		},
	} {
		r, err := schedule.Parse(c.rule, zone)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		list, err := r.Windows(at(c.from), at(c.until))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var got []string
		for _, w := range list {
			got = append(got, w.Start.UTC().Format("01-02 15:04")+"/"+w.End.UTC().Format("01-02 15:04"))
		}
		if text := strings.Join(got, " "); text != c.want {
			t.Errorf("%s: %s, want %s", c.name, text, c.want)
		}
	}
}

func TestBadRulesSayWhatToType(t *testing.T) {
	for rule, want := range map[string]string{
		"":                    "want DAYS FROM-TO",
		"Tue":                 "want DAYS FROM-TO",
		"Tue 02:00":           "want FROM-TO",
		"Tue 2-4":             "no time of day",
		"Tue 02:00-24:00":     "no time of day",
		"Xue 02:00-04:00":     "no day",
		"Mon- 02:00-04:00":    "no day",
		"Tue 02:00-02:00":     "begins when it ends",
		"Tue 02:00-04:00 UTC": "want DAYS FROM-TO",
	} {
		if _, err := schedule.Parse(rule, time.UTC); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", rule, err, want)
		}
	}
	r, err := schedule.Parse("daily 02:00-04:00", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	if _, err := r.Windows(now, now.AddDate(0, 0, 65)); err == nil {
		t.Error("65 windows")
	}
	if _, err := r.Windows(now, now.Add(time.Hour)); err == nil {
		t.Error("no window at all")
	}
	if _, err := r.Windows(now, now); err == nil {
		t.Error("no time at all")
	}
}

// Whatever the rule, windows are in order, do not overlap and are not empty.
func FuzzWindows(f *testing.F) {
	f.Add("Tue 02:00-04:00", int64(1795867200), int64(30))
	f.Add("Sun 02:30-01:15", int64(1806105600), int64(3))
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string, from, days int64) {
		r, err := schedule.Parse(text, zone)
		if err != nil || from < 0 || from > 4e9 || days < 0 || days > 400 {
			return
		}
		begin := time.Unix(from, 0)
		list, err := r.Windows(begin, begin.AddDate(0, 0, int(days)))
		if err != nil {
			return
		}
		last := begin
		for _, w := range list {
			if w.Start.Before(last) || !w.End.After(w.Start) {
				t.Fatalf("%q from %s: %v", text, begin, list)
			}
			last = w.End
		}
	})
}
