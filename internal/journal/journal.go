// Package journal gives what a daemon logs to systemd's journal with fields of its own: which grant a
// line is about, which request, host and login, and for notable events a MESSAGE_ID whose text stands in
// the catalogue. So `journalctl CURFEW_GRANT=ID` is the life of one grant.
//
// Where stderr is not the journal's (a terminal, a container, a test) lines are text, as ever. Like
// package logsink, on which it stands, it never waits for whoever reads: what ends access also logs.
package journal

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/internal/logsink"
	"github.com/curfew-access/curfew/internal/trail"
)

// eventKey is the key of a line's kind of event; see Tell.
const eventKey = "event"

// fields are the keys of lines that are fields in the journal.
var fields = map[string]string{
	"grant": "CURFEW_GRANT", "request": "CURFEW_REQUEST", "host": "CURFEW_HOST", "login": "CURFEW_LOGIN",
	"by": "CURFEW_BY", eventKey: "CURFEW_EVENT",
}

// maxMessage bounds a line, and so a field. The journal takes more; nobody reads more.
const maxMessage = 8 << 10

var byKind = func() map[string]Message {
	m := make(map[string]Message, len(Messages))
	for _, one := range Messages {
		m[one.Kind] = one
	}
	return m
}()

// Tell logs an event: with the text and id of its kind where the table has it. Args are as in a line.
func Tell(log hclog.Logger, kind string, args ...any) {
	m, known := byKind[kind]
	level, text := hclog.Info, m.Text
	if !known {
		text = kind
	}
	if m.Warn {
		level = hclog.Warn
	}
	line := []any{eventKey, kind}
	for i := 0; i+1 < len(args); i += 2 {
		if args[i+1] != "" { // as most events have no grant, or no host
			line = append(line, args[i], args[i+1])
		}
	}
	log.Log(level, text, line...)
}

// Note tells the journal of an event, where there is one, whatever stderr is: for what people type.
func Note(program, kind string, args ...any) {
	if !journal.Enabled() {
		return
	}
	s := &sender{name: program, level: hclog.Info, send: journal.Send, sink: logsink.NewQueue(func(uint64) {})}
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard})
	log.RegisterSink(s)
	Tell(log, kind, args...)
	s.sink.Close(noteTime)
}

// noteTime is how long a command waits for the journal.
const noteTime = time.Second

// Event logs an event of the trail with its details.
func Event(log hclog.Logger, kind string, details map[string]string, args ...any) {
	if kind == trail.KindSessionOpened && strings.HasPrefix(details["service"], "sudo") {
		kind = kindElevated
	}
	Tell(log, kind, append(args, pairs(details)...)...)
}

// kindElevated tells the session of an elevation from that of a login, which the trail does not.
const kindElevated = "session.elevated"

// maxDetail bounds one detail of an event in a line.
const maxDetail = 200

// pairs makes args of an event's details, in order. None of them becomes a field: a host writes them.
func pairs(details map[string]string) []any {
	args := make([]any, 0, 2*len(details))
	for _, k := range slices.Sorted(maps.Keys(details)) {
		value := details[k]
		if len(value) > maxDetail {
			value = strings.ToValidUTF8(value[:maxDetail], "") + "…"
		}
		if _, taken := fields[k]; taken {
			k = "its_" + k
		}
		args = append(args, k, value)
	}
	return args
}

// New makes a daemon's logger, called name in the journal, which never waits; end the sink when done.
// Where lines are text they go to w.
func New(o hclog.LoggerOptions, name string, w io.Writer) (hclog.Logger, *logsink.Sink) {
	native, err := journal.StderrIsJournalStream()
	if err != nil || !native || o.JSONFormat {
		sink := logsink.New(w)
		o.Output = sink
		return hclog.New(&o), sink
	}
	s := &sender{name: name, level: o.Level, send: journal.Send}
	s.sink = logsink.NewQueue(func(lost uint64) {
		s.deliver(hclog.Warn, fmt.Sprintf("%d log lines are lost: nobody took them", lost), nil)
	})
	o.Output = io.Discard
	log := hclog.NewInterceptLogger(&o)
	log.RegisterSink(s)
	return log, s.sink
}

// sender is a logger's way to the journal.
type sender struct {
	name  string
	level hclog.Level
	sink  *logsink.Sink
	send  func(message string, priority journal.Priority, vars map[string]string) error
}

// Accept implements hclog.SinkAdapter.
func (s *sender) Accept(name string, level hclog.Level, msg string, args ...any) {
	if level < s.level {
		return
	}
	var text strings.Builder
	if _, room, ok := strings.Cut(name, "."); ok {
		text.WriteString(room + ": ")
	}
	text.WriteString(msg)
	between, vars := ": ", make(map[string]string)
	for i := 0; i+1 < len(args); i += 2 {
		key, value := textOf(args[i]), textOf(args[i+1])
		if name, ok := fields[key]; ok && value != "" {
			vars[name] = clip(value)
		}
		if key == eventKey {
			if m, ok := byKind[value]; ok {
				vars["MESSAGE_ID"] = m.ID
			}
			continue
		}
		text.WriteString(between + key + "=" + quoted(value))
		between = " "
	}
	message := clip(text.String())
	s.sink.Put(func() { s.deliver(level, message, vars) })
}

func (s *sender) deliver(level hclog.Level, message string, vars map[string]string) {
	all := map[string]string{"SYSLOG_IDENTIFIER": s.name}
	maps.Copy(all, vars)
	_ = s.send(message, priority(level), all) // there is nobody to tell
}

func priority(level hclog.Level) journal.Priority {
	switch level {
	case hclog.Trace, hclog.Debug:
		return journal.PriDebug
	case hclog.Warn:
		return journal.PriWarning
	case hclog.Error:
		return journal.PriErr
	}
	return journal.PriInfo
}

func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case hclog.Format:
		if len(v) > 0 {
			return fmt.Sprintf(fmt.Sprint(v[0]), v[1:]...)
		}
		return ""
	}
	return fmt.Sprint(v)
}

// quoted keeps a value one word of one line.
func quoted(v string) string {
	plain := v != "" && !strings.ContainsFunc(v, func(r rune) bool {
		return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	})
	if plain {
		return v
	}
	return strconv.Quote(v)
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxMessage)], "�") }
