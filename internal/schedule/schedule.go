// Package schedule turns recurring windows as people say them ("Tue 02:00-04:00", in a zone, until a
// day) into the list of exact times that approvers sign and hosts enforce.
//
// The list is made once, where the person is, so that nobody downstream needs a calendar or a zone.
// Daylight saving is settled here: a window keeps its local times, so it may be an hour longer or
// shorter on the night of a change, and one whose start does not exist that night begins when the
// clock goes on.
package schedule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is one time from Start to End.
type Window struct{ Start, End time.Time }

// Rule is a recurring window: on these days, from a local time to a local time, which may be on the
// next day.
type Rule struct {
	Days     []time.Weekday // sorted; all seven for every day
	From, To Clock
	Zone     *time.Location
}

// Clock is a time of day in minutes after midnight.
type Clock int

// String writes HH:MM.
func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// MaxWindows is how many windows one request may have.
const MaxWindows = 64

var days = map[string]time.Weekday{
	"sun": time.Sunday, "mon": time.Monday, "tue": time.Tuesday, "wed": time.Wednesday,
	"thu": time.Thursday, "fri": time.Friday, "sat": time.Saturday,
}

// Parse reads DAYS FROM-TO: days as Tue, Mon-Fri, Sat,Sun or daily, times as HH:MM.
func Parse(text string, zone *time.Location) (Rule, error) {
	fields := strings.Fields(text)
	if len(fields) != 2 {
		return Rule{}, fmt.Errorf("%q: want DAYS FROM-TO, such as \"Tue 02:00-04:00\" or "+
			"\"Mon-Fri 22:00-06:00\"", text)
	}
	r := Rule{Zone: zone}
	var err error
	if r.Days, err = parseDays(fields[0]); err != nil {
		return Rule{}, err
	}
	from, to, ok := strings.Cut(strings.ReplaceAll(fields[1], "–", "-"), "-")
	if !ok {
		return Rule{}, fmt.Errorf("%q: want FROM-TO, such as 02:00-04:00", fields[1])
	}
	if r.From, err = parseClock(from); err != nil {
		return Rule{}, err
	}
	if r.To, err = parseClock(to); err != nil {
		return Rule{}, err
	}
	if r.From == r.To {
		return Rule{}, fmt.Errorf("%q begins when it ends", fields[1])
	}
	return r, nil
}

func parseDays(text string) ([]time.Weekday, error) {
	if strings.EqualFold(text, "daily") {
		text = "sun-sat"
	}
	var list []time.Weekday
	for part := range strings.SplitSeq(text, ",") {
		first, last, span := strings.Cut(part, "-")
		from, err := parseDay(first)
		if err != nil {
			return nil, err
		}
		to := from
		if span {
			if to, err = parseDay(last); err != nil {
				return nil, err
			}
		}
		for d := from; ; d = (d + 1) % 7 {
			list = append(list, d)
			if d == to {
				break
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// parseDay takes Tue, Tuesday and Tuesdays, in any case.
func parseDay(text string) (time.Weekday, error) {
	low := strings.TrimSuffix(strings.ToLower(text), "s")
	for short, d := range days {
		if low == short || low == strings.ToLower(d.String()) {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%q is no day: want Mon, Tue, Wed, Thu, Fri, Sat, Sun or daily", text)
}

func parseClock(text string) (Clock, error) {
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of day: want HH:MM", text)
	}
	return Clock(t.Hour()*60 + t.Minute()), nil
}

// Windows lists the windows that end after from and begin before until, in order. One that has begun
// starts at from. None, or more than MaxWindows, is an error that says what to do.
func (r Rule) Windows(from, until time.Time) ([]Window, error) {
	if !until.After(from) {
		return nil, errors.New("the last day lies before the first")
	}
	var list []Window
	end := until.AddDate(0, 0, 1)
	for day := from.In(r.Zone).AddDate(0, 0, -1); day.Before(end); day = day.AddDate(0, 0, 1) {
		if !slices.Contains(r.Days, day.Weekday()) {
			continue
		}
		w := r.on(day)
		if !w.End.After(from) || !w.Start.Before(until) {
			continue
		}
		if w.Start.Before(from) {
			w.Start = from
		}
		if n := len(list); n > 0 && w.Start.Before(list[n-1].End) {
			w.Start = list[n-1].End // a night that overlaps the next one
		}
		if len(list) == MaxWindows {
			return nil, fmt.Errorf("more than %d windows; ask for fewer at once", MaxWindows)
		}
		list = append(list, w)
	}
	if len(list) == 0 {
		return nil, errors.New("no window lies in this time")
	}
	return list, nil
}

// on is the window that begins on a day.
func (r Rule) on(day time.Time) Window {
	y, m, d := day.Date()
	last := d
	if r.To <= r.From {
		last++
	}
	return Window{
		Start: local(y, m, d, r.From, r.Zone), End: local(y, m, last, r.To, r.Zone),
	}
}

// local is a local time, or the moment at which the clock goes on when that time does not exist.
func local(y int, m time.Month, d int, c Clock, zone *time.Location) time.Time {
	t := time.Date(y, m, d, int(c)/60, int(c)%60, 0, 0, zone)
	if t.Hour()*60+t.Minute() == int(c) {
		return t
	}
	// Go answers with a time on one side of the gap; the gap begins where the offset changes.
	before, after := t.Add(-4*time.Hour), t.Add(4*time.Hour)
	for after.Sub(before) > time.Second {
		middle := before.Add(after.Sub(before) / 2)
		if offset(middle) == offset(before) {
			before = middle
		} else {
			after = middle
		}
	}
	return after.Truncate(time.Second)
}

func offset(t time.Time) int {
	_, seconds := t.Zone()
	return seconds
}
