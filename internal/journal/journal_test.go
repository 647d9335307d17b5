package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/hashicorp/go-hclog"

	"github.com/curfew-access/curfew/internal/logsink"
)

// One id stands for one kind and one text, in the table and in the catalogue alike.
func TestCatalogueIsTheTable(t *testing.T) {
	text, err := os.ReadFile("../../packaging/catalog/curfew.catalog")
	if err != nil {
		t.Fatal(err)
	}
	entry := regexp.MustCompile(`(?m)^-- ([0-9a-f]{32})\nSubject: (.+)\nDefined-By: Curfew\nSupport: https://.+\n\n(\S.*)\n`)
	catalogue := make(map[string]string)
	for _, m := range entry.FindAllStringSubmatch(string(text), -1) {
		catalogue[m[1]] = m[2]
	}
	if n := strings.Count(string(text), "\n-- "); n != len(catalogue) {
		t.Errorf("the catalogue has %d entries, of which %d are whole and each other's", n, len(catalogue))
	}
	for variable := range strings.SplitSeq(strings.Join(
		regexp.MustCompile(`@\w+@`).FindAllString(string(text), -1), " "), " ") {
		found := false
		for _, field := range fields {
			found = found || variable == "@"+field+"@"
		}
		if !found {
			t.Errorf("the catalogue shows %s, which no line has", variable)
		}
	}
	kinds, texts := make(map[string]bool), make(map[string]bool)
	for _, m := range Messages {
		if catalogue[m.ID] != m.Text {
			t.Errorf("%s: the catalogue says %q, the table %q", m.Kind, catalogue[m.ID], m.Text)
		}
		delete(catalogue, m.ID)
		if kinds[m.Kind] || texts[m.Text] {
			t.Errorf("%s, %q stands twice", m.Kind, m.Text)
		}
		kinds[m.Kind], texts[m.Text] = true, true
	}
	for id, text := range catalogue {
		t.Errorf("the table lacks %s, %q", id, text)
	}
}

// sent is one line as the journal gets it.
type sent struct {
	message  string
	priority journal.Priority
	vars     map[string]string
}

func collect(level hclog.Level) (hclog.Logger, func() []sent) {
	var all []sent
	s := &sender{
		name: "curfew-test", level: level,
		send: func(message string, p journal.Priority, vars map[string]string) error {
			all = append(all, sent{message, p, vars})
			return errors.New("nobody is told")
		},
	}
	s.sink = logsink.NewQueue(func(uint64) {})
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "test", Level: level, Output: io.Discard})
	log.RegisterSink(s)
	return log, func() []sent {
		s.sink.Close(20 * time.Second)
		return all
	}
}

// Lines reach the journal with what they are about in fields of their own, and read as lines do.
func TestLinesHaveFields(t *testing.T) {
	log, end := collect(hclog.Info)
	log.Debug("not this")
	log.Named("stream").With("host", "web1").Error("it broke", "error", fmt.Errorf("two words\nand a line"))
	Event(log, "grant.applied", map[string]string{
		"until": "12:00", "grant": "forged", "event": "request.approved", "host": "forged",
		"long": strings.Repeat("x", 1000),
	}, "grant", "ab12", "request", "r1", "login", "", "n", 7)
	Event(log, "session.opened", map[string]string{"service": "sudo-i"})
	Tell(log, "login.denied", "login", "gus")
	Tell(log, "of.the.next.version")
	got := end()
	if len(got) != 5 {
		t.Fatalf("%d lines: %+v", len(got), got)
	}
	for i, want := range []struct {
		message  string
		priority journal.Priority
		vars     map[string]string
	}{
		{`stream: it broke: host=web1 error="two words\nand a line"`, journal.PriErr, map[string]string{"CURFEW_HOST": "web1"}},
		{
			"A grant is in force: grant=ab12 request=r1 n=7 its_event=request.approved its_grant=forged " +
				"its_host=forged long=" + strings.Repeat("x", maxDetail) + "… until=12:00", journal.PriInfo,
			map[string]string{
				"CURFEW_GRANT": "ab12", "CURFEW_REQUEST": "r1", "CURFEW_EVENT": "grant.applied",
				"MESSAGE_ID": byKind["grant.applied"].ID,
			},
		},
		{"An elevation has begun: service=sudo-i", journal.PriInfo, map[string]string{
			"CURFEW_EVENT": "session.elevated", "MESSAGE_ID": byKind["session.elevated"].ID,
		}},
		{"A login is refused: login=gus", journal.PriWarning, map[string]string{
			"CURFEW_LOGIN": "gus", "CURFEW_EVENT": "login.denied", "MESSAGE_ID": byKind["login.denied"].ID,
		}},
		{"of.the.next.version", journal.PriInfo, map[string]string{"CURFEW_EVENT": "of.the.next.version"}},
	} {
		want.vars["SYSLOG_IDENTIFIER"] = "curfew-test"
		if got[i].message != want.message || got[i].priority != want.priority ||
			fmt.Sprint(got[i].vars) != fmt.Sprint(want.vars) {
			t.Errorf("got  %+v\nwant %+v", got[i], want)
		}
	}
}

// Where there is no journal, lines are text.
func TestTextWithoutAJournal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "1:2") // somebody else's
	var out strings.Builder
	log, sink := New(hclog.LoggerOptions{Name: "enforce", Level: hclog.Info, DisableTime: true}, "curfew-enforce", &out)
	Tell(log, "grant.applied", "grant", "ab12")
	sink.Close(20 * time.Second)
	if want := "[INFO]  enforce: A grant is in force: event=grant.applied grant=ab12\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
