package trail_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/curfew-access/curfew/internal/trail"
	curfewv1 "github.com/curfew-access/curfew/proto/curfew/v1"
)

func event(i int) *curfewv1.Event {
	return &curfewv1.Event{
		TimeMs: int64(1000 + i), BootId: "boot", Kind: trail.KindLoginAllowed, Login: "alice",
		GrantId: bytes.Repeat([]byte{byte(i)}, 32), RequestId: "0123456789ab",
		Details: map[string]string{"b": fmt.Sprint(i), "a": "x", "c": "y"},
	}
}

// chain appends n events and returns them with the chain after each.
func chain(t rapid.TB, n int) ([]*curfewv1.Event, []trail.Chain) {
	t.Helper()
	var c trail.Chain
	var events []*curfewv1.Event
	chains := []trail.Chain{c}
	for i := range n {
		e := event(i)
		if err := c.Append(e); err != nil {
			t.Fatal(err)
		}
		events, chains = append(events, e), append(chains, c)
	}
	return events, chains
}

func TestChainFollowsItself(t *testing.T) {
	events, chains := chain(t, 20)
	var c trail.Chain
	for i, e := range events {
		var err error
		if c, err = c.Next(e); err != nil {
			t.Fatal(err)
		}
		if c.Count != uint64(i+1) || !bytes.Equal(c.Head, chains[i+1].Head) {
			t.Fatalf("after event %d the two sides differ", i+1)
		}
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back trail.Chain
	if err := json.Unmarshal(data, &back); err != nil || back.Count != 20 || !bytes.Equal(back.Head, c.Head) {
		t.Errorf("kept and read again: %v %+v", err, back)
	}
}

// A clone, a restored disk and a lost or altered event all show.
func TestChainForks(t *testing.T) {
	events, chains := chain(t, 10)
	at := chains[5]
	clone := chains[5]
	other := event(99)
	if err := clone.Append(other); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(clone.Head, chains[6].Head) {
		t.Error("two different events have one digest")
	}
	after, err := at.Next(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		on    trail.Chain
		event *curfewv1.Event
	}{
		"the original after the clone": {after, events[6]},
		"the clone's after ours":       {chains[6], other},
		"one lost":                     {at, events[6]},
		"one again":                    {at, events[4]},
		"the first again":              {at, events[0]},
		"one of number 0":              {trail.Chain{}, &curfewv1.Event{}},
		"a restored disk":              {chains[9], events[5]},
	} {
		got, err := c.on.Next(c.event)
		if !errors.Is(err, trail.ErrFork) {
			t.Errorf("%s: %v", name, err)
		}
		if got.Count != c.on.Count || !bytes.Equal(got.Head, c.on.Head) {
			t.Errorf("%s: the chain moved", name)
		}
	}
}

// Whatever field of whatever event is altered, the next event no longer fits.
func TestChainShowsEveryAlteration(t *testing.T) {
	alter := []func(*curfewv1.Event){
		func(e *curfewv1.Event) { e.TimeMs++ },
		func(e *curfewv1.Event) { e.BootId += "x" },
		func(e *curfewv1.Event) { e.Kind = trail.KindLoginDenied },
		func(e *curfewv1.Event) { e.GrantId[0] ^= 1 },
		func(e *curfewv1.Event) { e.GrantId = nil },
		func(e *curfewv1.Event) { e.RequestId = "" },
		func(e *curfewv1.Event) { e.Login = "bob" },
		func(e *curfewv1.Event) { e.Details["a"] = "z" },
		func(e *curfewv1.Event) { delete(e.Details, "a") },
		func(e *curfewv1.Event) { e.Details["d"] = "" },
		func(e *curfewv1.Event) { e.Number++ },
		func(e *curfewv1.Event) { e.Previous = bytes.Repeat([]byte{1}, 32) },
	}
	rapid.Check(t, func(rt *rapid.T) {
		events, _ := chain(rt, 6)
		which := rapid.IntRange(0, 4).Draw(rt, "event")
		bad := proto.Clone(events[which]).(*curfewv1.Event)
		alter[rapid.IntRange(0, len(alter)-1).Draw(rt, "field")](bad)
		events[which] = bad
		var c trail.Chain
		var err error
		for _, e := range events {
			if c, err = c.Next(e); err != nil {
				return
			}
		}
		rt.Fatalf("event %d was altered to %v and nobody noticed", which+1, bad)
	})
}

func TestEventsOutOfBounds(t *testing.T) {
	many := make(map[string]string)
	for i := range trail.MaxDetails + 1 {
		many[fmt.Sprint(i)] = "x"
	}
	for name, bad := range map[string]func(*curfewv1.Event){
		"too many details":  func(e *curfewv1.Event) { e.Details = many },
		"a long detail":     func(e *curfewv1.Event) { e.Details["a"] = strings.Repeat("x", trail.MaxDetail+1) },
		"a long key":        func(e *curfewv1.Event) { e.Details[strings.Repeat("x", 65)] = "" },
		"a long kind":       func(e *curfewv1.Event) { e.Kind = strings.Repeat("x", 65) },
		"a long login":      func(e *curfewv1.Event) { e.Login = strings.Repeat("x", 65) },
		"a long request id": func(e *curfewv1.Event) { e.RequestId = strings.Repeat("x", 65) },
		"a long boot id":    func(e *curfewv1.Event) { e.BootId = strings.Repeat("x", 65) },
		"half a grant id":   func(e *curfewv1.Event) { e.GrantId = e.GrantId[:16] },
		"a long grant id":   func(e *curfewv1.Event) { e.GrantId = append(e.GrantId, 0) },
	} {
		e := event(1)
		bad(e)
		if err := trail.CheckEvent(e); err == nil {
			t.Errorf("%s: accepted", name)
		}
		e.Number, e.Previous = 1, nil
		if _, err := (trail.Chain{}).Next(e); err == nil || errors.Is(err, trail.ErrFork) {
			t.Errorf("%s: in a chain: %v", name, err)
		}
	}
	if err := trail.CheckEvent(event(1)); err != nil {
		t.Error(err)
	}
}

// Attack A18: a reason with newlines or JSON in it is one record with one form.
func TestRecordsAreOneLine(t *testing.T) {
	r := &trail.Record{
		Number: 7, TimeMS: 1, Kind: "request.created", Actor: "alice", RequestID: "0123456789ab",
		Details: map[string]string{"reason": "x\n{\"number\":8}\r\u2028</script>\x1b[2J", "a": "\x00"},
	}
	leaf, err := r.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(leaf, "\n\r\x00\x1b") {
		t.Errorf("the leaf has raw control bytes: %q", leaf)
	}
	back, err := trail.ParseRecord(leaf)
	if err != nil || back.Details["reason"] != r.Details["reason"] {
		t.Errorf("%v: %+v", err, back)
	}
	if got := strings.Join(back.DetailKeys(), " "); got != "a reason" {
		t.Errorf("keys %q", got)
	}
	text := string(leaf)
	for name, bad := range map[string]string{
		"empty": "", "cut": text[:len(text)-1], "a newline behind": text + "\n", "two": text + text,
		"a space":          strings.Replace(text, ":", ": ", 1),
		"an unknown field": strings.Replace(text, `"kind"`, `"x":1,"kind"`, 1),
		"a doubled field":  strings.Replace(text, `"number":7`, `"number":7,"number":7`, 1),
		"capitals":         strings.Replace(text, `"kind"`, `"Kind"`, 1),
		"keys unsorted":    reorder(text),
		"empty details":    `{"number":7,"time_ms":1,"kind":"k","actor":"a","details":{}}`,
		"too long":         `{"number":7,"time_ms":1,"kind":"k","actor":"` + strings.Repeat("a", trail.MaxLeaf) + `"}`,
	} {
		if _, err := trail.ParseRecord([]byte(bad)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	big := &trail.Record{Actor: strings.Repeat("x", trail.MaxLeaf)}
	if _, err := big.Leaf(); err == nil {
		t.Error("a record over the limit is written")
	}
}

// reorder puts the detail "a" behind the reason.
func reorder(text string) string {
	const a = `"a":"\u0000",`
	return strings.Replace(strings.Replace(text, a, "", 1), `}}`, `,"a":"\u0000"}}`, 1)
}
