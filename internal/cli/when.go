package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/curfew-access/curfew/internal/grant"
)

// maxDuration is what no role and no host exceeds.
const maxDuration = grant.MaxDuration

var durationUnits = []struct {
	letter byte
	unit   time.Duration
}{{'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// parseDuration reads 30m, 1h, 2h30m, 1d: whole numbers, each unit at most once, largest first.
func parseDuration(s string) (time.Duration, error) {
	const form = "write it like 30m, 1h, 2h30m or 1d"
	if s == "" {
		return 0, fmt.Errorf("the duration is empty: %s", form)
	}
	if s[0] == '-' {
		return 0, fmt.Errorf("the duration %q is negative: access cannot end before it begins", s)
	}
	var total time.Duration
	rest, next := s, 0
	for rest != "" {
		digits := 0
		for digits < len(rest) && rest[digits] >= '0' && rest[digits] <= '9' {
			digits++
		}
		if digits == 0 {
			return 0, fmt.Errorf("%q is not a duration: %s", s, form)
		}
		if digits == len(rest) {
			return 0, fmt.Errorf("the duration %q has no unit: %s", s, form)
		}
		if digits > 9 {
			return 0, tooLong(s)
		}
		i := next
		for i < len(durationUnits) && durationUnits[i].letter != rest[digits] {
			i++
		}
		if i == len(durationUnits) {
			return 0, fmt.Errorf("%q is not a duration: %s", s, form)
		}
		var n time.Duration
		for _, c := range []byte(rest[:digits]) {
			n = n*10 + time.Duration(c-'0')
		}
		if n > maxDuration/durationUnits[i].unit {
			return 0, tooLong(s)
		}
		total += n * durationUnits[i].unit
		rest, next = rest[digits+1:], i+1
	}
	switch {
	case total == 0:
		return 0, fmt.Errorf("the duration %q is zero: say how long access is needed", s)
	case total > maxDuration:
		return 0, tooLong(s)
	}
	return total, nil
}

func tooLong(s string) error {
	return fmt.Errorf("the duration %q is longer than %d days, the most that Curfew grants",
		s, maxDuration/(24*time.Hour))
}

// showDuration writes a duration in at most two units: 10m, 1h30m, 2d4h, 45s.
func showDuration(d time.Duration) string {
	if d < 0 {
		d = -d
	}
	if d < time.Second {
		return "0s"
	}
	// Half a minute is noise in hours, as half an hour is in days.
	switch {
	case d >= 24*time.Hour:
		d = d.Round(time.Hour)
	case d >= time.Hour:
		d = d.Round(time.Minute)
	default:
		d = d.Round(time.Second)
	}
	var b strings.Builder
	for _, u := range durationUnits {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%c", n, u.letter)
			d -= n * u.unit
		}
	}
	return b.String()
}

// exactDuration writes a duration without rounding, for terms that are signed.
func exactDuration(d time.Duration) string {
	if d <= 0 || d%time.Second != 0 {
		return d.String()
	}
	var b strings.Builder
	for _, u := range durationUnits {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%c", n, u.letter)
			d -= n * u.unit
		}
	}
	return b.String()
}

func ms(n int64) time.Time { return time.UnixMilli(n) }

// clock writes a moment in the zone in which now is given, with the date when it is not today.
func (p *printer) clock(t time.Time) string {
	now := p.now()
	t = t.In(now.Location())
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05 MST")
	}
	return t.Format("2006-01-02 15:04:05 MST")
}

// ago writes how far a moment is: "in 10m", "3m ago", "now".
func (p *printer) ago(t time.Time) string {
	d := t.Sub(p.now())
	switch {
	case d > -time.Second && d < time.Second:
		return "now"
	case d > 0:
		return "in " + showDuration(d)
	default:
		return showDuration(d) + " ago"
	}
}

// when writes a moment both ways, and as RFC 3339 for pipes; an absent moment is a dash.
func (p *printer) when(unixMS int64) cell {
	if unixMS == 0 {
		return cell{text: "-"}
	}
	t := ms(unixMS)
	return cell{
		text: fmt.Sprintf("%s (%s)", p.clock(t), p.ago(t)),
		raw:  t.UTC().Format(time.RFC3339),
	}
}
